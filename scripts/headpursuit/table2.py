"""Table 2: how much rarer the held-out words become when heads are scaled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headpursuit.config import condition_names
from headpursuit.files import seed_for
from headpursuit.score import summarise_ratio
from headpursuit.tables import read_csv

METRICS = ("count", "expected")
METHOD_NAMES = {
    "somp": "SOMP",
    "logit_lens": "logit lens",
    "unrelated": "unrelated words",
    "size": "size of write",
    "random": "random",
}
METRIC_NAMES = {"count": "occurrences", "expected": "expected"}
# Which artefacts of data/published.csv speak of a metric, the first that has a value counts.
PUBLISHED = {"count": ("table2", "table2_lexical"), "expected": ()}

# What is read of scores/{dataset}.per_prompt.parquet.
PER_PROMPT = ["condition", "prompt_id", "positions"]
PER_PROMPT += [
    f"{quantity}_{when}"
    for quantity in ("expected", "nll", "count", "tokens", "repeated")
    for when in ("before", "after")
]


def table2(
    per_prompt: pd.DataFrame,
    dataset: str,
    coverage: float,
    heads: Mapping[str, Any],
    score: Mapping[str, Any],
    published: pd.DataFrame,
    published_heads: Mapping[int, int] | None,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Turn a data set's scores into rows of table 2.

    Args:
        per_prompt: ``scores/{dataset}.per_prompt.parquet``.
        dataset: its name.
        coverage: share of the held-out words that `expected` sees.
        heads: the config's ``heads``.
        score: the config's ``score``.
        published: ``data/published.csv``.
        published_heads: which published k stands beside a k of this run.
        seed: the config's seed, for the bootstrap.

    Returns:
        The rows, and a table of single draws (dataset, method, heads, metric, draw, value).
    """
    by_condition = dict(list(per_prompt.groupby("condition", sort=False)))
    rows, draws = [], []
    for method in [*heads["methods"], "random"]:
        for k in heads["k"]:
            names = condition_names(method, k, heads["draws"])
            for metric in METRICS:
                own = [by_condition[name] for name in names]
                own = [scores for scores in own if scores[f"{metric}_after"].notna().all()]
                if own:
                    identity = {"dataset": dataset, "method": method, "heads": k, "metric": metric}
                    row, values = _row(own, metric, score, seed_for(seed, dataset, "bootstrap"))
                    row["coverage"] = coverage if metric == "expected" else 1.0
                    reference = published_value(
                        published, PUBLISHED[metric], identity, published_heads
                    )
                    rows.append({**identity, **row, **reference})
                    draws += [{**identity, "draw": n, "value": v} for n, v in enumerate(values)]
    return pd.DataFrame(rows)[COLUMNS], pd.DataFrame(draws)


COLUMNS = [
    *("dataset", "method", "heads", "metric", "value", "sd", "median", "q25", "q75"),
    *("ci_low", "ci_high", "draws", "baseline_count", "count", "length_ratio"),
    *("repetition_ratio", "nats_per_token", "coverage", "prompts", "flag"),
    *("published", "published_low", "published_high", "published_source"),
]


def _row(
    draws: list[pd.DataFrame], metric: str, score: Mapping[str, Any], seed: int
) -> tuple[dict[str, Any], np.ndarray]:
    before = draws[0][f"{metric}_before"].to_numpy(float)
    after = np.stack([scores[f"{metric}_after"].to_numpy(float) for scores in draws])
    ratio, values = summarise_ratio(before, after, score, seed)
    row = {
        **ratio,
        "baseline_count": before.sum(),
        "count": after.sum(axis=1).mean(),
        "prompts": len(before),
        "flag": "",
    }
    everything = pd.concat(draws)
    total = everything.sum(numeric_only=True)
    if metric == "count":
        row["length_ratio"] = _ratio(total["tokens_after"], total["tokens_before"])
        # Repeated pairs for each token, not for each response.
        row["repetition_ratio"] = _ratio(
            _ratio(total["repeated_after"], total["tokens_after"]),
            _ratio(total["repeated_before"], total["tokens_before"]),
        )
        if before.sum() < score["min_count"]:
            row["flag"] = f"baseline count below {score['min_count']}"
    else:
        change = total["nll_after"] - total["nll_before"]
        row["nats_per_token"] = _ratio(change, total["positions"])
    if before.sum() == 0:
        row["flag"] = "baseline is 0"
    return {**dict.fromkeys(("length_ratio", "repetition_ratio", "nats_per_token")), **row}, values


def _ratio(after: float, before: float) -> float:
    return after / before if before else np.nan


def published_value(
    published: pd.DataFrame,
    artefacts: Sequence[str],
    identity: Mapping[str, Any],
    published_heads: Mapping[int, int] | None,
) -> dict[str, Any]:
    """Return the published value of a row, with its range and source; all None if there is none.

    Args:
        published: ``data/published.csv``.
        artefacts: where to look, the first that has a value counts.
        identity: dataset, method and heads.
        published_heads: which published k stands beside a k of this run.
    """
    mapping = {int(k): v for k, v in (published_heads or {}).items()}
    k = mapping.get(identity["heads"], identity["heads"])
    for artefact in artefacts:
        same = published[
            (published["artefact"] == artefact)
            & (published["dataset"] == identity["dataset"])
            & (published["method"] == identity["method"])
            & (published["heads"] == k)
        ]
        if len(same):
            value = same.iloc[0]
            return {
                "published": value["value"],
                "published_low": value["low"],
                "published_high": value["high"],
                "published_source": f"{value['source']}, {k} heads",
            }
    return dict.fromkeys(("published", "published_low", "published_high", "published_source"))


def number(value: Any, form: str = ".2f") -> str:
    """Return a number as text; empty where it is missing."""
    return "" if value is None or pd.isna(value) else format(value, form)


def display(table: pd.DataFrame, spread: str, confidence: float) -> pd.DataFrame:
    """Return table 2 as text cells for Markdown and LaTeX."""

    def ratio(row: pd.Series) -> str:
        text = f"{number(row['value'])} [{number(row['ci_low'])}, {number(row['ci_high'])}]"
        return "not defined" if pd.isna(row["value"]) else text

    def among_draws(row: pd.Series) -> str:
        if row["draws"] < 2:
            return ""
        if spread == "iqr":
            return f"{number(row['median'])} [{number(row['q25'])}, {number(row['q75'])}]"
        return f"± {number(row['sd'])}"

    def reference(row: pd.Series) -> str:
        if pd.isna(row["published"]):
            return ""
        low, high = number(row["published_low"]), number(row["published_high"])
        return number(row["published"]) + (f" [{low}, {high}]" if low else "")

    rows = [row for _, row in table.iterrows()]
    before, after = {"count": ".0f", "expected": ".2f"}, {"count": ".1f", "expected": ".2f"}
    return pd.DataFrame(
        {
            "data set": [row["dataset"] for row in rows],
            "metric": [METRIC_NAMES[row["metric"]] for row in rows],
            "heads": [str(row["heads"]) for row in rows],
            "chosen by": [METHOD_NAMES[row["method"]] for row in rows],
            f"after / before [{100 * confidence:g}%]": [ratio(row) for row in rows],
            "draws": [str(row["draws"]) for row in rows],
            "median [quartiles]" if spread == "iqr" else "sd of draws": [
                among_draws(row) for row in rows
            ],
            "before": [number(row["baseline_count"], before[row["metric"]]) for row in rows],
            "after": [number(row["count"], after[row["metric"]]) for row in rows],
            "length": [number(row["length_ratio"]) for row in rows],
            "repetition": [number(row["repetition_ratio"]) for row in rows],
            "nats/token": [number(row["nats_per_token"], "+.2f") for row in rows],
            "published": [reference(row) for row in rows],
            "note": ["" if pd.isna(row["flag"]) else row["flag"] for row in rows],
        }
    )


def notes(table: pd.DataFrame, model: str, score: Mapping[str, Any], alpha: float) -> str:
    """Return what a reader of table 2 has to know."""
    covered = table[table["metric"] == "expected"].groupby("dataset")["coverage"].first()
    shares = ", ".join(f"{share:.0%} ({name})" for name, share in covered.items())
    prompts = ", ".join(
        f"{n} prompts ({name})" for name, n in table.groupby("dataset")["prompts"].first().items()
    )
    return (
        f"Model {model}; heads' writes times {alpha:g}; {prompts}. Ratios are sums over all "
        f"prompts after the intervention over sums before it, of held-out words only. "
        f"Occurrences: in generated responses. Expected: the probability of the words' one-token "
        f"forms at the positions of the baseline's responses, teacher-forced; it sees {shares} of "
        f"the held-out words. Brackets: {100 * score['confidence']:g}% paired bootstrap over "
        f"prompts, {score['resamples']} resamples; for random heads, of the mean over draws. "
        f"Length and repetition (repeated pairs of tokens, for each token): relative to the "
        f"baseline. nats/token: rise of the baseline responses' negative log-likelihood."
    )


def read_published(path: str | Path) -> pd.DataFrame:
    """Read the published values, ``data/published.csv``."""
    return read_csv(path, ["artefact", "dataset", "method", "heads", "value", "low", "high"])


def plot(table: pd.DataFrame, draws: pd.DataFrame, colours: Mapping[str, str]):
    """Draw table 2: a panel for each data set and metric, a group of bars for each k.

    Bars are ratios with their bootstrap interval; dots are single random draws; a black mark is
    the published value.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(table["dataset"]))
    metrics = [metric for metric in METRICS if (table["metric"] == metric).any()]
    figure = Figure(figsize=(4.2 * len(metrics), 3.2 * len(datasets)), layout="constrained")
    axes = figure.subplots(len(datasets), len(metrics), squeeze=False)
    for row, dataset in zip(axes, datasets, strict=True):
        for axis, metric in zip(row, metrics, strict=True):
            own = _part(table, dataset, metric)
            own_draws = _part(draws, dataset, metric)
            bars(axis, own, own_draws, colours, "heads")
            axis.set_title(f"{dataset}: {METRIC_NAMES[metric]}", fontsize=10)
        row[0].set_ylabel("held-out words, after / before")
    handles, labels = axes[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique), fontsize=8
    )
    return figure


def _part(table: pd.DataFrame, dataset: str, metric: str) -> pd.DataFrame:
    return table[(table["dataset"] == dataset) & (table["metric"] == metric)]


def bars(
    axis, table: pd.DataFrame, draws: pd.DataFrame, colours: Mapping[str, str], group: str
) -> None:
    """Draw a group of bars, one a method, for each value of a column.

    Args:
        axis: matplotlib's.
        table: rows of one metric, with method and value, ci_low, ci_high, draws and published.
        draws: single draws, with method, value and the column.
        colours: the config's ``publish.colours``.
        group: the column, ``heads`` or ``dataset``.
    """
    groups = list(dict.fromkeys(table[group]))
    groups = sorted(groups) if group == "heads" else groups
    methods = list(dict.fromkeys(table["method"]))
    width = 0.8 / len(methods)
    for row in table.itertuples():
        at = getattr(row, group)
        x = groups.index(at) + (methods.index(row.method) - (len(methods) - 1) / 2) * width
        name = METHOD_NAMES[row.method]
        axis.bar(x, row.value, 0.9 * width, color=colours[row.method], label=name, zorder=1)
        interval = [[max(row.value - row.ci_low, 0)], [max(row.ci_high - row.value, 0)]]
        axis.errorbar(x, row.value, interval, color="black", lw=1, capsize=2, zorder=3)
        if row.draws > 1:
            own = draws[(draws["method"] == row.method) & (draws[group] == at)]["value"]
            # Spread evenly from left to right, so that equal draws can be told apart.
            spread = x + np.linspace(-0.3, 0.3, len(own)) * width
            axis.plot(
                spread, own, "o", ms=3, mfc="white", mec="black", mew=0.6, label="random draw"
            )
        if pd.notna(row.published):
            mark = {"color": colours["published"], "marker": "D", "ms": 5, "ls": "none"}
            axis.plot(x, row.published, **mark, mec="white", label="published", zorder=4)
    axis.axhline(1, color="black", lw=0.8, ls=":")
    labels = [f"{value} heads" if group == "heads" else str(value) for value in groups]
    axis.set_xticks(range(len(groups)), labels)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
