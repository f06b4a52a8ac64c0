"""The figure of a table of ratios: bars, lines or a specification curve."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from headpursuit.publish.ratio import ANSWERS
from headpursuit.publish.texts import MEASURE_NAMES, METHOD_NAMES, scaling

Choices = Mapping[str, Mapping[str, str] | None]
Colours = Mapping[str, str]
# Fewer variants are shown as bars, and fewer doses make no line.
LEAST_VARIANTS, LEAST_DOSES = 5, 3
AXES = {"heads": "heads scaled", "alpha": "alpha"}
# What stands beside an effect, where a table has it: what scaling costs.
PRICES = {
    "nats_per_token": ("price: nats per token", 0),
    "repetition_ratio": ("price: repetition, after / before", 1),
}
# Measures that share a panel, as the paper's figure 2 has them.
TOGETHER = {"f1_others": "f1"}
MARKS = {"somp": "o", "logit_lens": "s", "unrelated": "^", "size": "v", "random": "D"}
PANEL = ["measure", "heads", "alpha", "at"]


def plot(table: pd.DataFrame, draws: pd.DataFrame, choices: Choices, colours: Colours):
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


def panels(width: float, height: float, *shape: int, **how: Any) -> tuple[Any, np.ndarray]:
    """Return a figure and its axes, in inches and by rows and columns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*shape, squeeze=False, **how)


def put_legend(figure: Any, axes: Iterable[Any], columns: int) -> None:
    """Name below a figure what its axes show, each once."""
    named = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes]
    unique = {name: own for both in named for own, name in both}
    where = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
    figure.legend(unique.values(), unique.keys(), ncols=columns, **where)


def _draw_intervals(axis: Any, at: Sequence[float], rows: pd.DataFrame, colour: str) -> None:
    """Draw the intervals of ratios, and say of a value of 0 that it is there."""
    limits = [rows["value"] - rows["ci_low"], rows["ci_high"] - rows["value"]]
    style = {"color": colour, "lw": 1, "capsize": 2, "ls": "none", "zorder": 3}
    axis.errorbar(at, rows["value"], np.clip(limits, 0, None), **style)
    for x in np.asarray(at)[rows["value"] == 0]:
        axis.annotate("0", (x, 0), (4, 3), textcoords="offset points", fontsize=8, zorder=6)


# Bars


def plot_bars(table: pd.DataFrame, draws: pd.DataFrame, colours: Colours):
    """Draw the rows as bars, a row and a column of panels, a group of bars, a bar a method.

    Right answers are comparable between experiments: a panel for each measure and scaling (k, and
    alpha and place where there are several) has a group for each experiment. Otherwise a panel for
    each experiment and measure has a group for each scaling. Bars are ratios with their
    interval; dots are single random draws; a black mark is the published value.
    """
    varied = [key for key in ("alpha", "at") if table[key].nunique() > 1]

    def label(row: pd.Series) -> str:
        said = scaling(row["heads"], row["alpha"] if "alpha" in varied else None)
        return "\n".join(said + ([row["at"]] if "at" in varied else []))

    table, draws = (own.assign(scaling=own.apply(label, axis=1)) for own in (table, draws))
    answers = table["measure"].isin(ANSWERS).all()
    keys = ["measure", "scaling", "experiment"] if answers else ["experiment", "measure", "scaling"]
    down, across, groups = (_values(table, key) for key in keys)
    width = max(4.2, 1.5 * len(groups)) * len(across)
    shape = len(down), len(across)
    figure, axes = panels(width, 3.1 * len(down), *shape, sharey=bool(answers))
    for axis, panel in zip(axes.flat, product(down, across), strict=True):
        own = [part[(part[keys[:2]] == panel).all(axis=1)] for part in (table, draws)]
        _bars(axis, *own, colours, keys[2])
        title = [MEASURE_NAMES.get(value, value) for value in panel]
        axis.set_title(": ".join(reversed(title) if answers else title), fontsize=10)
    worded = table["measure"].isin(["occurrences", "expected"]).all()
    for axis in axes[:, 0]:
        what = "accuracy" if answers else "words" if worded else "measure"
        axis.set_ylabel(f"{what}, after / before")
    put_legend(figure, axes.flat, len(set(table["method"])) + 2)
    return figure


def _values(table: pd.DataFrame, key: str) -> list[str]:
    """Return a column's values in their order, scalings by k and alpha."""
    ordered = table.sort_values(["heads", "alpha"], kind="stable") if key == "scaling" else table
    return list(dict.fromkeys(ordered[key]))


def _bars(axis: Any, table: pd.DataFrame, draws: pd.DataFrame, colours: Colours, key: str) -> None:
    """Draw a group of bars, a bar a method, for each value of ``scaling`` or ``experiment``."""
    groups, methods = (_values(table, name) for name in (key, "method"))
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        own = table[table["method"] == method]
        x = own[key].map(groups.index).to_numpy() + (number - (len(methods) - 1) / 2) * width
        # The edge is seen where the bar has no height.
        style = {"color": colours[method], "edgecolor": colours[method], "lw": 1, "zorder": 1}
        axis.bar(x, own["value"], 0.9 * width, label=METHOD_NAMES[method], **style)
        _draw_intervals(axis, x, own, "black")
        for place, group in zip(x, own[key].where(own["draws"] > 1), strict=True):
            single = draws[(draws["method"] == method) & (draws[key] == group)]["value"]
            # Spread evenly from left to right, so that equal draws can be told apart.
            spread = place + np.linspace(-0.3, 0.3, len(single)) * width
            dot = {"ms": 3, "mfc": "white", "mec": "black", "mew": 0.6, "ls": "none"}
            if len(single):
                axis.plot(spread, single, marker="o", label="random draw", **dot)
        if (printed := own["published"].notna().to_numpy()).any():
            mark = {"color": colours["published"], "marker": "D", "ms": 5, "ls": "none"}
            mark |= {"mec": "white", "label": "published", "zorder": 4}
            axis.plot(x[printed], own["published"][printed], **mark)
    axis.axhline(1, color="black", lw=0.8, ls=":")
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)


# Lines: effect and price against the number of heads, or against alpha


class Line(NamedTuple):
    """The rows of a line of panels: an experiment, what the axis is, and what else is the same."""

    title: str
    axis: str
    rows: pd.DataFrame


def lines_of(table: pd.DataFrame) -> list[Line]:
    """Return what of a table of ratios makes lines: experiments with three or more k or alphas."""
    found = []
    for axis, other in (("heads", "alpha"), ("alpha", "heads")):
        for (name, same, at), rows in table.groupby(["experiment", other, "at"], sort=False):
            if rows[axis].nunique() >= LEAST_DOSES:
                title = ", ".join([name, *scaling(**{other: same}, at=at)])
                found.append(Line(title, axis, rows))
    return found


def plot_lines(lines: Sequence[Line], colours: Colours):
    """Draw effects and prices, a row of panels for each experiment.

    Lines are chosen heads with their intervals, the grey band the quartiles of random draws with
    their median; crosses in a line's colour are published values.
    """
    parts = [list(_effects_and_prices(line.rows)) for line in lines]
    across = max(map(len, parts))
    width = max(3.6 * across, 5.4)
    figure, axes = panels(width, 2.9 * len(lines) + 0.7, len(lines), across)
    for line, own, row in zip(lines, parts, axes, strict=True):
        for (title, part, base), axis in zip(own, row, strict=False):
            _lines(axis, line.axis, part, base, colours)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel(AXES[line.axis])
        for axis in row[len(own) :]:
            axis.set_visible(False)
        row[0].set_ylabel(f"{line.title}\nafter / before")
    put_legend(figure, axes.flat, max(across, 2))
    return figure


def _effects_and_prices(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, float]]:
    """Yield the title of each panel, its rows, and the value at which nothing changes."""
    kinds = rows["measure"].replace(TOGETHER)
    for measure in dict.fromkeys(kinds):
        own = rows[kinds == measure]
        names = [MEASURE_NAMES.get(each, each) for each in dict.fromkeys(own["measure"])]
        yield "; dashed: ".join(names), own, 1
    for column, (title, base) in PRICES.items():
        own = rows.dropna(subset=column) if column in rows else rows[:0]
        if len(own):
            # The first measure that has it; it is the same in all of these.
            own = own[own["measure"] == own["measure"].iloc[0]]
            blank = dict.fromkeys(["ci_low", "ci_high", "median", "published"], np.nan)
            yield title, own.assign(**blank, value=own[column], measure=""), base


def _lines(axis: Any, x: str, rows: pd.DataFrame, base: float, colours: Colours) -> None:
    doses = sorted(rows[x].unique())
    # Numbers of heads stand apart evenly; alpha is a number as it is.
    places = {dose: n if x == "heads" else dose for n, dose in enumerate(doses)}
    gap = min(np.diff([places[dose] for dose in doses]))
    first, parts = rows["measure"].iloc[0], list(rows.groupby(["measure", "method"], sort=False))
    # Small steps to both sides, so that intervals do not hide each other.
    shifts = 0.12 * gap * (np.linspace(-1, 1, len(parts)) if len(parts) > 1 else np.zeros(1))
    for ((measure, method), own), shift in zip(parts, shifts, strict=True):
        own = own.sort_values(x)
        at = own[x].map(places).to_numpy(float)
        label = METHOD_NAMES[method]
        label += "" if measure == first else f", {MEASURE_NAMES.get(measure, measure)}"
        style = {"color": colours[method], "ls": "-" if measure == first else "--", "lw": 1.6}
        style |= {"marker": MARKS[method], "ms": 5, "mec": "white", "mew": 0.6, "clip_on": False}
        style |= {"zorder": 3, "label": label}
        if method == "random":
            style |= {"color": "#777777", "lw": 1.2, "zorder": 2}
        if method == "random" and own["median"].notna().all():
            axis.fill_between(at, own["q25"], own["q75"], color=colours["random"], alpha=0.6, lw=0)
            axis.plot(at, own["median"], **style)
        else:
            axis.plot(at + shift, own["value"], **style)
            _draw_intervals(axis, at + shift, own, colours[method])
        printed = own.dropna(subset="published")
        if len(printed):
            # In its line's colour, so that it is seen whose value it is.
            mark = {"mfc": style["color"], "mec": colours["published"], "marker": "X", "ms": 7}
            mark |= {"ls": "none", "mew": 0.9, "zorder": 5, "label": "published"}
            axis.plot(printed[x].map(places), printed["published"], **mark)
    axis.axhline(base, color="black", lw=0.8, ls=":")
    axis.set_xticks([places[dose] for dose in doses], [f"{dose:g}" for dose in doses])
    axis.margins(x=0.08)
    if base:
        axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)


# A specification curve: what the variants of an experiment find, and by which choices


def are_variants(choices: Choices) -> bool:
    """Say whether the experiments of a table make a specification curve."""
    return len(choices) >= LEAST_VARIANTS and all(own is not None for own in choices.values())


def plot_curve(table: pd.DataFrame, choices: Choices, colours: Colours):
    """Draw the variants' ratios in their order, and below them the choices that each makes.

    A panel for each measure and set of the first method's heads: dots with their intervals, in grey
    the quartiles of the variant's own random draws and their median; below, a dot for each choice
    in which a variant differs from the first experiment, which is the open dot.
    """
    sets = list(_sets(table))
    rows = list(
        dict.fromkeys(f"{key}: {own}" for all_ in choices.values() for key, own in all_.items())
    )
    heights = [2.6, 0.19 * len(rows) + 0.1]
    size = max(6.0, 0.26 * len(choices) + 3), (sum(heights) + 0.7) * len(sets)
    figure, axes = panels(*size, 2 * len(sets), 1, height_ratios=heights * len(sets))
    for (key, own), (above, below) in zip(sets, axes.reshape(-1, 2), strict=True):
        own = own.sort_values("value", na_position="last", ignore_index=True)
        random = table[(table[PANEL] == list(key)).all(axis=1) & (table["method"] == "random")]
        random = random.set_index("experiment").reindex(own["experiment"])
        _curve(above, own, random, next(iter(choices)), colours)
        _matrix(below, [choices[name] for name in own["experiment"]], rows)
        above.set_title(_title(*key), fontsize=10)
        for axis in (above, below):
            axis.set_xlim(-0.7, len(own) - 0.3)
            axis.set_xticks([])
    put_legend(figure, axes[0], 2)
    return figure


def _sets(table: pd.DataFrame) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """Yield each set of the first method's heads and measure, and its rows of all variants."""
    yield from table[table["method"] == table["method"].iloc[0]].groupby(PANEL, sort=False)


def _title(measure: str, *how: Any) -> str:
    return ", ".join([MEASURE_NAMES.get(measure, measure), *scaling(*how)])


def _curve(
    axis: Any, own: pd.DataFrame, random: pd.DataFrame, first: str, colours: Colours
) -> None:
    x, has = np.arange(len(own)), random["median"].notna().to_numpy()
    drawn, colour = random[has], colours[own["method"].iloc[0]]
    band = {"color": colours["random"], "alpha": 0.7, "zorder": 1}
    axis.bar(
        x[has], drawn["q75"] - drawn["q25"], 0.8, drawn["q25"],
        label="random heads: quartiles", **band,
    )  # fmt: skip
    ends = x[has] - 0.4, x[has] + 0.4
    axis.hlines(drawn["median"], *ends, color="#555555", lw=1.2, label="their median")
    _draw_intervals(axis, x, own, colour)
    original = (own["experiment"] == first).to_numpy()
    for which, fill, label in (
        (~original, colour, "variant"),
        (original, "white", "the experiment itself"),
    ):
        dot = {"ms": 5.5, "mfc": fill, "mec": colour, "mew": 1.3, "ls": "none", "zorder": 4}
        axis.plot(x[which], own["value"][which], marker="o", label=label, **dot)
    axis.axhline(1, color="black", lw=0.8, ls=":")
    axis.set_ylim(bottom=0)
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
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def curve_notes(table: pd.DataFrame, choices: Choices) -> Iterator[str]:
    """Yield how many of the variants find the same, if they are variants."""
    if not are_variants(choices):
        return
    for key, rows in _sets(table):
        below = rows["value"] < 1
        clear = (rows["ci_high"] < 1) | (rows["ci_low"] > 1)
        yield (
            f"{_title(*key)}: {below.sum()} of {len(rows)} variants lie below 1, "
            f"{(below & clear).sum()} of them with their interval; "
            f"{(rows['value'] > 1).sum()} above, {(~below & clear).sum()} with it; "
            f"from {rows['value'].min():.2f} to {rows['value'].max():.2f}."
        )
