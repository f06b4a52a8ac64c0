"""What every sample gave before and after, from responses, `expected` and answers, as long rows."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise

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
    counted, sums, tables = measured_words(words), {}, {}
    for condition, own in responses.items():
        counts = count_words(own["response"], list(words["word"]), **matching)
        sums[condition] = counts.sum(0)
        tables[condition] = own[KEYS].assign(occurrences=counts[:, counted].sum(1))
    return _by_word("occurrences", words, sums), _by_sample(tables)


def score_lengths(responses: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Take the length of every condition's responses (sample_id, repeat and token_ids).

    Returns rows of :data:`COLUMNS`: their tokens, and the pairs of neighbouring ones that are
    repeated.
    """
    tables = {}
    for condition, own in responses.items():
        ids = own["token_ids"]
        measured = {"tokens": ids.map(len), "repeated": ids.map(repeated_bigrams)}
        tables[condition] = own[KEYS].assign(**measured)
    return _by_sample(tables)


def score_toxicity(
    responses: Mapping[str, pd.DataFrame], probability: Mapping[str, float], threshold: float
) -> pd.DataFrame:
    """Judge every condition's responses (sample_id, repeat and response).

    Takes each text's probability of being toxic, and the one from which on it is called so. Returns
    rows of :data:`COLUMNS`: toxicity, how many of a sample's responses are called toxic, and
    toxic_probability, their mean.
    """
    tables = {}
    for condition, own in responses.items():
        toxic = own["response"].map(probability)
        measured = {"toxicity": toxic >= threshold, "toxic_probability": toxic / _repeats(own)}
        tables[condition] = own[KEYS].assign(**measured)
    return _by_sample(tables)


def score_expected(expected: pa.Table, words: pd.DataFrame) -> Scores:
    """Sum the table of :func:`headpursuit.method.expected.measure_expected`.

    By word, and by prompt with expected, nll and positions; words are in the order of its masses.
    """
    counted, sums, tables = measured_words(words), {}, {}
    mass = np.stack(expected["mass"].to_numpy())
    table = expected.drop_columns("mass").to_pandas().assign(expected=mass[:, counted].sum(1))
    for condition, own in table.groupby("condition", sort=False):
        sums[condition] = mass[own.index].sum(0)
        tables[condition] = own[[*KEYS, "expected", "nll", "positions"]]
    return _by_word("expected", words, sums), _by_sample(tables)


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
    tables = {}
    for condition, own in responses.items():
        parts = zip(*own["response"].map(judged), strict=True)
        strict, first, names = (np.array(part) for part in parts)
        label = label_of.loc[own["sample_id"]].to_numpy()
        measured = {"exact_match": strict == label, "first_word": first == label}
        measured |= {"several": names == "several", "none": names == "none"}
        tables[condition] = own[KEYS].assign(**measured)
    return _by_sample(tables)


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
    tables = {}
    for condition, own in responses.items():
        values = list(map(known, own["sample_id"], own["response"])) / _repeats(own)
        tables[condition] = own[KEYS].assign(**{measure: values})
    return _by_sample(tables)


def _repeats(own: pd.DataFrame) -> pd.Series:
    """Return of each response how many its sample has: shares of a mean, as sums are taken."""
    return own.groupby("sample_id")["repeat"].transform("size")


def _by_word(measure: str, words: pd.DataFrame, sums: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Put each condition's sums, a value a word, beside the baseline's, as :data:`BY_WORD`."""
    rows = words[["word", "split"]].assign(measure=measure, before=sums["baseline"])
    tables = [
        rows.assign(condition=name, after=own)[BY_WORD]
        for name, own in sums.items()
        if name != "baseline"
    ]
    return pd.concat(tables)


def _by_sample(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put each condition's measures beside the baseline's, by sample, as :data:`COLUMNS`.

    Tables have :data:`KEYS` and a column a measure. The responses to one sample are added up: they
    hang together, so intervals are over samples.
    """
    indexed = {name: own.set_index(KEYS).astype(float) for name, own in tables.items()}
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
