"""Table 1: what single heads write, by SOMP and by the logit lens, beside the paper's tokens."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from headpursuit.method.heads import Head, listed
from headpursuit.publish.figure import panels, put_legend
from headpursuit.publish.texts import METHOD_NAMES, by_text
from headpursuit.run.experiments import head_name, head_of

MEASURED = [
    *("rank", "score", "explained", "explained_null", "explained_high"),
    *("coherence", "coherence_null", "coherence_high", "coherence_p"),
]


def shown_heads(vocabulary: Mapping[str, Any], specialists: pd.DataFrame) -> list[Head]:
    """Return the heads that the config names, or the most specialised ones where it names none."""
    if vocabulary["heads"] is not None:
        return [head_of(name) for name in vocabulary["heads"]]
    return listed(specialists.sort_values("rank").head(vocabulary["top"]))


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
) -> list[dict[str, Any]]:
    """Return a row for each head, method and text that published tokens (one where none did).

    Args:
        experiment: its name.
        heads: the heads shown.
        atoms: ``decompositions/{experiment}.parquet``.
        lens: ``lens/{experiment}.parquet``.
        specialists: ``specialists/{experiment}.csv``.
        published: rows of ``data/published_tokens.csv``, of these samples and this model.
        tokens: how many tokens of each kind are shown.
    """
    rows = []
    for layer, head in heads:
        measured = _head(specialists, layer, head)[MEASURED].to_dict("records")[0]
        for method, table, order in (("somp", atoms, "step"), ("logit_lens", lens, "place")):
            own = " ".join(_head(table, layer, head).sort_values(order)["token"].head(tokens))
            row = {"experiment": experiment, "layer": layer, "head": head, "method": method}
            row |= {"tokens": own, **(measured if method == "somp" else {})}
            texts = _head(published[published["method"] == method], layer, head)
            printed = [
                {"published": tokens, "published_source": source, "overlap": overlap(own, tokens)}
                for tokens, source in zip(texts["tokens"], texts["source"], strict=True)
            ]
            rows += [row | text for text in printed or [{}]]
    return rows


def _head(table: pd.DataFrame, layer: int, head: int) -> pd.DataFrame:
    return table[(table["layer"] == layer) & (table["head"] == head)]


def display(table: pd.DataFrame) -> pd.DataFrame:
    """Return table 1 as text cells for Markdown and LaTeX, a row for each experiment and head."""
    rows = []
    keys = ["experiment", "layer", "head"]
    for (experiment, layer, head), own in table.groupby(keys, sort=False):
        somp = own[own["method"] == "somp"].iloc[0]
        cells = {"data": experiment, "head": head_name(layer, head), "rank": str(somp["rank"])}
        for name in ("explained", "coherence"):
            both = f"{somp[name]:.2f} ({somp[f'{name}_null']:.2f})"
            cells[f"{name} (random)"] = "" if pd.isna(somp[name]) else both
        for method in ("somp", "logit_lens"):
            printed, name = own[own["method"] == method], METHOD_NAMES[method]
            cells[name] = printed["tokens"].iloc[0]
            for text in printed.dropna(subset="published").itertuples():
                agree = f"{text.overlap} of {len(set(text.published.split()))}"
                cells[f"{name}, {text.published_source}"] = f"{text.published} ({agree})"
        rows.append(cells)
    return pd.DataFrame(rows).fillna("")


def notes(
    facts: Mapping[str, Mapping[str, Any]],
    specialists: Mapping[str, pd.DataFrame],
    experiments: Mapping[str, Mapping[str, Any]],
    seed: int,
) -> Iterator[str]:
    """Yield what a reader of table 1 has to know; ``facts`` are the decompositions' metadata."""
    models = ", ".join(dict.fromkeys(own["model"] for own in experiments.values()))
    k, per_sample, draws = (
        by_text({name: str(own["vocabulary"][key]) for name, own in experiments.items()})
        for key in ("tokens", "per_sample", "draws")
    )
    read = "; ".join(
        f"{name}: {own['samples']} prompts, mean over the positions: {own['positions']}"
        for name, own in facts.items()
    )
    ranked = ", ".join(sorted({str(len(own)) for own in specialists.values()}))
    yield f"Model {models}. {read}. SOMP: the first {k} atoms out of the whole vocabulary."
    yield (
        f"Logit lens: the {k} tokens that are most often among a sample's {per_sample} of "
        f"highest logit. Explained: share of the head's variance explained by its {k} atoms, and "
        f"in brackets the mean of {draws} random sets of {k} tokens of about the same "
        f"norms (seed {seed})."
    )
    yield (
        f"Coherence: mean cosine between the {k} atoms' unembedding rows, centred over the "
        f"vocabulary, and the mean of the same random sets. The {k} atoms are the best of the "
        "vocabulary and the random sets are not chosen, so nearly every head is above its random "
        f"sets; what tells is by how much. Rank: of {ranked} heads, by the geometric mean of both "
        "excesses."
    )
    yield (
        "Published tokens, where the heads are of the paper's model, stand with how many of them "
        "agree, spaces around tokens apart. Signs: ␣ is a space, \\n a line end, \\xe2 a byte that "
        "is no letter by itself."
    )


def plot_heads(
    tables: Mapping[str, pd.DataFrame],
    value: str,
    shown: Mapping[str, Sequence[Head]],
    label: str,
):
    """Draw a column of each experiment's table as a heat map, layers x heads; shown are framed."""
    from matplotlib.patches import Rectangle

    grids = [own.pivot(index="layer", columns="head", values=value) for own in tables.values()]
    top = max(grid.max(axis=None) for grid in grids)
    height, width = grids[0].shape
    size = len(grids) * (1.6 + 0.2 * width), 1.4 + 0.17 * height
    figure, axes = panels(*size, 1, len(grids))
    for axis, name, grid in zip(axes[0], tables, grids, strict=True):
        image = axis.imshow(grid, origin="lower", vmin=0, vmax=top, cmap="viridis", aspect="auto")
        for layer, head in shown[name]:
            frame = Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, ec="red", lw=1.2)
            axis.add_patch(frame)
        axis.set(xlabel="head", ylabel="layer", title=name)
        for line in (axis.xaxis, axis.yaxis):
            line.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=axes[0], label=label)
    return figure


def plot_atoms(
    atoms: Mapping[str, pd.DataFrame],
    nulls: Mapping[str, pd.DataFrame],
    shown: Mapping[str, Sequence[Head]],
    tokens: Mapping[str, int],
    colours: Mapping[str, str],
):
    """Draw explained variance against the number of atoms, a panel for each head shown.

    Over it stand the head's first ``tokens``, behind it what random sets (``nulls``) explain.
    """
    heads = [(name, *head) for name, own in shown.items() for head in own]
    columns = min(4, len(heads))
    rows = math.ceil(len(heads) / columns)
    size = 2.6 * columns, 0.6 + 2.2 * rows
    figure, axes = panels(*size, rows, columns, sharex=True, sharey=True)
    for axis, (name, layer, head) in zip(axes.flat, heads, strict=False):
        own = _head(atoms[name], layer, head).sort_values("step")
        null = _head(nulls[name], layer, head).sort_values("step")
        band = {"color": colours["random"], "lw": 0, "label": "95 % of random sets"}
        axis.fill_between(null["step"], null["low"], null["high"], **band)
        axis.plot(null["step"], null["mean"], color="black", lw=0.6, ls=":", label="their mean")
        axis.plot(own["step"], own["explained"], "o-", ms=2.5, color=colours["somp"], label="SOMP")
        said = latin(" ".join(own["token"].head(tokens[name])))
        axis.set_title(f"{name} {head_name(layer, head)}\n{said}", fontsize=7, parse_math=False)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(heads) :]:
        axis.set_axis_off()
    axes[0][0].set_ylim(0, 1)
    for axis in axes[-1]:
        axis.set_xlabel("atoms")
    figure.supylabel("explained variance", fontsize=9)
    put_legend(figure, axes[0], 3)
    return figure


def latin(text: str) -> str:
    """Return text with every letter beyond Latin escaped: no one font has them all."""
    return "".join(
        sign if sign == "␣" or ord(sign) < 0x250 else sign.encode("unicode_escape").decode()
        for sign in text
    )
