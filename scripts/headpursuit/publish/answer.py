"""What a run found, in short: the first page of the report."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from headpursuit.publish.against import Key
from headpursuit.publish.texts import MEASURE_NAMES, METHOD_NAMES, interval, ratio_text
from headpursuit.run.experiments import alpha_name

# Measures that see the same in different ways.
ALIKE = (("occurrences", "expected"), ("occurrences", "toxicity"), ("exact_match", "first_word"))
ENDS = ("value", "low", "high")
SHOWN = 6
VERDICTS = ("supported", "contradicted", "undecided")


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table of ratios that tell most, those of the first method first.

    They are of the first experiment, alpha and place, of the most heads, and of the first measure
    that its baseline has enough of.
    """
    first = table.iloc[0]
    own = table[
        (table[["experiment", "alpha", "at"]] == first[["experiment", "alpha", "at"]]).all(axis=1)
    ]
    own = own[own["heads"] == own["heads"].max()]
    chosen = own[own["method"] == first["method"]]
    sound = chosen[chosen["flag"].isna()]
    return own[own["measure"] == (sound if len(sound) else chosen)["measure"].iloc[0]]


def drawn_interval(row: Mapping[str, Any]) -> str:
    """Return the ratio of random heads, with the interval that counts draws where it has one."""
    ends = ("ci_low", "ci_high") if pd.isna(row["both_low"]) else ("both_low", "both_high")
    return interval(row, "value", *ends)


def tally(table: pd.DataFrame) -> str:
    """Say on how many of the claims there are verdicts, and how many of each kind."""
    counts = table["verdict"].value_counts()
    each = ", ".join(f"{counts.get(own, 0)} {own}" for own in VERDICTS)
    tested = table[table["verdict"].isin(VERDICTS)]
    claims = f"{tested['claim'].nunique()} of the paper's {table['claim'].nunique()} claims"
    return f"{len(tested)} verdicts on {claims}: {each}"


def weakest(row: Iterable[str]) -> str:
    """Return the name of the column that has the weakest test of a claim, with its level."""
    return next(column for column in row if column.startswith("the weakest"))


def numbers(
    table: pd.DataFrame, compared: pd.DataFrame, claims: pd.DataFrame
) -> Iterator[list[str]]:
    """Yield three numbers with their intervals: chosen heads, random ones, and the two compared.

    The verdicts on the claims that these numbers bear on follow.

    Args:
        table: rows of ratios.
        compared: ``tables/{table}.tests.csv``.
        claims: ``tables/claims.csv``.
    """
    rows = headline(table)
    row = rows.iloc[0].to_dict()
    what = f"{MEASURE_NAMES[row['measure']]} ({row['experiment']}), after / before"
    yield [f"{_heads(row)}: {what}", ratio_text(row)]
    for drawn in rows[rows["method"] == "random"].to_dict("records"):
        said = f"as many random heads of the same layers (draws: {drawn['draws']})"
        yield [said, drawn_interval(drawn) or "not defined"]
    same = ["experiment", *Key._fields]
    fits = (compared[same] == rows.iloc[0][same]).all(axis=1) & compared["against"].eq("random")
    for test in compared[fits].to_dict("records"):
        yield ["the former over the latter", ratio_text(test, "low", "high")]
    of = ["experiment", "measure"]
    measured = claims[(claims[of] == rows.iloc[0][of]).all(axis=1)]
    yield from measured[["says", "verdict"]].to_numpy().tolist()


def verdicts(table: pd.DataFrame, cells: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return :func:`tally`'s count, and a row for each verdict, decided ones first.

    Args:
        table: ``tables/claims.csv``.
        cells: the same as :func:`headpursuit.publish.claims.display` shows it.
    """
    tested = table["verdict"].isin(VERDICTS)
    columns = ["verdict", "claim", "experiment", "measure", weakest(cells), "at", "note"]
    shown = cells.loc[tested, columns]
    order = table["verdict"][tested].map(VERDICTS.index).sort_values(kind="stable").index
    return f"{tally(table)}.", shown.loc[order]


def _heads(row: Mapping[str, Any]) -> str:
    return (
        f"{row['heads']} heads by {METHOD_NAMES[row['method']]}, alpha {alpha_name(row['alpha'])}"
    )


def disagreements(table: pd.DataFrame) -> Iterator[str]:
    """Say which measures of the same heads disagree: their intervals do not overlap."""
    drawn = table["both_low"].notna()
    own = table.assign(
        low=table["both_low"].where(drawn, table["ci_low"]),
        high=table["both_high"].where(drawn, table["ci_high"]),
    )
    keys = ["experiment", "method", "heads", "alpha", "at"]
    parts = dict(list(own.groupby("measure")))
    said = []
    for one, other in ALIKE:
        if one not in parts or other not in parts:
            continue
        pairs = parts[one].merge(parts[other], on=keys, suffixes=("_one", "_other"))
        apart = pairs["high_one"].lt(pairs["low_other"]) | pairs["high_other"].lt(pairs["low_one"])
        for row in pairs[apart].to_dict("records"):
            both = (
                f"{MEASURE_NAMES[name]} {interval(row, *(f'{key}_{end}' for key in ENDS))}"
                for name, end in ((one, "one"), (other, "other"))
            )
            said.append(f"{row['experiment']}, {_heads(row)}: {', '.join(both)}")
    if said:
        more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
        yield f"Measures of the same heads that disagree: {'; '.join(said[:SHOWN])}{more}."
