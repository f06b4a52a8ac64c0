"""Published against reproduced: every value of the paper beside this run's."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from headpursuit.publish.ratio import ARTEFACTS, METHOD_NAMES, interval, number
from headpursuit.run.tables import lay_out

# Both texts print the same measure for these.
TWICE = {"table2": "table2_lexical", "table2_lexical": "table2"}
# The paper's models, by the measure, and its labeller.
MODELS = {
    "count": "mistralai/Mistral-7B-Instruct-v0.2",
    "toxicity": "mistralai/Mistral-7B-Instruct-v0.2",
    "strict": "llava-hf/llava-v1.6-mistral-7b-hf",
}
LABELLER = "ollama: llama3.3:70b"


def compare(
    published: pd.DataFrame,
    ratios: pd.DataFrame,
    models: Mapping[str, str],
    labeller: str,
    settings: Mapping[str, Sequence[str]],
    published_heads: Mapping[int, int] | None,
) -> pd.DataFrame:
    """Put this run's values beside the published ones, a row for each of these, in their order.

    Beside a published median over draws stand the run's median and quartiles over draws; otherwise
    its ratio with the bootstrap's interval.

    Args:
        published: ``data/published.csv``.
        ratios: the rows of all tables of ratios.
        models: the config's names of models to their Hub ids, where they have one.
        labeller: what named the words that are counted.
        settings: experiment to the keys in which it is not the paper's.
        published_heads: this run's k to the published k that stands beside it.
    """
    own_heads = {int(theirs): int(own) for own, theirs in (published_heads or {}).items()}
    rows, own_rows = [], ratios.to_dict("records")
    for value in published.to_dict("records"):
        row = {**value, "published": value["value"]}
        measure = ARTEFACTS[value["artefact"]]
        remarks = list(_oddities(value, published))
        k = own_heads.get(value["heads"], value["heads"])
        own = _counterpart(own_rows, value["dataset"], value["method"], k, measure)
        if own is None:
            remarks.append("not in this run")
        else:
            row |= _beside(own, value) | {"own_heads": k, "model": models[own["model"]]}
            row["labeller"] = labeller if measure == "count" else None
            row["settings"] = " ".join(settings[own["experiment"]]) or None
            differs = {
                "another model": row["model"] != MODELS[measure],
                "words from elsewhere": row["labeller"] not in (None, LABELLER),
                "other settings": row["settings"],
            }
            remarks += [said for said, true in differs.items() if true]
            remarks += [own["flag"]] if isinstance(own["flag"], str) and own["flag"] else []
        rows.append(row | {"remarks": "; ".join(remarks)})
    return lay_out("tables/published.csv", rows)


def _oddities(value: Mapping[str, Any], published: pd.DataFrame) -> Iterator[str]:
    """Say what is odd about a published value, whatever this run has."""
    if pd.notna(value["low"]) and not value["low"] <= value["value"] <= value["high"]:
        yield "impossible: the published value lies outside its own interval"
    same = ["dataset", "method", "heads", "statistic"]
    other = published[published["artefact"] == TWICE.get(value["artefact"])]
    for text in other[(other[same] == [value[key] for key in same]).all(axis=1)].itertuples():
        if text.value != value["value"]:
            yield f"{text.source} prints {text.value:.2f}"


def _counterpart(ratios: Sequence[Mapping[str, Any]], *wanted: Any) -> Mapping[str, Any] | None:
    """Return the first row with the samples, method, heads and measure of a published value.

    Its heads are inverted at all positions. The experiment that is named like its samples goes
    before the others.
    """
    keys = ("samples", "method", "heads", "measure")
    same = [row for row in ratios if tuple(row[key] for key in keys) == wanted]
    same = [row for row in same if (row["alpha"], row["at"]) == (-1, "all")]
    same = [row for row in same if pd.isna(row["heads_from"]) and not row["signed"]]
    return min(same, key=lambda row: row["experiment"] != row["samples"], default=None)


def _beside(own: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    over_draws = value["statistic"] == "median_iqr" and own["draws"] > 1
    keys = ("median", "q25", "q75") if over_draws else ("value", "ci_low", "ci_high")
    centre, low, high = (own[key] for key in keys)
    return {
        **{"experiment": own["experiment"], "own": centre, "own_low": low, "own_high": high},
        "difference": centre - value["value"],
        "inside": bool(low <= value["value"] <= high),
        "n": own["n"],
    }


def display(table: pd.DataFrame) -> pd.DataFrame:
    """Return the comparison as text cells for Markdown and LaTeX."""

    def cells(row: Mapping[str, Any]) -> dict[str, str]:
        same = pd.isna(row["own_heads"]) or row["own_heads"] == row["heads"]
        here = "" if same else f" (here {row['own_heads']})"
        return {
            "artefact": row["artefact"],
            "data set": row["dataset"],
            "heads": f"{row['heads']}{here}",
            "chosen by": METHOD_NAMES[row["method"]],
            "published": interval(row, "published", "low", "high"),
            "source": row["source"],
            "this run": interval(row, "own", "own_low", "own_high"),
            "difference": number(row["difference"], "+.2f"),
            "inside": "" if pd.isna(row["own"]) else "yes" if row["inside"] else "no",
            "n": number(row["n"], "d"),
            "remarks": row["remarks"],
        }

    return pd.DataFrame(list(map(cells, table.to_dict("records"))))


def notes(table: pd.DataFrame, run: str) -> Iterator[str]:
    """Yield what a reader of the comparison has to know."""
    own = table[table["own"].notna()]
    yield f"Run {run}: {len(own)} of {len(table)} published values have a counterpart."
    if own.empty:
        return
    others = set(own["model"]) - set(MODELS.values())
    if others:
        yield (
            f"This run is of another model than the paper ({', '.join(sorted(others))}, not "
            f"{' and '.join(MODELS.values())}): whether its values are near the published ones "
            "says nothing about the paper's numbers."
        )
    yield (
        f"{own['inside'].eq(True).sum()} of the {len(own)} published values lie in this run's "
        "interval: bootstrap over prompts or images; where the published value is a median over "
        "random draws, median and quartiles over draws. The paper does not say how many prompts or "
        "images it used."
    )
    for labeller in own["labeller"].dropna().unique():
        yield f"The paper's words are Llama 3.3 70B's, this run's are of {labeller}."
    for keys, experiments in own.groupby("settings")["experiment"].unique().items():
        yield (
            f"Other settings, {', '.join(experiments)}, than config.yaml, the paper's "
            "configuration (values in this run's config.yaml, reasons in docs/choices.md): "
            f"{', '.join(keys.split())}."
        )
