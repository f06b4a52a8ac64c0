"""Effect and price of scaling heads against their number, or against alpha, as lines."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from headpursuit.publish.ratio import MEASURE_NAMES, METHOD_NAMES

# Fewer doses make no line.
LEAST = 3
AXES = {"heads": "heads scaled", "alpha": "alpha"}
# What stands beside an effect, where a table has it: what scaling costs.
PRICES = {
    "nats_per_token": ("price: nats per token", 0),
    "repetition_ratio": ("price: repetition, after / before", 1),
}
# Measures that share a panel, as the paper's figure 2 has them.
TOGETHER = {"f1_others": "f1"}
MARKS = {"somp": "o", "logit_lens": "s", "unrelated": "^", "size": "v", "random": "D"}


class Line(NamedTuple):
    """The rows of a line of panels: an experiment, what the axis is, and what else is the same."""

    title: str
    axis: str
    rows: pd.DataFrame


def lines_of(table: pd.DataFrame) -> list[Line]:
    """Return what of a table of ratios makes lines: experiments with three or more k or alphas."""
    found = []
    for axis, other in (("heads", "alpha"), ("alpha", "heads")):
        for keys, rows in table.groupby(["experiment", other, "at"], sort=False):
            if rows[axis].nunique() >= LEAST:
                name, same, at = keys
                said = [name, f"alpha {same:g}" if other == "alpha" else f"{same} heads"]
                said += [] if at == "all" else [str(at)]
                found.append(Line(", ".join(said), axis, rows))
    return found


def plot_lines(lines: Sequence[Line], colours: Mapping[str, str]):
    """Draw effects and prices, a row of panels for each experiment.

    Lines are chosen heads with their intervals, the grey band the quartiles of random draws with
    their median; crosses in a line's colour are published values.
    """
    from matplotlib.figure import Figure

    panels = [list(_panels(line.rows)) for line in lines]
    across = max(map(len, panels))
    size = (max(3.6 * across, 5.4), 2.9 * len(lines) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(lines), across, squeeze=False)
    for line, own, row in zip(lines, panels, axes, strict=True):
        for (title, part), axis in zip(own, row, strict=False):
            _panel(axis, line.axis, part, colours)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel(AXES[line.axis])
        for axis in row[len(own) :]:
            axis.set_visible(False)
        row[0].set_ylabel(f"{line.title}\nafter / before")
    named = [axis.get_legend_handles_labels() for axis in axes.flat]
    unique = {name: own for both in named for own, name in zip(*both, strict=True)}
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=max(across, 2),
        fontsize=9, frameon=False,
    )  # fmt: skip
    return figure


def _panels(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the title of each panel, and its points: measure, method, dose, y and its limits."""
    names = {"value": "y", "ci_low": "low", "ci_high": "high"}
    effects = rows.rename(columns=names).assign(base=1)
    for measure in dict.fromkeys(TOGETHER.get(own, own) for own in rows["measure"]):
        own = effects[effects["measure"].replace(TOGETHER) == measure]
        names = [MEASURE_NAMES.get(each, each) for each in dict.fromkeys(own["measure"])]
        yield "; dashed: ".join(names), own
    for column, (title, base) in PRICES.items():
        own = rows.dropna(subset=column) if column in rows else rows[:0]
        if len(own):
            # The first measure that has it; it is the same in all of these.
            own = own[own["measure"] == own["measure"].iloc[0]].drop(columns="published")
            same = {"y": own[column], "low": np.nan, "high": np.nan, "base": base}
            yield title, own.assign(**same, median=np.nan, measure="")


def _panel(axis: Any, x: str, rows: pd.DataFrame, colours: Mapping[str, str]) -> None:
    doses = sorted(rows[x].unique())
    # Numbers of heads stand apart evenly; alpha is a number as it is.
    places = {dose: n if x == "heads" else dose for n, dose in enumerate(doses)}
    gap = min(np.diff([places[dose] for dose in doses]))
    methods, measures = (list(dict.fromkeys(rows[key])) for key in ("method", "measure"))
    shift = dict(zip(product(measures, methods), _dodge(len(measures) * len(methods)), strict=True))
    for (measure, method), own in rows.groupby(["measure", "method"], sort=False):
        own = own.sort_values(x)
        at = own[x].map(places).to_numpy(float)
        first = measure == measures[0]
        label = METHOD_NAMES[method] + (
            f", {MEASURE_NAMES.get(measure, measure)}" if not first else ""
        )
        style = {"color": colours[method], "ls": "-" if first else "--", "lw": 1.6, "zorder": 3}
        style |= {"marker": MARKS[method], "ms": 5, "mec": "white", "mew": 0.6, "clip_on": False}
        if method == "random":
            style |= {"color": "#777777", "lw": 1.2, "zorder": 2}
        if method == "random" and own["median"].notna().all():
            axis.fill_between(at, own["q25"], own["q75"], color=colours["random"], alpha=0.6, lw=0)
            axis.plot(at, own["median"], label=label, **style)
        else:
            at = at + 0.12 * gap * shift[measure, method]
            axis.plot(at, own["y"], label=label, **style)
            _intervals(axis, at, own, colours[method])
        printed = own.dropna(subset="published") if "published" in own else own[:0]
        if len(printed):
            # In its line's colour, so that it is seen whose value it is.
            mark = {"mfc": style["color"], "mec": colours["published"], "marker": "X", "ms": 7}
            mark |= {"ls": "none", "mew": 0.9, "zorder": 5, "label": "published"}
            axis.plot(printed[x].map(places), printed["published"], **mark)
    axis.axhline(rows["base"].iloc[0], color="black", lw=0.8, ls=":")
    axis.set_xticks([places[dose] for dose in doses], [f"{dose:g}" for dose in doses])
    axis.margins(x=0.08)
    if rows["base"].iloc[0]:
        axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)


def _intervals(axis: Any, at: np.ndarray, rows: pd.DataFrame, colour: str) -> None:
    limits = [rows["y"] - rows["low"], rows["high"] - rows["y"]]
    axis.errorbar(at, rows["y"], np.clip(limits, 0, None), color=colour, lw=1, capsize=2, ls="none")
    for place, value in zip(at, rows["y"], strict=True):
        if value == 0:
            label_zero(axis, place)


def label_zero(axis: Any, x: float) -> None:
    """Write beside a value of 0 that it is there."""
    axis.annotate("0", (x, 0), (4, 3), textcoords="offset points", fontsize=8, zorder=6)


def _dodge(n: int) -> np.ndarray:
    """Return small steps to both sides, so that intervals do not hide each other."""
    return np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
