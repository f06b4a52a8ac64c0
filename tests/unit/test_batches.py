import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from headpursuit.method.activations import pooled_inputs, pooled_positions
from headpursuit.method.batches import Halving, by_condition, journaled, pad, plan_batches
from headpursuit.method.expected import measure_expected
from headpursuit.method.models import Decoder
from headpursuit.method.responses import Prompts, write_responses
from headpursuit.run.files import UserError, write_parquet
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
CPU = (
    "[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 3221225472 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB."
LACKS = [RuntimeError(CPU), torch.OutOfMemoryError(CUDA), MemoryError()]


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200), st.integers(0, 20))
def test_batches_hold_all_and_not_too_much(lengths: list[int], limit: int, extra: int):
    batches = plan_batches(lengths, limit, extra)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    widths = [max(lengths[i] for i in batch) for batch in batches]
    assert widths == sorted(widths, reverse=True)
    for batch, width in zip(batches, widths, strict=True):
        assert len(batch) == 1 or len(batch) * (width + extra) <= limit


@pytest.mark.parametrize(
    ("left", "expected"), [(True, [[9, 9, 1], [2, 3, 4]]), (False, [[1, 9, 9], [2, 3, 4]])]
)
def test_padding(left: bool, expected: list):
    ids, mask = pad([[1], [2, 3, 4]], 9, left=left, device="cpu")
    assert ids.tolist() == expected
    assert mask.tolist() == [[int(i != 9) for i in row] for row in expected]


# Where memory does not suffice


def halving(work: Callable[[list], Any]) -> Halving:
    return Halving(work, "some.batch_tokens", lambda row: f"row {row}", "Take less.")


@pytest.mark.parametrize("lack", LACKS, ids=["cpu", "cuda", "python"])
@pytest.mark.parametrize("largest", [1, 2, 3, 10])
def test_work_goes_on_in_halves_that_fit(lack: Exception, largest: int):
    tried = []

    def work(rows: list) -> list:
        tried.append(len(rows))
        if len(rows) > largest:
            raise lack
        return rows

    run = halving(work)
    for batch in (list(range(10)), list(range(10, 17)), [17]):
        assert [row for piece in run(batch) for row in piece] == batch
    first = tried[: next(i for i, n in enumerate(tried) if n <= largest) + 1]
    assert first == [n for n in (10, 5, 3, 2, 1) if n >= min(largest, first[-1])]
    # The batches after the first are cut before they fail.
    assert sum(n > largest for n in tried) == len(first) - 1


@pytest.mark.parametrize(
    ("lack", "said"),
    zip(
        LACKS,
        ["3.00 GiB more were needed", "2.50 GiB more were needed", "memory ran out"],
        strict=True,
    ),
    ids=["cpu", "cuda", "python"],
)
def test_a_single_row_that_does_not_fit_is_named(lack: Exception, said: str):
    def work(rows: list) -> None:
        if "long" in rows:
            raise lack

    with pytest.raises(UserError) as error:
        list(halving(work)(["short", "long"]))
    for text in ("row long", said, "GiB in use", "Take less."):
        assert text in str(error.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no"), KeyError(1)])
def test_any_other_error_is_passed_on(error: Exception):
    def work(rows: list) -> None:
        raise error

    with pytest.raises(type(error)):
        list(halving(work)([1, 2]))


@contextmanager
def rows_at_most(decoder: Decoder, most: int):
    """Let the model's forward pass fail as an allocator does where a batch has more rows."""
    failed = []

    def refuse(module, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        if len(ids) > most:
            failed.append(len(ids))
            raise RuntimeError(CPU)

    handle = decoder.model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield failed
    finally:
        handle.remove()


@pytest.fixture
def prompts(tokenizer, tmp_path: Path) -> pa.Table:
    texts = [" ".join(["river"] * n) for n in (1, 2, 5, 9, 3, 4, 7)]
    names = [f"p{i}" for i in range(len(texts))]
    table = pa.table({"sample_id": names, "token_ids": tokenizer(texts)["input_ids"]})
    write_parquet(tmp_path / "prompts", table)
    return table


def respond_to(decoder: Decoder, tokenizer, folder: Path, file: str) -> bytes:
    generation = {"max_new_tokens": 6, "samples": 1, "temperature": 0.7, "top_p": 0.9}
    reader = Prompts(decoder, tokenizer, folder / "prompts", generation, 10_000)
    write_responses(
        folder / file, decoder, reader, {"baseline": []}, 1.0, generation, 10_000, 0, {}
    )
    return (folder / file).read_bytes()


@pytest.mark.parametrize("most", [1, 3])
def test_halved_batches_give_the_same_responses(model, tokenizer, prompts, tmp_path, most: int):
    whole = respond_to(model("llama"), tokenizer, tmp_path, "a")
    with rows_at_most(model("llama"), most) as failed:
        assert respond_to(model("llama"), tokenizer, tmp_path, "b") == whole
    assert failed


def test_a_prompt_that_does_not_fit_alone_is_named(model, tokenizer, prompts, tmp_path):
    message = r"prompt p3 \(10 tokens, and 6 new\).*3\.00 GiB.*Lower max_new_tokens"
    with rows_at_most(model("llama"), 0), pytest.raises(UserError, match=message):
        respond_to(model("llama"), tokenizer, tmp_path, "a")


def test_halved_batches_give_the_same_cache_and_masses(model, tokenizer, prompts, tmp_path):
    decoder = model("llama")
    _, rows, where = pooled_positions(prompts, None, "prompt")
    responses = prompts.append_column("repeat", pa.array(range(len(prompts))))

    def cached() -> dict[tuple[int, int], np.ndarray]:
        pooled = pooled_inputs(decoder, rows, where, 0, 10_000)
        return {
            (i, layer): z for own, layer, values in pooled for i, z in zip(own, values, strict=True)
        }

    def masses() -> pa.Table:
        words, heads = {"apple": [259, 3]}, {"baseline": [], "somp-k1": [(1, 0)]}
        table = measure_expected(
            decoder, 0, prompts, responses, words, heads, -1.0, 10_000, tmp_path / "j", 0
        )
        return table.sort_by([("condition", "ascending"), ("sample_id", "ascending")])

    cache, table = cached(), masses()
    (tmp_path / "j").unlink()
    with rows_at_most(decoder, 2) as failed:
        halved, other = cached(), masses()
    assert failed == [7, 4, 7, 4, 4]  # the last are two rows under two conditions
    assert halved.keys() == cache.keys()
    for key, z in cache.items():
        np.testing.assert_allclose(halved[key], z, atol=1e-5)
    assert other.drop_columns(["nll", "mass"]) == table.drop_columns(["nll", "mass"])
    mass = [np.stack(own["mass"].to_numpy()) for own in (table, other)]
    np.testing.assert_allclose(*mass, atol=1e-6)


STARVED = """
import logging, resource, sys
from pathlib import Path
import pyarrow as pa
import torch
from headpursuit.run.files import read_parquet, write_parquet
from headpursuit.method.models import load_model, load_tokenizer
from headpursuit.method.responses import Prompts, write_responses

model, folder, room = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
decoder, tokenizer = load_model(model, "float32", "cpu"), load_tokenizer(model)
generation = {"max_new_tokens": 2, "samples": 1, "temperature": 0.0, "top_p": 1.0}

def respond_to(n):
    texts = [" ".join(["river", "stone"] * 100) + f" {number}" for number in range(n)]
    table = {"sample_id": list(map(str, range(n))), "token_ids": tokenizer(texts)["input_ids"]}
    write_parquet(folder / "prompts", pa.table(table))
    reader = Prompts(decoder, tokenizer, folder / "prompts", generation, 10**6)
    path, plain = folder / str(n), {"baseline": []}
    write_responses(path, decoder, reader, plain, 1.0, generation, 10**6, 0, {})
    return read_parquet(path, None)

respond_to(2)  # what is imported and kept on first use
if room:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + room * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print("responses", hash(tuple(map(tuple, respond_to(150)["token_ids"].to_pylist()))))
"""


def starved(model: Path, folder: Path, room: int) -> list[str]:
    """Respond in a process that can allocate only so many MiB more; 0: as many as it likes."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", STARVED, model, folder, str(room)],
        env={"PYTHONPATH": str(ROOT / "scripts"), "PATH": "", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_process_that_really_runs_out_of_memory_goes_on(model_path, tmp_path: Path):
    plenty = starved(model_path("llama"), tmp_path / "a", 0)
    little = starved(model_path("llama"), tmp_path / "b", 60)
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
    whole = [([n], {"square": [n**2, n / 3]}) for n in range(5)]
    assert squares(journal, ["a"], range(5)) == (whole, [0, 1, 2, 3, 4])
    assert squares(journal, ["a"], range(5)) == (whole, [])
    # Other batches of the same work, in another order.
    assert squares(journal, ["a"], range(6, 0, -1))[1] == [6, 5]
    assert squares(journal, ["a"], range(7))[1] == []


def test_a_journal_of_other_deciding_values_is_begun_anew(tmp_path: Path):
    squares(tmp_path / "j", {"alpha": 1, "code": "x"}, range(5))
    assert squares(tmp_path / "j", {"code": "x", "alpha": 1}, range(5))[1] == []
    assert squares(tmp_path / "j", {"alpha": 2, "code": "x"}, range(5))[1] == [0, 1, 2, 3, 4]
    assert squares(tmp_path / "j", {"alpha": 1, "code": "x"}, range(5))[1] == [0, 1, 2, 3, 4]


def test_a_torn_journal_is_mended(tmp_path: Path):
    journal = tmp_path / "j"
    whole, _ = squares(journal, ["a"], range(5))
    content = journal.read_bytes()
    for size in range(len(content)):
        journal.write_bytes(content[:size])
        lines = max(content[:size].count(b"\n") - 1, 0)
        assert squares(journal, ["a"], range(5)) == (whole, list(range(lines, 5)))
        assert journal.read_bytes() == content
    damaged = content.replace(b'"batch": 2', b'"botch": 2')
    for bad in (damaged, content.replace(b'{"batch": 2', b"\0\0\0\0\0\0\0\0\0\0\0")):
        journal.write_bytes(bad)
        assert squares(journal, ["a"], range(5)) == (whole, [2, 3, 4])


def test_a_journal_holds_one_result_in_memory(tmp_path: Path):
    """Neither computing nor reading it again takes the room of all results."""

    def peak() -> int:
        tracemalloc.start()
        done = journaled(tmp_path / "j", 0, ((n, n) for n in range(50)), lambda n: str(n) * 10**5)
        assert sum(1 for _ in done) == 50
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    for _ in range(2):
        assert peak() < 2 * 10**6  # of 10 million bytes
    assert (tmp_path / "j").stat().st_size > 9 * 10**6


def test_pieces_are_joined():
    pieces = [{"a": [1], "b": [2]}, {"a": [3, 4], "b": [5, 6]}]
    assert by_condition(pieces) == {"a": [1, 3, 4], "b": [2, 5, 6]}
