"""Heads: which are selected, and the random ones they are compared with."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite
from numbers import Integral, Real
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from headpursuit.run.experiments import head_name, head_of
from headpursuit.run.files import UserError, seed_for
from headpursuit.run.tables import read_csv, write_csv

log = logging.getLogger(__name__)

Head = tuple[int, int]  # (layer, head), both from 0
# Columns of a ranking by pursuit: the score of a head's first atoms alone.
FEWER_ATOMS = {"score_5": 5, "score_10": 10, "score_20": 20}


def named_heads(heads: Any) -> list[Head]:
    """Return the heads that a caller names, each once: ``"L18.H27"``, (18, 27), or several.

    Raises:
        UserError: if one is no head's name.
    """
    pair = isinstance(heads, tuple) and heads and all(isinstance(own, Integral) for own in heads)
    if pair or not isinstance(heads, Iterable) or isinstance(heads, str):
        heads = [heads]
    found: dict[Head, None] = {}
    for head in heads:
        try:
            layer, number = head_of(head) if isinstance(head, str) else map(index, head)
            found[layer, number] = None
        except (TypeError, ValueError):
            raise UserError(f"{head!r} names no head: write 'L18.H27', or (18, 27).") from None
    return list(found)


def named_head(head: Any) -> Head:
    """Return the one head that a caller names; UserError if it names another number of them."""
    if len(found := named_heads(head)) != 1:
        raise UserError(f"One head is asked about, not {len(found)}: write 'L18.H27', or (18, 27).")
    return found[0]


def refuse_absent(heads: Iterable[Head], n_layers: int, n_heads: int) -> None:
    """Raise a UserError if a head lies outside a model of so many layers and heads a layer."""
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            absent = head_name(layer, head)
            raise UserError(f"{absent} does not exist: {n_layers} layers x {n_heads} heads")


class Condition(NamedTuple):
    """What a model's heads are multiplied by: some by alpha at some positions, the others by 1.

    The place is ``all``; ``prompt``, all that is read before the response; ``image``, the image
    tokens; or ``response``, the tokens that are written, from when they are read on.
    """

    heads: Sequence[Head] = ()  # none: the model as it is
    alpha: float = -1.0
    at: str = "all"
    against: Sequence[Head] = ()  # those of the heads that are multiplied by 2 - alpha instead

    @property
    def lowest(self) -> float:
        """The lowest layer of its heads; infinite without any."""
        return min((layer for layer, _ in self.heads), default=inf)


def named_condition(heads: Any, alpha: Any, at: str, n_layers: int, n_heads: int) -> Condition:
    """Return the condition that a caller names, of a model of so many layers and heads a layer.

    Raises:
        UserError: if a head is none of the model's, or alpha no number.
    """
    if not (isinstance(alpha, Real) and isfinite(alpha)):
        raise UserError(f"alpha is a number, not {alpha!r}.")
    found = Condition(named_heads(heads), float(alpha), at)
    refuse_absent(found.heads, n_layers, n_heads)
    return found


def rank(scores: pd.DataFrame) -> pd.DataFrame:
    """Order heads by score, highest first; equal scores go by layer, then head.

    Takes a table with layer, head and score; after score comes the rank, from 1.
    """
    ranked = scores.sort_values(
        ["score", "layer", "head"], ascending=[False, True, True], ignore_index=True
    )
    ranked.insert(ranked.columns.get_loc("score") + 1, "rank", range(1, len(ranked) + 1))
    return ranked


def read_ranking(path: str | Path, method: str) -> pd.DataFrame:
    """Read one method's ranking of all heads, without the column method.

    Raises:
        UserError: if the file has no ranking by the method.
    """
    table = read_csv(path)
    own = table[table["method"] == method]
    if own.empty:
        raise UserError(
            f"{path}: no ranking by {method}. Only 'unrelated' may lack one: the words of "
            "pursuit.unrelated_words then have fewer forms of one token than the dictionary has "
            "rows (numbers in the log of rank_heads). Name a file with more words."
        )
    return own.drop(columns="method")


def listed(table: pd.DataFrame) -> list[Head]:
    """Return the heads of a table with layer and head, row by row."""
    return list(zip(table["layer"].tolist(), table["head"].tolist(), strict=True))


def top_heads(ranking: pd.DataFrame, k: int, first_layer: int, last_layer: int) -> list[Head]:
    """Return the k highest heads of the candidate layers, both ends included."""
    inside = ranking[ranking["layer"].between(first_layer, last_layer)].sort_values("rank")
    return listed(inside.head(k))


def draw_control(
    selected: list[Head],
    n_heads: int,
    seed: int,
    dataset: str,
    condition: str,
    layers: tuple[int, int],
) -> list[Head]:
    """Draw random heads: as many in each layer as selected there, and none of the selected.

    Where a layer has too few others, all of these are taken, and the nearest of ``layers`` (the
    first and last candidate layer) give the rest; the log says so.
    ``n_heads`` is a layer's; seed, dataset and condition decide the draw.

    Raises:
        UserError: if there are too few other heads in all.
    """
    rng = np.random.default_rng(seed_for(seed, dataset, condition))
    wanted = sorted(Counter(layer for layer, _ in selected).items())
    first, last = layers
    left = {
        layer: [head for head in range(n_heads) if (layer, head) not in selected]
        for layer in range(first, last + 1)
    }
    drawn = []

    def take(layer: int, number: int) -> None:
        some = sorted(map(int, rng.choice(left[layer], number, replace=False)))
        left[layer] = [head for head in left[layer] if head not in some]
        drawn.extend((layer, head) for head in some)

    lacking = {layer: number - len(left[layer]) for layer, number in wanted}
    for layer, number in wanted:
        take(layer, min(number, len(left[layer])))
    for layer, number in lacking.items():
        for near in sorted(left, key=lambda other: (abs(other - layer), other)):
            if number > 0 and left[near]:
                log.warning(
                    "%s, %s: layer %d has too few heads that are not selected, layer %d gives some",
                    dataset, condition, layer, near,
                )  # fmt: skip
                take(near, some := min(number, len(left[near])))
                number -= some
    if len(drawn) < len(selected):
        raise UserError(
            f"{dataset}, {condition}: there are only {len(drawn)} heads in layers {first} to "
            f"{last} that are not selected. Use a smaller k than {len(selected)}."
        )
    return sorted(drawn)


def write_heads(path: str | Path, sets: Mapping[str, Sequence[Head]]) -> None:
    """Write sets of heads as a table with condition, layer and head."""
    rows = [(name, *head) for name, heads in sets.items() for head in heads]
    write_csv(path, pd.DataFrame(rows, columns=["condition", "layer", "head"]))


def read_conditions(
    paths: Sequence[str | Path],
    wanted: Mapping[str, tuple[str, float, str]],
    ranking: Sequence[str | Path] = (),
) -> dict[str, Condition]:
    """Read the heads of conditions, of each of which are given name of the heads, alpha and place.

    With the file of a ranking, they are signed: heads that write against the concept (of negative
    direction) are multiplied by 2 - alpha. Their write then changes by as much as alpha would
    change it, the other way, and scaling by alpha -1 lowers the concept in every head.

    Raises:
        UserError: if some heads are in none of the tables.
    """
    heads = read_heads(paths, [own for own, *_ in wanted.values()])
    if same := [name for name, (_, alpha, _) in wanted.items() if alpha == 1]:
        log.warning("alpha 1 changes nothing, so these are the baseline: %s", ", ".join(same))
    against: set[Head] = set()
    for path in ranking:
        table = read_ranking(path, "somp")
        against |= {*listed(table[table["direction"] < 0])}
    return {
        name: Condition(heads[own], *scaling, [head for head in heads[own] if head in against])
        for name, (own, *scaling) in wanted.items()
    }


def read_heads(
    paths: Sequence[str | Path], names: Sequence[str] | None = None
) -> dict[str, list[Head]]:
    """Read what :func:`write_heads` wrote: the sets ``names``, in their order, or all.

    Raises:
        UserError: if one is in none of the tables.
    """
    # A table outside a run's folder is all text.
    tables = [
        read_csv(path, ["condition", "layer", "head"]).astype({"layer": int, "head": int})
        for path in paths
    ]
    found = {name: listed(own) for name, own in pd.concat(tables).groupby("condition", sort=False)}
    if lacking := [name for name in names or () if name not in found]:
        raise UserError(
            f"{', '.join(map(str, paths))}: no heads of {lacking[0]}. Delete them and run again."
        )
    return found if names is None else {name: found[name] for name in names}
