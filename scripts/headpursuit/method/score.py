"""What every sample gave before and after, from responses, `expected` and answers, as long rows."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa

from headpursuit.method.answers import judge
from headpursuit.method.words import count_words, measured_words
from headpursuit.run.files import UserError

COLUMNS = ["condition", "sample_id", "measure", "before", "after"]
BY_WORD = ["measure", "condition", "word", "split", "before", "after"]


def score_counts(
    responses: Mapping[str, pd.DataFrame], words: pd.DataFrame, matching: dict
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Count words in the responses of every condition.

    Args:
        responses: condition to its responses: sample_id, repeat, response and token_ids.
        words: table with word and split.
        matching: keyword arguments of :func:`headpursuit.method.words.count_words`.

    Returns:
        Counts by word (:data:`BY_WORD`), and by sample (:data:`COLUMNS`) the measured words' count,
        the responses' tokens and the pairs of neighbouring tokens that are repeated.

    Raises:
        UserError: if a condition's responses are not paired with the baseline's.
    """
    counted = measured_words(words)

    def measured(own: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
        counts = count_words(list(own["response"]), list(words["word"]), **matching)
        found = {
            "count": counts[:, counted].sum(1),
            "tokens": [len(tokens) for tokens in own["token_ids"]],
            "repeated": [repeated_bigrams(tokens) for tokens in own["token_ids"]],
        }
        index = pd.MultiIndex.from_frame(own[["sample_id", "repeat"]])
        return pd.DataFrame(found, index=index), counts.sum(0)

    before = measured(responses["baseline"])
    both = ((name, before, measured(own)) for name, own in responses.items() if name != "baseline")
    return _by_word_and_sample("count", words, both)


def score_expected(expected: pa.Table, words: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sum `expected` by word and by prompt, beside the baseline's.

    Args:
        expected: table of :func:`headpursuit.method.expected.measure_expected`.
        words: table with word and split, in the order of its masses.

    Returns:
        As :func:`score_counts`, by prompt with expected, nll and positions.
    """
    counted = measured_words(words)
    mass = np.stack(expected["mass"].to_numpy())
    table = expected.drop_columns("mass").to_pandas().assign(expected=mass[:, counted].sum(1))
    measured = {}
    for condition, own in table.groupby("condition", sort=False):
        by_sample = own.set_index(["sample_id", "repeat"])[["expected", "nll", "positions"]]
        measured[condition] = by_sample, mass[own.index].sum(0)
    before = measured.pop("baseline")
    both = ((name, before, after) for name, after in measured.items())
    return _by_word_and_sample("expected", words, both)


def _by_word_and_sample(
    measure: str, words: pd.DataFrame, both: Iterator[tuple]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    by_word, by_sample = [], []
    for condition, (before, words_before), (after, words_after) in both:
        by_sample.append(pair(before, after, condition))
        own = words[["word", "split"]].assign(before=words_before, after=words_after)
        by_word.append(own.assign(measure=measure, condition=condition)[BY_WORD])
    return pd.concat(by_word), pd.concat(by_sample)


def score_answers(
    responses: Mapping[str, pd.DataFrame],
    images: pd.DataFrame,
    classes: Sequence[str],
    normalise: Sequence[str],
) -> pd.DataFrame:
    """Judge every answer.

    Args:
        responses: condition to its responses: sample_id, repeat and response.
        images: table with sample_id and label.
        classes: class names, in the order of their numbers.
        normalise: the experiment's ``normalise``.

    Returns:
        Rows of :data:`COLUMNS`, sums over an image's answers: strict and first_word (the answer is,
        or begins with, the image's class), several and none (it names several classes, or none).
    """
    texts = {text for own in responses.values() for text in own["response"]}
    judged = {text: judge(text, classes, normalise) for text in texts}
    label_of = images.set_index("sample_id")["label"]

    def measured(own: pd.DataFrame) -> pd.DataFrame:
        strict, first, names = map(
            np.array, zip(*(judged[text] for text in own["response"]), strict=True)
        )
        label = label_of.loc[own["sample_id"]].to_numpy()
        found = {"strict": strict == label, "first_word": first == label}
        found |= {"several": names == "several", "none": names == "none"}
        return pd.DataFrame(found, index=pd.MultiIndex.from_frame(own[["sample_id", "repeat"]]))

    before = measured(responses["baseline"])
    others = {name: own for name, own in responses.items() if name != "baseline"}
    return pd.concat([pair(before, measured(own), name) for name, own in others.items()])


def pair(before: pd.DataFrame, after: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Put a condition's measures beside the baseline's, in the order of the samples' names.

    The responses to one sample are added up: they hang together, so the bootstrap takes samples.

    Args:
        before: a column for each measure, a row for each sample; the index is the sample and
            the number of the response.
        after: the same under the condition.
        condition: its name.

    Raises:
        UserError: if the samples are not the same, in the same order.
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
