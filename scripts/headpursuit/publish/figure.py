"""The figure of a table of ratios: bars, lines or a specification curve."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from headpursuit.publish.dose import label_zero, lines_of, plot_lines
from headpursuit.publish.ratio import ANSWERS, MEASURE_NAMES, METHOD_NAMES
from headpursuit.publish.variants import Choices, are_variants, plot_curve
from headpursuit.run.experiments import alpha_name


def plot(table: pd.DataFrame, draws: pd.DataFrame, choices: Choices, colours: Mapping[str, str]):
    """Draw a table of ratios.

    Variants of one experiment are a specification curve, experiments with three or more k or alphas
    are lines, and others bars.

    Args:
        table: the rows.
        draws: the single random draws.
        choices: in what each experiment differs from the first; None if it is no variant of it.
        colours: of methods and published values.
    """
    if are_variants(choices):
        return plot_curve(table, choices, colours)
    lines = lines_of(table)
    if {line.rows["experiment"].iloc[0] for line in lines} == set(table["experiment"]):
        return plot_lines(lines, colours)
    return plot_bars(table, draws, colours)


def plot_bars(table: pd.DataFrame, draws: pd.DataFrame, colours: Mapping[str, str]):
    """Draw the rows as bars, a row and a column of panels, a group of bars, a bar a method.

    Right answers are comparable between experiments: a panel for each measure and scaling (k, and
    alpha and place where there are several) has a group for each experiment. Otherwise a panel for
    each experiment and measure has a group for each scaling. Bars are ratios with their
    interval; dots are single random draws; a black mark is the published value.
    """
    from matplotlib.figure import Figure

    varied = [key for key in ("alpha", "at") if table[key].nunique() > 1]
    table, draws = (own.assign(scaling=_scaling(own, varied)) for own in (table, draws))
    answers = table["measure"].isin(ANSWERS).all()
    keys = ["measure", "scaling", "experiment"] if answers else ["experiment", "measure", "scaling"]
    down, across, groups = (_values(table, key) for key in keys)
    size = (max(4.2, 1.5 * len(groups)) * len(across), 3.1 * len(down))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(down), len(across), squeeze=False, sharey=bool(answers))
    for axis, panel in zip(axes.flat, product(down, across), strict=True):
        own = [part[(part[keys[:2]] == panel).all(axis=1)] for part in (table, draws)]
        _bars(axis, *own, colours, keys[2])
        title = [MEASURE_NAMES.get(value, value) for value in panel]
        axis.set_title(": ".join(reversed(title) if answers else title), fontsize=10)
    for axis in axes[:, 0]:
        worded = table["measure"].isin(["occurrences", "expected"]).all()
        what = "accuracy" if answers else "words" if worded else "measure"
        axis.set_ylabel(f"{what}, after / before")
    handles, labels = axes[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique), fontsize=8
    )
    return figure


def _scaling(table: pd.DataFrame, varied: Sequence[str]) -> pd.Series:
    """Return how many heads each row scales, and of alpha and place those that are varied."""
    said = table["heads"].astype(str) + " heads"
    if "alpha" in varied:
        said += "\nalpha " + table["alpha"].map(alpha_name)
    return said + "\n" + table["at"] if "at" in varied else said


def _values(table: pd.DataFrame, key: str) -> list[str]:
    """Return a column's values in their order, scalings by k and alpha."""
    ordered = table.sort_values(["heads", "alpha"], kind="stable") if key == "scaling" else table
    return list(dict.fromkeys(ordered[key]))


def _bars(axis, table: pd.DataFrame, draws: pd.DataFrame, colours, group: str) -> None:
    """Draw a group of bars, a bar a method, for each value of ``scaling`` or ``experiment``."""
    groups, methods = (_values(table, name) for name in (group, "method"))
    width = 0.8 / len(methods)
    for row in table.itertuples():
        at = getattr(row, group)
        x = groups.index(at) + (methods.index(row.method) - (len(methods) - 1) / 2) * width
        name = METHOD_NAMES[row.method]
        # The edge is seen where the bar has no height.
        style = {"color": colours[row.method], "edgecolor": colours[row.method], "lw": 1}
        axis.bar(x, row.value, 0.9 * width, label=name, zorder=1, **style)
        limits = [[max(row.value - row.ci_low, 0)], [max(row.ci_high - row.value, 0)]]
        axis.errorbar(x, row.value, limits, color="black", lw=1, capsize=2, zorder=3)
        if row.value == 0:
            label_zero(axis, x)
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
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
