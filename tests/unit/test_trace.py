"""The way from a row of a table to its files, on a run made by hand."""

import re
import shutil
import unicodedata
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from headpursuit.audit import main
from headpursuit.config import load_config
from headpursuit.experiments import merge
from headpursuit.files import write_parquet
from headpursuit.overlap import overlaps
from headpursuit.published import compare
from headpursuit.ratio import Scores, put_published, ratio_rows, read_published
from headpursuit.score import score_answers, score_counts, score_expected

ROOT = Path(__file__).parents[2]
WORDS = ["candle", "river", "stone", "paper", "glass"]
HELDOUT = ["stone", "paper", "glass"]
K, LAYERS, HEADS = 2, 2, 4
LAID = {"model": "mistral", "k": [K], "draws": 2, "methods": ["somp"]}
OVERLAY = {
    "run": "made",
    "models": {"mistral": {"layers": LAYERS, "heads": HEADS}},
    "concepts": {"fruit": {"words": ["apple"]}, "tools": {"words": ["hammer"]}},
    "experiments": {
        "rtp": LAID,
        "mnist": {**LAID, "model": "llava-next"},
        "fruit": {"like": "rtp", "concept": "fruit", "measures": []},
        "tools": {"like": "fruit", "concept": "tools"},
        "triviaqa": {"vocabulary": {"heads": ["L1.H2"]}},
    },
    "tables": {
        **{"table2": ["rtp"], "figure1": ["mnist"], "concepts": ["fruit", "tools"]},
        "table1": ["triviaqa"],
    },
    "publish": {"published_heads": {K: 16}},
}
CONDITIONS = ["somp-k2", "random-k2-d00", "random-k2-d01"]
CLASSES = ["zero", "one"]


def read_yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def write(path: Path, table: pd.DataFrame, **facts: Any) -> None:
    """Write a table as its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
        return
    write_parquet(path.with_name("table"), pa.Table.from_pandas(table, preserve_index=False), facts)
    path.with_name("table").rename(path)


def responses(name: str, texts: dict[str, list[str]]) -> pd.DataFrame:
    rows = [
        (condition, f"{name}-{n}", 0, text, [1, 2, 3])
        for condition, own in texts.items()
        for n, text in enumerate(own)
    ]
    return pd.DataFrame(rows, columns=["condition", "sample_id", "repeat", "response", "token_ids"])


def write_responses(run: Path, name: str, own: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Write responses in two parts, and give them by condition."""
    for part, kind in product((1, 2), ("baseline", "scaled")):
        rows = own[(own["condition"] == "baseline") == (kind == "baseline")]
        half = rows[rows["sample_id"].str[-1].astype(int) % 2 == part - 1]
        write(run / f"responses/{name}/{kind}/part-{part}.parquet", half, question="Which digit?")
    return dict(list(own.groupby("condition", sort=False)))


def write_heads(run: Path, name: str) -> None:
    heads = [("somp-k2", 1, 2), ("somp-k2", 0, 1)]
    write(run / f"heads/{name}/selected.csv", frame("condition layer head", heads))
    random = [(f"random-k2-d0{draw}", layer, draw) for draw in (0, 1) for layer in (0, 1)]
    write(run / f"heads/{name}/random.csv", frame("condition layer head", random))


def frame(columns: str, rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())


def ranking(order: list[int], atoms: str) -> pd.DataFrame:
    places = list(np.ndindex(LAYERS, HEADS))
    rows = [
        ("somp", *places[own], 1 / n, n, atoms if n < 8 else None)
        for n, own in enumerate(order, start=1)
    ]
    return frame("method layer head score rank atoms", rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run with a table of each kind."""
    run = tmp_path_factory.mktemp("trace") / "made"
    run.mkdir()
    config = load_config(merge(read_yaml("config.yaml"), OVERLAY))
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (run / "tables").mkdir()
    facts = {
        name: {
            **{key: own[key] for key in ("samples", "model", "alpha", "heads_from", "k", "draws")},
            "methods": ["somp"],
        }
        for name, own in config["experiments"].items()
    }
    tables = {"rtp": make_prompts(run, config), "mnist": make_images(run)}
    published = read_published(ROOT / "data/published.csv")
    ratios = []
    for table, name in (("table2", "rtp"), ("figure1", "mnist")):
        scored, own_facts = tables[name]
        scores = Scores(scored, own_facts, name, {**config["score"], "resamples": 20}, 0)
        rows, _ = ratio_rows({name: scores}, {name: facts[name]})
        ratios.append(put_published(rows, published, {K: 16}))
        write(run / f"tables/{table}.csv", ratios[-1])
    models = {name: name for name in config["models"]}
    unlike = {name: () for name in tables}
    all_ratios = pd.concat(ratios)
    compared = compare(published, all_ratios, models, "lexicon: mine", unlike, {K: 16})
    write(run / "tables/published.csv", compared)
    make_overlap(run, config)
    make_vocabulary(run)
    return run


def make_prompts(run: Path, config: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    texts = {
        "baseline": ["stone stone paper", "A glass house.", "stone", "nothing"],
        "somp-k2": ["stone paper", "A house.", "stone", "glass"],
        "random-k2-d00": ["stone", "A glass house.", "stone", "nothing"],
        "random-k2-d01": ["stone stone", "A glass house.", "", "nothing"],
    }
    own = responses("rtp", texts)
    split = ["selection" if word not in HELDOUT else "heldout" for word in WORDS]
    words = pd.DataFrame({"word": WORDS, "split": split})
    write(run / "words/rtp.csv", words)
    labels = pd.DataFrame({"sample_id": ["rtp-0"], "repeat": [0], "words": [["stone", "house"]]})
    write(run / "labels/rtp.parquet", labels)
    prompts = [(f"rtp-{n}", f"Say\nit {n}, candles", f"p.jsonl:{n}", [1]) for n in range(4)]
    write(run / "samples/rtp.parquet", frame("sample_id text source token_ids", prompts))
    write(run / "rankings/rtp.csv", ranking([6, 1, 0, 2, 3, 4, 5, 7], "Ġcand Ġst x"))
    write(run / "dictionaries/rtp.csv", frame("word token", [("candle", "Ġcandle")]))
    write_heads(run, "rtp")
    counted = score_counts(write_responses(run, "rtp", own), words, {})
    rng = np.random.default_rng(0)
    expected = own[["condition", "sample_id", "repeat"]].assign(positions=3, nll=1.0)
    expected["mass"] = list(rng.random((len(own), len(WORDS))))
    for part in (1, 2):
        half = expected[expected["sample_id"].str[-1].astype(int) % 2 == part - 1]
        write(run / f"expected/rtp/part-{part}.parquet", half)
    summed = score_expected(pa.Table.from_pandas(expected, preserve_index=False), words)
    by_word, by_sample = (pd.concat(own) for own in zip(counted, summed, strict=True))
    write(run / "scores/rtp.words.parquet", by_word)
    write(run / "scores/rtp.parquet", by_sample)
    return by_sample, {"coverage": 1.0}


def make_images(run: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    texts = {
        "baseline": ["zero", "one", "zero", "nine"],
        "somp-k2": ["one", "one", "\x1b[2Jnone", "one"],
        **{name: ["zero", "one", "one", "one, I think"] for name in CONDITIONS[1:]},
    }
    images = [(f"mnist-{n}", f"t.parquet:{n}", n % 2, CLASSES[n % 2]) for n in range(4)]
    images = frame("sample_id source label class_name", images)
    write(run / "samples/mnist.parquet", images, classes=CLASSES)
    write(run / "rankings/mnist.csv", ranking([6, 1, 0, 2, 3, 4, 5, 7], "one"))
    write(run / "dictionaries/mnist.csv", frame("word token", [("zero", "zero"), ("one", "one")]))
    write_heads(run, "mnist")
    answers = write_responses(run, "mnist", responses("mnist", texts))
    table = score_answers(answers, images, CLASSES, ["case", "space", "punctuation"])
    write(run / "scores/mnist.parquet", table)
    return table, {"classes": 2}


def make_overlap(run: Path, config: dict[str, Any]) -> None:
    rankings = {
        "fruit": ranking([6, 1, 0, 2, 3, 4, 5, 7], "apple"),
        "tools": ranking([7, 6, 5, 4, 3, 2, 1, 0], "hammer"),
    }
    for name, own in rankings.items():
        write(run / f"rankings/{name}.csv", own)
    layers = dict.fromkeys(rankings, (0, LAYERS - 1))
    own = {name: config["experiments"][name] for name in rankings}
    write(run / "tables/concepts.overlap.csv", overlaps(rankings, own, layers))


def make_vocabulary(run: Path) -> None:
    prompts = [(f"triviaqa-{n}", f"Which stone {n}?", f"t:{n}", [1]) for n in range(5)]
    write(run / "samples/triviaqa.parquet", frame("sample_id text source token_ids", prompts))
    heads = list(np.ndindex(LAYERS, HEADS))
    atoms = [(*own, step, f"t{step}", step / 10) for own in heads for step in (1, 2, 3)]
    atoms = frame("layer head step token explained", atoms)
    write(run / "decompositions/triviaqa.parquet", atoms)
    write(run / "lens/triviaqa.parquet", atoms.rename(columns={"step": "place"}))
    null = atoms.assign(mean=0.01)[["layer", "head", "step", "mean"]]
    write(run / "specialists/triviaqa.null.parquet", null)
    measured = [
        f"{name}{end}" for name in ("explained", "coherence") for end in ("", "_null", "_high")
    ]
    ranked = frame("layer head rank", [(*own, n + 1) for n, own in enumerate(heads)])
    ranked = ranked.assign(score=0.5, **dict.fromkeys(measured, 0.25))
    write(run / "specialists/triviaqa.csv", ranked)
    z = np.arange(2 * 5 * HEADS * 3, dtype=np.float32).reshape(2 * 5, -1) ** 2
    rows = {"sample_id": [f"triviaqa-{n}" for n in range(5)] * 2, "layer": [0] * 5 + [1] * 5}
    table = pd.DataFrame({**rows, "z": list(z)})
    write(run / "activations/triviaqa.parquet", table, heads=HEADS, positions="prompt")
    row = {"experiment": "triviaqa", "layer": 1, "head": 2, "tokens": "t1 t2"}
    row |= {"published": "t2 t9", "published_source": "v2", "overlap": 1}
    shown = pd.DataFrame([{**row, "method": own} for own in ("somp", "logit_lens")])
    write(run / "tables/table1.csv", shown)


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
