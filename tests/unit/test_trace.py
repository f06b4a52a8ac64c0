"""The way from a row of a table to its files, on a run made by hand."""

import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from headpursuit.__main__ import main
from headpursuit.data.download import download
from headpursuit.run import verify
from headpursuit.run.experiments import merge
from made_run import K, write


@pytest.fixture
def trace(made: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Trace a row of the made run, and give what is printed."""

    def run(table: str, *row: object, folder: Path = made, fails: bool = False) -> str:
        code = main(["trace", str(folder / table), *map(str, row)])
        said = "".join(capsys.readouterr())
        assert code == (2 if fails else 0), said
        return said

    return run


def changes(said: str, heading: str) -> list[np.ndarray]:
    """Return the sums of the lines below a heading, for each set of heads."""
    found = re.findall(rf"^  {heading} \(.*\n((?:    .*\n)*)", said, re.MULTILINE)
    lines = [re.findall(r"^    \S.*: (\S+) -> (\S+)$", own, re.MULTILINE) for own in found]
    return [np.array(own, float).sum(axis=0) for own in lines]


@pytest.mark.parametrize("table", ["table2", "figure1"])
def test_what_is_traced_sums_to_every_cell(made, trace, table):
    rows = pd.read_csv(made / f"tables/{table}.csv")
    assert len(rows) == 2 * {"table2": 3, "figure1": 2}[table]  # two methods, and the measures
    for row in rows.itertuples():
        own = (row.experiment, row.method, row.heads, row.measure)
        said = trace(f"tables/{table}.csv", *own, "--top", "2")
        parts = [] if row.measure == "toxicity" else ["words"]
        for heading in [*(parts if table == "table2" else ["right answers by class"]), "samples"]:
            sums = changes(said, heading)
            assert len(sums) == row.draws
            # Sums are printed with six digits.
            assert np.mean(sums, axis=0) == pytest.approx([row.before, row.after], rel=1e-2)
        assert f"adds up to the table's {row.before:g} before and {row.after:g}" in said


def test_a_row_is_named_by_alpha_and_place_where_they_vary(trace, run):
    """Here a copy of the run has each condition again, at alpha 5 in the response."""
    for name in ("scores/rtp", "scores/rtp.words", *(
        f"{kind}/part-{n}" for kind in ("expected/rtp", "responses/rtp/scaled") for n in (1, 2)
    )):  # fmt: skip
        path = run / f"{name}.parquet"
        own = pd.read_parquet(path)
        again = own[own["condition"] != "baseline"]
        again = again.assign(condition=again["condition"] + "-a5-response")
        write(path, pd.concat([own, again]))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["experiments"]["rtp"] |= {"alpha": [-1, 5], "at": ["all", "response"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    path = run / "tables/table2.csv"
    rows = pd.read_csv(path, dtype=str)
    pd.concat([rows, rows.assign(alpha=5.0)]).to_csv(path, index=False)
    said = trace("tables/table2.csv", "rtp", "somp", K, folder=run, fails=True)
    assert "named by experiment method heads alpha measure; there are\nrtp somp 2 -1 " in said
    pd.concat([rows, rows.assign(alpha=5.0, at="response")]).to_csv(path, index=False)
    said = trace("tables/table2.csv", "rtp", "somp", K, 5, "response", "occurrences", folder=run)
    assert "\nsomp-k2-a5-response\n  heads (heads/rtp/selected.csv): L1.H2, L0.H1" in said
    assert "  alpha: 5\n" in said and "  at: response\n" in said and "adds up" in said
    usual = trace("tables/table2.csv", "rtp", "somp", K, -1, "all", folder=run)
    assert usual == trace("tables/table2.csv", "rtp", "somp", K)
    published = trace("tables/published.csv", "table2", "rtp", "somp", 16, folder=run)
    assert "\nsomp-k2\n" in published and "adds up" in published


def test_the_texts_that_gained_or_lost_are_shown(trace):
    said = trace("tables/table2.csv", "rtp", "somp", K, "--unmasked")
    assert "heads/rtp/selected.csv): L1.H2, L0.H1" in said
    # Rank, score, that of 5, 10 and 20 atoms, direction, and the share of samples that have it.
    row = r"^ +L1\.H2 +1 +1\.0* +0\.50* +0\.50* +0\.50* +0\.50* +0\.5 +cand st x$"
    assert re.search(row, said, re.MULTILINE)
    assert "rankings/rtp.csv, dictionary of 3 rows)" in said
    assert "  opposed: 1\n  rows: 3\n  kept_5: 2\n" in said  # L0.H1, ranked second, writes against
    assert (
        "    rtp-1: 1 -> 0\n"
        "      words:  glass 1 -> 0\n"
        "      prompt: Say it 1, candles (p.jsonl:1)\n"
        "      before: A glass house.\n"
        "      after:  A house.\n"
    ) in said
    assert "rtp-2" not in said
    said = trace("tables/table2.csv", "rtp", "somp", K, "expected", "--unmasked")
    assert "      read:   A glass house.\n" in said and "after: " not in said.split("\n\n")[1]
    said = trace("tables/table2.csv", "rtp", "somp", K, "toxicity", "--unmasked")
    assert "    rtp-1: 1 -> 0\n      toxic:  0.7 -> 0.4\n      prompt: Say it 1" in said


def test_images_are_shown_with_both_answers(trace):
    said = trace("tables/figure1.csv", "mnist", "somp", K)
    assert "  asked of each: Which digit?\n" in said
    assert "    zero: 2 -> 0\n" in said
    assert (
        "    mnist-2: 1 -> 0\n"
        "      image:  zero (t.parquet:2)\n"
        "      before: zero\n"
        "      after:  [2Jnone\n"
    ) in said
    assert not [c for c in said if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]


def test_labelled_words_and_their_pieces_are_masked(trace, run):
    masked = trace("tables/table2.csv", "rtp", "somp", K)
    # The labeller named "house"; "cand" is a piece of a word.
    assert not re.search(r"\b(candles?|stone|glass|house|cand)\b", masked)
    assert "before: A g**** h****." in masked
    assert "Which s**** 4?" in trace("tables/table1.csv", "triviaqa", "L1.H2")
    path = run / "labels/second/rtp.parquet"
    path.parent.mkdir()
    (run / "labels/rtp.parquet").rename(path)  # the config has no second labeller
    assert "before: A g**** house." in trace("tables/table2.csv", "rtp", "somp", K, folder=run)


def configured(made: Path, root: Path, **changes: Any) -> Path:
    """Return a copy of the run under a changed config."""
    run = shutil.copytree(made, root / "results/made")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    (run / "config.yaml").write_text(yaml.safe_dump(merge(config, changes)), encoding="utf-8")
    return run


def test_a_list_of_ones_own_is_not_masked(made, trace, tmp_path):
    own = {"concepts": {"own": {"file": "own.txt"}}, "experiments": {"rtp": {"concept": "own"}}}
    run = configured(made, tmp_path, **own)
    said = trace("tables/table2.csv", "rtp", "somp", K, folder=run)
    assert "before: A glass house." in said and "*" not in said


def test_the_labeller_s_word_list_is_masked(made, trace, tmp_path):
    (tmp_path / "terms.txt").write_text("Nothing\n")
    terms = {"kind": "local", "path": str(tmp_path / "terms.txt")}
    download("terms", terms, tmp_path / "resources/terms")
    lexicon = {"source": "terms", "files": "terms.txt"}
    run = configured(made, tmp_path, labeller={"backend": "lexicon", "lexicon": lexicon})
    said = trace("tables/table2.csv", "rtp", "somp", K, folder=run)
    assert "before: n******\n      after:  g****\n" in said


def test_heads_outside_the_candidate_layers_are_named(trace, run):
    assert "left out" not in trace("tables/table2.csv", "rtp", "somp", K)
    for path, old, new in (
        (run / "heads/rtp/selected.csv", "somp-k2,0,1", "somp-k2,1,0"),
        (run / "config.yaml", "first_layer: 0", "first_layer: 1"),
    ):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    said = trace("tables/table2.csv", "rtp", "somp", K, folder=run)
    ranks = "ranks 2: L0.H1, 3: L0.H0, 4: L0.H2, 5: L0.H3"
    assert f"candidates are layers 1 to 1 (first_layer, last_layer):\n    {ranks}\n" in said
    assert "2: L0.H1 and 3 more\n" in trace(
        "tables/table2.csv", "rtp", "somp", K, "--top", 1, folder=run
    )


def test_the_run_stands_for_its_first_table_of_ratios(trace):
    assert trace("", "rtp", "somp", K) == trace(
        "tables/table2.csv", "rtp", "somp", K, "occurrences"
    )


def test_a_table_is_named_from_within_its_folder(made, trace, monkeypatch):
    said = trace("tables/figure1.csv", "mnist", "somp", K, "exact_match")
    monkeypatch.chdir(made / "tables")
    assert trace("figure1.csv", "mnist", "somp", K, "exact_match", folder=Path()) == said


def test_a_row_is_named_as_the_table_shows_it(trace):
    own = trace("tables/table2.csv", "rtp", "somp", K, "expected")
    assert trace("tables/table2.csv", "rtp", "SOMP", K, "Expected") == own
    answers = trace("tables/figure1.csv", "mnist", "somp", K, "exact_match")
    assert answers.startswith("mnist somp 2 exact_match\n")
    assert trace("tables/figure1.csv", "mnist", "SOMP", K, "exact match") == answers


def test_a_head_is_traced_to_its_samples(trace):
    said = trace("tables/table1.csv", "triviaqa", "L1.H2", "--top", "2")
    assert said.startswith("triviaqa L1.H2\n  among 8 heads (specialists/triviaqa.csv):\n")
    assert "  rank: 7\n" in said and "  score: 0.5\n" in said
    assert re.search(r"^ +1 +t1 +0\.10? +0\.01\n +2 +t2 +0\.20? +0\.01\n  logit", said, re.M)
    assert "  atoms (decompositions/triviaqa.parquet): 3, " in said
    assert "published, somp (v2): t2 t9; 1 among the head's own" in said
    assert "triviaqa-0" in said.split("farthest")[1]
    other = trace("tables/table1.csv", "triviaqa", "L0.H3")  # not in the table
    assert other.startswith("triviaqa L0.H3")
    none = trace("tables/table1.csv", "triviaqa", "L1.H2", "--top", "0")
    assert "samples (activations/triviaqa.parquet): 5" in none and "triviaqa-0" not in none


def test_shared_heads_are_traced_to_both_rankings(trace):
    said = trace("tables/concepts.overlap.csv", "fruit", "tools", K)
    assert "  heads: 2\n" in said and "  shared: 1\n" in said
    placed = re.findall(r"^  (.*):\n +head .*\n +(\S+) +(\d) .* (\w*)$", said, re.MULTILINE)
    assert placed == [
        ("shared heads, as fruit ranks them", "L1.H2", "1", "apple"),
        ("shared heads, as tools ranks them", "L1.H2", "2", "hammer"),
        ("heads of fruit alone, as tools ranks them", "L0.H1", "7", "hammer"),
        ("heads of tools alone, as fruit ranks them", "L1.H3", "8", ""),
    ]


def test_two_experiments_are_named_in_any_order(trace):
    own = ("tables/concepts.overlap.csv", "fruit", "tools", K)
    assert trace(own[0], "tools", "fruit", K) == trace(*own)


def test_a_published_value_leads_to_the_runs(trace):
    said = trace("tables/published.csv", "table2", "rtp", "somp", "16")
    assert "  published: 0.77\n" in said and "  source: seed\n" in said
    assert "\nrtp somp 2 occurrences\n" in said and "adds up" in said
    tokens = trace("tables/published.csv", "table1", "triviaqa", "somp", "L1.H2")
    assert "  published: 2\n" in tokens and "  remarks: printed: t2 t9; this run: t1 t2\n" in tokens
    assert "\ntriviaqa L1.H2\n  among 8 heads" in tokens
    cell = ("captions", "flickr30k", "somp", "16", "caption-colours", "cider", "5")
    assert "  alpha: 5\n  measure: cider\n" in trace("tables/published.csv", *cell)
    said = trace("tables/published.csv", "table2", "tet", "somp", "16")
    assert "not in this run" in said and "adds up" not in said


@pytest.mark.parametrize(
    ("table", "column", "row"),
    [
        ("table2", "after", ("rtp", "somp", K)),
        ("figure1", "before", ("mnist", "somp", K)),
        ("concepts.overlap", "shared", ("fruit", "tools", K)),
    ],
)
def test_files_that_do_not_add_up_are_said(trace, run, table, column, row):
    rows = pd.read_csv(run / f"tables/{table}.csv", dtype_backend="numpy_nullable")
    rows[column] += 1
    rows.to_csv(run / f"tables/{table}.csv", index=False)
    assert "and the table says" in trace(f"tables/{table}.csv", *row, folder=run, fails=True)


@pytest.mark.parametrize(
    ("path", "table", "row"),
    [
        ("expected/rtp/part-1", "table2", ("rtp", "somp", K, "expected")),
        ("activations/triviaqa", "table1", ("triviaqa", "L1.H2")),
    ],
)
def test_files_that_do_not_fit_each_other_are_said(trace, run, path, table, row):
    rows = pq.read_table(run / f"{path}.parquet")
    pq.write_table(rows[:0], run / f"{path}.parquet")
    said = trace(f"tables/{table}.csv", *row, folder=run, fails=True)
    assert "do not fit each other" in said and "verify names it" in said


def test_a_head_that_no_ranking_has_is_said(trace, run):
    path = run / "heads/rtp/selected.csv"
    path.write_text(path.read_text().replace("somp-k2,0,1", "somp-k2,9,1"))
    said = trace("tables/table2.csv", "rtp", "somp", K, folder=run, fails=True)
    assert "rankings/rtp.csv has no L9.H1" in said and "not of this run" in said


@pytest.mark.parametrize(
    ("table", "row", "said"),
    [
        *(
            ("table2", row, r"named by experiment method heads measure; there are\nrtp ")
            for row in (["rtp", "somp", "3"], ["rtp"], [], ["rtp", "somp", "2", "f"], ["\x1b[2J"])
        ),
        ("table1", ["triviaqa", "L9.H9"], "L9.H9 is no head of the model: they are L0.H0 to L1.H3"),
        ("table1", ["triviaqa"], "named by experiment head; .*\ntriviaqa L1.H2"),
        ("concepts.overlap", ["fruit"], "named by one other heads; .*\nfruit tools 2"),
        ("published", ["table2", "rtp"], "named by artefact dataset method heads"),
        ("concepts", ["fruit"], "concepts.csv is not there"),
        ("table9", ["rtp"], "of the tables, .*table2.csv can be traced"),
        ("table2.tests", ["rtp"], "of the tables, .*table2.csv can be traced"),
    ],
)
def test_no_such_row_or_table_is_answered_with_those_there_are(trace, table, row, said):
    answer = trace(f"tables/{table}.csv", *row, fails=True)
    assert "can be traced" in trace(f"tables/{table}.md", *row, fails=True)
    assert re.search(said, answer) and "\x1b" not in answer


def test_what_differs_is_printed_on_a_line_of_its_own():
    one, other = {"rule": "a\x1b[2J\nb"}, {"rule": None}
    assert list(verify._differing(one, other, "")) == ["rule: a[2J b / nothing"]
