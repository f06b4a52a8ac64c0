"""How sets of heads compare, as a table to read: what the table of ratios does not show."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from headpursuit.publish.ratio import MEASURE_NAMES, METHOD_NAMES, interval, number
from headpursuit.run.experiments import alpha_name


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


def compared_notes() -> Iterator[str]:
    """Yield what a reader of the comparisons has to know."""
    yield (
        "The measure under one set of heads over the same under another, on the same samples: "
        "another method's heads, fewer heads, or, of variants, the same set "
        "of the table's first experiment (over its own baseline). Comparisons with the baseline "
        "and with random heads stand in the table of ratios, and all in the CSV file."
    )
