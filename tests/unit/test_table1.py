"""The table of what single heads write, beside published tokens."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from headpursuit.publish.table1 import (
    display,
    latin,
    notes,
    overlap,
    plot_atoms,
    plot_heads,
    shown_heads,
    table1,
)
from headpursuit.run.tables import lay_out, read_csv, save_figure

ROOT = Path(__file__).parents[2]


def test_the_published_tokens():
    published = read_csv(ROOT / "data/published_tokens.csv")
    mistral = published[published["model"] == "mistralai/Mistral-7B-Instruct-v0.2"]
    triviaqa = mistral[mistral["dataset"] == "triviaqa"]
    heads = set(zip(triviaqa["layer"], triviaqa["head"], strict=True))
    assert heads == {(18, 27), (24, 20), (25, 14), (30, 28)}
    assert (triviaqa["tokens"].str.split().str.len() == 5).all()
    somp, lens = (triviaqa[triviaqa["method"] == method] for method in ("somp", "logit_lens"))
    assert somp["tokens"].iloc[-1] == "9 1 3 7 five"
    assert lens["tokens"].iloc[-1] == "8 u u n 9"  # as printed: one string twice


def test_overlap_forgets_spaces_and_nothing_else():
    published = "December July April October February"
    assert overlap("␣December July ␣July ␣april Octo", published) == 2
    assert overlap("", published) == 0
    assert latin("␣é “日”") == r"␣é \u201c\u65e5\u201d"


@pytest.fixture
def parts() -> dict:
    heads = [(18, 27), (2, 1)]
    tokens = ["␣Obama", "COVID", "␣Biden", "␣a", "b", "␣c"]
    rows = [(*head, n, token) for head in heads for n, token in enumerate(tokens, start=1)]
    atoms = pd.DataFrame(rows, columns=["layer", "head", "step", "token"])
    atoms["explained"] = 0.1 * atoms["step"]
    specialists = pd.DataFrame(
        {"layer": [2, 18], "head": [1, 27], "score": [0.4, 0.2], "rank": [1, 2]}
    )
    for name in ("explained", "coherence"):
        specialists[name] = [0.5, 0.25]
        specialists[f"{name}_null"] = specialists[f"{name}_high"] = 0.01
    published = {
        "layer": 18,
        "head": 27,
        "method": ["somp", "somp", "logit_lens"],
        "tokens": ["COVID Soviet Obama Biden Clinton", "COVID x", "b c"],
        "source": ["v2", "seed", "seed"],
    }
    return {
        "atoms": atoms.sample(frac=1, random_state=1),
        "lens": atoms.rename(columns={"step": "place"}).sample(frac=1, random_state=0),
        "specialists": specialists.assign(coherence_p=0.01),
        "published": pd.DataFrame(published),
        "tokens": 5,
    }


def test_table1_has_both_methods_and_both_texts(parts):
    rows = table1("triviaqa", [(18, 27), (2, 1)], **parts)
    table = lay_out("tables/{table}.csv", rows)
    assert set(table["experiment"]) == {"triviaqa"}
    keys = table[["layer", "method", "published_source"]].fillna("").values.tolist()
    assert keys == [
        *([18, "somp", "v2"], [18, "somp", "seed"], [18, "logit_lens", "seed"]),
        *([2, "somp", ""], [2, "logit_lens", ""]),
    ]
    assert (table["tokens"] == "␣Obama COVID ␣Biden ␣a b").all()
    assert table["overlap"].tolist()[:3] == [3, 1, 1] and table["overlap"].isna().tolist()[3:]
    assert table["rank"].tolist()[:2] == [2, 2]
    text = display(table)
    assert text["head"].tolist() == ["L18.H27", "L2.H1"]
    assert text["SOMP, v2"].tolist() == ["COVID Soviet Obama Biden Clinton (3 of 5)", ""]
    assert text["logit lens, seed"].tolist()[0] == "b c (1 of 2)"
    assert text["explained (random)"].tolist() == ["0.25 (0.01)", "0.50 (0.01)"]
    without = display(table.iloc[3:])
    assert list(without)[3:] == ["explained (random)", "coherence (random)", "SOMP", "logit lens"]


def test_the_notes_say_which_experiment_has_how_many_tokens(parts):
    five = {"tokens": 5, "per_sample": 10, "draws": 100}
    vocabularies = {"a": five, "b": five | {"tokens": 3}}
    own = {name: {"model": "m", "vocabulary": each} for name, each in vocabularies.items()}
    facts = {name: {"samples": 9, "positions": "prompt"} for name in own}
    text = " ".join(notes(facts, dict.fromkeys(own, parts["specialists"]), own, 0))
    assert "SOMP: the first 5 (a), 3 (b) atoms" in text and "mean of 100 random sets" in text


@pytest.mark.parametrize(
    ("heads", "top", "shown"),
    [
        (["L18.H27", "L2.H1"], 1, [(18, 27), (2, 1)]),
        (None, 1, [(2, 1)]),
        (None, 9, [(2, 1), (18, 27)]),
    ],
)
def test_shown_heads(parts, heads, top, shown):
    assert shown_heads({"heads": heads, "top": top}, parts["specialists"]) == shown


def test_figures_are_the_same_bytes_each_time(parts, tmp_path):
    """Even of tokens that are markup or no Latin, and of a head that writes nothing."""
    atoms = parts["atoms"].assign(token=[r"\n", "日", "$x$", "␣a", "_", "{"] * 2)
    null = atoms[["layer", "head", "step"]].assign(mean=0.01, low=0.0, high=0.02)
    shown, colours = {"a": [(2, 1), (18, 27)]}, {"somp": "#3366aa", "random": "#bbbbbb"}
    grid = pd.DataFrame(list(np.ndindex(20, 30)), columns=["layer", "head"])
    grid["value"] = np.linspace(0, 0.6, len(grid))
    grid.loc[3, "value"] = np.nan
    for turn in "12":
        for name, figure in (
            ("atoms", plot_atoms({"a": atoms}, {"a": null}, shown, {"a": 5}, colours)),
            ("heads", plot_heads({"a": grid}, "value", shown, "explained")),
        ):
            save_figure(figure, [tmp_path / f"{name}{turn}.{end}" for end in ("pdf", "png")])
    for name in ("atoms1.pdf", "atoms1.png", "heads1.pdf", "heads1.png"):
        again = tmp_path / name.replace("1", "2")
        assert (tmp_path / name).read_bytes() == again.read_bytes()
