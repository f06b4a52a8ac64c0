"""The figure of a table of ratios."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from headpursuit.publish.ratio import ANSWERS, MEASURE_NAMES, METHOD_NAMES


def plot(table: pd.DataFrame, draws: pd.DataFrame, colours: Mapping[str, str]):
    """Draw the rows as bars, a row and a column of panels, a group of bars, a bar a method.

    Right answers are comparable between experiments: a panel for each measure and k has a group for
    each experiment. Otherwise a panel for each experiment and measure has a group for each k. Bars
    are ratios with their bootstrap interval; dots are single random draws; a black mark is the
    published value.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    answers = table["measure"].isin(ANSWERS).all()
    keys = ("measure", "heads", "experiment") if answers else ("experiment", "measure", "heads")
    down, across, groups = (_values(table, key) for key in keys)
    size = (max(4.2, 1.5 * len(groups)) * len(across), 3.1 * len(down))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(down), len(across), squeeze=False, sharey=bool(answers))
    for row, one in zip(axes, down, strict=True):
        for axis, other in zip(row, across, strict=True):
            own, own_draws = (
                part[(part[keys[0]] == one) & (part[keys[1]] == other)] for part in (table, draws)
            )
            bars(axis, own, own_draws, colours, keys[2])
            title = [_label(keys[0], one), _label(keys[1], other)]
            axis.set_title(": ".join(reversed(title) if answers else title), fontsize=10)
        what = "accuracy" if answers else "words"
        row[0].set_ylabel(f"{what}, after / before")
    handles, labels = axes[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique), fontsize=8
    )
    return figure


def _values(table: pd.DataFrame, key: str) -> list:
    values = list(dict.fromkeys(table[key]))
    return sorted(values) if key == "heads" else values


def _label(key: str, value: Any) -> str:
    return {"measure": MEASURE_NAMES.get(value), "heads": f"{value} heads"}.get(key, str(value))


def bars(
    axis, table: pd.DataFrame, draws: pd.DataFrame, colours: Mapping[str, str], group: str
) -> None:
    """Draw a group of bars, a bar a method, for each value of ``heads`` or ``experiment``."""
    groups, methods = (_values(table, name) for name in (group, "method"))
    width = 0.8 / len(methods)
    for row in table.itertuples():
        at = getattr(row, group)
        x = groups.index(at) + (methods.index(row.method) - (len(methods) - 1) / 2) * width
        name = METHOD_NAMES[row.method]
        axis.bar(x, row.value, 0.9 * width, color=colours[row.method], label=name, zorder=1)
        limits = [[max(row.value - row.ci_low, 0)], [max(row.ci_high - row.value, 0)]]
        axis.errorbar(x, row.value, limits, color="black", lw=1, capsize=2, zorder=3)
        if row.draws > 1:
            own = draws[(draws["method"] == row.method) & (draws[group] == at)]["value"]
            # Spread evenly from left to right, so that equal draws can be told apart.
            spread = x + np.linspace(-0.3, 0.3, len(own)) * width
            axis.plot(
                spread, own, "o", ms=3, mfc="white", mec="black", mew=0.6, label="random draw"
            )
        if pd.notna(row.published):
            mark = {"color": colours["published"], "marker": "D", "ms": 5, "ls": "none"}
            axis.plot(x, row.published, **mark, mec="white", label="published", zorder=4)
    axis.axhline(1, color="black", lw=0.8, ls=":")
    axis.set_xticks(range(len(groups)), [_label(group, value) for value in groups])
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
