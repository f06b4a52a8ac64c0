"""One set of heads against another, on the same samples: the tests of a table of ratios."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from headpursuit.publish.statistics import ratio, ratio_of_ratios
from headpursuit.publish.texts import MEASURE_NAMES, METHOD_NAMES, interval, number
from headpursuit.run.experiments import alpha_name
from headpursuit.run.tables import lay_out

# What a reader of the comparisons has to know.
COMPARED_NOTES = [
    "The measure under one set of heads over the same under another, on the same samples: another "
    "method's heads, fewer heads, or, of variants, the same set of the table's first experiment "
    "(over its own baseline). Comparisons with the baseline and with random heads stand in the "
    "table of ratios, and all in the CSV file."
]


class Key(NamedTuple):
    """What names a set of heads, or the random draws of it, in an experiment, and a measure."""

    method: str
    heads: int
    alpha: float
    at: str
    measure: str


class Measured(NamedTuple):
    """A measure of each sample before, and after, draws x samples."""

    conditions: list[str]  # of the draws
    samples: list[str]
    before: np.ndarray
    after: np.ndarray


Scored = Mapping[Key, Measured]


def measured(
    parts: Mapping[tuple[str, str], pd.DataFrame], conditions: list[str], measure: str
) -> Measured:
    """Return what was measured under the conditions of one or more draws.

    ``parts`` are the rows of an experiment's scores, by condition and measure.
    """
    first, *others = (parts[condition, measure] for condition in conditions)
    after = np.stack([own["after"].to_numpy() for own in (first, *others)])
    return Measured(conditions, list(first["sample_id"]), first["before"].to_numpy(), after)


def comparisons(
    scores: Mapping[str, Scored],
    experiments: Mapping[str, Mapping[str, Any]],
    flags: Mapping[tuple[str, str], str],
    confidence: float,
) -> pd.DataFrame:
    """Return the tests of a table of ratios, a row for each two sets of heads that are compared.

    Each set is compared with the baseline, and a method's with random heads, with the other methods
    if it is the first, with fewer of its own, and, in a variant of the table's
    first experiment, with the same set there.

    Args:
        scores: experiment to what was measured under each of its sets of heads.
        experiments: of each its samples, model, heads_from, methods, and ``differs``, in what it
            differs from the first (key to value); None if it is no variant of it.
        flags: why an experiment's measure says little.
        confidence: of the intervals.
    """
    first = scores[next(iter(scores))]
    rows = []
    for name, sets in scores.items():
        same = {key: experiments[name][key] for key in ("samples", "model", "heads_from")}
        for key, own in sets.items():
            row = {"experiment": name, **same, **key._asdict(), "n": len(own.before)}
            row["flag"] = flags[name, key.measure]
            for against, k, other in _others(key, own, sets, experiments[name]["methods"][0]):
                row |= {"against": against, "against_heads": k}
                rows.append(row | _compared(own, other, against, key.method, confidence))
            differs, original = experiments[name]["differs"], first.get(key)
            if differs and original and key.method != "random":
                said = "; ".join(f"{choice}: {value}" for choice, value in differs.items())
                row |= {"against": "original", "against_heads": key.heads, "differs": said}
                rows.append(row | _varied(own, original, confidence))
    return lay_out("tables/{table}.tests.csv", rows)


def _others(
    key: Key, own: Measured, sets: Scored, first: str
) -> Iterator[tuple[str, int | None, Measured]]:
    """Yield what a set of heads is compared with: its name, its number of heads, its values."""
    yield "baseline", None, Measured([], own.samples, own.before, own.before[None])
    if key.method == "random":
        return
    for method in dict.fromkeys(other.method for other in sets):
        other = key._replace(method=method)
        if other in sets and (method == "random" or (key.method == first and method != first)):
            yield method, key.heads, sets[other]
    same = [other.heads for other in sets if other._replace(heads=key.heads) == key]
    for k in sorted(k for k in same if k < key.heads):
        yield key.method, k, sets[key._replace(heads=k)]


def _compared(
    own: Measured, other: Measured, against: str, method: str, confidence: float
) -> dict[str, Any]:
    """Return the ratio of a set of heads to another, and where it lies among random draws."""
    chance = {"random": "one"}.get(against, "mean" if method == "random" else None)
    found = vars(ratio(other.after, own.after, confidence, chance))
    if against != "random":
        return {**found, "draws": len(own.after)}
    value, drawn = own.after.sum(), other.after.sum(1)
    sides = {"below": int((drawn < value).sum()), "above": int((drawn > value).sum())}
    return {**found, "draws": len(drawn), **sides}


def _varied(own: Measured, original: Measured, confidence: float) -> dict[str, Any]:
    """Return a variant's ratio over the original's, if both are of the same samples."""
    if own.samples != original.samples:
        return {"draws": 1}
    both = [(each.before, each.after[0]) for each in (own, original)]
    return {**vars(ratio_of_ratios(*both, confidence)), "draws": 1}


# Texts


def compared_cells(compared: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Return as text cells the comparisons that the table of ratios does not show.

    Those with the first experiment, by which choices move the ratio, are ordered by its change.
    """
    apart = compared[~compared["against"].isin(["baseline", "random"])]
    moved = (np.log(apart["value"].where(apart["value"] > 0)).abs()).where(apart["differs"].notna())
    order = moved.sort_values(ascending=False, na_position="last", kind="stable").index

    def cells(row: Mapping[str, Any]) -> dict[str, str]:
        against = {"original": "the first experiment"}.get(row["against"])
        against = against or f"{row['against_heads']} heads, {METHOD_NAMES[row['against']]}"
        return {
            "experiment": row["experiment"],
            "differs in": row["differs"] if isinstance(row["differs"], str) else "",
            "measure": MEASURE_NAMES[row["measure"]],
            "alpha": alpha_name(row["alpha"]),
            "at": row["at"],
            "heads": f"{row['heads']}, {METHOD_NAMES[row['method']]}",
            "over": against,
            f"ratio [{100 * confidence:g}%]": interval(row, "value", "low", "high"),
            "p": number(row["p"], ".2g"),
            "note": row["flag"] if isinstance(row["flag"], str) else "",
        }

    shown = pd.DataFrame(list(map(cells, apart.loc[order].to_dict("records"))))
    if shown.empty:
        return pd.DataFrame(columns=["experiment", "over", "heads", "measure"])
    return shown.drop(columns=[own for own in ("differs in", "note") if (shown[own] == "").all()])
