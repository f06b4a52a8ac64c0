"""A specification curve: what the variants of an experiment find, and by which choices."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from headpursuit.publish.dose import label_zero
from headpursuit.publish.ratio import MEASURE_NAMES

# Fewer variants are shown as bars.
LEAST = 5
PANEL = ["measure", "heads", "alpha", "at"]
Choices = Mapping[str, Mapping[str, str] | None]


def are_variants(choices: Choices) -> bool:
    """Say whether the experiments of a table make a specification curve."""
    return len(choices) >= LEAST and all(own is not None for own in choices.values())


def plot_curve(table: pd.DataFrame, choices: Choices, colours: Mapping[str, str]):
    """Draw the variants' ratios in their order, and below them the choices that each makes.

    A panel for each measure and set of the first method's heads: dots with their intervals, in grey
    the quartiles of the variant's own random draws and their median; below, a dot for each choice
    in which a variant differs from the first experiment, which is the open dot.
    """
    from matplotlib.figure import Figure

    method, panels = table["method"].iloc[0], list(_panels(table))
    rows = list(
        dict.fromkeys(f"{key}: {own}" for all_ in choices.values() for key, own in all_.items())
    )
    heights = [2.6, 0.19 * len(rows) + 0.1]
    figure = Figure(
        figsize=(max(6.0, 0.26 * len(choices) + 3), (sum(heights) + 0.7) * len(panels)),
        layout="constrained",
    )
    axes = figure.subplots(2 * len(panels), 1, squeeze=False, height_ratios=heights * len(panels))[
        :, 0
    ]
    for number, (key, own) in enumerate(panels):
        above, below = axes[2 * number : 2 * number + 2]
        own = own.sort_values("value", na_position="last", ignore_index=True)
        random = table[(table[PANEL] == list(key)).all(axis=1) & (table["method"] == "random")]
        _curve(above, own, random.set_index("experiment"), next(iter(choices)), colours, method)
        _matrix(below, [choices[name] for name in own["experiment"]], rows)
        above.set_title(_title(*key), fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _panels(table: pd.DataFrame) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """Yield each set of the first method's heads and measure, and its rows of all variants."""
    yield from table[table["method"] == table["method"].iloc[0]].groupby(PANEL, sort=False)


def _title(measure: str, heads: int, alpha: float, at: str) -> str:
    said = [MEASURE_NAMES.get(measure, measure), f"{heads} heads", f"alpha {alpha:g}"]
    return ", ".join([*said, *([] if at == "all" else [at])])


def _curve(
    axis: Any, own: pd.DataFrame, random: pd.DataFrame, first: str, colours: Mapping[str, str],
    method: str,
) -> None:  # fmt: skip
    x = np.arange(len(own))
    drawn = random.reindex(own["experiment"])
    has = drawn["median"].notna().to_numpy()
    axis.bar(
        x[has], (drawn["q75"] - drawn["q25"])[has], 0.8, drawn["q25"][has],
        color=colours["random"], alpha=0.7, label="random heads: quartiles", zorder=1,
    )  # fmt: skip
    axis.hlines(
        drawn["median"][has],
        x[has] - 0.4,
        x[has] + 0.4,
        color="#555555",
        lw=1.2,
        label="their median",
    )
    limits = [own["value"] - own["ci_low"], own["ci_high"] - own["value"]]
    colour = colours[method]
    axis.errorbar(
        x,
        own["value"],
        np.clip(limits, 0, None),
        color=colour,
        lw=1.2,
        capsize=2,
        ls="none",
        zorder=3,
    )
    original = (own["experiment"] == first).to_numpy()
    for which, fill, label in (
        (~original, colour, "variant"),
        (original, "white", "the experiment itself"),
    ):
        axis.plot(
            x[which],
            own["value"][which],
            "o",
            ms=5.5,
            mfc=fill,
            mec=colour,
            mew=1.3,
            label=label,
            zorder=4,
        )
    for place in x[own["value"] == 0]:
        label_zero(axis, place)
    axis.axhline(1, color="black", lw=0.8, ls=":")
    axis.set_ylim(bottom=0)
    axis.set_xlim(-0.7, len(own) - 0.3)
    axis.set_xticks([])
    axis.set_ylabel("after / before")
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _matrix(axis: Any, made: Sequence[Mapping[str, str]], rows: Sequence[str]) -> None:
    places = {row: n for n, row in enumerate(rows)}
    for n in range(0, len(rows), 2):
        axis.axhspan(n - 0.5, n + 0.5, color="#f2f2f2", lw=0)
    for x, own in enumerate(made):
        y = [places[f"{key}: {value}"] for key, value in own.items()]
        axis.plot([x] * len(y), y, "o", ms=4.5, color="#222222")
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(-0.7, len(made) - 0.3)
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def curve_notes(table: pd.DataFrame, choices: Choices) -> Iterator[str]:
    """Yield how many of the variants find the same, if they are variants."""
    if not are_variants(choices):
        return
    for key, rows in _panels(table):
        below = rows["value"] < 1
        clear = (rows["ci_high"] < 1) | (rows["ci_low"] > 1)
        yield (
            f"{_title(*key)}: {below.sum()} of {len(rows)} variants lie below 1, "
            f"{(below & clear).sum()} of them with their interval; "
            f"{(rows['value'] > 1).sum()} above, {(~below & clear).sum()} with it; "
            f"from {rows['value'].min():.2f} to {rows['value'].max():.2f}."
        )
