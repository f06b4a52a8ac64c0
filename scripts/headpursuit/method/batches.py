"""Batches: which rows share one, padding, smaller ones where memory does not suffice, a journal."""

import gc
import hashlib
import json
import logging
import re
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from headpursuit.run.files import UserError, atomic

log = logging.getLogger(__name__)
T = TypeVar("T")

# What allocators say that accelerate does not know; the last are the system's own words.
NO_MEMORY = ("not enough memory", "bad_alloc", "ALLOC_FAILED", "Cannot allocate memory")
# What helps where a single row of text is too much.
SMALLER = "Leave out long prompts, or take a smaller model or models.*.dtype."


def plan_batches(lengths: Sequence[int], batch_tokens: int, extra: int = 0) -> list[list[int]]:
    """Group sequences of similar length so that a padded batch holds at most ``batch_tokens``.

    Args:
        lengths: tokens of each sequence.
        batch_tokens: limit of rows x (longest row + extra); a batch has one row at the least.
        extra: tokens that each row will gain.

    Returns:
        Lists of indices into ``lengths``; every index once, longest batches first, so that a
        lack of memory shows at the start.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        width = lengths[batches[-1][0]] + extra if batches else 0
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def pad(rows: Sequence[Sequence[int]], pad_id: int, left: bool, device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, rows x longest row."""
    width = max(map(len, rows))
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where], mask[i, where] = row, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


class Halving:
    """Does work batch by batch and, once memory has not sufficed, in smaller batches.

    A batch that fails is done again in halves, and so is every later one, down to single rows.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Any]], Any],
        key: str,
        name: Callable[[Any], str],
        remedy: str,
    ):
        """Take what is done with a batch, and what is said where memory does not suffice.

        Args:
            work: takes the rows of a batch; nothing of a failed call may remain.
            key: the config key that sets the size of batches.
            name: what a row is, and how large.
            remedy: what helps where a single row is too much.
        """
        self.work, self.key, self.name, self.remedy = work, key, name, remedy
        self.pieces = 1

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
            release_memory()
            n = len(waiting[0])
            if n == 1:
                raise UserError(
                    f"Memory does not suffice for {self.name(waiting[0][0])}, even alone: "
                    f"{lack}, beside {_held()}. {self.remedy}"
                )
            log.warning(
                "memory does not suffice for a batch of %d (%s): going on with half; "
                "a smaller %s saves the attempt", n, lack, self.key,
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
            return None, lacking(error)


def by_condition(pieces: Iterable[Mapping[str, Sequence[T]]]) -> dict[str, list[T]]:
    """Join what the pieces of a batch gave under each condition."""
    joined: dict[str, list[T]] = {}
    for piece in pieces:
        for condition, rows in piece.items():
            joined.setdefault(condition, []).extend(rows)
    return joined


def _cut(rows: Sequence[Any], pieces: int) -> list[Sequence[Any]]:
    size = -(-len(rows) // pieces)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory did not suffice."""
    own = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    known = own or should_reduce_batch_size(error)
    return known or any(text in str(error) for text in NO_MEMORY)


def lacking(error: BaseException) -> str:
    """Return how much an allocator was asked for in vain, as far as its message says."""
    found = re.search(r"ried to allocate ([\d.]+) ?([KMGT]?i?B|bytes)", str(error))
    if not found:
        return str(error).partition("\n")[0] or "memory ran out"
    number, unit = found.groups()
    return f"{_gib(float(number)) if unit == 'bytes' else f'{number} {unit}'} more were needed"


def _held() -> str:
    """Return what this process has used at most, on the GPU or, without one, of main memory."""
    if torch.cuda.is_initialized():
        return f"{_gib(torch.cuda.max_memory_allocated())} in use on the GPU"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{_gib(peak)} in use"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def release_memory() -> None:
    """Let go of what a failed attempt has left behind."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def journaled(
    journal: Path, decides: Any, batches: Iterable[tuple[int, T]], work: Callable[[T], Any]
) -> Iterator[tuple[T, Any]]:
    """Do work batch by batch and keep each result on disk, so that a killed job goes on there.

    Results that the journal holds are read from it, one at a time. Whoever calls removes the
    journal once the results are where they belong.

    Args:
        journal: its file. If it was written for another ``decides``, it is begun anew.
        decides: everything that the results depend on, as JSON.
        batches: each batch's number, which stays the same from run to run, and its rows.
        work: takes a batch's rows and returns JSON.

    Yields:
        Each batch's rows and its result as JSON has it (tuples are lists), in the order of the
        batches, whether computed or read.
    """
    fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    places = _resume(journal, json.dumps({"fingerprint": fingerprint}).encode() + b"\n")
    if places:
        log.info("%d finished batches are in the journal", len(places))
    with journal.open("rb") as kept, journal.open("ab") as handle:
        for number, rows in batches:
            if number in places:
                kept.seek(places[number])
                line = kept.readline()
            else:
                line = json.dumps({"batch": number, "result": work(rows)}).encode() + b"\n"
                handle.write(line)
                handle.flush()
            yield rows, json.loads(line)["result"]


def _resume(journal: Path, header: bytes) -> dict[int, int]:
    """Keep the whole lines of a journal with this header, and return where each batch's begins.

    What follows the last whole line, torn by a kill or damaged, is left out. The file is replaced:
    a process that still writes to the old one, and a kill right now, do no harm.
    """
    places: dict[int, int] = {}
    with atomic(journal) as part, part.open("wb") as new:
        new.write(header)
        journal.touch()
        with journal.open("rb") as old:
            for line in old if old.readline() == header else ():
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else {}
                    number, _ = entry["batch"], entry["result"]
                except (ValueError, TypeError, KeyError):
                    break
                places[number] = new.tell()
                new.write(line)
    return places
