"""Responses to prompts and to questions about images, of the model as it is and scaled."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from torch import Tensor
from tqdm import tqdm

from headpursuit.method.batches import SMALLER, Halving, by_condition, journaled, pad, plan_batches
from headpursuit.method.models import Decoder
from headpursuit.method.reading import Conditions, Pick, end_tokens, greedy, respond
from headpursuit.method.sampling import KEPT, GumbelMax, Noise, stream
from headpursuit.run.files import finished, read_parquet, write_together

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    {
        "condition": pa.string(),
        "sample_id": pa.string(),
        "repeat": pa.int32(),
        "response": pa.string(),
        "n_tokens": pa.int32(),
        "stop_reason": pa.string(),
        "token_ids": pa.list_(pa.int32()),
    }
)


class Reader(Protocol):
    """Samples as a model reads them. A row begins with its place, sample id and repeat."""

    tokenizer: Any
    key: str  # that sets the size of batches
    remedy: str  # what helps where a single row is too much

    def batches(self) -> Iterator[list[Any]]:
        """Yield rows, batch by batch, always the same."""

    def name(self, row: Any) -> str:
        """Say what a row is, and how large."""

    def encode(self, rows: Sequence[Any]) -> Mapping[str, Tensor]:
        """Return what the model's forward pass takes, padded on the left."""


class Prompts:
    """Prompts of a file, in batches of about the same length."""

    key, remedy = "compute.batch_tokens.responding", f"Lower max_new_tokens. {SMALLER}"

    def __init__(
        self,
        decoder: Decoder,
        tokenizer,
        path: str | Path,
        generation: Mapping[str, Any],
        batch_tokens: int,
    ):
        """Take the model, its tokenizer, the file, and what decides the batches."""
        self.decoder, self.tokenizer = decoder, tokenizer
        table = read_parquet(path, ["sample_id", "token_ids"])
        self.names, self.ids = (table[key].to_pylist() for key in ("sample_id", "token_ids"))
        self.repeats, self.new = generation["samples"], generation["max_new_tokens"]
        self.batch_tokens = batch_tokens

    def batches(self) -> Iterator[list[tuple[int, str, int]]]:
        """Yield (place, sample_id, repeat) of each row, the longest first."""
        rows = [(name, repeat) for name in self.names for repeat in range(self.repeats)]
        lengths = [len(ids) for ids in self.ids for _ in range(self.repeats)]
        for batch in plan_batches(lengths, self.batch_tokens, self.new):
            yield [(place, *rows[place]) for place in batch]

    def _ids(self, row: tuple[int, str, int]) -> list[int]:
        return self.ids[row[0] // self.repeats]

    def name(self, row: tuple[int, str, int]) -> str:
        """Say which prompt, and its length."""
        return f"prompt {row[1]} ({len(self._ids(row))} tokens, and {self.new} new)"

    def encode(self, rows: Sequence[tuple[int, str, int]]) -> Mapping[str, Tensor]:
        """Return token ids, attention mask and positions."""
        ids, mask = pad(
            [self._ids(row) for row in rows],
            self.tokenizer.pad_token_id,
            left=True,
            device=self.decoder.device,
        )
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def picker(
    decoder: Decoder,
    rows: Sequence[tuple[int, str, int]],
    generation: Mapping[str, Any],
    seed: int,
    conditions: Conditions,
) -> Pick:
    """Return what chooses a batch's tokens: the likeliest, or samples of the same random numbers
    under every condition."""
    if generation["temperature"] == 0:
        return greedy
    streams = [stream(seed, name, repeat) for _, name, repeat in rows]
    width = decoder.model.get_output_embeddings().weight.shape[0]
    noise = Noise(streams, width, keep=KEPT if len(conditions) > 1 else 0)
    return GumbelMax(noise, generation["temperature"], generation["top_p"])


def write_responses(
    path: str | Path,
    decoder: Decoder,
    reader: Reader,
    conditions: Conditions,
    alpha: float,
    generation: Mapping[str, Any],
    batch_tokens: int,
    seed: int,
    identity: Mapping[str, Any],
    part: tuple[int, int] = (1, 1),
) -> None:
    """Write the responses to a part of the samples under each condition.

    Conditions that the file holds already are kept. Finished batches of the others are kept in a
    journal beside the file until it is there, so that a killed job goes on where it was.

    Args:
        path: Parquet file of :data:`SCHEMA`: in the order of the conditions, then of the samples.
        decoder: the model.
        reader: the samples.
        conditions: condition to the heads that are scaled; none for the model as it is.
        alpha: what the heads' writes are multiplied by.
        generation: the experiment's ``generation``.
        batch_tokens: see :func:`headpursuit.method.reading.respond`.
        seed: the config's seed.
        identity: whatever else decides the responses; it is stored in the file's metadata, and a
            journal of another identity is not used.
        part: number, from 1, and how many there are; a part takes every so many-th batch, so that
            batches are the same however many parts there are.
    """
    stops = end_tokens(decoder, reader.tokenizer)
    path = Path(path)
    made_with = {**identity, "alpha": alpha, "generation": generation, "seed": seed}
    kept = finished(path, made_with, conditions)
    there = set() if kept is None else set(kept["condition"].to_pylist())
    pending = {name: heads for name, heads in conditions.items() if name not in there}
    if there:
        log.info("%d of %d conditions are there already", len(there), len(conditions))

    def write(rows: Sequence[Any]) -> dict[str, list[tuple[list[int], str]]]:
        return respond(
            decoder,
            reader.encode(rows),
            pending,
            alpha,
            generation["max_new_tokens"],
            stops,
            batch_tokens,
            picker(decoder, rows, generation, seed, pending),
        )

    work = Halving(write, reader.key, reader.name, reader.remedy)
    number, parts = part
    own = (pair for pair in enumerate(reader.batches()) if pair[0] % parts == number - 1)
    journal = path.with_name(f".{path.stem}.journal")
    decides = [made_with, list(pending.items()), batch_tokens]
    bar = tqdm(own if pending else [], unit="batch")
    done = journaled(journal, decides, bar, lambda rows: by_condition(work(rows)))
    found = [
        (condition, *row[:3], *response)
        for rows, responses in done
        for condition in pending
        for row, response in zip(rows, responses[condition], strict=True)
    ]
    records = [
        {
            "condition": condition,
            "sample_id": name,
            "repeat": repeat,
            "response": reader.tokenizer.decode(tokens, skip_special_tokens=True),
            "n_tokens": len(tokens),
            "stop_reason": stop,
            "token_ids": tokens,
        }
        for condition, _, name, repeat, tokens, stop in sorted(found, key=lambda row: row[:2])
    ]
    table = pa.Table.from_pylist(records, schema=SCHEMA)
    write_together(path, [kept, table], conditions, made_with)
    journal.unlink()
