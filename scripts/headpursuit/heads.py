"""Heads: which are selected, and the random ones they are compared with."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from headpursuit.files import UserError, seed_for
from headpursuit.tables import read_csv, write_csv

Head = tuple[int, int]  # (layer, head), both from 0


def rank(scores: pd.DataFrame) -> pd.DataFrame:
    """Order heads by score, highest first; equal scores go by layer, then head.

    Args:
        scores: table with layer, head and score (and whatever else is to be kept).

    Returns:
        The same with rank from 1, in that order.
    """
    ranked = scores.sort_values(["score", "layer", "head"], ascending=[False, True, True])
    ranked = ranked.reset_index(drop=True)
    ranked.insert(ranked.columns.get_loc("score") + 1, "rank", range(1, len(ranked) + 1))
    return ranked


def read_ranking(path: str | Path, method: str) -> pd.DataFrame:
    """Read one method's ranking of all heads: layer, head, score, rank and atoms."""
    table = read_csv(path, ["method", "layer", "head", "score", "rank", "atoms"])
    return table[table["method"] == method].drop(columns="method")


def top_heads(ranking: pd.DataFrame, k: int, first_layer: int, last_layer: int) -> list[Head]:
    """Return the k highest heads of the candidate layers, both ends included."""
    inside = ranking[ranking["layer"].between(first_layer, last_layer)].sort_values("rank")
    return [(int(layer), int(head)) for layer, head in inside[["layer", "head"]].values[:k]]


def draw_control(
    selected: list[Head], n_heads: int, seed: int, dataset: str, condition: str
) -> list[Head]:
    """Draw random heads: as many in each layer as selected there, and none of the selected.

    Args:
        selected: the heads to match.
        n_heads: heads a layer.
        seed: the config's seed; with dataset and condition it decides the draw.
        dataset: see seed.
        condition: see seed.

    Raises:
        UserError: if a layer has too few other heads.
    """
    rng = np.random.default_rng(seed_for(seed, dataset, condition))
    drawn = []
    for layer, wanted in sorted(Counter(layer for layer, _ in selected).items()):
        others = [head for head in range(n_heads) if (layer, head) not in set(selected)]
        if wanted > len(others):
            raise UserError(
                f"{dataset}, {condition}: layer {layer} has {wanted} selected heads and only "
                f"{len(others)} others, so no disjoint control of the same size exists. "
                f"Use a smaller heads.k than {len(selected)}."
            )
        drawn += [(layer, int(head)) for head in sorted(rng.choice(others, wanted, replace=False))]
    return drawn


def write_heads(path: str | Path, heads: list[Head]) -> None:
    """Write heads as a table with layer and head."""
    write_csv(path, pd.DataFrame(heads, columns=["layer", "head"]))


def read_heads(path: str | Path) -> list[Head]:
    """Read a table of heads."""
    table = read_csv(path, ["layer", "head"])
    return [(int(layer), int(head)) for layer, head in table[["layer", "head"]].values]


def read_conditions(
    paths: Sequence[str | Path], dataset: str, crossed: Mapping[str, Sequence[str]]
) -> dict[str, list[Head]]:
    """Read the heads of a data set's conditions, those chosen on other data sets included.

    Args:
        paths: tables of condition, layer and head, named after their data sets.
        dataset: whose own conditions are read.
        crossed: name of a condition to another data set and the condition there.
    """
    tables = {Path(path).stem: read_csv(path, ["condition", "layer", "head"]) for path in paths}

    def of(table: pd.DataFrame, condition: str) -> list[Head]:
        own = table[table["condition"] == condition]
        return [(int(layer), int(head)) for layer, head in own[["layer", "head"]].values]

    own = tables[dataset]
    conditions = {name: of(own, name) for name in dict.fromkeys(own["condition"])}
    return conditions | {name: of(tables[other], there) for name, (other, there) in crossed.items()}
