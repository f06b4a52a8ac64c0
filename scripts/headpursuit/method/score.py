"""What every sample gave before and after, from responses, `expected` and answers, as long rows.

Responses are a table of those under all conditions: condition, sample_id, repeat, and response or
token_ids. Each condition's are paired with the baseline's; a UserError says where they are not.
"""

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
    responses: pd.DataFrame, words: pd.DataFrame, matching: Mapping[str, bool]
) -> Scores:
    """Count words in responses: by word, and by sample the measured words' count.

    ``matching`` is that of :func:`headpursuit.method.words.count_words`.
    """
    counts = count_words(responses["response"], list(words["word"]), **matching)
    measured = counts[:, measured_words(words)].sum(1)
    by_word = _by_word("occurrences", words, responses, counts)
    return by_word, _by_sample(responses, occurrences=measured)


def score_lengths(responses: pd.DataFrame) -> pd.DataFrame:
    """Take the length of responses.

    Returns rows of :data:`COLUMNS`: their tokens, and the pairs of neighbouring ones that are
    repeated.
    """
    ids = responses["token_ids"]
    return _by_sample(responses, tokens=ids.map(len), repeated=ids.map(repeated_bigrams))


def score_toxicity(
    responses: pd.DataFrame, probability: Mapping[str, float], threshold: float
) -> pd.DataFrame:
    """Judge responses by each text's probability of being toxic; from the threshold on it is.

    Returns rows of :data:`COLUMNS`: toxicity, how many of a sample's responses are called toxic,
    and toxic_probability, their mean.
    """
    toxic = responses["response"].map(probability)
    shares = toxic / _repeats(responses)
    return _by_sample(responses, toxicity=toxic >= threshold, toxic_probability=shares)


def score_expected(expected: pa.Table, words: pd.DataFrame) -> Scores:
    """Sum the table of :func:`headpursuit.method.expected.measure_expected`.

    By word, and by prompt with expected, nll and positions; words are in the order of its masses.
    """
    mass = np.stack(expected["mass"].to_numpy())
    table = expected.drop_columns("mass").to_pandas()
    measured = {"expected": mass[:, measured_words(words)].sum(1)}
    measured |= {name: table[name] for name in ("nll", "positions")}
    return _by_word("expected", words, table, mass), _by_sample(table, **measured)


def score_answers(
    responses: pd.DataFrame, images: pd.DataFrame, classes: list[str], normalise: list[str]
) -> pd.DataFrame:
    """Judge responses as answers, normalised as it says.

    Takes the images' sample_id and label, and class names in the order of their numbers. Returns
    rows of :data:`COLUMNS`, sums over an image's answers: exact_match and first_word (the answer
    is, or begins with, the image's class), several and none (it names several classes, or none).
    """
    judged = {text: judge(text, classes, normalise) for text in set(responses["response"])}
    parts = zip(*responses["response"].map(judged), strict=True)
    strict, first, names = (np.array(part) for part in parts)
    label = images.set_index("sample_id")["label"].loc[responses["sample_id"]].to_numpy()
    measured = {"exact_match": strict == label, "first_word": first == label}
    return _by_sample(responses, **measured, several=names == "several", none=names == "none")


def score_f1(
    responses: pd.DataFrame, references: Mapping[str, Sequence[str]], words: Sequence[str]
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


def score_cider(responses: pd.DataFrame, references: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return each sample's CIDEr against its references, as rows of :data:`COLUMNS`."""
    return _score_texts(responses, "cider", cider(references))


def _score_texts(
    responses: pd.DataFrame, measure: str, score: Callable[[str, str], float]
) -> pd.DataFrame:
    """Score texts; a sample has the mean of its responses, since tables show means over samples."""
    known = cache(score)  # many conditions leave a response as it was
    values = list(map(known, responses["sample_id"], responses["response"]))
    return _by_sample(responses, **{measure: values / _repeats(responses)})


def _repeats(responses: pd.DataFrame) -> pd.Series:
    """Return of each response how many its sample has: shares of a mean, as sums are taken."""
    return responses.groupby(["condition", "sample_id"])["repeat"].transform("size")


def _by_word(
    measure: str, words: pd.DataFrame, responses: pd.DataFrame, values: np.ndarray
) -> pd.DataFrame:
    """Sum values, responses x words, and put each condition's beside the baseline's (BY_WORD)."""
    of = responses["condition"]
    sums = {name: values[(of == name).to_numpy()].sum(0) for name in of.unique()}
    rows = words[["word", "split"]].assign(measure=measure, before=sums.pop("baseline"))
    return pd.concat(rows.assign(condition=name, after=own)[BY_WORD] for name, own in sums.items())


def _by_sample(responses: pd.DataFrame, **measures: Any) -> pd.DataFrame:
    """Put each condition's measures, a value a response, beside the baseline's (COLUMNS).

    The responses to one sample are added up: they hang together, so intervals are over samples.
    """
    table = responses[["condition", *KEYS]].assign(**measures).set_index(KEYS)
    indexed = {
        name: own.drop(columns="condition").astype(float)
        for name, own in table.groupby("condition", sort=False)
    }
    index = indexed["baseline"].index
    if wrong := [name for name, own in indexed.items() if not own.index.equals(index)]:
        raise UserError(f"{wrong[0]}: its samples are not the baseline's, in order.")
    sums = {name: own.groupby(level=0).sum() for name, own in indexed.items()}
    before = sums.pop("baseline").rename_axis("sample_id").reset_index()
    rows = before.melt("sample_id", var_name="measure", value_name="before")
    return pd.concat(
        rows.assign(condition=name, after=own.to_numpy().ravel(order="F"))[COLUMNS]
        for name, own in sums.items()
    )


def repeated_bigrams(tokens: Sequence[int]) -> int:
    """Count the pairs of neighbouring tokens that already stood earlier in the same response."""
    pairs = list(pairwise(tokens))
    return len(pairs) - len(set(pairs))
