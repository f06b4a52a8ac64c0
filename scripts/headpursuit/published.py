"""Published against reproduced: every value of the paper beside this run's."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from headpursuit.table2 import METHOD_NAMES, number

# The artefacts of data/published.csv: this run's table and metric, and the paper's model.
MISTRAL, LLAVA = "mistralai/Mistral-7B-Instruct-v0.2", "llava-hf/llava-v1.6-mistral-7b-hf"
ARTEFACTS = {
    "table2": ("table2", "count", MISTRAL),
    "table2_lexical": ("table2", "count", MISTRAL),
    "table2_classifier": (None, None, MISTRAL),
    "figure1": ("figure1", "strict", LLAVA),
}
LABELLERS = ("ollama", "openai")

COLUMNS = [
    *("artefact", "dataset", "method", "heads", "statistic", "published", "low", "high", "source"),
    *("own_heads", "own", "own_low", "own_high", "difference", "inside", "n", "remarks"),
]


def compare(
    published: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    models: Mapping[str, str | None],
    labeller: str | None,
    published_heads: Mapping[int, int] | None,
) -> pd.DataFrame:
    """Put this run's values beside the published ones.

    Args:
        published: ``data/published.csv``.
        tables: ``table2`` and, where the run has it, ``figure1``.
        models: the same names to the Hub id of the run's model, None where it has none.
        labeller: what labelled the words of table 2; None for the user's own list.
        published_heads: this run's k to the published k that stands beside it.

    Returns:
        A row for each published value, in their order: where this run has a counterpart its value
        and interval (of ``median_iqr`` the median and quartiles over draws, otherwise the
        bootstrap's), the difference (own - published), whether the published value lies in the
        own interval, and remarks on what else differs.
    """
    own_heads = {int(theirs): int(own) for own, theirs in (published_heads or {}).items()}
    rows = []
    for value in published.to_dict("records"):
        name, metric, model = ARTEFACTS[value["artefact"]]
        remarks = list(_oddities(value))
        row = {**value, "published": value["value"]}
        own = None
        if name is None:
            remarks.append("this workflow has no classifier metric")
        elif name not in tables:
            remarks.append(f"this run has no {name}")
        else:
            k = own_heads.get(value["heads"], value["heads"])
            own = _counterpart(tables[name], value["dataset"], value["method"], k, metric)
            if own is None:
                remarks.append("not in this run")
        if own is not None:
            row |= _beside(own, value) | {"own_heads": k}
            remarks += _differences(models[name], model, labeller if name == "table2" else "ollama")
            if isinstance(own["flag"], str) and own["flag"]:
                remarks.append(own["flag"])
        rows.append({**dict.fromkeys(COLUMNS), **row, "remarks": "; ".join(remarks)})
    return pd.DataFrame(rows)[COLUMNS]


def _oddities(value: Mapping[str, Any]) -> Sequence[str]:
    if pd.notna(value["low"]) and not value["low"] <= value["value"] <= value["high"]:
        return ["the published value lies outside its own interval"]
    return []


def _counterpart(
    table: pd.DataFrame, dataset: str, method: str, k: int, metric: str
) -> dict[str, Any] | None:
    same = table[
        (table["dataset"] == dataset)
        & (table["method"] == method)
        & (table["heads"] == k)
        & (table["metric"] == metric)
    ]
    return None if same.empty else same.iloc[0].to_dict()


def _beside(own: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    centre, low, high = ("value", "ci_low", "ci_high")
    if value["statistic"] == "median_iqr" and own["draws"] > 1:
        centre, low, high = ("median", "q25", "q75")
    return {
        "own": own[centre],
        "own_low": own[low],
        "own_high": own[high],
        "difference": own[centre] - value["value"],
        "inside": bool(own[low] <= value["value"] <= own[high]),
        "n": own["prompts"] if "prompts" in own else own["images"],
    }


def _differences(own_model: str | None, model: str, labeller: str | None) -> list[str]:
    said = [] if own_model == model else ["another model"]
    if labeller not in LABELLERS:
        said.append("words from a list" if labeller else "words of the user's own")
    return said


def display(table: pd.DataFrame) -> pd.DataFrame:
    """Return the comparison as text cells for Markdown and LaTeX."""

    def between(row: pd.Series, value: str, low: str, high: str) -> str:
        if pd.isna(row[value]):
            return ""
        limits = f" [{number(row[low])}, {number(row[high])}]" if pd.notna(row[low]) else ""
        return f"{number(row[value])}{limits}"

    def heads(row: pd.Series) -> str:
        same = pd.isna(row["own_heads"]) or row["own_heads"] == row["heads"]
        return f"{row['heads']}" if same else f"{row['heads']} (here {row['own_heads']:g})"

    rows = [row for _, row in table.iterrows()]
    return pd.DataFrame(
        {
            "artefact": [row["artefact"] for row in rows],
            "data set": [row["dataset"] for row in rows],
            "heads": [heads(row) for row in rows],
            "chosen by": [METHOD_NAMES[row["method"]] for row in rows],
            "published": [between(row, "published", "low", "high") for row in rows],
            "source": [row["source"] for row in rows],
            "this run": [between(row, "own", "own_low", "own_high") for row in rows],
            "difference": [number(row["difference"], "+.2f") for row in rows],
            "inside": [
                "" if pd.isna(row["own"]) else "yes" if row["inside"] else "no" for row in rows
            ],
            "remarks": [row["remarks"] for row in rows],
        }
    )


def notes(table: pd.DataFrame, run: str) -> str:
    """Return what a reader of the comparison has to know."""
    known = table["own"].notna()
    inside = table["inside"].eq(True)
    return (
        f"Run {run}: {known.sum()} of {len(table)} published values have a counterpart, and "
        f"{inside.sum()} of those lie in this run's interval. Intervals of this run: bootstrap "
        "over prompts or images; where the published value is a median over random draws, median "
        "and quartiles over draws. Where a remark says another model, agreement and disagreement "
        "say nothing about the paper's numbers."
    )
