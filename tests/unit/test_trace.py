"""The way from a row of a table to its files, on a run made by hand."""

import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from headpursuit.__main__ import main
from made_run import K


@pytest.fixture
def trace(made: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(table: str, *row: object, folder: Path = made) -> tuple[int, str]:
        code = main(["trace", str(folder / table), *map(str, row)])
        return code, "".join(capsys.readouterr())

    return run


def changes(output: str, heading: str) -> list[np.ndarray]:
    """Return the sums of the lines below a heading, for each set of heads."""
    found = re.findall(rf"^  {heading} \(.*\n((?:    .*\n)*)", output, re.MULTILINE)
    lines = [[line for line in own.splitlines() if line[4] != " "] for own in found]
    pattern = r": (\S+) -> (\S+)$"
    return [
        sum(np.array(re.search(pattern, line).groups(), float) for line in own) for own in lines
    ]


@pytest.mark.parametrize("table", ["table2", "figure1"])
def test_what_is_traced_sums_to_every_cell(made, trace, table):
    rows = pd.read_csv(made / f"tables/{table}.csv")
    assert len(rows) == 4  # two methods, two measures
    for row in rows.itertuples():
        own = (row.experiment, row.method, row.heads, row.measure)
        code, output = trace(f"tables/{table}.csv", *own, "--top", "2")
        assert code == 0, output
        for heading in ("words" if table == "table2" else "right answers by class", "samples"):
            sums = changes(output, heading)
            assert len(sums) == row.draws
            # Sums are printed with six digits.
            assert np.mean(sums, axis=0) == pytest.approx([row.before, row.after], rel=1e-2)
        assert f"adds up to the table's {row.before:g} before and {row.after:g}" in output


def test_the_texts_that_gained_or_lost_are_shown(trace):
    code, output = trace("tables/table2.csv", "rtp", "somp", K, "--unmasked")
    assert code == 0
    assert "heads/rtp/selected.csv" in output and "    L1.H2  1  1.0000  cand st x" in output
    assert (
        "    rtp-1: 1 -> 0\n"
        "      words:  glass 1 -> 0\n"
        "      prompt: Say it 1, candles (p.jsonl:1)\n"
        "      before: A glass house.\n"
        "      after:  A house.\n"
    ) in output
    assert "rtp-2" not in output
    _, output = trace("tables/table2.csv", "rtp", "somp", K, "expected", "--unmasked")
    assert "      read:   A glass house.\n" in output and "after: " not in output.split("\n\n")[1]


def test_images_are_shown_with_both_answers(trace):
    code, output = trace("tables/figure1.csv", "mnist", "somp", K)
    assert code == 0
    assert "  asked of each: Which digit?\n" in output
    assert "    zero: 2 -> 0\n" in output
    assert (
        "    mnist-2: 1 -> 0\n"
        "      image:  zero (t.parquet:2)\n"
        "      before: zero\n"
        "      after:  [2Jnone\n"
    ) in output
    assert not [c for c in output if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]


def test_labelled_words_and_their_pieces_are_masked(trace):
    _, masked = trace("tables/table2.csv", "rtp", "somp", K)
    # The labeller named "house"; "cand" is a piece of a word.
    assert not re.search(r"\b(candles?|stone|glass|house|cand)\b", masked)
    assert "before: a g**** h****." in masked
    _, other = trace("tables/table1.csv", "triviaqa", "L1.H2")
    assert "which s**** 4?" in other


def test_labels_that_are_not_there_or_not_the_runs_are_not_read(made, trace, tmp_path):
    run = shutil.copytree(made, tmp_path / "run")
    path = run / "labels/second/rtp.parquet"
    path.parent.mkdir()
    (run / "labels/rtp.parquet").rename(path)  # the config has no second labeller
    _, output = trace("tables/table2.csv", "rtp", "somp", K, folder=run)
    assert "before: a g**** house." in output


def test_the_run_stands_for_its_first_table_of_ratios(trace):
    assert trace("", "rtp", "somp", K) == trace("tables/table2.csv", "rtp", "somp", K, "count")


def test_a_head_is_traced_to_its_samples(trace):
    code, output = trace("tables/table1.csv", "triviaqa", "L1.H2", "--top", "2")
    assert code == 0
    assert "specialists/triviaqa.csv: rank 7 of 8, score 0.5000" in output
    assert "    2  t2  0.2000  0.0100\n    1 more: 0.3000\n" in output
    assert "published, somp (v2): t2 t9; 1 among the head's own" in output
    assert "triviaqa-0" in output.split("farthest")[1]
    code, output = trace("tables/table1.csv", "triviaqa", "L0.H3")  # not in the table
    assert code == 0 and output.startswith("triviaqa, L0.H3")


def test_shared_heads_are_traced_to_both_rankings(made, trace):
    table = "tables/concepts.overlap.csv"
    code, output = trace(table, "fruit", "tools", K)
    assert code == 0
    assert "top 2 heads of each: 1 shared" in output
    assert "in fruit:\n    L1.H2  1  1.0000  apple\n" in output
    assert "in tools:\n    L1.H2  2  0.5000  hammer\n" in output
    assert "heads of fruit alone, as tools ranks them:\n    L0.H1  7  " in output
    assert "heads of tools alone, as fruit ranks them:\n    L1.H3  8  " in output


def test_a_published_value_leads_to_the_runs(trace):
    code, output = trace("tables/published.csv", "table2", "rtp", "somp", "16")
    assert code == 0
    assert output.startswith("table2 rtp somp 16: published 0.77 (seed)")
    assert "\nrtp, somp, 2 heads, count: " in output and "adds up" in output
    code, output = trace("tables/published.csv", "table2", "tet", "somp", "16")
    assert code == 0 and "not in this run" in output and "adds up" not in output


@pytest.mark.parametrize(
    ("table", "column"),
    [("table2", "after"), ("figure1", "before"), ("concepts.overlap", "shared")],
)
def test_files_that_do_not_add_up_are_said(made, trace, tmp_path, table, column):
    run = shutil.copytree(made, tmp_path / "run")
    rows = pd.read_csv(run / f"tables/{table}.csv")
    rows[column] += 1
    rows.to_csv(run / f"tables/{table}.csv", index=False)
    row = {"table2": ("rtp", "somp", K), "figure1": ("mnist", "somp", K)}.get(table)
    code, output = trace(f"tables/{table}.csv", *(row or ("fruit", "tools", K)), folder=run)
    assert code == 2
    assert "and the table says" in output


@pytest.mark.parametrize(
    ("table", "row", "said"),
    [
        *(
            ("tables/table2.csv", row, r"named by experiment method heads measure; there are\nrtp ")
            for row in (["rtp", "somp", "3"], ["rtp"], [], ["rtp", "somp", "2", "f"], ["\x1b[2J"])
        ),
        (
            "tables/table1.csv",
            ["triviaqa", "L9.H9"],
            "named by experiment head; .*\ntriviaqa L1.H2",
        ),
        ("tables/concepts.overlap.csv", ["fruit"], "named by one other heads; .*\nfruit tools 2"),
        ("tables/published.csv", ["table2", "rtp"], "named by artefact dataset method heads"),
        ("tables/concepts.csv", ["fruit"], "concepts.csv is not there"),
        ("tables/table9.csv", ["rtp"], "of the tables, .*table2.csv can be traced"),
    ],
)
def test_no_such_row_or_table_is_answered_with_those_there_are(trace, table, row, said):
    code, output = trace(table, *row)
    assert code == 2
    assert re.search(said, output) and "\x1b" not in output
