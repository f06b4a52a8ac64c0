"""Responses: batched generation whose outcome depends on the prompt, not on the batch."""

import hashlib
import json
import logging
from collections.abc import Sequence
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

from headpursuit.batches import SMALLER, Halving, pad, plan_batches
from headpursuit.files import seed_for, write_text
from headpursuit.models import Decoder

log = logging.getLogger(__name__)

TINY = np.finfo(np.float32).tiny  # an exponential number may be 0, whose logarithm is -inf

SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "sample": pa.int32(),
        "response": pa.string(),
        "n_tokens": pa.int32(),
        "stop_reason": pa.string(),
        "token_ids": pa.list_(pa.int32()),
    }
)


class GumbelMax(LogitsProcessor):
    """Samples each row with its own stream of random numbers: the token of the largest sum of
    log-probability and Gumbel noise has the model's distribution.

    It leaves one token possible, so that greedy decoding takes it. A response then depends on
    its prompt and sample number alone, and not on which others share its batch. The noise does
    not depend on the condition, and a token has the same under each, so that a response changes
    where an intervention moves the probabilities, and not with every small change of any of them
    (as it does where one number is looked up in the distribution's running sum).
    """

    def __init__(self, streams: Sequence[np.random.Generator]):
        """Take a stream for each row."""
        self.streams = streams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (rows x vocabulary) that are -inf but for the sampled token."""
        drawn = np.empty(scores.shape, dtype=np.float32)
        for stream, own in zip(self.streams, drawn, strict=True):
            stream.standard_exponential(dtype=np.float32, out=own)
        # The negative logarithm of an exponential number is a Gumbel number.
        noise = torch.from_numpy(drawn).to(scores.device).clamp_min_(TINY).log_()
        token = (scores.float() - noise).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


def stream(seed: int, prompt_id: str, sample: int) -> np.random.Generator:
    """Return the random numbers of one response, from its identity alone."""
    return np.random.default_rng(seed_for(seed, prompt_id, sample))


def generate(
    decoder: Decoder,
    tokenizer,
    prompts: pa.Table,
    settings: dict[str, Any],
    seed: int,
    journal: Path,
    identity: Any,
    part: int = 1,
    parts: int = 1,
) -> pa.Table:
    """Generate the responses to all prompts, or to a part of them.

    Batches are the same however many parts there are: a part takes every ``parts``-th.

    Args:
        decoder: the model, with its heads already scaled where that is wanted.
        tokenizer: its tokenizer.
        prompts: table with prompt_id and token_ids.
        settings: the config's ``generation``.
        seed: the config's seed.
        journal: file that keeps finished batches, so that a killed job goes on where it was.
        identity: whatever else decides the responses (model, heads, alpha); a journal of another
            identity is not used.
        part: which part, from 1.
        parts: how many there are.

    Returns:
        Table of :data:`SCHEMA`, in the order of the prompts, then samples.
    """
    ids = prompts["token_ids"].to_pylist()
    names = prompts["prompt_id"].to_pylist()
    jobs = [(i, sample) for i in range(len(ids)) for sample in range(settings["samples"])]
    steps = settings["max_new_tokens"]
    batches = plan_batches([len(ids[i]) for i, _ in jobs], settings["batch_tokens"], steps)
    fingerprint = hashlib.sha256(
        json.dumps([identity, settings, seed, names, ids], sort_keys=True).encode()
    ).hexdigest()
    done = read_journal(journal, fingerprint)
    if done:
        log.info("%d of %d batches are in the journal", len(done), len(batches))

    def respond(batch: Sequence[int]) -> list[tuple[list[int], str]]:
        rows = [jobs[j] for j in batch]
        streams = [stream(seed, names[i], sample) for i, sample in rows]
        return generate_batch(decoder, tokenizer, [ids[i] for i, _ in rows], streams, settings)

    work = Halving(
        respond,
        "generation.batch_tokens",
        lambda j: f"prompt {names[jobs[j][0]]} ({len(ids[jobs[j][0]])} tokens, and {steps} new)",
        f"Lower generation.max_new_tokens. {SMALLER}",
    )
    records: list[dict | None] = [None] * len(jobs)
    with journal.open("a", encoding="utf-8") as handle:
        own = range(part - 1, len(batches), parts)
        for number in tqdm(own, desc=journal.stem.lstrip("."), unit="batch"):
            batch = batches[number]
            if number not in done:
                done[number] = [row for piece in work(batch) for row in piece]
                print(json.dumps({"batch": number, "token_ids": done[number]}), file=handle)
                handle.flush()
            for j, (tokens, stop) in zip(batch, done[number], strict=True):
                records[j] = {
                    "prompt_id": names[jobs[j][0]],
                    "sample": jobs[j][1],
                    "response": tokenizer.decode(tokens, skip_special_tokens=True),
                    "n_tokens": len(tokens),
                    "stop_reason": stop,
                    "token_ids": tokens,
                }
    return pa.Table.from_pylist(list(filter(None, records)), schema=SCHEMA)


def read_journal(journal: Path, fingerprint: str) -> dict[int, list]:
    """Return the finished batches of a journal; start it anew if it is of another identity.

    What follows the last whole line, torn by a kill or damaged, is cut off. The file is replaced:
    a process that still writes to the old one, and a kill right now, do no harm.
    """
    header = json.dumps({"fingerprint": fingerprint}).encode() + b"\n"
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    whole, done = [header], {}
    for line in lines[1:] if lines[:1] == [header] else []:
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
            done[entry["batch"]] = entry["token_ids"]
        except (ValueError, TypeError, KeyError):
            break
        whole.append(line)
    write_text(journal, b"".join(whole).decode())
    return done


@torch.inference_mode()
def generate_batch(
    decoder: Decoder,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[np.random.Generator],
    settings: dict[str, Any],
) -> list[tuple[list[int], str]]:
    """Generate one response for each row of token ids.

    Args:
        decoder: the model.
        tokenizer: for its padding token.
        prompts: token ids of each row.
        streams: each row's random numbers, for sampling.
        settings: the config's ``generation``.

    Returns:
        For each row its new token ids, without the end token, and why it stopped: ``eos`` or
        ``length``.
    """
    ids, mask = pad(prompts, tokenizer.pad_token_id, left=True, device=decoder.device)
    stops = end_tokens(decoder, tokenizer)
    processors = LogitsProcessorList()
    if settings["temperature"] > 0:
        if settings["temperature"] != 1:
            processors.append(TemperatureLogitsWarper(float(settings["temperature"])))
        if settings["top_p"] < 1:
            processors.append(TopPLogitsWarper(settings["top_p"]))
        processors.append(GumbelMax(streams))
    # Only what is said here: a model's own generation defaults must not slip in.
    decoder.model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=settings["max_new_tokens"],
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )
    # The prompts' last positions are a view, for which the unembedding, the widest product, would
    # be read once for each row.
    head = decoder.model.get_output_embeddings()
    whole = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(),))
    try:
        new = decoder.model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=processors
        )[:, ids.shape[1] :].tolist()
    finally:
        whole.remove()
    return [until_stop(row, stops) for row in new]


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
