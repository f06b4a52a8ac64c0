"""How many of their top heads two experiments share."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pandas as pd

from headpursuit.method.heads import FEWER_ATOMS, Head, rank, read_ranking, top_heads
from headpursuit.publish.figure import panels
from headpursuit.publish.texts import MEASURE_NAMES, bare
from headpursuit.run.tables import lay_out, read_csv

Experiments = Mapping[str, Mapping[str, Any]]


def jaccard(a: Sequence[Head], b: Sequence[Head]) -> float:
    """Return the Jaccard index of two sets of heads: shared over all."""
    return len(set(a) & set(b)) / len(set(a) | set(b))


def chance(k: int, n: int, shared: int) -> tuple[float, float]:
    """Return what two random sets of k out of n heads share.

    That is their expected Jaccard index, and the probability of sharing as many heads or more.
    """
    ways = [comb(k, s) * comb(n - k, k - s) for s in range(k + 1)]
    expected = sum(count * s / (2 * k - s) for s, count in enumerate(ways))
    return expected / comb(n, k), sum(ways[shared:]) / comb(n, k)


def choosers(
    paths: Sequence[str], experiments: Experiments
) -> tuple[dict[str, pd.DataFrame], dict[str, Mapping[str, Any]]]:
    """Return the rankings of the experiments that choose heads, and what is known of these.

    Args:
        paths: the experiments' rankings; of one that has its heads from another, the other's.
        experiments: their model and k, and of who chooses their heads the name (heads_from; None
            is the experiment itself), the first method (ranked_by) and the candidate layers.
    """
    rankings, chosen = {}, {}
    for path, (name, own) in zip(paths, experiments.items(), strict=True):
        if (source := own["heads_from"] or name) not in chosen:
            chosen[source] = experiments.get(source, own)
            rankings[source] = read_ranking(path, chosen[source]["ranked_by"])
    return rankings, chosen


def concept_tokens(path: str) -> set[str]:
    """Return the tokens of a dictionary, without the marks of a space before them."""
    return set(map(bare, read_csv(path, ["token"])["token"]))


def overlaps(
    rankings: Mapping[str, pd.DataFrame],
    experiments: Experiments,
    tokens: Mapping[str, Collection[str]] | None = None,
) -> pd.DataFrame:
    """Compare the top heads of each two experiments of a model (v2, figure 4), for each common k.

    Args:
        rankings: experiment to its ranking by its first method.
        experiments: their model, k, and first and last candidate layer (layers); chance is reckoned
            from the first one's.
        tokens: those of their concepts. Concepts that share tokens share heads for that alone.
    """
    rows = []
    for one, other in combinations(rankings, 2):
        first, second = experiments[one], experiments[other]
        shared_k = [k for k in first["k"] if k in second["k"] and first["model"] == second["model"]]
        for k in shared_k:
            mine = top_heads(rankings[one], k, *first["layers"])
            theirs = top_heads(rankings[other], k, *second["layers"])
            row = {"heads": k, "one": one, "other": other, "shared": len({*mine} & {*theirs})}
            both = {*tokens[one]} & {*tokens[other]} if tokens else ()
            row["tokens"] = " ".join(sorted(both)) or None
            n = int(rankings[one]["layer"].between(*first["layers"]).sum())
            expected, p = chance(k, n, row["shared"])
            rows.append(row | {"jaccard": jaccard(mine, theirs), "chance": expected, "p": p})
    table = lay_out("tables/{table}.overlap.csv", rows)
    return table.sort_values("heads", kind="stable", ignore_index=True)


def put_rankings(
    table: pd.DataFrame, rankings: Mapping[str, str], experiments: Experiments
) -> pd.DataFrame:
    """Return rows of ratios with what the ranking that chose their heads says, and cannot say.

    That is how many of the heads write against the concept, the rows of the dictionary, and how
    many of the heads a ranking by fewer atoms would choose.

    Args:
        table: rows of ratios.
        rankings: experiment to the file of its ranking.
        experiments: their candidate ``layers``.
    """
    methods = {
        (name, method): (own, _by_fewer(own))
        for name, path in rankings.items()
        for method, own in read_csv(path).groupby("method")
    }

    def said(row: Mapping[str, Any]) -> dict[str, int]:
        ranking, fewer = methods.get((row["experiment"], row["method"]), (None, {}))
        if ranking is None:
            return {}
        of = row["heads"], *experiments[row["experiment"]]["layers"]
        chosen = top_heads(ranking, *of)
        own = ranking.set_index(["layer", "head"]).loc[chosen]
        kept = {name: len({*chosen} & {*top_heads(other, *of)}) for name, other in fewer.items()}
        return {"opposed": int((own["direction"] < 0).sum()), "rows": own["rows"].iloc[0]} | kept

    rows = [row | said(row) for row in table.to_dict("records")]
    return lay_out("tables/{table}.csv", rows)


def _by_fewer(ranking: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rankings that the scores of fewer atoms give, where a method has any."""
    bare = ranking.drop(columns="rank")
    return {
        f"kept_{atoms}": rank(bare.assign(score=ranking[score]))
        for score, atoms in FEWER_ATOMS.items()
        if ranking[score].notna().all()
    }


def ranking_notes(table: pd.DataFrame, experiments: Experiments) -> Iterator[str]:
    """Yield what a reader of :func:`put_rankings` has to know; experiments have ``iterations``."""
    if table["opposed"].notna().any():
        yield (
            "Opposed: of these heads, those that write against the concept (direction in "
            "rankings/): inverting one raises it, as far as its own write goes. Kept: those that "
            "the scores of 5, 10 and 20 atoms would choose as well."
        )
    if table["signed"].any():
        names = ", ".join(dict.fromkeys(table["experiment"][table["signed"]]))
        yield f"Signed ({names}): heads that write against the concept are multiplied by 2 - alpha."
    pursued = table[table["method"] == "somp"].groupby("experiment", sort=False)["rows"].first()
    few = [f"{name}: {n}" for name, n in pursued.items() if n <= experiments[name]["iterations"]]
    if few:
        yield (
            f"With as many iterations as rows of the dictionary or more ({', '.join(few)} rows), "
            "SOMP takes every row: its score is a plain projection, and neither its norm nor its "
            "order decides anything; of fewer atoms, they do."
        )


def is_crossed(table: pd.DataFrame) -> bool:
    """Say whether experiments in a table of ratios have their heads from several."""
    sources = table["heads_from"].fillna(table["experiment"])
    return bool(table["heads_from"].notna().any() and sources.nunique() > 1)


def plot_crossed(table: pd.DataFrame, shared: pd.DataFrame):
    """Draw which heads experiments share, and what the heads of one do to another (v2, figure 4).

    Each k has a row of heat maps: the Jaccard index of each two experiments that choose heads, and
    for each measure, alpha and place under which some heads are another's, the ratio of an
    experiment (row) with the heads of another (column).

    Args:
        table: rows of ratios, with ``heads_from``.
        shared: :func:`overlaps` of the experiments that choose heads.
    """
    read = ["samples", "concept", "model"]
    own = table[table["heads_from"].isna()].drop_duplicates(read).set_index(read)["experiment"]
    first = table[table["method"] == table["method"].iloc[0]]
    target = [own.get(tuple(row), row[0]) for row in first[read].itertuples(index=False)]
    target = first["experiment"].where(first["heads_from"].isna(), target)
    first = first.assign(target=target, source=first["heads_from"].fillna(first["experiment"]))
    # Of several with one's measure and another's heads the first is shown.
    first = first.drop_duplicates(["target", "source", "heads", "measure", "alpha", "at"])
    sources, targets = (list(dict.fromkeys(first[key])) for key in ("source", "target"))
    kinds = [
        (kind, rows)
        for kind, rows in first.groupby(["measure", "alpha", "at"], sort=False)
        if (rows["target"] != rows["source"]).any()
    ]
    several = len({kind[1:] for kind, _ in kinds}) > 1
    ks = sorted(set(first["heads"]))

    width, height = 1.8 + 0.85 * len(sources), 1.4 + 0.5 * len(targets)
    shape = len(ks), 1 + len(kinds)
    figure, axes = panels(width * shape[1], height * shape[0], *shape)
    for line, k in zip(axes, ks, strict=True):
        same = pd.DataFrame(np.eye(len(sources)), index=sources, columns=sources)
        for row in shared[shared["heads"] == k].itertuples():
            same.loc[row.one, row.other] = same.loc[row.other, row.one] = row.jaccard
        _heat_map(line[0], same, "Jaccard index", f"{k} heads", cmap="viridis", vmax=1)
        for axis, ((measure, alpha, at), rows) in zip(line[1:], kinds, strict=True):
            grids = [
                rows[rows["heads"] == k]
                .pivot(index="target", columns="source", values=name)
                .reindex(targets, columns=sources)
                for name in ("value", "ci_low", "ci_high")
            ]
            where = f", alpha {alpha:g} ({at})" if several else ""
            name = f"{MEASURE_NAMES[measure]}{where}, after / before"
            # 1, nothing changed, is white; below and above have hues that all eyes can tell apart.
            _heat_map(axis, grids[0], name, f"{k} heads", grids[1:], cmap="PuOr", vmax=2)
            axis.set(xlabel="heads of", ylabel="measured on")
    return figure


def _heat_map(
    axis: Any,
    grid: pd.DataFrame,
    label: str,
    title: str,
    limits: Sequence[pd.DataFrame] = (),
    **colours: Any,
) -> None:
    """Draw numbers as colours and as text, with their limits below."""
    image = axis.imshow(grid, vmin=0, aspect="auto", **colours)
    for (row, column), value in np.ndenumerate(grid.to_numpy()):
        if pd.isna(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = {"color": "white" if dark else "black", "ha": "center", "fontsize": 8}
        axis.text(column, row, f"{value:.2f}", va="bottom" if limits else "center", **text)
        if limits:
            low, high = (own.iat[row, column] for own in limits)
            said = f"[{low:.2f}, {high:.2f}]"
            axis.text(column, row + 0.08, said, va="top", **text | {"fontsize": 6.5})
    axis.set_xticks(range(grid.shape[1]), grid.columns, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(grid.shape[0]), grid.index, fontsize=8)
    axis.set_title(f"{title}: {label}", fontsize=9)


def display(table: pd.DataFrame) -> pd.DataFrame:
    """Return the overlaps as text cells, a row for each k and pair of experiments."""
    rows = list(table.itertuples())
    shown = pd.DataFrame(
        {
            "heads": [str(row.heads) for row in rows],
            "experiments": [f"{row.one}, {row.other}" for row in rows],
            "shared": [str(row.shared) for row in rows],
            "Jaccard (chance)": [f"{row.jaccard:.2f} ({row.chance:.2f})" for row in rows],
            "p": [f"{row.p:.2g}" for row in rows],
            "tokens of both": ["" if pd.isna(row.tokens) else row.tokens for row in rows],
        }
    )
    return shown if (shown["tokens of both"] != "").any() else shown.drop(columns="tokens of both")


def notes(experiments: Experiments) -> Iterator[str]:
    """Yield what a reader of the overlaps has to know."""
    models = ", ".join(dict.fromkeys(own["model"] for own in experiments.values()))
    spans = ", ".join(
        dict.fromkeys("{} to {}".format(*own["layers"]) for own in experiments.values())
    )
    yield (
        f"Model {models}. Top heads of layers {spans} by each experiment's first method; Jaccard: "
        "heads that both have over heads that either has, and in brackets what two random sets of "
        "as many heads would give on average; p: that they share as many or more. Concepts with "
        "tokens in common share heads for that alone."
    )
