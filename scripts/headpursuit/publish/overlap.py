"""How many of their top heads two experiments share."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any

import pandas as pd

from headpursuit.method.heads import Head, top_heads

COLUMNS = ["heads", "one", "other", "shared", "jaccard", "chance"]


def jaccard(a: Sequence[Head], b: Sequence[Head]) -> float:
    """Return the Jaccard index of two sets of heads: shared over all."""
    return len(set(a) & set(b)) / len(set(a) | set(b))


def chance_jaccard(k: int, n: int) -> float:
    """Return the expected Jaccard index of two random sets of k out of n heads."""
    ways = {shared: comb(k, shared) * comb(n - k, k - shared) for shared in range(k + 1)}
    return sum(count * s / (2 * k - s) for s, count in ways.items()) / comb(n, k)


def overlaps(
    rankings: Mapping[str, pd.DataFrame],
    experiments: Mapping[str, Mapping[str, Any]],
    layers: Mapping[str, tuple[int, int]],
) -> pd.DataFrame:
    """Compare the top heads of each two experiments (v2, figure 4), for each k that both have.

    Args:
        rankings: experiment to its ranking by its first method.
        experiments: their model and k.
        layers: their first and last candidate layer.

    Returns:
        Table with heads (k), one, other, shared, jaccard and chance (the expected index of two
        random sets of k of the first one's candidate heads); experiments of different models have
        no row.
    """
    rows = []
    for one, other in combinations(rankings, 2):
        if experiments[one]["model"] != experiments[other]["model"]:
            continue
        for k in experiments[one]["k"]:
            if k in experiments[other]["k"]:
                mine, theirs = (top_heads(rankings[e], k, *layers[e]) for e in (one, other))
                n = int(rankings[one]["layer"].between(*layers[one]).sum())
                shared = len(set(mine) & set(theirs))
                chance = chance_jaccard(k, n)
                rows.append((k, one, other, shared, jaccard(mine, theirs), chance))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values("heads", kind="stable", ignore_index=True)


def display(table: pd.DataFrame) -> pd.DataFrame:
    """Return the overlaps as text cells, a row for each k and pair of experiments."""
    return pd.DataFrame(
        {
            "heads": table["heads"].astype(str),
            "experiments": table["one"] + ", " + table["other"],
            "shared": table["shared"].astype(str),
            "Jaccard (chance)": [
                f"{own:.2f} ({chance:.2f})"
                for own, chance in zip(table["jaccard"], table["chance"], strict=True)
            ],
        }
    )


def notes(
    experiments: Mapping[str, Mapping[str, Any]], layers: Mapping[str, tuple[int, int]]
) -> str:
    """Return what a reader of the overlaps has to know."""
    models = ", ".join(dict.fromkeys(own["model"] for own in experiments.values()))
    spans = ", ".join(dict.fromkeys(f"{first} to {last}" for first, last in layers.values()))
    return (
        f"Model {models}. Top heads of layers {spans} by each experiment's first method; Jaccard: "
        "heads that both have over heads that either has, and in brackets what two random sets of "
        "as many heads would give on average."
    )
