"""Published against reproduced: every value of the paper beside this run's."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from headpursuit.publish.ratio import METHOD_NAMES, interval, number

# The artefacts of data/published.csv, and the measure that they print.
ARTEFACTS = {
    "table2": "count",
    "table2_lexical": "count",
    "table2_classifier": None,
    "figure1": "strict",
}
# Both texts print the same measure for these.
TWICE = {"table2": "table2_lexical", "table2_lexical": "table2"}
# The paper's models, by the measure, and its labeller.
MODELS = {
    "count": "mistralai/Mistral-7B-Instruct-v0.2",
    "strict": "llava-hf/llava-v1.6-mistral-7b-hf",
}
LABELLER = "ollama: llama3.3:70b"

COLUMNS = [
    *("artefact", "dataset", "method", "heads", "statistic", "published", "low", "high", "source"),
    *("experiment", "own_heads", "own", "own_low", "own_high", "difference", "inside", "n"),
    *("model", "labeller", "settings", "remarks"),
]


def compare(
    published: pd.DataFrame,
    ratios: pd.DataFrame,
    models: Mapping[str, str],
    labeller: str,
    settings: Mapping[str, Sequence[str]],
    published_heads: Mapping[int, int] | None,
) -> pd.DataFrame:
    """Put this run's values beside the published ones.

    Args:
        published: ``data/published.csv``.
        ratios: the rows of all tables of ratios.
        models: the config's names of models to their Hub ids, where they have one.
        labeller: what named the words that are counted.
        settings: of :func:`headpursuit.publish.settings.unlike_paper`, by experiment.
        published_heads: this run's k to the published k that stands beside it.

    Returns:
        A row for each published value, in their order: where this run has a counterpart its
        experiment, its value and interval (of ``median_iqr`` the median and quartiles over draws,
        otherwise the bootstrap's), the difference (own - published), whether the published value
        lies in the own interval, n, what else differs, and remarks.
    """
    own_heads = {int(theirs): int(own) for own, theirs in (published_heads or {}).items()}
    rows = []
    for value in published.to_dict("records"):
        measure = ARTEFACTS[value["artefact"]]
        remarks = list(_oddities(value, published))
        row = {**value, "published": value["value"]}
        own = None
        if measure is None:
            remarks.append("this workflow has no classifier measure")
        else:
            k = own_heads.get(value["heads"], value["heads"])
            own = _counterpart(ratios, value["dataset"], value["method"], k, measure)
            if own is None:
                remarks.append("not in this run")
        if own is not None:
            row |= _beside(own, value) | {"own_heads": k, "model": models[own["model"]]}
            row["labeller"] = labeller if measure == "count" else None
            row["settings"] = " ".join(settings[own["experiment"]]) or None
            remarks += _differences(row, MODELS[measure])
            if isinstance(own["flag"], str) and own["flag"]:
                remarks.append(own["flag"])
        rows.append({**dict.fromkeys(COLUMNS), **row, "remarks": "; ".join(remarks)})
    table = pd.DataFrame(rows)[COLUMNS]
    return table.astype({"own_heads": "Int64", "n": "Int64"})


def _oddities(value: Mapping[str, Any], published: pd.DataFrame) -> Iterator[str]:
    """Say what is odd about a published value, whatever this run has."""
    if pd.notna(value["low"]) and not value["low"] <= value["value"] <= value["high"]:
        yield "impossible: the published value lies outside its own interval"
    same = ["dataset", "method", "heads", "statistic"]
    other = published[published["artefact"] == TWICE.get(value["artefact"])]
    for text in other[(other[same] == [value[key] for key in same]).all(axis=1)].itertuples():
        if text.value != value["value"]:
            yield f"{text.source} prints {text.value:.2f}"


def _counterpart(
    ratios: pd.DataFrame, samples: str, method: str, k: int, measure: str
) -> dict[str, Any] | None:
    """Return the row of the first experiment that is like a published one; one named so first."""
    same = ratios[
        (ratios["samples"] == samples)
        & (ratios["method"] == method)
        & (ratios["heads"] == k)
        & (ratios["measure"] == measure)
        & ratios["heads_from"].isna()
    ]
    same = same.sort_values("experiment", key=lambda names: names != samples, kind="stable")
    return None if same.empty else same.iloc[0].to_dict()


def _beside(own: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    centre, low, high = ("value", "ci_low", "ci_high")
    if value["statistic"] == "median_iqr" and own["draws"] > 1:
        centre, low, high = ("median", "q25", "q75")
    return {
        "experiment": own["experiment"],
        "own": own[centre],
        "own_low": own[low],
        "own_high": own[high],
        "difference": own[centre] - value["value"],
        "inside": bool(own[low] <= value["value"] <= own[high]),
        "n": own["n"],
    }


def _differences(row: Mapping[str, Any], model: str) -> Iterator[str]:
    if row["model"] != model:
        yield "another model"
    if row["labeller"] not in (None, LABELLER):
        yield "words from elsewhere"
    if row["settings"]:
        yield "other settings"


def display(table: pd.DataFrame) -> pd.DataFrame:
    """Return the comparison as text cells for Markdown and LaTeX."""

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
            "published": [interval(row, "published", "low", "high") for row in rows],
            "source": [row["source"] for row in rows],
            "this run": [interval(row, "own", "own_low", "own_high") for row in rows],
            "difference": [number(row["difference"], "+.2f") for row in rows],
            "inside": [
                "" if pd.isna(row["own"]) else "yes" if row["inside"] else "no" for row in rows
            ],
            "n": ["" if pd.isna(row["n"]) else str(row["n"]) for row in rows],
            "remarks": [row["remarks"] for row in rows],
        }
    )


def notes(table: pd.DataFrame, run: str) -> str:
    """Return what a reader of the comparison has to know."""
    own = table[table["own"].notna()]
    inside = own["inside"].eq(True).sum()
    said = [f"Run {run}: {len(own)} of {len(table)} published values have a counterpart."]
    if own.empty:
        return said[0]
    used = own.drop_duplicates(["artefact", "model"])
    others = {row.model for row in used.itertuples() if row.model not in MODELS.values()}
    if others:
        said.append(
            f"This run is of another model than the paper ({', '.join(sorted(others))}, not "
            f"{' and '.join(MODELS.values())}): whether its values are near the published ones "
            "says nothing about the paper's numbers."
        )
    said.append(
        f"{inside} of the {len(own)} published values lie in this run's interval: bootstrap over "
        "prompts or images; where the published value is a median over random draws, median and "
        "quartiles over draws. The paper does not say how many prompts or images it used."
    )
    for labeller in own["labeller"].dropna().unique():
        said.append(f"The paper's words are Llama 3.3 70B's, this run's are of {labeller}.")
    for keys, experiments in own.groupby("settings")["experiment"].unique().items():
        said.append(
            f"Other settings, {', '.join(experiments)}, than config.yaml, the paper's "
            "configuration (values in this run's config.yaml, reasons in docs/choices.md): "
            f"{', '.join(keys.split())}."
        )
    return " ".join(said)
