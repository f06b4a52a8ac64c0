"""The table of what single heads write, beside published tokens."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from headpursuit.publish.table1 import (
    COLUMNS,
    display,
    latin,
    overlap,
    plot_atoms,
    plot_heads,
    read_published_tokens,
    shown_heads,
    table1,
)
from headpursuit.run.tables import save_figure

ROOT = Path(__file__).parents[2]
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"


def test_published_tokens_belong_to_their_model():
    path = ROOT / "data" / "published_tokens.csv"
    published = read_published_tokens(path, "triviaqa", MISTRAL)
    assert set(zip(published["layer"], published["head"], strict=True)) == {
        (18, 27), (24, 20), (25, 14), (30, 28),
    }  # fmt: skip
    assert (published["tokens"].str.split().str.len() == 5).all()
    assert published["tokens"].iloc[-1] == "9 1 3 7 five"
    assert not len(read_published_tokens(path, "triviaqa", "my/model"))
    assert not len(read_published_tokens(path, "rtp", None))


def test_overlap_forgets_spaces_and_nothing_else():
    published = "December July April October February"
    assert overlap("␣December July ␣July ␣april Octo", published) == 2
    assert overlap("", published) == 0


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
    specialists["coherence_p"] = 0.01
    published = pd.DataFrame(
        {
            "layer": 18,
            "head": 27,
            "method": ["somp", "somp", "logit_lens"],
            "tokens": ["COVID Soviet Obama Biden Clinton", "COVID x", "b c"],
            "source": ["v2", "seed", "seed"],
        }
    )
    lens = atoms.rename(columns={"step": "place"}).sample(frac=1, random_state=0)
    return {
        "atoms": atoms.sample(frac=1, random_state=1),
        "lens": lens,
        "specialists": specialists,
        "published": published,
        "tokens": 5,
    }


def test_table1_has_both_methods_and_both_texts(parts):
    table = table1("triviaqa", [(18, 27), (2, 1)], **parts)
    assert list(table) == COLUMNS and set(table["experiment"]) == {"triviaqa"}
    keys = table[["layer", "method", "published_source"]].fillna("").values.tolist()
    assert keys == [
        [18, "somp", "v2"], [18, "somp", "seed"], [18, "logit_lens", "seed"],
        [2, "somp", ""], [2, "logit_lens", ""],
    ]  # fmt: skip
    assert (table["tokens"] == "␣Obama COVID ␣Biden ␣a b").all()
    assert table["overlap"].tolist()[:3] == [3, 1, 1] and table["overlap"].isna().tolist()[3:]
    assert table["rank"].tolist()[:2] == [2, 2]
    text = display(table)
    assert text["head"].tolist() == ["L18.H27", "L2.H1"]
    assert text["SOMP, v2"].tolist() == ["COVID Soviet Obama Biden Clinton (3 of 5)", ""]
    assert text["logit lens, seed"].tolist()[0] == "b c (1 of 2)"
    assert text["explained (random)"].tolist() == ["0.25 (0.01)", "0.50 (0.01)"]


def test_nothing_published_leaves_no_column(parts):
    parts["published"] = parts["published"].iloc[:0]
    table = table1("x", [(2, 1)], **parts)
    assert len(table) == 2
    assert list(display(table)) == [
        "data", "head", "rank", "explained (random)", "coherence (random)", "SOMP", "logit lens",
    ]  # fmt: skip


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
    atoms = parts["atoms"].assign(token=[r"\n", "日", "$x$", "␣a", "_", "{"] * 2)
    null = atoms[["layer", "head", "step"]].assign(mean=0.01, low=0.0, high=0.02)
    shown = {"a": [(18, 27)], "b": [(2, 1), (18, 27)]}
    colours = {"somp": "#3366aa", "random": "#bbbbbb"}
    grid = pd.DataFrame(list(np.ndindex(20, 30)), columns=["layer", "head"])
    grid["value"] = np.linspace(0, 0.6, len(grid))
    grid.loc[3, "value"] = np.nan  # a head that writes nothing
    for make in (
        lambda: plot_atoms(
            dict.fromkeys("ab", atoms), dict.fromkeys("ab", null), shown, 5, colours
        ),
        lambda: plot_heads(dict.fromkeys("ab", grid), shown, "explained"),
    ):
        for kind in ("pdf", "png"):
            paths = [tmp_path / f"{turn}.{kind}" for turn in (1, 2)]
            for path in paths:
                save_figure(make(), [path])
            assert paths[0].read_bytes() == paths[1].read_bytes()


def test_latin():
    assert latin("␣é “日”") == r"␣é \u201c\u65e5\u201d"
