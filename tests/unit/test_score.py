from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from headpursuit.files import UserError
from headpursuit.score import (
    bootstrap_ratio,
    check_same_prompts,
    repeated_bigrams,
    score_counts,
    score_expected,
)
from hypothesis import given
from hypothesis import strategies as st

MATCHING = {"case_sensitive": False, "inflections": False}
WORDS = pd.DataFrame(
    {"word": ["apple", "river", "stone"], "split": ["selection", "heldout", "heldout"]}
)


def responses(texts: list[str], prompts: list[str], samples: list[int]) -> pa.Table:
    return pa.table(
        {
            "prompt_id": prompts,
            "sample": samples,
            "response": texts,
            "token_ids": [[len(word) for word in text.split()] for text in texts],
        }
    )


PROMPTS, SAMPLES = ["p", "p", "q"], [0, 1, 0]
BASELINE = responses(["river river apple", "stone river river", "nothing"], PROMPTS, SAMPLES)
AFTER = responses(["apple apple", "river", "Stone stone stone"], PROMPTS, SAMPLES)


def rows(table: pd.DataFrame, *columns: str) -> list[tuple]:
    return [tuple(row) for row in table[list(columns)].to_numpy()]


def test_counts_by_word_and_by_prompt():
    by_word, by_prompt = score_counts(BASELINE, {"a": AFTER, "b": BASELINE}, WORDS, MATCHING)
    assert rows(by_word, "condition", "word", "split", "before", "after") == [
        ("a", "apple", "selection", 1, 2),
        ("a", "river", "heldout", 4, 1),
        ("a", "stone", "heldout", 1, 3),
        ("b", "apple", "selection", 1, 1),
        ("b", "river", "heldout", 4, 4),
        ("b", "stone", "heldout", 1, 1),
    ]
    columns = ["condition", "prompt_id", "count_before", "count_after"]
    assert rows(by_prompt, *columns) == [
        ("a", "p", 5, 1), ("a", "q", 0, 3), ("b", "p", 5, 5), ("b", "q", 0, 0)
    ]  # fmt: skip
    assert rows(by_prompt[:2], "tokens_before", "tokens_after") == [(6, 3), (1, 3)]
    assert rows(by_prompt[:2], "repeated_before", "repeated_after") == [(2, 0), (0, 1)]


def test_matching_is_passed_on():
    texts = responses(["Rivers river RIVER"], ["p"], [0])
    for matching, n in (
        (MATCHING, 2),
        (MATCHING | {"inflections": True}, 3),
        (MATCHING | {"case_sensitive": True}, 1),
    ):
        by_word, _ = score_counts(texts, {"a": texts}, WORDS, matching)
        assert by_word.set_index("word").loc["river", "after"] == n


@pytest.mark.parametrize(
    "other",
    [
        responses(["a", "b", "c"], ["p", "q", "p"], [0, 0, 1]),
        responses(["a", "b", "c"], ["p", "p", "q"], [0, 0, 0]),
        responses(["a", "b"], ["p", "p"], [0, 1]),
        responses(["a"] * 4, ["p", "p", "q", "q"], [0, 1, 0, 1]),
    ],
    ids=["order", "sample", "fewer", "more"],
)
def test_responses_that_are_not_paired_are_refused(other: pa.Table):
    with pytest.raises(UserError, match="somp-k2: its responses are not of the baseline's"):
        score_counts(BASELINE, {"somp-k2": other}, WORDS, MATCHING)
    check_same_prompts(BASELINE, AFTER, "somp-k2")


def test_expected_by_word_and_by_prompt():
    records: list[dict[str, Any]] = []
    for condition, factor in (("baseline", 1.0), ("a", 0.5), ("b", 2.0)):
        for number, (prompt, sample) in enumerate(zip(PROMPTS, SAMPLES, strict=True), start=1):
            mass = [factor * number * share for share in (0.5, 0.25, 0.125)]
            records.append(
                {
                    "condition": condition,
                    "prompt_id": prompt,
                    "sample": sample,
                    "positions": 10 * number,
                    "nll": 3.0 * number / factor,
                    "mass": mass,
                }
            )
    by_word, by_prompt = score_expected(pa.Table.from_pylist(records), WORDS)
    assert rows(by_word, "condition", "word", "split", "before", "after")[:3] == [
        ("a", "apple", "selection", 3.0, 1.5),
        ("a", "river", "heldout", 1.5, 0.75),
        ("a", "stone", "heldout", 0.75, 0.375),
    ]
    columns = ["condition", "prompt_id", "positions", "expected_before", "expected_after"]
    assert rows(by_prompt, *columns) == [
        ("a", "p", 30, 1.125, 0.5625),
        ("a", "q", 30, 1.125, 0.5625),
        ("b", "p", 30, 1.125, 2.25),
        ("b", "q", 30, 1.125, 2.25),
    ]
    assert rows(by_prompt[:2], "nll_before", "nll_after") == [(9.0, 18.0), (9.0, 18.0)]


@given(st.lists(st.integers(0, 4), max_size=30))
def test_repetition_counts_pairs_that_stood_before(tokens: list[int]):
    seen, repeated = set(), 0
    for i in range(len(tokens) - 1):
        pair = (tokens[i], tokens[i + 1])
        repeated += pair in seen
        seen.add(pair)
    assert repeated_bigrams(tokens) == repeated


# The bootstrap


def ratio(before: Any, after: Any, **changed: Any) -> tuple[np.ndarray, float, float]:
    options = {"resamples": 2000, "confidence": 0.95, "seed": 0} | changed
    return bootstrap_ratio(np.asarray(before, float), np.atleast_2d(after).astype(float), **options)


def test_no_change_is_exactly_one_without_width():
    before = np.random.default_rng(0).poisson(1.0, 100)
    values, low, high = ratio(before, before)
    assert (values.tolist(), low, high) == ([1.0], 1.0, 1.0)


def test_a_constant_factor_has_no_width():
    before = np.random.default_rng(0).random(100)
    values, low, high = ratio(before, [0.25 * before, 0.75 * before])
    np.testing.assert_allclose(values, [0.25, 0.75])
    np.testing.assert_allclose([low, high], 0.5)


def test_nothing_left_is_zero():
    values, low, high = ratio([1, 2, 3], [0, 0, 0])
    assert (values.tolist(), low, high) == ([0.0], 0.0, 0.0)


def test_nothing_before_has_no_ratio():
    values, low, high = ratio([0, 0, 0], [[1, 0, 0], [0, 0, 0]])
    assert np.isnan([*values, low, high]).all()
    assert len(values) == 2


def test_resamples_without_anything_before_are_left_out():
    values, low, high = ratio([0] * 9 + [1], [0] * 9 + [3])
    assert (values.tolist(), low, high) == ([3.0], 3.0, 3.0)


def test_the_seed_decides_the_interval_and_not_the_ratio():
    rng = np.random.default_rng(1)
    before, after = rng.poisson(2.0, 50), rng.poisson(1.0, 50)
    first, again, other = (ratio(before, after, seed=seed) for seed in (0, 0, 1))
    assert first[1:] == again[1:] != other[1:]
    assert first[0] == other[0] == after.sum() / before.sum()


def test_the_interval_follows_the_delta_method():
    """For many prompts the bootstrap's interval is the normal one of a ratio of means."""
    rng = np.random.default_rng(2)
    before = rng.poisson(3.0, 2000)
    after = rng.binomial(before, 0.6)  # paired: what is left of what was there
    value = after.sum() / before.sum()
    error = np.std(after - value * before) / before.mean() / np.sqrt(len(before))
    _, low, high = ratio(before, after)
    assert low == pytest.approx(value - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.15 * error)
    _, narrow_low, narrow_high = ratio(before, after, confidence=0.5)
    assert narrow_high - narrow_low == pytest.approx(2 * 0.6745 * error, rel=0.1)


def test_draws_share_the_resampled_prompts():
    """Draws that undo each other have a mean without any spread."""
    rng = np.random.default_rng(3)
    before, noise = np.full(60, 5.0), rng.normal(size=60)
    _, low, high = ratio(before, [before + noise, before - noise])
    assert high - low < 1e-12
    _, low, high = ratio(before, [before + noise])
    assert high - low > 0.01


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(4)
    covered = 0
    for number in range(300):
        before = rng.poisson(2.0, 80)
        after = rng.binomial(before, 0.7)
        _, low, high = ratio(before, after, resamples=300, seed=number)
        covered += low <= 0.7 <= high
    # 300 trials at 0.95: five standard errors below.
    assert covered / 300 > 0.95 - 5 * np.sqrt(0.95 * 0.05 / 300)
