"""The benchmarks run on small shapes, and one whose results differ fails."""

import importlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headpursuit.method.batches import PartFile, Room, plan_loops
from headpursuit.method.heads import Condition
from headpursuit.method.responses import Prompts, write_responses
from headpursuit.method.somp import Pursuit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The benchmarks' modules, which write into a folder of the test's."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    timing = importlib.import_module("timing")
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results")
    return importlib.import_module


def test_the_pursuit_benchmark_runs_on_small_shapes(benchmarks):
    """Peak memory is that of a process that pursues and does nothing else."""
    ballast = bytearray(2**30)  # of this process, and none of the measured one's
    ballast[::4096] = b"x" * len(ballast[::4096])
    *rows, memory = benchmarks("pursuit").main(smoke=True)
    assert [row["beside"] for row in rows].count("direct algorithm, times faster") == 3
    assert 2**26 < memory["over"][0] < 2**30


def test_results_that_differ_are_not_timed_against_each_other(benchmarks):
    pursuit = benchmarks("pursuit")
    right = Pursuit([3, 1], [0.5, 0.75])
    pursuit.require_equal(Pursuit([3, 1], [0.5, 0.750001]), right)
    for wrong in (Pursuit([1, 3], [0.5, 0.75]), Pursuit([3, 1], [0.5, 0.7501])):
        with pytest.raises(SystemExit, match="differ"):
            pursuit.require_equal(wrong, right)


SCALED = {"a": [(1, 0)], "b": [(0, 1)], "c": [(2, 2)]}


@pytest.mark.parametrize(
    ("heads", "room"),
    [({"baseline": []}, Room(60)), (SCALED, Room(5, 0, 1)), (SCALED, Room(10**6))],
)
def test_the_count_is_what_the_loop_does(
    benchmarks, model, tokenizer, tmp_path, monkeypatch, heads: dict, room: Room
):
    """Calls that read and that write, their rows and tokens; responses end at several steps."""
    count, decoder, new = benchmarks("count"), model("llama"), 12
    texts = [" ".join(["river", "stone", "cloud"][i % 3 :] * (1 + i % 4)) for i in range(11)]
    names = [f"p{i}" for i in range(len(texts))]
    table = pa.table({"sample_id": names, "token_ids": tokenizer(texts)["input_ids"]})
    generation = {"samples": 1, "temperature": 0, "max_new_tokens": new}
    reader = Prompts(decoder, tokenizer, table, generation, 60)
    conditions = {name: Condition(own) for name, own in heads.items()}
    calls: list[tuple[int, ...]] = []

    def call(module, args, kwargs):
        ids = kwargs.get("input_ids")
        calls.append(tuple((kwargs["inputs_embeds"] if ids is None else ids).shape[:2]))

    def responses() -> list[dict]:
        calls.clear()
        (tmp_path / "x").unlink(missing_ok=True)
        file = PartFile(tmp_path / "x", {"generation": generation, "seed": 0}, 60, room=room)
        with decoder.language_model.register_forward_pre_hook(call, with_kwargs=True):
            write_responses(file, decoder, reader, conditions)
        return pq.read_table(file.path).to_pylist()

    # Ends that some of them come upon sooner and others later.
    ends = {row["token_ids"][2 + i % 7] for i, row in enumerate(responses()[::2])}
    monkeypatch.setattr(decoder.model.generation_config, "eos_token_id", sorted(ends))
    written = {
        (row["condition"], row["sample_id"]): row["n_tokens"] + (row["stop_reason"] == "eos")
        for row in responses()
    }
    assert len(set(written.values())) > 3
    order = sorted(heads, key=lambda name: heads[name])
    loops = plan_loops(reader.batches(), order, lambda rows: reader.longest(rows) + new, room)
    found = count.count(
        loops, reader.longest, lambda row: written[row.condition, row.sample[1]], 60, new
    )
    reading, writing = ([own for own in calls if (own[1] > 1) == reads] for reads in (True, False))
    assert found["passes"] == len(reading)
    assert found["read"] == sum(rows * tokens for rows, tokens in reading)
    assert found["steps"] == len(writing)
    assert found["written"] == sum(rows for rows, _ in writing)


def test_the_page_shows_ratios_of_medians_and_goals_that_were_missed(benchmarks, tmp_path: Path):
    timing, report = benchmarks("timing"), benchmarks("report")
    rounds = [4.0, 9.0, 6.0], [2.0, 3.0, 1.0]
    rows = [
        timing.row("work", "rival", ">= 2", *rounds, "equal", n="1", curve={"5": 1.0}),
        timing.row("work", "floor", "<= 2.9", [3.0], [1.0], "equal", n="1"),
    ]
    timing.write("pursuit", rows)
    assert json.loads((tmp_path / "results" / "pursuit.json").read_text())["machine"]["cores"]
    report.main(tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| work | rival | 3 [2, 6] | >= 2 | yes | 3 |" in page
    assert "| work | floor | 3 | <= 2.9 | **no** | 1 |" in page
    assert (tmp_path / "benchmarks.png").stat().st_size > 1000
