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
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from headpursuit.batches import SMALLER, Halving, by_condition, journaled, pad, plan_batches
from headpursuit.files import seed_for
from headpursuit.heads import Head
from headpursuit.models import Decoder
from headpursuit.reading import greedy, respond

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


class GumbelMax:
    """Samples each row: the token of the largest sum of log-probability and Gumbel noise has the
    model's distribution.

    A response then depends on its prompt and sample number alone, and not on which others share its
    batch. The noise does not depend on the condition, and a token has the same under each, so that
    a response changes where an intervention moves the probabilities, and not with every small
    change of any of them (as it does where one number is looked up in the distribution's running
    sum).
    """

    def __init__(self, noise: Noise, temperature: float, top_p: float):
        """Take the noise of a batch's rows and what reshapes the distribution before it."""
        self.noise = noise
        self.warpers: list[LogitsProcessor] = []
        if temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_p < 1:
            self.warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, logits: Tensor, samples: Tensor, step: int) -> Tensor:
        """Return each row's token; see :data:`headpursuit.reading.Pick`."""
        if step == 0:  # of the next conditions
            self.steps = self.noise.steps()
        scores = logits.float()
        for warp in self.warpers:
            scores = warp(None, scores)
        return (scores + next(self.steps).to(scores.device)[samples]).argmax(-1)


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

    Args:
        decoder: the model.
        tokenizer: for its padding token.
        prompts: token ids of each row.
        streams: each row's random numbers, for sampling.
        conditions: condition to the heads that are scaled.
        alpha: what the heads' writes are multiplied by.
        settings: the config's ``generation``.

    Returns:
        As :func:`headpursuit.reading.respond`.
    """
    ids, mask = pad(prompts, tokenizer.pad_token_id, left=True, device=decoder.device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    pick = greedy
    if settings["temperature"] > 0:
        width = decoder.model.get_output_embeddings().weight.shape[0]
        noise = Noise(streams, width, keep=_KEPT if len(conditions) > 1 else 0)
        pick = GumbelMax(noise, settings["temperature"], settings["top_p"])
    return respond(
        decoder,
        {"input_ids": ids, "attention_mask": mask, "position_ids": positions},
        conditions,
        alpha,
        settings["max_new_tokens"],
        end_tokens(decoder, tokenizer),
        settings["batch_tokens"],
        pick,
    )


def end_tokens(decoder: Decoder, tokenizer) -> list[int]:
    """Return the ids that end a response: the model's own, also for chat, and the tokenizer's."""
    model = decoder.model
    ends = {tokenizer.eos_token_id}
    # A chat model's end of turn often stands in its generation defaults alone.
    of_text = model.config.get_text_config()  # an image-text model has it there
    for declared in (of_text.eos_token_id, model.generation_config.eos_token_id):
        ends |= set(declared) if isinstance(declared, list) else {declared}
    return sorted(ends - {None})
