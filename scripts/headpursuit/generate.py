"""Responses: batched generation whose outcome depends on the prompt, not on the batch."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from headpursuit.batches import SMALLER, Halving, by_condition, journaled, pad, plan_batches
from headpursuit.files import seed_for
from headpursuit.heads import Head
from headpursuit.models import Decoder, scaled_heads
from headpursuit.reading import first_edited, read, read_again

TINY = np.finfo(np.float32).tiny  # an exponential number may be 0, whose logarithm is -inf
_KEPT = 2**27  # numbers of noise that a batch keeps for its other conditions, 512 MiB

SCHEMA = pa.schema(
    {
        "condition": pa.string(),
        "prompt_id": pa.string(),
        "sample": pa.int32(),
        "response": pa.string(),
        "n_tokens": pa.int32(),
        "stop_reason": pa.string(),
        "token_ids": pa.list_(pa.int32()),
    }
)


class Noise:
    """Gumbel noise for the rows of a batch, the same for each of its readers."""

    def __init__(self, streams: Sequence[np.random.Generator], width: int, keep: int = _KEPT):
        """Take a stream for each row, the tokens there are, and how many numbers may be kept."""
        self.streams, self.width = list(streams), width
        self.kept: list[Tensor] = []
        self.most = keep // (len(self.streams) * width)  # steps

    def steps(self) -> Iterator[Tensor]:
        """Yield noise for each row's first new token, for its second, ...: rows x tokens.

        The first steps' is drawn once and kept; what follows, each reader draws anew.
        """
        yield from self.kept
        while len(self.kept) < self.most:
            self.kept.append(_gumbel(self.streams, self.width))
            yield self.kept[-1]
        own = deepcopy(self.streams)
        while True:
            yield _gumbel(own, self.width)


def _gumbel(streams: Sequence[np.random.Generator], width: int) -> Tensor:
    drawn = np.empty((len(streams), width), dtype=np.float32)
    for stream, own in zip(streams, drawn, strict=True):
        stream.standard_exponential(dtype=np.float32, out=own)
    # The negative logarithm of an exponential number is a Gumbel number.
    return torch.from_numpy(drawn).clamp_min_(TINY).log_().neg_()


class GumbelMax(LogitsProcessor):
    """Samples each row: the token of the largest sum of log-probability and Gumbel noise has the
    model's distribution.

    It leaves one token possible, so that greedy decoding takes it. A response then depends on
    its prompt and sample number alone, and not on which others share its batch. The noise does
    not depend on the condition, and a token has the same under each, so that a response changes
    where an intervention moves the probabilities, and not with every small change of any of them
    (as it does where one number is looked up in the distribution's running sum).
    """

    def __init__(self, steps: Iterator[Tensor]):
        """Take the noise of a batch's rows, step by step (:class:`Noise`)."""
        self.steps = steps

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (rows x vocabulary) that are -inf but for the sampled token."""
        token = (scores.float() + next(self.steps).to(scores.device)).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


def stream(seed: int, prompt_id: str, sample: int) -> np.random.Generator:
    """Return the random numbers of one response, from its identity alone."""
    return np.random.default_rng(seed_for(seed, prompt_id, sample))


def generate(
    decoder: Decoder,
    tokenizer,
    prompts: pa.Table,
    conditions: Mapping[str, Sequence[Head]],
    alpha: float,
    settings: dict[str, Any],
    seed: int,
    journal: Path,
    identity: Any,
    part: int = 1,
    parts: int = 1,
) -> pa.Table:
    """Generate the responses to all prompts, or to a part of them, under each condition.

    Batches are the same however many parts there are: a part takes every ``parts``-th.

    Args:
        decoder: the model.
        tokenizer: its tokenizer.
        prompts: table with prompt_id and token_ids.
        conditions: condition to the heads that are scaled; none for the model as it is.
        alpha: what the heads' writes are multiplied by.
        settings: the config's ``generation``.
        seed: the config's seed.
        journal: file that keeps finished batches, so that a killed job goes on where it was.
        identity: whatever else decides the responses (the model); a journal of another identity
            is not used.
        part: which part, from 1.
        parts: how many there are.

    Returns:
        Table of :data:`SCHEMA`, in the order of the conditions, the prompts, then samples.
    """
    ids = prompts["token_ids"].to_pylist()
    names = prompts["prompt_id"].to_pylist()
    jobs = [(i, sample) for i in range(len(ids)) for sample in range(settings["samples"])]
    steps = settings["max_new_tokens"]
    batches = plan_batches([len(ids[i]) for i, _ in jobs], settings["batch_tokens"], steps)
    decides = [identity, list(conditions.items()), alpha, settings, seed, names, ids]

    def respond(batch: Sequence[int]) -> dict[str, list[tuple[list[int], str]]]:
        rows = [jobs[j] for j in batch]
        streams = [stream(seed, names[i], sample) for i, sample in rows]
        asked = [ids[i] for i, _ in rows]
        return generate_batch(decoder, tokenizer, asked, streams, conditions, alpha, settings)

    work = Halving(
        respond,
        "generation.batch_tokens",
        lambda j: f"prompt {names[jobs[j][0]]} ({len(ids[jobs[j][0]])} tokens, and {steps} new)",
        f"Lower generation.max_new_tokens. {SMALLER}",
    )
    own = list(enumerate(batches))[part - 1 :: parts]
    bar = tqdm(own, desc=journal.stem.lstrip("."), unit="batch")
    done = list(journaled(journal, decides, bar, lambda batch: by_condition(work(batch))))
    records = [
        {
            "condition": condition,
            "prompt_id": names[jobs[j][0]],
            "sample": jobs[j][1],
            "response": tokenizer.decode(tokens, skip_special_tokens=True),
            "n_tokens": len(tokens),
            "stop_reason": stop,
            "token_ids": tokens,
        }
        for condition in conditions
        for j, (tokens, stop) in sorted(
            pair
            for batch, responses in done
            for pair in zip(batch, responses[condition], strict=True)
        )
    ]
    return pa.Table.from_pylist(records, schema=SCHEMA)


@torch.inference_mode()
def generate_batch(
    decoder: Decoder,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[np.random.Generator],
    conditions: Mapping[str, Sequence[Head]],
    alpha: float,
    settings: dict[str, Any],
) -> dict[str, list[tuple[list[int], str]]]:
    """Generate one response for each row of token ids under each condition.

    The conditions share what their edits do not reach: the layers below the first scaled head, for
    all tokens of the prompts but the last, and the random numbers.

    Args:
        decoder: the model.
        tokenizer: for its padding token.
        prompts: token ids of each row.
        streams: each row's random numbers, for sampling.
        conditions: condition to the heads that are scaled.
        alpha: what the heads' writes are multiplied by.
        settings: the config's ``generation``.

    Returns:
        By condition, for each row its new token ids, without the end token, and why it stopped:
        ``eos`` or ``length``.
    """
    ids, mask = pad(prompts, tokenizer.pad_token_id, left=True, device=decoder.device)
    stops = end_tokens(decoder, tokenizer)
    width = decoder.model.get_output_embeddings().weight.shape[0]
    noise = Noise(streams, width, keep=_KEPT if len(conditions) > 1 else 0)
    firsts = first_edited(decoder, conditions)
    plain = None
    if ids.shape[1] > 1:
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        start = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        start = {name: values[:, :-1] for name, values in start.items()}
        plain = read(decoder, firsts.values(), **start)
    # Only what is said here: a model's own generation defaults must not slip in.
    decoder.model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=settings["max_new_tokens"],
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )
    responses = {}
    for name, heads in conditions.items():
        with scaled_heads(decoder, heads, alpha):
            whole = decoder.model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=read_again(decoder, plain, firsts[name])[0] if plain else None,
                logits_processor=_processors(settings, noise),
            )
        new = whole[:, ids.shape[1] :].tolist()
        responses[name] = [until_stop(row, stops) for row in new]
    return responses


def _processors(settings: dict[str, Any], noise: Noise) -> LogitsProcessorList:
    """Return what turns logits into the scores whose largest is taken."""
    processors = LogitsProcessorList()
    if settings["temperature"] > 0:
        if settings["temperature"] != 1:
            processors.append(TemperatureLogitsWarper(float(settings["temperature"])))
        if settings["top_p"] < 1:
            processors.append(TopPLogitsWarper(settings["top_p"]))
        processors.append(GumbelMax(noise.steps()))
    return processors


def end_tokens(decoder: Decoder, tokenizer) -> list[int]:
    """Return the ids that end a response: the model's own, also for chat, and the tokenizer's."""
    model = decoder.model
    ends = {tokenizer.eos_token_id}
    # A chat model's end of turn often stands in its generation defaults alone.
    of_text = model.config.get_text_config()  # an image-text model has it there
    for declared in (of_text.eos_token_id, model.generation_config.eos_token_id):
        ends |= set(declared) if isinstance(declared, list) else {declared}
    return sorted(ends - {None})


def until_stop(row: list[int], stops: Sequence[int]) -> tuple[list[int], str]:
    """Return a row up to its first end token, and whether there is one: ``eos`` or ``length``."""
    for position, token in enumerate(row):
        if token in stops:
            return row[:position], "eos"
    return row, "length"
