"""Figures of ratios: lines against a dose, specification curves, and what is too small to see."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from headpursuit.publish.figure import curve_notes, lines_of, plot, plot_curve, plot_lines

COLOURS = {"somp": "#3366aa", "logit_lens": "#ee8866", "random": "#bbbbbb", "published": "#222222"}


def rows(name: str, k: tuple = (8,), alpha: tuple = (-1.0,), **changed: Any) -> pd.DataFrame:
    """Give rows of ratios of an experiment; SOMP's largest set leaves nothing of what it counts."""
    rng, found = np.random.default_rng(0), []
    for measure in changed.pop("measures", ("occurrences", "expected")):
        for method in ("somp", "logit_lens", "random"):
            for heads in k:
                for own in alpha:
                    value = 0.0 if (method, heads) == ("somp", 64) else rng.uniform(0.5, 1.5)
                    row = {"experiment": name, "method": method, "measure": measure, "draws": 1}
                    row |= {"heads": heads, "alpha": own, "at": "all", "value": value}
                    row |= {"ci_low": value * 0.9, "ci_high": value * 1.1 + 0.01}
                    if method == "random":
                        row |= {"median": value, "q25": value - 0.1, "q75": value + 0.1, "draws": 3}
                    price = "repetition_ratio" if measure == "occurrences" else "nats_per_token"
                    found.append(row | {price: value / 2} | changed)
    every = {"published": np.nan, "median": np.nan, "q25": np.nan, "q75": np.nan}
    return pd.DataFrame(found).assign(**{c: v for c, v in every.items() if c not in found[-1]})


def draws(table: pd.DataFrame) -> pd.DataFrame:
    own = table.loc[table["draws"] > 1, ["experiment", "method", "heads", "alpha", "at", "measure"]]
    return pd.concat([own.assign(draw=n, value=0.5 + n) for n in range(3)])


def ys(axis: Any, label: str) -> list[float]:
    [line] = [line for line in axis.lines if line.get_label() == label]
    return list(line.get_ydata())


def test_three_doses_make_lines():
    many = rows("rtp", k=(8, 16, 64))
    assert [(line.title, line.axis) for line in lines_of(many)] == [("rtp, alpha -1", "heads")]
    swept = rows("caption", k=(32,), alpha=(2.0, 5.0, 8.0))
    assert [(line.title, line.axis) for line in lines_of(swept)] == [("caption, 32 heads", "alpha")]
    assert lines_of(rows("rtp", k=(8, 16), alpha=(-1.0, 5.0))) == []
    both = rows("rtp", k=(1, 2, 4), alpha=(2.0, 5.0, 8.0))
    assert len(lines_of(both)) == 6
    for table, bars in ((many, False), (pd.concat([many, rows("few")]), True)):
        figure = plot(table, draws(table), dict.fromkeys(table["experiment"]), COLOURS)
        assert any(axis.patches for axis in figure.axes) == bars


def test_lines_hold_the_rows_numbers():
    table = rows("rtp", k=(64, 8, 16))
    table.loc[(table["method"] == "somp") & (table["heads"] == 16), "published"] = 0.77
    figure = plot_lines(lines_of(table), COLOURS)
    names = [
        "occurrences",
        "expected",
        "price: nats per token",
        "price: repetition, after / before",
    ]
    axes = dict(zip(names, figure.axes, strict=True))
    assert [axis.get_title() for axis in figure.axes] == names
    for measure, name in (("occurrences", "occurrences"), ("expected", "expected")):
        own = table[table["measure"] == measure].sort_values("heads")
        for method, label in (("somp", "SOMP"), ("logit_lens", "logit lens"), ("random", "random")):
            assert ys(axes[name], label) == list(own[own["method"] == method]["value"])
        assert ys(axes[name], "published") == [0.77]
        assert [text.get_text() for text in axes[name].texts] == ["0"]
        assert [tick.get_text() for tick in axes[name].get_xticklabels()] == ["8", "16", "64"]
    own = table[(table["measure"] == "expected") & (table["method"] == "somp")]
    assert ys(axes["price: nats per token"], "SOMP") == list(own.sort_values("heads")["value"] / 2)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(named) == sorted(["SOMP", "logit lens", "random", "published"])


def test_both_groups_of_questions_share_a_panel():
    figure = plot_lines(lines_of(rows("qa", k=(4, 8, 16), measures=("f1", "f1_others"))), COLOURS)
    drawn = [line for line in figure.axes[0].lines if line.get_color() == COLOURS["somp"]]
    solid, dashed = (
        [own for own in drawn if own.get_linestyle() == style] for style in ("-", "--")
    )
    assert len(solid) == len(dashed) == 1
    assert figure.axes[0].get_title() == "F1; dashed: F1, others"
    assert len([axis for axis in figure.axes if axis.get_title().startswith("price")]) == 1


CHOICES = {
    **{"as-is": {}, "l2": {"pursuit.norm": "l2"}, "all": {"concept.rows": "all"}},
    **{"both": {"pursuit.norm": "l2", "concept.rows": "all"}, "layer": {"first_layer": "0"}},
}


@pytest.fixture
def variants() -> pd.DataFrame:
    tables = [rows(name, measures=("expected",)) for name in CHOICES]
    for n, table in enumerate(tables):
        table[["value", "ci_low", "ci_high"]] = np.array([0.4, 0.3, 0.5]) + 0.3 * ((n * 2) % 5)
    return pd.concat(tables)


def test_a_curve_orders_the_variants_and_marks_their_choices(variants: pd.DataFrame):
    figure = plot(variants, draws(variants), CHOICES, COLOURS)
    curve, matrix = figure.axes
    others, [original] = ys(curve, "variant"), ys(curve, "the experiment itself")
    assert sorted([*others, original]) == pytest.approx([0.4, 0.7, 1.0, 1.3, 1.6])
    assert others == sorted(others) and original == 0.4
    # l2 has the third place, 'both' the second, and so on: (n * 2) % 5.
    marked = {(x, y) for line in matrix.lines for x, y in zip(*line.get_data(), strict=True)}
    assert marked == {(2, 0), (4, 1), (1, 0), (1, 1), (3, 2)}
    labels = [tick.get_text() for tick in matrix.get_yticklabels()]
    assert labels == ["pursuit.norm: l2", "concept.rows: all", "first_layer: 0"]
    assert len(curve.patches) == 5  # each with a band of its own
    [said] = curve_notes(variants, CHOICES)
    assert "expected, 8 heads, alpha -1: 2 of 5 variants lie below 1, 2 of them with their" in said
    assert "2 above, 2 with it; from 0.40 to 1.60." in said
    both = pd.concat([variants, variants.assign(at="response")])
    here, there = curve_notes(both, CHOICES)
    assert here == said and there == said.replace("alpha -1:", "alpha -1, response:")


@pytest.mark.parametrize(
    "choices", [dict(list(CHOICES.items())[:4]), {**CHOICES, "other": None}, {}]
)
def test_others_are_no_variants(variants: pd.DataFrame, choices: dict):
    assert not list(curve_notes(variants, choices))
    figure = plot(variants, draws(variants), choices, COLOURS)
    ticks = [tick.get_text() for axis in figure.axes for tick in axis.get_yticklabels()]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "SOMP" in named and not {"pursuit.norm: l2", "the experiment itself"} & {*ticks, *named}


def test_a_variant_without_random_heads_or_with_nothing_left(variants: pd.DataFrame):
    alone = variants[variants["method"] == "somp"].assign(value=0.0, ci_low=0.0)
    curve = plot_curve(alone, CHOICES, COLOURS).axes[0]
    assert [text.get_text() for text in curve.texts] == ["0"] * 5
