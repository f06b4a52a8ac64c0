"""A run made by hand, without a model: tables of each kind, and the files that they stand on."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from headpursuit.method.score import (
    score_answers,
    score_counts,
    score_expected,
    score_lengths,
    score_toxicity,
)
from headpursuit.publish.claims import Run, judge, read_claims
from headpursuit.publish.overlap import overlaps, put_rankings
from headpursuit.publish.published import compare, compare_tokens, put_published
from headpursuit.publish.ratio import ratio_rows
from headpursuit.run.config import load_config
from headpursuit.run.experiments import merge
from headpursuit.run.files import shipped, write_parquet
from headpursuit.run.tables import read_csv

ROOT = Path(__file__).parents[1]
WORDS = ["candle", "river", "stone", "paper", "glass"]
HELDOUT = ["stone", "paper", "glass"]
K, LAYERS, HEADS = 2, 2, 4
LAID = {"model": "mistral", "k": [K], "draws": 2, "methods": ["somp"]}
OVERLAY = {
    "run": "made",
    "models": {"mistral": {"layers": LAYERS, "heads": HEADS}},
    "classifiers": {"mine": {"source": "real-toxicity-prompts", "label": "toxic"}},
    "concepts": {"fruit": {"words": ["apple"]}, "tools": {"words": ["hammer"]}},
    "experiments": {
        "rtp": {**LAID, "measures": ["occurrences", "expected", "toxicity"], "classifier": "mine"},
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
    "compute": {"parts": 2},
}
CONDITIONS = ["somp-k2", "random-k2-d00", "random-k2-d01"]
CLASSES = ["zero", "one"]


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


def write_responses(run: Path, name: str, own: pd.DataFrame) -> None:
    """Write responses in two parts."""
    for part, kind in product((1, 2), ("baseline", "scaled")):
        rows = own[(own["condition"] == "baseline") == (kind == "baseline")]
        half = rows[rows["sample_id"].str[-1].astype(int) % 2 == part - 1]
        write(run / f"responses/{name}/{kind}/part-{part}.parquet", half, question="Which digit?")


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
        ("somp", *places[own], 1 / n, n, 1.5 - n, 0.5, *[0.5 / n] * 3, 3, atoms if n < 8 else None)
        for n, own in enumerate(order, start=1)
    ]
    fewer = "score_5 score_10 score_20"
    return frame(f"method layer head score rank direction positive {fewer} rows atoms", rows)


FACTS = ("samples", "model", "concept", "alpha", "at", "heads_from", "signed", "k", "draws")


def make_run(run: Path) -> Path:
    """Make a run's folder with a table of each kind, and the files that their rows stand on."""
    run.mkdir()
    config = load_config(merge(shipped("config.yaml"), OVERLAY))
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (run / "tables").mkdir()
    facts = {
        name: {
            **{key: own[key] for key in FACTS},
            **{"methods": ["somp"], "family": name, "layers": (0, LAYERS - 1), "differs": None},
        }
        for name, own in config["experiments"].items()
    }
    tables = {"rtp": make_prompts(run, config), "mnist": make_images(run)}
    published = read_csv(ROOT / "data/published.csv")
    models = {name: name for name in config["models"]}
    ratios, tests = [], []
    for table, name in (("table2", "rtp"), ("figure1", "mnist")):
        own = {name: tables[name]}, {name: facts[name]}
        rows, _, compared = ratio_rows(*own, config["score"])
        tests.append(compared)
        write(run / f"tables/{table}.tests.csv", compared)
        rows = put_rankings(rows, {name: run / f"rankings/{name}.csv"}, {name: facts[name]})
        ratios.append(put_published(rows, published, models, {K: 16}))
        write(run / f"tables/{table}.csv", ratios[-1])
    unlike = dict.fromkeys(tables, ())
    all_ratios = pd.concat(ratios)
    compared = compare(published, all_ratios, models, "lexicon: mine", unlike, {K: 16})
    make_overlap(run, config)
    shown = make_vocabulary(run)
    text = {"dataset": "triviaqa", "model": "paper", "layer": 1, "head": 2, "method": "somp"}
    printed = pd.DataFrame([text | {"tokens": "t2 t9", "source": "v2"}])
    tokens = compare_tokens(printed, shown, {"triviaqa": ()})
    write(run / "tables/published.csv", pd.concat([compared, tokens]))
    said = read_claims(ROOT / "data/claims.yaml")
    known = {name: own | {"reads": "prompts", "held_out": True} for name, own in facts.items()}
    judged = Run(pd.concat(tests), pd.DataFrame(), known, {K: 16}, 0.95)
    write(run / "tables/claims.csv", judge(said, judged))
    return run


def make_prompts(run: Path, config: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    texts = {
        "baseline": ["stone stone paper", "A glass house.", "stone", "nothing"],
        "somp-k2": ["stone paper", "A house.", "stone", "glass"],
        "random-k2-d00": ["stone stone paper", "A glass house.", "stone", "nothing"],
        "random-k2-d01": ["stone stone", "A glass house.", "", "nothing"],
    }
    own = responses("rtp", texts)
    split = ["selection" if word not in HELDOUT else "heldout" for word in WORDS]
    words = pd.DataFrame({"word": WORDS, "split": split})
    write(run / "words/rtp.csv", words)
    labels = pd.DataFrame({"sample_id": ["rtp-0"], "repeat": [0], "words": [["stone", "house"]]})
    write(run / "labels/rtp.parquet", labels)
    prompts = [(f"rtp-{n}", f"Say\nit {n}, candles", f"p.jsonl:{n}", [1]) for n in range(4)]
    prompts = frame("sample_id text source token_ids", prompts).assign(references=[[]] * 4)
    write(run / "samples/rtp.parquet", prompts)
    write(run / "rankings/rtp.csv", ranking([6, 1, 0, 2, 3, 4, 5, 7], "Ġcand Ġst x"))
    write_heads(run, "rtp")
    write_responses(run, "rtp", own)
    counted = score_counts(own, words, {})
    rng = np.random.default_rng(0)
    expected = own[["condition", "sample_id", "repeat"]].assign(positions=3, nll=1.0)
    expected["mass"] = list(rng.random((len(own), len(WORDS))))
    for part in (1, 2):
        half = expected[expected["sample_id"].str[-1].astype(int) % 2 == part - 1]
        write(run / f"expected/rtp/part-{part}.parquet", half)
    summed = score_expected(pa.Table.from_pandas(expected, preserve_index=False), words)
    by_word, by_sample = (pd.concat(own) for own in zip(counted, summed, strict=True))
    toxic = {text: len(text) / 20 for own in texts.values() for text in own}
    by_sample = pd.concat([by_sample, score_lengths(own), score_toxicity(own, toxic, 0.5)])
    write(run / "scores/rtp.words.parquet", by_word)
    write(run / "scores/rtp.parquet", by_sample)
    return by_sample, {"coverage": 1.0, "classifier": {"responses": 4}}


def make_images(run: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    texts = {
        "baseline": ["zero", "one", "zero", "nine"],
        "somp-k2": ["one", "one", "\x1b[2Jnone", "one"],
        **{name: ["zero", "one", "one", "one, I think"] for name in CONDITIONS[1:]},
    }
    images = [(f"mnist-{n}", f"t.parquet:{n}", n % 2, CLASSES[n % 2]) for n in range(4)]
    images = frame("sample_id source label class_name", images).assign(references=[[]] * 4)
    write(run / "samples/mnist.parquet", images, classes=CLASSES)
    write(run / "rankings/mnist.csv", ranking([6, 1, 0, 2, 3, 4, 5, 7], "one"))
    write_heads(run, "mnist")
    answers = responses("mnist", texts)
    write_responses(run, "mnist", answers)
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
    layers = {"layers": (0, LAYERS - 1)}
    own = {name: config["experiments"][name] | layers for name in rankings}
    write(run / "tables/concepts.overlap.csv", overlaps(rankings, own))


def make_vocabulary(run: Path) -> pd.DataFrame:
    prompts = [(f"triviaqa-{n}", f"Which stone {n}?", f"t:{n}", [1]) for n in range(5)]
    prompts = frame("sample_id text source token_ids", prompts).assign(references=[[]] * 5)
    write(run / "samples/triviaqa.parquet", prompts)
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
    return shown
