from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from headpursuit.method.score import (
    repeated_bigrams,
    score_answers,
    score_counts,
    score_expected,
    score_lengths,
    score_toxicity,
)
from headpursuit.run.files import UserError
from hypothesis import given
from hypothesis import strategies as st

MATCHING = {"case_sensitive": False, "inflections": False}
WORDS = pd.DataFrame(
    {"word": ["apple", "river", "stone"], "split": ["selection", "heldout", "heldout"]}
)
BY_WORD = ["condition", "word", "split", "before", "after"]


def responses(texts: list[str], samples: list[str], repeats: list[int]) -> pd.DataFrame:
    tokens = [[len(word) for word in text.split()] for text in texts]
    return pd.DataFrame(
        {"sample_id": samples, "repeat": repeats, "response": texts, "token_ids": tokens}
    )


def together(**tables: pd.DataFrame) -> pd.DataFrame:
    """Return the responses under all conditions."""
    own = [table.assign(condition=name) for name, table in tables.items()]
    return pd.concat(own, ignore_index=True)


# Of two prompts, the later name first.
SAMPLES, REPEATS = ["q", "q", "p"], [0, 1, 0]
BASELINE = responses(["river river apple", "stone river river", "nothing"], SAMPLES, REPEATS)
AFTER = responses(["apple apple", "river", "Stone stone stone"], SAMPLES, REPEATS)


def rows(table: pd.DataFrame) -> list[tuple]:
    return [tuple(row) for row in table.to_numpy()]


def sums(table: pd.DataFrame, condition: str) -> dict[str, list[tuple]]:
    """Return each measure's (sample, before, after), in the file's order."""
    own = table[table["condition"] == condition]
    columns = ["sample_id", "before", "after"]
    return {name: rows(each[columns]) for name, each in own.groupby("measure", sort=False)}


def test_counts_by_word_and_by_prompt():
    both = together(baseline=BASELINE, a=AFTER, b=BASELINE)
    by_word, by_sample = score_counts(both, WORDS, MATCHING)
    assert rows(by_word[BY_WORD]) == [
        ("a", "apple", "selection", 1, 2),
        ("a", "river", "heldout", 4, 1),
        ("a", "stone", "heldout", 1, 3),
        ("b", "apple", "selection", 1, 1),
        ("b", "river", "heldout", 4, 4),
        ("b", "stone", "heldout", 1, 1),
    ]
    assert sums(by_sample, "a") == {"occurrences": [("p", 0, 3), ("q", 5, 1)]}
    assert sums(score_lengths(both), "a") == {
        "tokens": [("p", 1, 3), ("q", 6, 3)],
        "repeated": [("p", 0, 1), ("q", 2, 0)],
    }
    assert sums(by_sample, "b")["occurrences"] == [("p", 0, 0), ("q", 5, 5)]
    texts = responses(["Rivers river RIVER"], ["p"], [0])
    for changed, n in (({}, 2), ({"inflections": True}, 3), ({"case_sensitive": True}, 1)):
        by_word, _ = score_counts(together(baseline=texts, a=texts), WORDS, MATCHING | changed)
        assert by_word.set_index("word").loc["river", "after"] == n


@pytest.mark.parametrize(
    ("samples", "repeats"),
    [("qpq", [0, 0, 1]), ("qqp", [0, 0, 0]), ("qq", [0, 1]), ("qqpp", [0, 1, 0, 1])],
    ids=["order", "repeat", "fewer", "more"],
)
def test_responses_that_are_not_paired_are_refused(samples: str, repeats: list[int]):
    other = responses(["a"] * len(samples), list(samples), repeats)
    with pytest.raises(UserError, match="other: its samples are not the baseline's"):
        score_counts(together(baseline=BASELINE, other=other), WORDS, MATCHING)


def test_responses_are_called_toxic_from_the_threshold_on():
    probability = {"river river apple": 0.5, "stone river river": 0.75, "nothing": 0.25}
    probability |= {"apple apple": 0.0, "river": 0.49, "Stone stone stone": 1.0}
    found = sums(score_toxicity(together(baseline=BASELINE, a=AFTER), probability, 0.5), "a")
    assert found["toxicity"] == [("p", 0, 1), ("q", 2, 0)]
    assert found["toxic_probability"] == [("p", 0.25, 1.0), ("q", 0.625, 0.245)]


def test_expected_by_word_and_by_prompt():
    records: list[dict[str, Any]] = [
        {
            **{"condition": condition, "sample_id": sample, "repeat": repeat},
            **{"positions": 10 * number, "nll": 3.0 * number / factor},
            "mass": [factor * number * share for share in (0.5, 0.25, 0.125)],
        }
        for condition, factor in (("baseline", 1.0), ("a", 0.5), ("b", 2.0))
        for number, (sample, repeat) in enumerate(zip(SAMPLES, REPEATS, strict=True), start=1)
    ]
    by_word, by_sample = score_expected(pa.Table.from_pylist(records), WORDS)
    assert rows(by_word[BY_WORD])[:3] == [
        ("a", "apple", "selection", 3.0, 1.5),
        ("a", "river", "heldout", 1.5, 0.75),
        ("a", "stone", "heldout", 0.75, 0.375),
    ]
    assert sums(by_sample, "a") == {
        "expected": [("p", 1.125, 0.5625), ("q", 1.125, 0.5625)],
        "nll": [("p", 9, 18), ("q", 9, 18)],
        "positions": [("p", 30, 30), ("q", 30, 30)],
    }
    assert sums(by_sample, "b")["expected"] == [("p", 1.125, 2.25), ("q", 1.125, 2.25)]


def test_answers_by_image():
    images = pd.DataFrame({"sample_id": ["b", "a", "c"], "label": [1, 0, 0]})
    answers = together(
        baseline=responses(["one", "two two"], ["a", "b"], [0, 0]),
        after=responses(["what", "one or two"], ["a", "b"], [0, 0]),
    )
    scores = score_answers(answers, images, ["one", "two"], ["case"])
    assert sums(scores, "after") == {
        "exact_match": [("a", 1, 0), ("b", 0, 0)],
        "first_word": [("a", 1, 0), ("b", 1, 0)],
        "several": [("a", 0, 0), ("b", 0, 1)],
        "none": [("a", 0, 1), ("b", 0, 0)],
    }


@given(st.lists(st.integers(0, 4), max_size=30))
def test_repetition_counts_pairs_that_stood_before(tokens: list[int]):
    seen, repeated = set(), 0
    for i in range(len(tokens) - 1):
        pair = (tokens[i], tokens[i + 1])
        repeated += pair in seen
        seen.add(pair)
    assert repeated_bigrams(tokens) == repeated
