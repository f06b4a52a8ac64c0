"""Table 1: what single heads write, by SOMP and by the logit lens, beside the paper's tokens."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from headpursuit.method.heads import Head
from headpursuit.run.experiments import head_of
from headpursuit.run.tables import read_csv

METHODS = {"somp": "SOMP", "logit_lens": "logit lens"}


def head_name(layer: int, head: int) -> str:
    """Return a head's name as the paper writes it: ``L18.H27``."""
    return f"L{layer}.H{head}"


def shown_heads(vocabulary: Mapping[str, Any], specialists: pd.DataFrame) -> list[Head]:
    """Return the heads that the config names, or the most specialised ones where it names none."""
    if vocabulary["heads"] is not None:
        return [head_of(name) for name in vocabulary["heads"]]
    best = specialists.sort_values("rank").head(vocabulary["top"])
    return list(zip(best["layer"].tolist(), best["head"].tolist(), strict=True))


def read_published_tokens(path: str | Path, dataset: str, model: str | None) -> pd.DataFrame:
    """Read the published tokens of samples and model, ``data/published_tokens.csv``.

    Args:
        path: the file.
        dataset: name of the samples.
        model: the model's id on the Hub; heads of another model share nothing but their numbers.
    """
    columns = ["dataset", "model", "layer", "head", "method", "tokens", "source"]
    table = read_csv(path, columns)
    return table[(table["dataset"] == dataset) & (table["model"] == model)]


def overlap(own: str, published: str) -> int:
    """Return how many of the published tokens a head's own tokens hold, spaces around apart.

    Tokens are compared in the case they have; both are lists with a space between.
    """
    return len({token.strip("␣") for token in own.split()} & set(published.split()))


def table1(
    experiment: str,
    heads: Sequence[Head],
    atoms: pd.DataFrame,
    lens: pd.DataFrame,
    specialists: pd.DataFrame,
    published: pd.DataFrame,
    tokens: int,
) -> pd.DataFrame:
    """Put an experiment's heads into table 1.

    Args:
        experiment: its name.
        heads: the heads shown.
        atoms: ``decompositions/{experiment}.parquet``.
        lens: ``lens/{experiment}.parquet``.
        specialists: ``specialists/{experiment}.csv``.
        published: of :func:`read_published_tokens`.
        tokens: how many tokens of each kind are shown.

    Returns:
        A row for each head, method and text that published tokens (one without, where none did):
        experiment, layer, head, method, tokens, the columns of the specialists, published,
        published_source and overlap.
    """
    rows = []
    for layer, head in heads:
        found = {
            "somp": _tokens(atoms, layer, head, "step", tokens),
            "logit_lens": _tokens(lens, layer, head, "place", tokens),
        }
        measured = _head(specialists, layer, head).iloc[0][MEASURED].to_dict()
        for method, own in found.items():
            row = {"experiment": experiment, "layer": layer, "head": head, "method": method}
            row |= {"tokens": own, **(measured if method == "somp" else {})}
            printed = _head(published[published["method"] == method], layer, head)
            rows += [
                row
                | {
                    "published": text.tokens,
                    "published_source": text.source,
                    "overlap": overlap(own, text.tokens),
                }
                for text in printed.itertuples()
            ] or [row]
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    return table.astype({"rank": "Int64", "overlap": "Int64"})


MEASURED = [
    *("rank", "score", "explained", "explained_null", "explained_high"),
    *("coherence", "coherence_null", "coherence_high", "coherence_p"),
]
COLUMNS = [
    *("experiment", "layer", "head", "method", "tokens"),
    *(*MEASURED, "published", "published_source", "overlap"),
]


def _head(table: pd.DataFrame, layer: int, head: int) -> pd.DataFrame:
    return table[(table["layer"] == layer) & (table["head"] == head)]


def _tokens(table: pd.DataFrame, layer: int, head: int, order: str, n: int) -> str:
    return " ".join(_head(table, layer, head).sort_values(order)["token"].head(n))


def display(table: pd.DataFrame) -> pd.DataFrame:
    """Return table 1 as text cells for Markdown and LaTeX, a row for each experiment and head."""
    rows = []
    keys = ["experiment", "layer", "head"]
    for (experiment, layer, head), own in table.groupby(keys, sort=False):
        somp = own[own["method"] == "somp"].iloc[0]
        cells = {
            "data": experiment,
            "head": head_name(layer, head),
            "rank": str(somp["rank"]),
            "explained (random)": _pair(somp, "explained"),
            "coherence (random)": _pair(somp, "coherence"),
        }
        for method, name in METHODS.items():
            printed = own[own["method"] == method]
            cells[name] = printed["tokens"].iloc[0]
            for text in printed.dropna(subset="published").itertuples():
                agree = f"{text.overlap} of {len(text.published.split())}"
                cells[f"{name}, {text.published_source}"] = f"{text.published} ({agree})"
        rows.append(cells)
    return pd.DataFrame(rows).fillna("")


def _pair(row: pd.Series, name: str) -> str:
    if pd.isna(row[name]):
        return ""
    return f"{row[name]:.2f} ({row[f'{name}_null']:.2f})"


def notes(
    counts: Mapping[str, Mapping[str, Any]], experiments: Mapping[str, Mapping[str, Any]], seed: int
) -> str:
    """Return what a reader of table 1 has to know.

    Args:
        counts: for each experiment samples, positions and heads (the number ranked).
        experiments: their model and vocabulary; of the latter the first one's is told.
        seed: the config's seed.
    """
    models = ", ".join(dict.fromkeys(own["model"] for own in experiments.values()))
    spec = next(iter(experiments.values()))["vocabulary"]
    read = "; ".join(
        f"{name}: {own['samples']} prompts, mean over the positions: {own['positions']}"
        for name, own in counts.items()
    )
    ranked = ", ".join(sorted({str(own["heads"]) for own in counts.values()}))
    k = spec["tokens"]
    return (
        f"Model {models}. {read}. SOMP: the first {k} atoms out of the whole vocabulary. Logit "
        f"lens: the {k} tokens that are most often among a sample's {spec['per_sample']} of "
        f"highest logit. Explained: share of the head's variance explained by its {k} atoms, and "
        f"in brackets the mean of {spec['draws']} random sets of {k} tokens of about the same "
        f"norms (seed {seed}). Coherence: mean cosine between the {k} atoms' unembedding rows, "
        f"centred over the vocabulary, and the mean of the same random sets. The {k} atoms are "
        f"the best of the vocabulary and the random sets are not chosen, so nearly every head is "
        f"above its random sets; what tells is by how much. Rank: of {ranked} heads, by the "
        f"geometric mean of both excesses. Published tokens, where the heads are of the paper's "
        f"model, stand with how many of them agree, spaces around tokens apart. {_SIGNS}"
    )


_SIGNS = "Signs: ␣ is a space, \\n a line end, \\xe2 a byte that is no letter by itself."


def plot_heads(values: Mapping[str, pd.DataFrame], shown: Mapping[str, Sequence[Head]], label: str):
    """Draw a value of every head as a heat map, layers x heads, a panel for each experiment.

    Args:
        values: experiment to a table with layer, head and value.
        shown: experiment to the heads that are framed.
        label: what the value is.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    grids = {
        name: table.pivot(index="layer", columns="head", values="value")
        for name, table in values.items()
    }
    top = max(grid.max(axis=None) for grid in grids.values())
    height, width = next(iter(grids.values())).shape
    size = (len(grids) * (1.6 + 0.2 * width), 1.4 + 0.17 * height)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(grids), squeeze=False)[0]
    for axis, (name, grid) in zip(axes, grids.items(), strict=True):
        image = axis.imshow(grid, origin="lower", vmin=0, vmax=top, cmap="viridis", aspect="auto")
        for layer, head in shown[name]:
            frame = Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, ec="red", lw=1.2)
            axis.add_patch(frame)
        axis.set(xlabel="head", ylabel="layer", title=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=axes, label=label)
    return figure


def plot_atoms(
    atoms: Mapping[str, pd.DataFrame],
    nulls: Mapping[str, pd.DataFrame],
    shown: Mapping[str, Sequence[Head]],
    tokens: int,
    colours: Mapping[str, str],
):
    """Draw explained variance against the number of atoms, a panel for each head shown.

    Args:
        atoms: experiment to its decomposition.
        nulls: experiment to what random sets explain.
        shown: experiment to the heads drawn.
        tokens: how many tokens stand above a panel.
        colours: of ``somp`` and ``random``.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    panels = [(name, *head) for name, heads in shown.items() for head in heads]
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.6 * columns, 0.6 + 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, (name, layer, head) in zip(axes.flat, panels, strict=False):
        own = _head(atoms[name], layer, head).sort_values("step")
        null = _head(nulls[name], layer, head).sort_values("step")
        axis.fill_between(
            null["step"],
            null["low"],
            null["high"],
            color=colours["random"],
            lw=0,
            label="95 % of random sets",
        )
        axis.plot(null["step"], null["mean"], color="black", lw=0.6, ls=":", label="their mean")
        axis.plot(own["step"], own["explained"], "o-", ms=2.5, color=colours["somp"], label="SOMP")
        said = latin(" ".join(own["token"].head(tokens)))
        axis.set_title(f"{name} {head_name(layer, head)}\n{said}", fontsize=7, parse_math=False)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    axes[0][0].set_ylim(0, 1)
    for axis in axes[-1]:
        axis.set_xlabel("atoms")
    figure.supylabel("explained variance", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def latin(text: str) -> str:
    """Return text with every letter beyond Latin escaped: no one font has them all."""
    return "".join(
        sign if sign == "␣" or ord(sign) < 0x250 else sign.encode("unicode_escape").decode()
        for sign in text
    )
