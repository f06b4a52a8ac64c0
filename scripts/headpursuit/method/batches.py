"""Batches: which rows share one, padding, smaller ones where memory does not suffice, a journal."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from headpursuit.run.files import UserError, atomic, parquet_metadata, read_parquet, write_parquet

log = logging.getLogger(__name__)
T = TypeVar("T")

# What allocators say where memory does not suffice; the last are the system's own words.
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc",
             "ALLOC_FAILED", "CUDNN_STATUS_NOT_SUPPORTED", "Cannot allocate memory")  # fmt: skip


def plan_batches(lengths: Sequence[int], batch_tokens: int, extra: int = 0) -> list[list[int]]:
    """Group sequences of similar length so that a padded batch holds at most ``batch_tokens``.

    Each row will gain ``extra`` tokens; a batch has one row at the least. Returns lists of indices
    into ``lengths``, longest batches first, so that a lack of memory shows at the start.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        width = lengths[batches[-1][0]] + extra if batches else 0
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


class Room(NamedTuple):
    """What the rows of one loop may take in all, and what a token of a row and a row take."""

    whole: float  # bytes; or tokens, of which each takes 1
    token: float = 1
    row: float = 0

    def holds(self, rows: int, tokens: int) -> bool:
        """Say whether there is room for so many rows of so many tokens each."""
        return rows * (tokens * self.token + self.row) <= self.whole


class Asked(NamedTuple):
    """A row of a loop: a sample, of a batch that is read at once, under a condition."""

    batch: int
    sample: Any
    condition: str


def plan_loops(
    batches: Iterable[Sequence[Any]],
    conditions: Sequence[str],
    tokens: Callable[[Sequence[Any]], int],
    room: Room,
) -> Iterator[list[Asked]]:
    """Yield which rows are written on together: as many batches and conditions as there is room.

    A batch's samples stay together under each condition, in the order of ``conditions``. ``tokens``
    says how many the longest row of a batch has in the end.
    """
    loop: list[Asked] = []
    widest = 0
    for number, samples in enumerate(batches):
        width = tokens(samples)
        for condition in conditions:
            if loop and not room.holds(len(loop) + len(samples), max(widest, width)):
                yield loop
                loop, widest = [], 0
            loop += [Asked(number, sample, condition) for sample in samples]
            widest = max(widest, width)
    if loop:
        yield loop


def read_together(loop: Sequence[Asked]) -> list[tuple[list[Any], list[str]]]:
    """Return a loop's samples, batch by batch, and the conditions that they are read under."""
    found: dict[tuple, tuple[list[Any], list[str]]] = {}
    for (batch, condition), own in groupby(loop, key=lambda row: (row.batch, row.condition)):
        samples = [row.sample for row in own]
        # A loop that was cut may have only some of a batch's samples under one of them.
        alike = batch, samples[0][:3], len(samples)
        found.setdefault(alike, (samples, []))[1].append(condition)
    return list(found.values())


def pad(rows: Sequence[Sequence[int]], pad_id: int, left: bool, device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, rows x longest row."""
    side = "left" if left else "right"
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    padded = pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side=side)
    return padded.to(device), mask.to(device)


class Halving:
    """Does work batch by batch and, once memory has not sufficed, in smaller batches.

    A batch that fails is done again in halves, and so is every later one, down to single rows.
    """

    def __init__(self, work: Callable[[Sequence[Any]], Any], name: Callable[[Any], str]):
        """Take what is done with a batch's rows, and what says which row it is, and how large."""
        self.work, self.name, self.pieces = work, name, 1

    def __call__(self, rows: Sequence[Any]) -> Iterator[Any]:
        """Yield what the work gives for each piece of a batch, in order.

        Raises:
            UserError: if memory does not suffice for a single row.
        """
        waiting = _cut(rows, self.pieces)
        while waiting:
            done, lack = self._attempt(waiting[0])
            if lack is None:
                waiting.pop(0)
                yield done
                continue
            clear_device_cache(garbage_collection=True)
            if len(waiting[0]) == 1:
                raise UserError(
                    f"Memory does not suffice for {self.name(waiting[0][0])}, even alone: {lack}. "
                    "Leave it out, shorten it, lower max_new_tokens, or take a smaller model or "
                    "models.*.dtype."
                )
            log.warning(
                "memory does not suffice for a batch of %d (%s): going on with half; smaller "
                "compute.batch_tokens, batch_images or memory_gb save the attempt",
                len(waiting[0]), lack,
            )  # fmt: skip
            self.pieces *= 2
            waiting = [half for piece in waiting for half in _cut(piece, 2)]

    def _attempt(self, rows: Sequence[Any]) -> tuple[Any, str | None]:
        """Return what the work gives, or what memory lacked; the error's frames are let go."""
        try:
            return self.work(rows), None
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not is_out_of_memory(error):
                raise
            return None, str(error).partition("\n")[0] or "memory ran out"


def _cut(rows: Sequence[Any], pieces: int) -> list[Sequence[Any]]:
    size = -(-len(rows) // pieces)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory did not suffice."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY)


Plan = Callable[[Iterable[Any], Mapping[str, Any]], Iterable[Any]]


def as_they_are(batches: Iterable[Any], conditions: Mapping[str, Any]) -> Iterable[Any]:
    """Measure each batch under all conditions."""
    return batches


@dataclass(frozen=True)
class PartFile:
    """A file of what a part of the samples gives under each of several conditions.

    A part takes every so many-th batch, so that batches are the same however many parts there are.

    Attributes:
        path: the Parquet file, with condition, sample_id and repeat.
        settings: whatever decides its rows but the condition; it is stored in the file.
        batch_tokens: tokens of a batch, padding included.
        part: number, from 1, and how many there are.
        room: of the rows that are written together; None is that of a batch.
        others: files of the same kind, of which some may hold the same conditions.
    """

    path: Path
    settings: Mapping[str, Any]
    batch_tokens: int
    part: tuple[int, int] = (1, 1)
    room: Room | None = None
    others: Sequence[Path] = ()

    @property
    def journal(self) -> Path:
        """The file that keeps the batches of a job that is under way or was killed."""
        return self.path.with_name(f".{self.path.stem}.journal")

    def add(
        self,
        schema: pa.Schema,
        conditions: Mapping[str, Sequence[Any]],
        batches: Iterable[Any],
        measure: Callable[[Sequence[Any], Mapping[str, Sequence[Any]]], list[dict[str, Any]]],
        name: Callable[[Any], str],
        plan: Plan = as_they_are,
        **facts: Any,
    ) -> None:
        """Write the rows under the conditions, in their order, then that of the samples.

        Conditions that the file or one of the others holds, the same under the same settings, are
        taken from there, whatever their names. Finished batches are kept in a journal beside the
        file until it is there.

        Args:
            schema: of the table.
            conditions: what is scaled, by the condition's name, as JSON can hold it.
            batches: of samples, always the same.
            measure: takes samples and conditions and returns rows of the table.
            name: see :class:`Halving`.
            plan: what makes batches of this part, and conditions, into those that are measured.
            facts: stored in the file, too.
        """
        number, parts = self.part
        settings = {**self.settings, "part": self.part}
        if parts > 1:  # the size of batches decides which samples are in a part
            settings["batch_tokens"] = self.batch_tokens
        facts = {"identity": settings, "conditions": dict(conditions), **facts}
        held = self._held(facts, schema)
        pending = {name: own for name, own in conditions.items() if name not in held}
        own = islice(batches, number - 1, None, parts) if pending else ()
        work = Halving(lambda rows: measure(rows, pending), name)
        decides = [settings, self.batch_tokens, self.room, list(pending.items())]
        planned = enumerate(tqdm(plan(own, pending), unit="batch"))
        done = journaled(self.journal, decides, planned, lambda rows: list(chain(*work(rows))))
        new = pa.Table.from_pylist(list(chain(*done)), schema=schema)
        table = pa.concat_tables([*held.values(), new])
        order = pc.index_in(table["condition"], pa.array(list(conditions), pa.string()))
        by = [(name, "ascending") for name in ("order", "sample_id", "repeat")]
        table = table.append_column("order", order).sort_by(by).drop_columns("order")
        write_parquet(self.path, table, facts)
        self.journal.unlink()

    def _held(self, facts: Mapping[str, Any], schema: pa.Schema) -> dict[str, pa.Table]:
        """Return the rows of each condition that is there already."""
        facts = json.loads(json.dumps(facts))  # as they are stored
        lacking = {name: _whatever_order(own) for name, own in facts["conditions"].items()}
        held: dict[str, pa.Table] = {}
        # A killed job goes on with the conditions of its journal, whatever others hold by now.
        others = () if self.journal.exists() else self.others
        for path in filter(Path.exists, [self.path, *others]):
            if not lacking:
                break
            try:
                there = parquet_metadata(path, ["identity", "conditions"])
                if there["identity"] != facts["identity"]:
                    continue
                theirs = {_whatever_order(own): name for name, own in there["conditions"].items()}
                same = {name: theirs[own] for name, own in lacking.items() if own in theirs}
                if not same:
                    continue
                found = read_parquet(path, None, [("condition", "in", list(same.values()))])
            except UserError:  # damaged: it is made anew
                continue
            log.info("%d of %d conditions are in %s", len(same), len(facts["conditions"]), path)
            for name, other in same.items():
                rows = found.filter(pc.field("condition") == other).drop_columns("condition")
                names = pa.array([name] * len(rows), pa.string())
                held[name] = rows.add_column(0, "condition", names).cast(schema)
                del lacking[name]
        return held


def _whatever_order(condition: Sequence[Any]) -> str:
    """Return a condition as text that is the same whatever the order of its heads."""
    return str([sorted(part) if isinstance(part, list) else part for part in condition])


class InMemory:
    """What would be such a file, as a ``table`` in memory, without a journal."""

    def __init__(self, settings: Mapping[str, Any], batch_tokens: int):
        """Take what decides the rows, and tokens of a batch."""
        self.settings, self.batch_tokens, self.room = settings, batch_tokens, None

    def add(self, schema, conditions, batches, measure, name, plan=as_they_are, **facts) -> None:
        """Make the table, as :meth:`PartFile.add` makes the file."""
        work = Halving(lambda rows: measure(rows, conditions), name)
        planned = tqdm(plan(batches, conditions), unit="batch")
        done = chain.from_iterable(map(work, planned))
        self.table = pa.Table.from_pylist(list(chain(*done)), schema=schema)


def journaled(
    journal: Path, decides: Any, batches: Iterable[tuple[int, T]], work: Callable[[T], Any]
) -> Iterator[Any]:
    """Do work batch by batch and keep each result on disk, so that a killed job goes on there.

    Args:
        journal: its file, for the caller to remove. One of another ``decides`` is begun anew.
        decides: everything that the results depend on, as JSON.
        batches: each batch's number, which stays the same from run to run, and its rows.
        work: takes a batch's rows and returns JSON.

    Yields:
        Each batch's result, in the order of the batches, whether computed or read.
    """
    text = json.dumps(decides, sort_keys=True)
    header = json.dumps({"fingerprint": hashlib.sha256(text.encode()).hexdigest()})
    results = _resume(journal, header.encode() + b"\n")
    if results:
        log.info("%d finished batches are in the journal", len(results))
    with journal.open("a") as handle:
        for number, rows in batches:
            if number not in results:
                line = json.dumps({"batch": number, "result": work(rows)})
                handle.write(f"{line}\n")
                handle.flush()
                results[number] = json.loads(line)["result"]
            yield results[number]


def _resume(journal: Path, header: bytes) -> dict[int, Any]:
    """Keep the lines of a journal with this header, and return each batch's result.

    The first that is torn or damaged, and what follows it, are left out. The file is replaced: a
    process that still writes to the old one, and a kill right now, do no harm.
    """
    results: dict[int, Any] = {}
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.touch()
    with atomic(journal) as part, part.open("wb") as new, journal.open("rb") as old:
        new.write(header)
        for line in old if old.readline() == header else ():
            try:
                entry = json.loads(line) if line.endswith(b"\n") else {}
                results[entry["batch"]] = entry["result"]
            except (ValueError, TypeError, KeyError):
                break
            new.write(line)
    return results
