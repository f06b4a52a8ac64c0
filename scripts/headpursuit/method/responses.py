"""Responses to prompts and to questions about images, of the model as it is and scaled."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from torch import Tensor

from headpursuit.method.batches import (
    Asked,
    PartFile,
    Room,
    pad,
    plan_batches,
    plan_loops,
    read_together,
)
from headpursuit.method.decoder import Decoder
from headpursuit.method.reading import Begun, Conditions
from headpursuit.method.sampling import GumbelMax, greedy, stream
from headpursuit.method.writing import Pick, Writing, ask, end_tokens, respond

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


class Prompts:
    """Prompts, in batches of about the same length.

    Like :class:`headpursuit.method.vision.Images` it has a tokenizer, gives batches of rows, which
    begin with place, sample_id and repeat, always the same, encodes rows for the model, padded on
    the left, and says what a row is and how many tokens a batch's longest has.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer,
        prompts: pa.Table,
        generation: Mapping[str, Any],
        batch_tokens: int,
    ):
        """Take the model, its tokenizer, a table of prompts, and what decides the batches."""
        self.decoder, self.tokenizer = decoder, tokenizer
        self.names, self.ids = (prompts[key].to_pylist() for key in ("sample_id", "token_ids"))
        self.repeats, self.new = generation["samples"], generation["max_new_tokens"]
        self.batch_tokens = batch_tokens

    def batches(self) -> Iterator[list[tuple[int, str, int]]]:
        """Yield (place, sample_id, repeat) of each row, the longest first."""
        rows = [
            (place, name, repeat)
            for place, name in enumerate(self.names)
            for repeat in range(self.repeats)
        ]
        lengths = [len(self.ids[place]) for place, *_ in rows]
        for batch in plan_batches(lengths, self.batch_tokens, self.new):
            yield [rows[i] for i in batch]

    def name(self, row: tuple[int, str, int]) -> str:
        """Say which prompt, and its length."""
        return f"prompt {row[1]} ({len(self.ids[row[0]])} tokens, and {self.new} new)"

    def longest(self, rows: Sequence[tuple[int, str, int]]) -> int:
        """Return the tokens of the longest prompt."""
        return max(len(self.ids[place]) for place, *_ in rows)

    def encode(self, rows: Sequence[tuple[int, str, int]]) -> Mapping[str, Tensor]:
        """Return token ids, attention mask and positions."""
        own = [self.ids[place] for place, *_ in rows]
        ids, mask = pad(own, self.tokenizer.pad_token_id, True, self.decoder.device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def _picker(rows: Sequence[tuple], settings: Mapping[str, Any]) -> Pick:
    """Return what chooses the tokens of a loop's rows: the likeliest, or samples."""
    generation, seed = settings["generation"], settings["seed"]
    if generation["temperature"] == 0:
        return greedy
    streams = [stream(seed, name, repeat, generation["seed"]) for _, name, repeat, *_ in rows]
    return GumbelMax(streams, generation["temperature"], generation["top_p"])


def write_responses(file: PartFile, decoder: Decoder, reader: Any, conditions: Conditions) -> None:
    """Write the responses to a part of the samples under each condition.

    Args:
        file: of :data:`SCHEMA`; its settings hold ``generation`` (the experiment's) and ``seed``
            (the config's).
        decoder: the model.
        reader: the samples, :class:`Prompts` or :class:`headpursuit.method.vision.Images`.
        conditions: what is scaled, by the condition's name.
    """
    stops = end_tokens(decoder, reader.tokenizer)
    new = file.settings["generation"]["max_new_tokens"]
    room = file.room or Room(file.batch_tokens)

    def plan(batches: Iterator[Sequence[tuple]], pending: Conditions) -> Iterator[list[Asked]]:
        names = sorted(pending, key=lambda name: pending[name].lowest)
        return plan_loops(batches, names, lambda rows: reader.longest(rows) + new, room)

    last: dict[Any, Begun] = {}  # of which later loops may have more conditions

    def begun(rows: Sequence[tuple], pending: Conditions) -> Begun:
        key = rows[0][:3], len(rows)
        if key not in last:
            last.clear()
            last[key] = ask(decoder, reader.encode(rows), pending)
        return last[key]

    def write(loop: Sequence[Asked], pending: Conditions) -> list[dict[str, Any]]:
        together = read_together(loop)
        pick = _picker([row for own, _ in together for row in own], file.settings)
        asked = ((begun(own, pending), names) for own, names in together)
        found = respond(decoder, asked, Writing(new, stops, pick), file.batch_tokens)
        return [
            {
                "condition": condition,
                "sample_id": row[1],
                "repeat": row[2],
                "response": reader.tokenizer.decode(tokens, skip_special_tokens=True),
                "n_tokens": len(tokens),
                "stop_reason": stop,
                "token_ids": tokens,
            }
            for (own, _), by_condition in zip(together, found, strict=True)
            for condition, responses in by_condition.items()
            for row, (tokens, stop) in zip(own, responses, strict=True)
        ]

    batches = reader.batches()
    file.add(SCHEMA, conditions, batches, write, lambda asked: reader.name(asked.sample), plan)
