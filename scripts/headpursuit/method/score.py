"""What every sample gave before and after, from responses, `expected` and answers, as long rows."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from headpursuit.method.answers import answered_by, best_f1, judge
from headpursuit.method.captions import cider
from headpursuit.method.words import count_words, measured_words
from headpursuit.run.files import UserError

COLUMNS = ["condition", "sample_id", "measure", "before", "after"]
BY_WORD = ["measure", "condition", "word", "split", "before", "after"]
KEYS = ["sample_id", "repeat"]

Scores = tuple[pd.DataFrame, pd.DataFrame]  # by word (BY_WORD), and by sample (COLUMNS)


def score_counts(
    responses: Mapping[str, pd.DataFrame], words: pd.DataFrame, matching: Mapping[str, bool]
) -> Scores:
    """Count words in every condition's responses (sample_id, repeat and response).

    By word, and by sample the measured words' count. ``matching`` is that of
    :func:`headpursuit.method.words.count_words`.

    Raises:
        UserError: if a condition's responses are not paired with the baseline's.
    """
    counted, measured = measured_words(words), {}
    for condition, own in responses.items():
        counts = count_words(own["response"], list(words["word"]), **matching)
        by_sample = own[KEYS].assign(occurrences=counts[:, counted].sum(1))
        measured[condition] = by_sample.set_index(KEYS), counts.sum(0)
    return _by_word_and_sample("occurrences", words, measured)


def score_lengths(responses: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Take the length of every condition's responses (sample_id, repeat and token_ids).

    Returns rows of :data:`COLUMNS`: their tokens, and the pairs of neighbouring ones that are
    repeated.
    """

    def measured(own: pd.DataFrame) -> dict[str, pd.Series]:
        ids = own["token_ids"]
        return {"tokens": ids.map(len), "repeated": ids.map(repeated_bigrams)}

    return _by_sample(responses, measured)


def score_toxicity(
    responses: Mapping[str, pd.DataFrame], probability: Mapping[str, float], threshold: float
) -> pd.DataFrame:
    """Judge every condition's responses (sample_id, repeat and response).

    Takes each text's probability of being toxic, and the one from which on it is called so. Returns
    rows of :data:`COLUMNS`: toxicity, how many of a sample's responses are called toxic, and
    toxic_probability, their mean.
    """

    def measured(own: pd.DataFrame) -> dict[str, pd.Series]:
        toxic = own["response"].map(probability)
        return {"toxicity": toxic >= threshold, "toxic_probability": toxic / _repeats(own)}

    return _by_sample(responses, measured)


def score_expected(expected: pa.Table, words: pd.DataFrame) -> Scores:
    """Sum the table of :func:`headpursuit.method.expected.measure_expected`.

    By word, and by prompt with expected, nll and positions; words are in the order of its masses.
    """
    counted, measured = measured_words(words), {}
    mass = np.stack(expected["mass"].to_numpy())
    table = expected.drop_columns("mass").to_pandas().assign(expected=mass[:, counted].sum(1))
    for condition, own in table.groupby("condition", sort=False):
        by_sample = own.set_index(KEYS)[["expected", "nll", "positions"]]
        measured[condition] = by_sample, mass[own.index].sum(0)
    return _by_word_and_sample("expected", words, measured)


def _by_word_and_sample(measure: str, words: pd.DataFrame, measured: Mapping[str, tuple]) -> Scores:
    before, words_before = measured["baseline"]
    by_word, by_sample = [], []
    for condition, (after, words_after) in measured.items():
        if condition != "baseline":
            by_sample.append(_paired(before, after, condition))
            own = words[["word", "split"]].assign(before=words_before, after=words_after)
            by_word.append(own.assign(measure=measure, condition=condition)[BY_WORD])
    return pd.concat(by_word), pd.concat(by_sample)


def score_answers(
    responses: Mapping[str, pd.DataFrame],
    images: pd.DataFrame,
    classes: list[str],
    normalise: list[str],
) -> pd.DataFrame:
    """Judge every condition's answers (sample_id, repeat and response), normalised as it says.

    Takes the images' sample_id and label, and class names in the order of their numbers. Returns
    rows of :data:`COLUMNS`, sums over an image's answers: exact_match and first_word (the answer
    is, or begins with, the image's class), several and none (it names several classes, or none).
    """
    texts = {text for own in responses.values() for text in own["response"]}
    judged = {text: judge(text, classes, normalise) for text in texts}
    label_of = images.set_index("sample_id")["label"]

    def measured(own: pd.DataFrame) -> dict[str, np.ndarray]:
        strict, first, names = (
            np.array(part) for part in zip(*own["response"].map(judged), strict=True)
        )
        label = label_of.loc[own["sample_id"]].to_numpy()
        found = {"exact_match": strict == label, "first_word": first == label}
        return found | {"several": names == "several", "none": names == "none"}

    return _by_sample(responses, measured)


def score_f1(
    responses: Mapping[str, pd.DataFrame],
    references: Mapping[str, Sequence[str]],
    words: Sequence[str],
) -> pd.DataFrame:
    """Return each sample's F1 against its right answers, as rows of :data:`COLUMNS`.

    It is ``f1`` where a right answer is one of the concept's words, and ``f1_others`` elsewhere.
    """
    group = {
        sample: "f1" if answered_by(words, own) else "f1_others"
        for sample, own in references.items()
    }
    table = _score_texts(responses, "f1", lambda sample, text: best_f1(text, references[sample]))
    return table.assign(measure=table["sample_id"].map(group))


def score_cider(
    responses: Mapping[str, pd.DataFrame], references: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Return each sample's CIDEr against its references, as rows of :data:`COLUMNS`."""
    return _score_texts(responses, "cider", cider(references))


def _score_texts(
    responses: Mapping[str, pd.DataFrame], measure: str, score: Callable[[str, str], float]
) -> pd.DataFrame:
    """Score texts; a sample has the mean of its responses, since tables show means over samples."""
    known = cache(score)  # many conditions leave a response as it was

    def measured(own: pd.DataFrame) -> dict[str, pd.Series]:
        return {measure: list(map(known, own["sample_id"], own["response"])) / _repeats(own)}

    return _by_sample(responses, measured)


def _repeats(own: pd.DataFrame) -> pd.Series:
    """Return of each response how many its sample has: shares of a mean, as sums are taken."""
    return own.groupby("sample_id")["repeat"].transform("size")


def _by_sample(
    responses: Mapping[str, pd.DataFrame], measured: Callable[[pd.DataFrame], Mapping[str, Any]]
) -> pd.DataFrame:
    """Put each condition's measures, a value a response, beside the baseline's, by sample."""
    tables = {
        condition: own[KEYS].assign(**measured(own)).set_index(KEYS)
        for condition, own in responses.items()
    }
    before = tables.pop("baseline")
    return pd.concat([_paired(before, after, name) for name, after in tables.items()])


def _paired(before: pd.DataFrame, after: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Put a condition's measures, a column each, beside the baseline's, by sample.

    The responses to one sample are added up: they hang together, so intervals are over samples.
    """
    if not before.index.equals(after.index):
        raise UserError(f"{condition}: its samples are not the baseline's, in order.")
    sums = [table.astype(float).groupby(level=0).sum() for table in (before, after)]
    rows = sums[0].rename_axis("sample_id").reset_index()
    rows = rows.melt("sample_id", var_name="measure", value_name="before")
    after_sums = sums[1].to_numpy().ravel(order="F")
    return rows.assign(condition=condition, after=after_sums)[COLUMNS]


def repeated_bigrams(tokens: Sequence[int]) -> int:
    """Count the pairs of neighbouring tokens that already stood earlier in the same response."""
    pairs = list(pairwise(tokens))
    return len(pairs) - len(set(pairs))
