"""Batches, what happens where memory does not suffice, and the journal."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from headpursuit.method.batches import (
    Asked,
    Halving,
    PartFile,
    Room,
    journaled,
    plan_batches,
    plan_loops,
    read_together,
)
from headpursuit.method.decoder import Decoder
from headpursuit.method.heads import Condition
from headpursuit.method.responses import Prompts, write_responses
from headpursuit.run.files import UserError
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
CPU = (
    "[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 3221225472 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB."
MAPPED = "unable to mmap 99 bytes from file <m.safetensors>: Cannot allocate memory (12)"
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
LACKS = {
    "3221225472 bytes": RuntimeError(CPU),
    "2.50 GiB": torch.OutOfMemoryError(CUDA),
    "mmap 99 bytes": RuntimeError(MAPPED),
    "cublasCreate": RuntimeError(CUBLAS),
    "memory ran out": MemoryError(),
}


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200), st.integers(0, 20))
def test_batches_hold_all_and_not_too_much(lengths: list[int], limit: int, extra: int):
    batches = plan_batches(lengths, limit, extra)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    widths = [max(lengths[i] for i in batch) for batch in batches]
    assert widths == sorted(widths, reverse=True)
    for batch, width in zip(batches, widths, strict=True):
        assert len(batch) == 1 or len(batch) * (width + extra) <= limit


@given(
    st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=4), max_size=8),
    st.integers(1, 4),
    st.integers(1, 500),
    st.integers(0, 30),
)
def test_loops_hold_all_and_not_too_much(
    batches: list[list[int]], n_conditions: int, whole: int, row: int
):
    """Each batch's samples together, under one condition after the other, as far as they fit."""
    names, room = list("abcd"[:n_conditions]), Room(whole, 1, row)
    batches = [[(place, "", 0, n) for n in own] for place, own in enumerate(batches)]
    loops = list(plan_loops(batches, names, lambda own: max(n for *_, n in own), room))
    wanted = [
        Asked(number, sample, name)
        for number, own in enumerate(batches)
        for name in names
        for sample in own
    ]
    assert [asked for loop in loops for asked in loop] == wanted
    for loop, after in zip(loops, [*loops, []][1:], strict=True):
        if len({asked[::2] for asked in loop}) > 1:
            longest = max(asked.sample[3] for asked in loop)
            assert len(loop) * (longest + row) <= whole
        if after:  # what comes next would not have fitted
            follows = [asked for asked in after if asked[::2] == after[0][::2]]
            longest = max(asked.sample[3] for asked in loop + follows)
            assert (len(loop) + len(follows)) * (longest + row) > whole
        read = read_together(loop)
        assert sorted((n, name) for own, some in read for n in own for name in some) == sorted(
            (asked.sample, asked.condition) for asked in loop
        )
        assert len(read) == len({asked.batch for asked in loop})


# Where memory does not suffice


@pytest.fixture(autouse=True, scope="module")
def little_to_collect():
    """What is there already takes no time each time that memory is let go."""
    gc.freeze()
    yield
    gc.unfreeze()


def halving(work: Callable[[list], Any]) -> Halving:
    return Halving(work, lambda row: f"row {row}")


@pytest.mark.parametrize("said", LACKS)
@pytest.mark.parametrize("largest", [1, 2, 3, 10])
def test_work_goes_on_in_halves_that_fit(said: str, largest: int):
    tried = []

    def work(rows: list) -> list:
        tried.append(len(rows))
        if len(rows) > largest or "long" in rows:
            raise LACKS[said]
        return rows

    run = halving(work)
    for batch in (list(range(10)), list(range(10, 17)), [17]):
        assert [row for piece in run(batch) for row in piece] == batch
    first = tried[: next(i for i, n in enumerate(tried) if n <= largest) + 1]
    assert first == [n for n in (10, 5, 3, 2, 1) if n >= min(largest, first[-1])]
    # The batches after the first are cut before they fail.
    assert sum(n > largest for n in tried) == len(first) - 1
    with pytest.raises(UserError, match=rf"suffice for row long, even alone: .*{said}.*\.dtype"):
        list(run(["short", "long"]))


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no"), KeyError(1)])
def test_any_other_error_is_passed_on(error: Exception):
    def work(rows: list) -> None:
        raise error

    with pytest.raises(type(error)):
        list(halving(work)([1, 2]))


@contextmanager
def rows_at_most(decoder: Decoder, most: int) -> Iterator[list[int]]:
    """Let the model's forward pass fail as an allocator does where a batch has more rows."""
    failed = []

    def refuse(module, args, kwargs):
        if len(kwargs["input_ids"]) > most:
            failed.append(len(kwargs["input_ids"]))
            raise RuntimeError(CPU)

    with decoder.model.base_model.register_forward_pre_hook(refuse, with_kwargs=True):
        yield failed


@pytest.fixture
def prompts(tokenizer) -> pa.Table:
    texts = [" ".join(["river"] * n) for n in (1, 2, 5, 9, 3, 4, 7)]
    names = [f"p{i}" for i in range(len(texts))]
    return pa.table({"sample_id": names, "token_ids": tokenizer(texts)["input_ids"]})


def test_halved_batches_give_the_same_responses(model, tokenizer, prompts, tmp_path):
    decoder = model("llama")
    generation = {"max_new_tokens": 6, "samples": 1, "temperature": 0.7, "top_p": 0.9, "seed": 0}
    settings = {"generation": generation, "seed": 0}
    reader = Prompts(decoder, tokenizer, prompts, generation, 10_000)

    def responses(name: str) -> bytes:
        file = PartFile(tmp_path / name, settings, 10_000)
        write_responses(file, decoder, reader, {"baseline": Condition()})
        return file.path.read_bytes()

    whole = responses("whole")
    for most in (1, 3):
        with rows_at_most(decoder, most) as failed:
            assert responses(f"{most}") == whole
        assert failed
    said = r"prompt p3 \(10 tokens, and 6 new\).*3221225472 bytes.*lower max_new_tokens"
    with rows_at_most(decoder, 0), pytest.raises(UserError, match=said):
        responses("none")


LIMIT = """
import resource
from pathlib import Path

def limit(mib):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
"""


def limited(code: str, *arguments: object) -> list[str]:
    """Run code in a process, in which limit(n) lets it allocate only n MiB more; say its lines."""
    done = subprocess.run(
        [sys.executable, "-c", LIMIT + code, *map(str, arguments)],
        env={"PYTHONPATH": str(ROOT / "scripts"), "PATH": "", "MALLOC_ARENA_MAX": "1"}
        | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


STARVED = """
import logging, sys
from pathlib import Path
import pyarrow as pa
import torch
from headpursuit.run.files import read_parquet
from headpursuit.method.batches import PartFile
from headpursuit.method.heads import Condition
from headpursuit.method.models import load_model, load_tokenizer
from headpursuit.method.responses import Prompts, write_responses

model, folder, room = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
decoder, tokenizer = load_model(model, "float32", "cpu"), load_tokenizer(model)
generation = {"max_new_tokens": 2, "samples": 1, "temperature": 0.0, "top_p": 1.0, "seed": 0}
settings = {"generation": generation, "seed": 0}

def respond_to(n):
    texts = [" ".join(["river", "stone"] * 100) + f" {number}" for number in range(n)]
    table = {"sample_id": list(map(str, range(n))), "token_ids": tokenizer(texts)["input_ids"]}
    reader = Prompts(decoder, tokenizer, pa.table(table), generation, 10**6)
    file = PartFile(folder / str(n), settings, 10**6)
    write_responses(file, decoder, reader, {"baseline": Condition()})
    return read_parquet(folder / str(n), None)

respond_to(2)  # what is imported and kept on first use
if room:
    limit(room)
print("responses", hash(tuple(map(tuple, respond_to(150)["token_ids"].to_pylist()))))
"""


@pytest.mark.long
def test_a_process_that_really_runs_out_of_memory_goes_on(model_path, tmp_path: Path):
    plenty = limited(STARVED, model_path("llama"), tmp_path / "a", 0)
    little = limited(STARVED, model_path("llama"), tmp_path / "b", 60)
    said = "memory does not suffice for a batch of 150"
    assert [any(said in line for line in lines) for lines in (plenty, little)] == [False, True]
    assert little[-1] == plenty[-1]


# The journal


def squares(journal: Path, decides: Any, numbers: range) -> tuple[list, list[int]]:
    """Return what the journal yields for these batches, and which were computed."""
    computed = []

    def work(rows: list[int]) -> dict[str, tuple[int, float]]:
        computed.append(rows[0])
        return {"square": (rows[0] ** 2, rows[0] / 3)}

    return list(journaled(journal, decides, ((n, [n]) for n in numbers), work)), computed


def test_a_journal_gives_what_was_computed(tmp_path: Path):
    journal = tmp_path / "folder" / "j"
    whole = [{"square": [n**2, n / 3]} for n in range(5)]
    assert squares(journal, {"alpha": 1, "code": "x"}, range(5)) == (whole, [0, 1, 2, 3, 4])
    assert squares(journal, {"code": "x", "alpha": 1}, range(5)) == (whole, [])
    # Other batches of the same work, in another order; and other work.
    assert squares(journal, {"alpha": 1, "code": "x"}, range(6, 0, -1))[1] == [6, 5]
    assert squares(journal, {"alpha": 1, "code": "x"}, range(7))[1] == []
    assert squares(journal, {"alpha": 2, "code": "x"}, range(5)) == (whole, [0, 1, 2, 3, 4])


def test_a_torn_journal_is_mended(tmp_path: Path):
    journal = tmp_path / "j"
    whole, _ = squares(journal, ["a"], range(3))
    content = journal.read_bytes()
    for size in range(0, len(content), 5):
        journal.write_bytes(content[:size])
        lines = max(content[:size].count(b"\n") - 1, 0)
        assert squares(journal, ["a"], range(3)) == (whole, list(range(lines, 3)))
        assert journal.read_bytes() == content
    for good, bad in (
        (b'"batch": 1', b'"botch": 1'),
        (b'"batch": 1', b"\0\xff\0\0\0\0\0\0\0\0"),
        (b'"square": [1', b'"squar\xe2": [1'),  # a flipped bit: no UTF-8
    ):
        journal.write_bytes(content.replace(good, bad))
        assert squares(journal, ["a"], range(3)) == (whole, [1, 2])
        assert journal.read_bytes() == content
