"""Figure 1: how much rarer right answers about images become when heads are scaled."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from headpursuit.answers import judge
from headpursuit.config import condition_name, condition_names, cross_name
from headpursuit.files import seed_for
from headpursuit.heads import draw_control, top_heads
from headpursuit.score import summarise_ratio
from headpursuit.table2 import METHOD_NAMES, bars, number, published_value

METRICS = ("strict", "first_word")
METRIC_NAMES = {"strict": "strict", "first_word": "first word"}
# The paper's metric is exact match.
PUBLISHED = {"strict": ("figure1",), "first_word": ()}

COLUMNS = [
    *("dataset", "method", "heads", "metric", "value", "sd", "median", "q25", "q75"),
    *("ci_low", "ci_high", "draws", "baseline_accuracy", "accuracy"),
    *("several", "none", "images", "flag"),
    *("published", "published_low", "published_high", "published_source"),
]


def choose_heads(
    rankings: Mapping[str, pd.DataFrame],
    heads: Mapping[str, Any],
    layers: tuple[int, int],
    n_heads: int,
    seed: int,
    dataset: str,
) -> pd.DataFrame:
    """Choose the heads of every condition: each ranking's top k, and draws matched to the first's.

    Args:
        rankings: method to its ranking, in the order of ``heads.methods``.
        heads: the config's ``vision.heads``.
        layers: first and last candidate layer.
        n_heads: heads a layer.
        seed: the config's seed.
        dataset: with the seed, decides the draws.

    Returns:
        Table with condition, layer and head.
    """
    rows = []
    for k in heads["k"]:
        chosen = {method: top_heads(own, k, *layers) for method, own in rankings.items()}
        conditions = {condition_name(method, k): own for method, own in chosen.items()}
        for draw in range(heads["draws"]):
            name = condition_name("random", k, draw)
            first = chosen[heads["methods"][0]]
            conditions[name] = draw_control(first, n_heads, seed, dataset, name)
        rows += [(name, *head) for name, own in conditions.items() for head in own]
    return pd.DataFrame(rows, columns=["condition", "layer", "head"])


def score_answers(
    answers: pd.DataFrame, classes: Sequence[str], normalise: Sequence[str]
) -> pd.DataFrame:
    """Judge every answer.

    Args:
        answers: table with condition, image_id, label and answer.
        classes: class names, in the order of their numbers.
        normalise: the config's ``vision.normalise``.

    Returns:
        Table with condition, image_id, label, strict and first_word (whether the answer is, or
        begins with, the image's class) and names (``class``, ``several`` or ``none``).
    """
    judged = {text: judge(text, classes, normalise) for text in answers["answer"].unique()}
    found = pd.DataFrame(
        [judged[text] for text in answers["answer"]], columns=["strict", "first_word", "names"]
    )
    table = answers[["condition", "image_id", "label"]].reset_index(drop=True)
    for metric in METRICS:
        table[metric] = found[metric] == table["label"]
    return table.assign(names=found["names"])


def figure1(
    scores: pd.DataFrame,
    dataset: str,
    heads: Mapping[str, Any],
    score: Mapping[str, Any],
    published: pd.DataFrame,
    published_heads: Mapping[int, int] | None,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Turn a data set's scores into rows of figure 1's table.

    Args:
        scores: of :func:`score_answers`.
        dataset: its name.
        heads: the config's ``vision.heads``.
        score: the config's ``score``.
        published: ``data/published.csv``.
        published_heads: which published k stands beside a k of this run.
        seed: the config's seed, for the bootstrap.

    Returns:
        The rows, and a table of single draws (dataset, method, heads, metric, draw, value).
    """
    by_condition = dict(list(scores.groupby("condition", sort=False)))
    rows, draws = [], []
    for method in [*heads["methods"], "random"]:
        for k in heads["k"]:
            names = condition_names(method, k, heads["draws"])
            for metric in METRICS:
                own = [by_condition[name] for name in names]
                identity = {"dataset": dataset, "method": method, "heads": k, "metric": metric}
                row, values = _row(
                    by_condition["baseline"], own, metric, score, _seed(seed, dataset)
                )
                reference = published_value(published, PUBLISHED[metric], identity, published_heads)
                rows.append({**identity, **row, **reference})
                draws += [{**identity, "draw": n, "value": v} for n, v in enumerate(values)]
    return pd.DataFrame(rows)[COLUMNS], pd.DataFrame(draws)


def _seed(seed: int, dataset: str) -> int:
    return seed_for(seed, dataset, "bootstrap")


def _row(
    baseline: pd.DataFrame,
    draws: Sequence[pd.DataFrame],
    metric: str,
    score: Mapping[str, Any],
    seed: int,
) -> tuple[dict[str, Any], np.ndarray]:
    before = baseline[metric].to_numpy(float)
    after = np.stack([own[metric].to_numpy(float) for own in draws])
    ratio, values = summarise_ratio(before, after, score, seed)
    everything = pd.concat(draws)
    chance = 1 / baseline["label"].nunique()
    row = {
        **ratio,
        "baseline_accuracy": before.mean(),
        "accuracy": after.mean(),
        "several": (everything["names"] == "several").mean(),
        "none": (everything["names"] == "none").mean(),
        "images": len(before),
        "flag": "baseline no better than chance" if before.mean() <= chance else "",
    }
    if before.sum() == 0:
        row["flag"] = "baseline is 0"
    return row, values


def overlap(heads: Mapping[str, pd.DataFrame], method: str, ks: Sequence[int]) -> pd.DataFrame:
    """Compare the heads chosen on each pair of data sets (v2, figure 4).

    Args:
        heads: data set to its table of condition, layer and head.
        method: whose heads.
        ks: numbers of heads.

    Returns:
        Table with heads, dataset, other, shared (heads in both) and jaccard.
    """
    rows = []
    for k in ks:
        chosen = {}
        for dataset, table in heads.items():
            own = table[table["condition"] == condition_name(method, k)]
            chosen[dataset] = set(zip(own["layer"], own["head"], strict=True))
        for one, a in chosen.items():
            for other, b in chosen.items():
                rows.append((k, one, other, len(a & b), len(a & b) / len(a | b)))
    return pd.DataFrame(rows, columns=["heads", "dataset", "other", "shared", "jaccard"])


def cross(
    scores: Mapping[str, pd.DataFrame],
    method: str,
    ks: Sequence[int],
    score: Mapping[str, Any],
    seed: int,
) -> pd.DataFrame:
    """Return the accuracy on each data set when heads were chosen on another (v2, figure 4).

    Args:
        scores: data set to its scores.
        method: by which heads were chosen.
        ks: numbers of heads.
        score: the config's ``score``.
        seed: the config's seed.

    Returns:
        Table with heads, dataset, heads_from, metric, value (after / before), ci_low, ci_high,
        baseline_accuracy, accuracy and images. A pair that was not evaluated has no row.
    """
    rows = []
    for dataset, table in scores.items():
        by_condition = dict(list(table.groupby("condition", sort=False)))
        for k in ks:
            for other in scores:
                own = condition_name(method, k)
                name = own if other == dataset else cross_name(own, other)
                for metric in METRICS if name in by_condition else ():
                    row, _ = _row(
                        by_condition["baseline"],
                        [by_condition[name]],
                        metric,
                        score,
                        _seed(seed, dataset),
                    )
                    identity = {"heads": k, "dataset": dataset, "heads_from": other}
                    rows.append({**identity, "metric": metric, **row})
    columns = ["heads", "dataset", "heads_from", "metric", "value", "ci_low", "ci_high"]
    return pd.DataFrame(rows)[[*columns, "baseline_accuracy", "accuracy", "images"]]


def display(table: pd.DataFrame, spread: str, confidence: float) -> pd.DataFrame:
    """Return figure 1's numbers as text cells for Markdown and LaTeX."""

    def interval(row: pd.Series, centre: str, low: str, high: str) -> str:
        if pd.isna(row[centre]):
            return ""
        ends = f" [{number(row[low])}, {number(row[high])}]" if pd.notna(row[low]) else ""
        return number(row[centre]) + ends

    rows = [row for _, row in table.iterrows()]
    return pd.DataFrame(
        {
            "data set": [row["dataset"] for row in rows],
            "match": [METRIC_NAMES[row["metric"]] for row in rows],
            "heads": [str(row["heads"]) for row in rows],
            "chosen by": [METHOD_NAMES[row["method"]] for row in rows],
            f"after / before [{100 * confidence:g}%]": [
                interval(row, "value", "ci_low", "ci_high") or "not defined" for row in rows
            ],
            "draws": [str(row["draws"]) for row in rows],
            "median [quartiles]" if spread == "iqr" else "sd of draws": [
                ""
                if row["draws"] < 2
                else interval(row, "median", "q25", "q75")
                if spread == "iqr"
                else f"± {number(row['sd'])}"
                for row in rows
            ],
            "accuracy before": [number(row["baseline_accuracy"]) for row in rows],
            "after": [number(row["accuracy"]) for row in rows],
            "several classes": [number(row["several"]) for row in rows],
            "no class": [number(row["none"]) for row in rows],
            "published": [
                interval(row, "published", "published_low", "published_high") for row in rows
            ],
            "note": ["" if pd.isna(row["flag"]) else row["flag"] for row in rows],
        }
    )


def notes(
    table: pd.DataFrame, classes: Mapping[str, int], model: str, settings: Mapping[str, Any]
) -> str:
    """Return what a reader of figure 1 has to know.

    Args:
        table: of :func:`figure1`.
        classes: data set to its number of classes.
        model: the model's name.
        settings: score (the config's), alpha, seed and iterations.
    """
    score = settings["score"]
    images = ", ".join(
        f"{n} images of {classes[name]} classes ({name})"
        for name, n in table.groupby("dataset", sort=False)["images"].first().items()
    )
    few = [name for name, n in classes.items() if n <= settings["iterations"]]
    return (
        f"Model {model}; heads' writes times {settings['alpha']:g}; {images}. Ratios are right "
        "answers after the intervention over right answers before it, greedy decoding. Strict: "
        "the answer is the class name; first word: it begins with it. Several classes and no "
        "class: shares of answers after it. "
        f"Brackets: {100 * score['confidence']:g}% paired bootstrap over images, "
        f"{score['resamples']} resamples, seed {settings['seed']}; for random heads, of the mean "
        "over draws. Random heads are matched by layer and disjoint from SOMP's. Controls: "
        "unrelated words are ranked by the same method over as many tokens of other words; size "
        "ranks by the size of the write alone."
        + (
            f" With as many iterations as classes or more ({', '.join(few)}), SOMP takes all the "
            "class names' rows where each is one token: its score is a plain projection, and its "
            "selection of atoms decides nothing."
            if few
            else ""
        )
    )


def plot(table: pd.DataFrame, draws: pd.DataFrame, colours: Mapping[str, str]):
    """Draw figure 1: a column of panels for each k, and in each a group of bars for each data set.

    The upper row is the paper's exact match, the lower one forgives an answer that goes on.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    datasets, ks = list(dict.fromkeys(table["dataset"])), sorted(table["heads"].unique())
    width = max(4.2, 1.5 * len(datasets))
    figure = Figure(figsize=(width * len(ks), 3.0 * len(METRICS)), layout="constrained")
    axes = figure.subplots(len(METRICS), len(ks), squeeze=False, sharey=True)
    for row, metric in zip(axes, METRICS, strict=True):
        for axis, k in zip(row, ks, strict=True):
            own, own_draws = (
                part[(part["heads"] == k) & (part["metric"] == metric)] for part in (table, draws)
            )
            bars(axis, own, own_draws, colours, "dataset")
            axis.set_title(f"{k} heads, {METRIC_NAMES[metric]}", fontsize=10)
        row[0].set_ylabel("accuracy, after / before")
    handles, labels = axes[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique), fontsize=8
    )
    return figure


def plot_overlap(overlaps: pd.DataFrame, crossed: pd.DataFrame):
    """Draw the full version's figure 4 for the largest k: shared heads, and crossed accuracy.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    k = overlaps["heads"].max()
    crossed = crossed[(crossed["heads"] == k) & (crossed["metric"] == "strict")]
    names = list(dict.fromkeys(overlaps["dataset"]))
    shown = {
        f"Jaccard overlap, {k} heads": overlaps[overlaps["heads"] == k].pivot(
            index="dataset", columns="other", values="jaccard"
        ),
        "accuracy, after / before": crossed.pivot(
            index="dataset", columns="heads_from", values="value"
        ),
    }
    figure = Figure(figsize=(2 * max(3.2, 0.9 * len(names)), max(2.6, 0.8 * len(names))),
                    layout="constrained")  # fmt: skip
    for axis, (title, matrix) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        matrix = matrix.reindex(index=names, columns=names)
        axis.imshow(matrix.to_numpy(float), cmap="Blues", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(matrix.to_numpy(float)):
            shade = "white" if value > 0.6 else "black"
            axis.text(column, row, number(value), ha="center", va="center", color=shade)
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("heads chosen on")
    return figure
