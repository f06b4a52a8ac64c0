"""Ratios: a measure after the heads were scaled over the same before.

One row has one layout whatever was measured: occurrences of words, their expected probability, or
right answers about images.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headpursuit.run.experiments import condition_name
from headpursuit.run.files import parquet_metadata, read_parquet, seed_for
from headpursuit.run.tables import read_csv

METHOD_NAMES = {
    "somp": "SOMP",
    "logit_lens": "logit lens",
    "unrelated": "unrelated words",
    "size": "size of write",
    "random": "random",
}
# The measures that have a ratio, in the order of the tables' rows; the others stand beside them.
MEASURE_NAMES = {
    "count": "occurrences",
    "expected": "expected",
    "strict": "strict",
    "first_word": "first word",
}
# Right answers are shown as a share of the samples.
ANSWERS = ("strict", "first_word")
# The artefacts of data/published.csv that print a measure; the first that has a value counts.
PUBLISHED = {"count": ("table2", "table2_lexical"), "strict": ("figure1",)}

SCORED = ["condition", "sample_id", "measure", "before", "after"]
IDENTITY = ["experiment", "samples", "model", "alpha", "heads_from", "method", "heads", "measure"]
DRAWS = ["experiment", "method", "heads", "measure", "draw", "value"]
COLUMNS = [
    *(*IDENTITY, "value", "sd", "median", "q25", "q75"),
    *("ci_low", "ci_high", "draws", "before", "after", "n", "length_ratio"),
    *("repetition_ratio", "nats_per_token", "coverage", "several", "none", "flag"),
    *("published", "published_low", "published_high", "published_source"),
]


class Scores:
    """An experiment's scores, and the ratios of its conditions."""

    def __init__(
        self,
        table: pd.DataFrame,
        facts: Mapping[str, Any],
        dataset: str,
        score: Mapping[str, Any],
        seed: int,
    ) -> None:
        """Take the scores.

        Args:
            table: of ``scores/``.
            facts: the file's metadata: ``coverage`` (share of the measured words that `expected`
                sees) and ``classes`` (how many an image may have).
            dataset: name of the samples.
            score: the config's ``score``.
            seed: the config's seed, for the bootstrap.
        """
        self.facts, self.score = facts, score
        self.seed = seed_for(seed, dataset, "bootstrap")
        self.by_condition = dict(list(table.groupby(["condition", "measure"], sort=False)))

    def ratio(
        self, conditions: Sequence[str], measure: str
    ) -> tuple[dict[str, Any], np.ndarray] | None:
        """Return what a row says of a measure, and the ratio of each draw.

        Args:
            conditions: a set of heads, or random draws of it; those without the measure (a draw
                that generates no responses) are left out.
            measure: a key of :data:`MEASURE_NAMES`.

        Returns:
            None if no condition has the measure.
        """
        own = [name for name in conditions if (name, measure) in self.by_condition]
        if not own:
            return None
        draws = [self.by_condition[name, measure] for name in own]
        before = draws[0]["before"].to_numpy()
        after = np.stack([table["after"].to_numpy() for table in draws])
        summary, values = summarise_ratio(before, after, self.score, self.seed)
        row = {
            **summary,
            "before": before.sum(),
            "after": after.sum(axis=1).mean(),
            "n": len(before),
            "coverage": self.facts["coverage"] if measure == "expected" else 1.0,
            "flag": self._flag(before, measure),
            **self._beside(own, measure),
        }
        return row, values

    def _flag(self, before: np.ndarray, measure: str) -> str:
        if before.sum() == 0:
            return "baseline is 0"
        if measure == "count" and before.sum() < self.score["min_count"]:
            return f"baseline count below {self.score['min_count']}"
        if measure in ANSWERS and before.mean() <= 1 / self.facts["classes"]:
            return "baseline no better than chance"
        return ""

    def _beside(self, conditions: Sequence[str], measure: str) -> dict[str, float]:
        """Return what the other measures of the same conditions say."""

        def total(name: str, when: str) -> float:
            return pd.concat([self.by_condition[own, name][when] for own in conditions]).sum()

        if measure == "expected":
            change = total("nll", "after") - total("nll", "before")
            return {"nats_per_token": over(change, total("positions", "before"))}
        if measure in ANSWERS:
            n = sum(len(self.by_condition[own, measure]) for own in conditions)
            return {name: total(name, "after") / n for name in ("several", "none")}
        tokens = [total("tokens", when) for when in ("after", "before")]
        repeated = [total("repeated", when) for when in ("after", "before")]
        # Repeated pairs for each token, not for each response.
        per_token = [over(*own) for own in zip(repeated, tokens, strict=True)]
        return {"length_ratio": over(*tokens), "repetition_ratio": over(*per_token)}


def read_scores(
    paths: Sequence[str],
    experiments: Mapping[str, Mapping[str, Any]],
    score: Mapping[str, Any],
    seed: int,
) -> dict[str, Scores]:
    """Read the scores of experiments, a file each."""
    return {
        name: Scores(
            read_parquet(path, SCORED).to_pandas(),
            parquet_metadata(path),
            own["samples"],
            score,
            seed,
        )
        for (name, own), path in zip(experiments.items(), paths, strict=True)
    }


def over(after: float, before: float) -> float:
    """Return a ratio; missing where there is nothing before."""
    return after / before if before else np.nan


def ratio_rows(
    scores: Mapping[str, Scores], experiments: Mapping[str, Mapping[str, Any]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row for each experiment, method, number of heads and measure, and the single draws.

    Args:
        scores: experiment to its scores.
        experiments: of each its samples, model, alpha, heads_from, methods, k and draws.
    """
    rows, draws = [], []
    for name, own in experiments.items():
        for method, k in product([*own["methods"], "random"], own["k"]):
            several = range(own["draws"]) if method == "random" else [None]
            names = [condition_name(method, k, draw) for draw in several]
            for measure in MEASURE_NAMES:
                if not (found := scores[name].ratio(names, measure)):
                    continue
                same = {key: own[key] for key in ("samples", "model", "alpha", "heads_from")}
                identity = {"experiment": name, "method": method, "heads": k, "measure": measure}
                rows.append(identity | same | found[0])
                draws += [{**identity, "draw": n, "value": v} for n, v in enumerate(found[1])]
    return pd.DataFrame(rows).reindex(columns=COLUMNS), pd.DataFrame(draws)[DRAWS]


def bootstrap_ratio(
    before: np.ndarray, after: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[np.ndarray, float, float]:
    """Return ratios of sums and a paired bootstrap interval of their mean.

    Samples are resampled together with both their values, and every draw of a random control
    sees the same resampled ones. A resample whose sum before is 0 has no ratio and is left out.

    Args:
        before: values of each prompt or image without the intervention, samples.
        after: values with it, draws x samples (one draw for a selected set).
        resamples: number of resamples.
        confidence: of the interval, 0 to 1.
        seed: of the resampling.

    Returns:
        The ratio of each draw, and the interval's lower and upper end.
    """
    total = before.sum()
    if total == 0:
        return np.full(len(after), np.nan), np.nan, np.nan
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(len(before), size=len(before)), minlength=len(before))
        denominator = before @ weights
        if denominator > 0:
            means.append((after @ weights).mean() / denominator)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return after.sum(axis=1) / total, float(low), float(high)


def summarise_ratio(
    before: np.ndarray, after: np.ndarray, score: Mapping[str, Any], seed: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Summarise the ratios of draws as the tables show them.

    Returns:
        value (mean over draws), sd, median, q25 and q75 over draws (missing where there is one),
        ci_low, ci_high and draws; and the ratio of each draw.
    """
    values, low, high = bootstrap_ratio(
        before, after, score["resamples"], score["confidence"], seed
    )
    summary = {"value": values.mean(), "ci_low": low, "ci_high": high, "draws": len(values)}
    if len(values) > 1:
        q25, q75 = np.quantile(values, [0.25, 0.75])
        summary |= {"sd": values.std(ddof=1), "median": np.median(values), "q25": q25, "q75": q75}
    return summary, values


# Published values


def read_published(path: str | Path) -> pd.DataFrame:
    """Read the published values, ``data/published.csv``."""
    return read_csv(path, ["artefact", "dataset", "method", "heads", "value", "low", "high"])


def put_published(
    table: pd.DataFrame, published: pd.DataFrame, published_heads: Mapping[Any, int] | None
) -> pd.DataFrame:
    """Return the rows with the published value of each, its range and source, where there is one.

    Args:
        table: of :func:`ratio_rows`.
        published: ``data/published.csv``.
        published_heads: which published k stands beside a k of this run.
    """
    mapping = {int(k): theirs for k, theirs in (published_heads or {}).items()}
    keys = ["artefact", "dataset", "method", "heads"]
    values = {
        tuple(row[key] for key in keys): row for row in reversed(published.to_dict("records"))
    }

    def of(row: Any) -> dict[str, Any]:
        if pd.notna(row.heads_from):
            return {}
        k = mapping.get(row.heads, row.heads)
        for artefact in PUBLISHED.get(row.measure, ()):
            if found := values.get((artefact, row.samples, row.method, k)):
                limits = {f"published_{end}": found[end] for end in ("low", "high")}
                source = f"{found['source']}, {k} heads"
                return {"published": found["value"], **limits, "published_source": source}
        return {}

    columns = COLUMNS[-4:]
    found = pd.DataFrame([of(row) for row in table.itertuples()], columns=columns)
    return table.assign(**{name: found[name].to_numpy() for name in columns})


# Texts


def number(value: Any, form: str = ".2f") -> str:
    """Return a number as text; empty where it is missing."""
    return "" if value is None or pd.isna(value) else format(value, form)


def interval(row: Mapping[str, Any], centre: str, low: str, high: str) -> str:
    """Return a number with its limits as text; empty where it is missing."""
    limits = f" [{number(row[low])}, {number(row[high])}]" if pd.notna(row[low]) else ""
    return number(row[centre]) + limits if pd.notna(row[centre]) else ""


def display(table: pd.DataFrame, spread: str, confidence: float) -> pd.DataFrame:
    """Return the rows as text cells for Markdown and LaTeX; what no row has is left out."""

    def among_draws(row: Mapping[str, Any]) -> str:
        if spread == "iqr":
            return interval(row, "median", "q25", "q75")
        return f"± {number(row['sd'])}" if pd.notna(row["sd"]) else ""

    def amount(row: Mapping[str, Any], when: str) -> str:
        if row["measure"] in ANSWERS:
            return number(row[when] / row["n"])
        form = {"before": ".0f", "after": ".1f"}[when] if row["measure"] == "count" else ".2f"
        return number(row[when], form)

    cells = {
        "experiment": lambda row: row["experiment"],
        "measure": lambda row: MEASURE_NAMES[row["measure"]],
        "heads": lambda row: str(row["heads"]),
        "chosen by": lambda row: METHOD_NAMES[row["method"]],
        f"after / before [{100 * confidence:g}%]": lambda row: (
            interval(row, "value", "ci_low", "ci_high") or "not defined"
        ),
        "draws": lambda row: str(row["draws"]),
        "median [quartiles]" if spread == "iqr" else "sd of draws": among_draws,
        "before": lambda row: amount(row, "before"),
        "after": lambda row: amount(row, "after"),
        "length": lambda row: number(row["length_ratio"]),
        "repetition": lambda row: number(row["repetition_ratio"]),
        "nats/token": lambda row: number(row["nats_per_token"], "+.2f"),
        "several classes": lambda row: number(row["several"]),
        "no class": lambda row: number(row["none"]),
        "published": lambda row: interval(row, "published", "published_low", "published_high"),
        "note": lambda row: "" if pd.isna(row["flag"]) else row["flag"],
    }
    rows = table.to_dict("records")
    shown = pd.DataFrame({name: [cell(row) for row in rows] for name, cell in cells.items()})
    optional = shown.columns[9:14]
    return shown.drop(columns=[name for name in optional if (shown[name] == "").all()])


def notes(
    table: pd.DataFrame,
    facts: Mapping[str, Mapping[str, Any]],
    experiments: Mapping[str, Mapping[str, Any]],
    score: Mapping[str, Any],
    seed: int,
) -> str:
    """Return what a reader of the rows has to know.

    Args:
        table: of :func:`ratio_rows`.
        facts: experiment to the metadata of its scores.
        experiments: see :func:`ratio_rows`; and their iterations.
        score: the config's ``score``.
        seed: the config's seed.
    """
    return " ".join(_notes(table, facts, experiments, score, seed))


def _notes(
    table: pd.DataFrame,
    facts: Mapping[str, Mapping[str, Any]],
    experiments: Mapping[str, Mapping[str, Any]],
    score: Mapping[str, Any],
    seed: int,
) -> Iterator[str]:
    has, images = set(table["measure"]), {name for name, own in facts.items() if "classes" in own}
    sizes = []
    for name in experiments:
        n = table[table["experiment"] == name]["n"].iloc[0]
        kind = f"images of {facts[name]['classes']} classes" if name in images else "prompts"
        sizes.append(f"{n} {kind} ({name})")
    models = ", ".join(dict.fromkeys(own["model"] for own in experiments.values()))
    alphas = ", ".join(dict.fromkeys(f"{own['alpha']:g}" for own in experiments.values()))
    yield f"Model {models}; heads' writes times {alphas}; {', '.join(sizes)}."
    yield "Ratios are sums over all samples after the intervention over sums before it."
    if "count" in has:
        yield (
            "Occurrences: of held-out words in responses (of all words where none is held out). "
            "Length and repetition (repeated pairs of tokens, for each token): relative to the "
            "baseline."
        )
    if "expected" in has:
        shares = ", ".join(
            f"{own['coverage']:.0%} ({name})" for name, own in facts.items() if "coverage" in own
        )
        yield (
            "Expected: the probability of the same words' one-token forms at the positions of the "
            f"baseline's responses, teacher-forced; it sees {shares} of these words. nats/token: "
            "rise of the baseline responses' negative log-likelihood."
        )
    if has & set(ANSWERS):
        yield (
            "Strict: the answer is the class name; first word: it begins with it; before and "
            "after: share of right answers. Several classes and no class: shares of answers after "
            "the intervention."
        )
    yield (
        f"Brackets: {100 * score['confidence']:g}% paired bootstrap over samples, "
        f"{score['resamples']} resamples, seed {seed}; for random heads, of the mean over draws. "
        "Random heads are matched by layer and disjoint from the first method's."
    )
    if {"unrelated", "size"} & set(table["method"]):
        yield (
            "Controls: unrelated words are ranked by the same method over as many tokens of other "
            "words; size ranks by the size of the write alone."
        )
    few = [name for name in images if facts[name]["classes"] <= experiments[name]["iterations"]]
    if few:
        yield (
            f"With as many iterations as classes or more ({', '.join(sorted(few))}), SOMP takes "
            "all the class names' rows where each is one token: its score is a plain projection, "
            "and its selection of atoms decides nothing."
        )
