"""Word counts and ratios with their intervals, from responses and from `expected`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from headpursuit.files import UserError
from headpursuit.words import count_words


def score_counts(
    baseline: pa.Table, intervened: dict[str, pa.Table], words: pd.DataFrame, matching: dict
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Count words in the responses of every condition.

    Args:
        baseline: its responses.
        intervened: condition to its responses, paired with the baseline's.
        words: table with word and split.
        matching: keyword arguments of :func:`headpursuit.words.count_words`.

    Returns:
        Counts by word (condition, word, split, before, after) and, of held-out words only, by
        prompt (condition, prompt_id, count, tokens and repeated, each _before and _after).

    Raises:
        UserError: if a condition's responses are not paired with the baseline's.
    """
    before = _counts(baseline, words, matching)
    by_word, by_prompt = [], []
    for condition, responses in intervened.items():
        check_same_prompts(baseline, responses, condition)
        after = _counts(responses, words, matching)
        table = words[["word", "split"]].assign(before=before.sum(0), after=after.sum(0))
        by_word.append(table.assign(condition=condition))
        heldout = (words["split"] == "heldout").to_numpy()
        quantities = {"prompt_id": baseline["prompt_id"].to_pylist()}
        for when, counts, table in (("before", before, baseline), ("after", after, responses)):
            tokens = table["token_ids"].to_pylist()
            quantities[f"count_{when}"] = counts[:, heldout].sum(1)
            quantities[f"tokens_{when}"] = [len(own) for own in tokens]
            quantities[f"repeated_{when}"] = [repeated_bigrams(own) for own in tokens]
        by_prompt.append(_sum_samples(pd.DataFrame(quantities)).assign(condition=condition))
    return pd.concat(by_word), pd.concat(by_prompt)


def score_expected(expected: pa.Table, words: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sum `expected` by word and by prompt, beside the baseline's.

    Args:
        expected: table of :func:`headpursuit.expected.measure_expected`.
        words: table with word and split, in the order of its masses.

    Returns:
        As :func:`score_counts`, with expected and nll (each _before and _after) and positions by
        prompt.
    """
    heldout = (words["split"] == "heldout").to_numpy()
    table = expected.drop_columns("mass").to_pandas()
    mass = np.stack(expected["mass"].to_numpy())
    table["expected"] = mass[:, heldout].sum(1)
    is_baseline = (table["condition"] == "baseline").to_numpy()
    before, before_mass = table[is_baseline].reset_index(drop=True), mass[is_baseline].sum(0)
    by_word, by_prompt = [], []
    for condition, own in table[~is_baseline].groupby("condition", sort=False):
        masses = words[["word", "split"]].assign(before=before_mass, after=mass[own.index].sum(0))
        by_word.append(masses.assign(condition=condition))
        quantities = {"prompt_id": before["prompt_id"], "positions": before["positions"]}
        for name in ("expected", "nll"):
            quantities[f"{name}_before"] = before[name]
            quantities[f"{name}_after"] = own[name].to_numpy()
        by_prompt.append(_sum_samples(pd.DataFrame(quantities)).assign(condition=condition))
    return pd.concat(by_word), pd.concat(by_prompt)


def _counts(responses: pa.Table, words: pd.DataFrame, matching: dict) -> np.ndarray:
    return count_words(responses["response"].to_pylist(), list(words["word"]), **matching)


def _sum_samples(table: pd.DataFrame) -> pd.DataFrame:
    """Add up the samples of a prompt: they hang together, so the bootstrap takes prompts."""
    return table.groupby("prompt_id", sort=False).sum().reset_index()


def repeated_bigrams(tokens: Sequence[int]) -> int:
    """Count the pairs of neighbouring tokens that already stood earlier in the same response."""
    pairs = list(pairwise(tokens))
    return len(pairs) - len(set(pairs))


def bootstrap_ratio(
    before: np.ndarray, after: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[np.ndarray, float, float]:
    """Return ratios of sums and a paired bootstrap interval of their mean.

    Prompts are resampled together with both their values, and every draw of a random control
    sees the same resampled prompts. A resample whose sum before is 0 has no ratio and is left
    out.

    Args:
        before: values of each prompt without the intervention, prompts.
        after: values with it, draws x prompts (one draw for a selected set).
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

    Args:
        before: see :func:`bootstrap_ratio`.
        after: see :func:`bootstrap_ratio`.
        score: the config's ``score``.
        seed: of the resampling.

    Returns:
        value (mean over draws), sd, median, q25 and q75 over draws (missing where there is one),
        ci_low, ci_high and draws; and the ratio of each draw.
    """
    values, low, high = bootstrap_ratio(
        before, after, score["resamples"], score["confidence"], seed
    )
    several = len(values) > 1
    summary = {
        "value": values.mean(),
        "sd": values.std(ddof=1) if several else np.nan,
        "median": np.median(values) if several else np.nan,
        "q25": np.quantile(values, 0.25) if several else np.nan,
        "q75": np.quantile(values, 0.75) if several else np.nan,
        "ci_low": low,
        "ci_high": high,
        "draws": len(values),
    }
    return summary, values


def check_same_prompts(baseline: pa.Table, other: pa.Table, condition: str) -> None:
    """Check that a condition's responses are paired with the baseline's.

    Raises:
        UserError: if they are of other prompts or samples.
    """
    keys = ["prompt_id", "sample"]
    if baseline.select(keys) != other.select(keys):
        raise UserError(
            f"{condition}: its responses are not of the baseline's prompts and samples, in order."
        )
