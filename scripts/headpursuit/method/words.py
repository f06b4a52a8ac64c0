"""Words: counting them in text, splitting them, and turning them into rows of the unembedding."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import product
from numbers import Integral
from pathlib import Path
from string import capwords
from typing import Any

import numpy as np
import pandas as pd
import regex  # unlike re, it takes combining marks for parts of words

from headpursuit.method.special import special_tokens
from headpursuit.run.files import UserError, refuse_unknown, seed_for

log = logging.getLogger(__name__)

MIN_WORDS = 10
# The regular endings of English, so that "word" also counts "words" and "worded".
_INFLECTIONS = r"(?:'?s|es|d|ed|er|ers|ing|in')?"


def normalise(text: str, case_sensitive: bool = False) -> str:
    """Return the form in which texts and words are compared.

    That is NFC with plain apostrophes, case-folded unless told.
    """
    text = unicodedata.normalize("NFC", text).replace("’", "'")
    # Folding can leave NFC ("ǰ"), so it is restored.
    return text if case_sensitive else unicodedata.normalize("NFC", text.casefold())


@cache
def word_pattern(word: str, inflections: bool = False) -> regex.Pattern[str]:
    """Return the pattern of a normalised word or phrase as a whole word.

    A whole word has no letter, digit, underscore or combining mark (of any script) beside it;
    white space inside a phrase matches any white space.
    """
    body = r"\s+".join(regex.escape(part) for part in word.split())
    ending = _INFLECTIONS if inflections else ""
    return regex.compile(rf"(?<!\w){body}{ending}(?!\w)")


def count_words(
    texts: Iterable[str],
    words: Sequence[str],
    case_sensitive: bool = False,
    inflections: bool = False,
) -> np.ndarray:
    """Count each word in each text: int64, texts x words.

    Every word is counted for itself: a phrase does not hide the words inside it, since one may
    be a selection word and the other held out.
    """
    sought = _sought(tuple(words), case_sensitive, inflections)
    texts = [normalise(text, case_sensitive) for text in texts]
    counts = np.zeros((len(texts), len(sought)), dtype=np.int64)
    for row, text in enumerate(texts):
        for column, (probe, pattern) in enumerate(sought):
            if probe and probe in text:
                counts[row, column] = sum(1 for _ in pattern.finditer(text))
    return counts


@lru_cache(8)  # lists of words
def _sought(
    words: tuple[str, ...], case_sensitive: bool, inflections: bool
) -> list[tuple[str, regex.Pattern[str]]]:
    """Return each word's first part and its pattern.

    A plain search for the first part is far cheaper than the pattern, and rules most texts out.
    """
    own = [normalise(word, case_sensitive) for word in words]
    return [("".join(word.split()[:1]), word_pattern(word, inflections)) for word in own]


def tidy_word(word: str, case_sensitive: bool = False) -> str:
    """Return a word normalised, without control characters, and with single spaces inside."""
    # Cs: halves of broken characters, which no file can hold.
    kept = (c for c in word if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"))
    return normalise(" ".join("".join(kept).split()), case_sensitive)


def read_word_list(path: str | Path, key: str) -> list[str]:
    r"""Read a user's list, one word or phrase a line.

    A line that begins with # is a comment; ``\#`` begins a word that begins with #.

    Raises:
        UserError: naming the config's key of the file, if it is missing or not UTF-8.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{key}: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {path} is not UTF-8 (byte {error.start}).") from None
    words = [line.strip() for line in lines if not line.strip().startswith("#")]
    if comments := len(lines) - len(words):
        log.info("%s: %d lines are comments (a word may begin with \\#)", path, comments)
    return [word[1:] if word.startswith("\\#") else word for word in words]


def distinct_words(words: Iterable[str], case_sensitive: bool) -> list[str]:
    """Return words as written, but for white space; of those that count as one, the first."""
    found: dict[str, str] = {}
    for word in words:
        found.setdefault(tidy_word(word, case_sensitive), tidy_word(word, True))
    return [word for word in found.values() if word]


def spellings(text: str, word: str) -> list[str]:
    """Return the forms in which a text holds a normalised word, each once, in the text's case."""
    pattern = regex.compile(word_pattern(word).pattern, regex.IGNORECASE | regex.FULLCASE)
    found = pattern.findall(normalise(text, case_sensitive=True))
    return list(dict.fromkeys(" ".join(form.split()) for form in found))


def label_counts(labels: Iterable[Sequence[str]], case_sensitive: bool = False) -> Counter[str]:
    """Count in how many responses each word was labelled."""
    tidied = ({tidy_word(word, case_sensitive) for word in words} for words in labels)
    return Counter(word for words in tidied for word in words if word)


def most_frequent(counts: Counter[str], top: int | None) -> list[tuple[str, int]]:
    """Return the ``top`` most frequent words with their counts; equal counts go by the alphabet."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]


def split_words(
    ranked: Sequence[tuple[str, int | None]],
    selection_share: float,
    seed: int,
    dataset: str,
    split: int = 0,
    key: str = "concepts.*",
) -> pd.DataFrame:
    """Split words, with their counts where there are any, at random.

    Seed, dataset and the split's number decide which are held out.

    The table has word, count, rank (from 1) and split: ``selection`` for that share of the words,
    and ``heldout``.

    Raises:
        UserError: naming the config's key of the concept, if there are fewer than ten words to
            split, or none at all.
    """
    n, least = len(ranked), MIN_WORDS if selection_share < 1 else 1
    if n < least:
        instead = ", or set selection_share: 1" if least > 1 else ""
        raise UserError(
            f"{key}: {n} different words are too few, {least} are the least. List more, or let the "
            f"labeller read more (samples.{dataset}.sample, generation.samples){instead}."
        )
    heldout = np.zeros(n, dtype=bool)
    if selection_share < 1:
        identity = (dataset, "split", split) if split else (dataset, "split")
        order = np.random.default_rng(seed_for(seed, *identity)).permutation(n)
        heldout[order[min(max(round(selection_share * n), 1), n - 1) :]] = True
    words, counts = zip(*ranked, strict=True)
    return pd.DataFrame(
        {
            "word": words,
            "count": pd.array(counts, dtype="Int64"),
            "rank": range(1, n + 1),
            "split": np.where(heldout, "heldout", "selection"),
        }
    )


def measured_words(words: pd.DataFrame) -> np.ndarray:
    """Return which words of a table are measured: held-out ones, or all where none is held out."""
    heldout = (words["split"] == "heldout").to_numpy()
    return heldout if heldout.any() else ~heldout


# str.title would also raise the letter after an apostrophe.
CASES = {"written": str, "lower": str.lower, "title": capwords, "upper": str.upper}


def variants(word: str, cases: Sequence[str], leading_space: Sequence[bool]) -> list[str]:
    """Return the written forms of a word: each case, with and without a space before it."""
    forms = (" " * space + CASES[case](word) for case, space in product(cases, leading_space))
    return list(dict.fromkeys(forms))


def build_dictionary(
    words: pd.DataFrame,
    tokenizer,
    rows: str,
    cases: Sequence[str],
    leading_space: Sequence[bool],
    key: str = "concepts.*",
) -> pd.DataFrame:
    """Turn words (a table with word and split) into rows of the unembedding matrix.

    The table has a row for each word, form (:func:`variants`) and token (:func:`form_rows`): word,
    split, form, starts_word (the form has the space before it and is one token, so that its
    probability is the word's), token_id, token and shared (the same row serves selection and
    held-out words alike). Forms with a special token (an unknown one, say) have no row.

    Raises:
        UserError: if a split has no row at all; it names the config's ``key`` of the concept.
    """
    records = [
        (word, split, form, form.startswith(" ") and len(ids) == 1, token_id)
        for word, split in zip(words["word"], words["split"], strict=True)
        for form, ids in tokenised(tokenizer, variants(word, cases, leading_space))
        for token_id in form_rows(tokenizer, ids, rows)
    ]
    table = pd.DataFrame(records, columns=["word", "split", "form", "starts_word", "token_id"])
    there = set(table["split"])
    if lacking := [split for split in words["split"] if split not in there]:
        raise UserError(
            f"{key}.rows: {rows} leaves no row of the vocabulary for the {lacking[0]} words; "
            "'first' or 'all' also takes words of several tokens."
        )
    table["token"] = tokenizer.convert_ids_to_tokens(table["token_id"].tolist())
    table["shared"] = table.groupby("token_id")["split"].transform("nunique") > 1
    return table


def one_token_forms(
    tokenizer, words: Iterable[str], cases: Sequence[str], strict: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a caller's words, all held out, and their rows, of forms of one token only.

    Raises:
        UserError: if there are no words, or one is no text; if none has a row, or with ``strict``
            any has none.
    """
    if isinstance(words, str):
        raise UserError("Words come as a list: put a single one into a list.")
    cases = [cases] if isinstance(cases, str) else cases
    for case in cases or [None]:
        refuse_unknown("cases", case, CASES)
    words = list(dict.fromkeys(words))
    if not words:
        raise UserError("The list of words is empty.")
    if strange := [word for word in words if not isinstance(word, str)]:
        raise UserError(f"{strange[0]!r} is no word: words are texts.")
    table = pd.DataFrame({"word": words}).assign(split="heldout")
    try:
        made = build_dictionary(table, tokenizer, "single", cases, [True, False])
    except UserError:  # none has a row
        made = pd.DataFrame(columns=["word"])
    lacking = sorted(set(table["word"]) - set(made["word"]))
    if lacking and (strict or made.empty):
        raise UserError(
            f"No form of these words is one token of this model: {', '.join(lacking)}. "
            + ("Name others." if made.empty else "strict=False goes on without them.")
        )
    return table, made


def token_rows(
    tokenizer, words: Iterable[Any], cases: Sequence[str], strict: bool, rows: int
) -> list[int]:
    """Return which of the unembedding's rows are a caller's words (:func:`one_token_forms`), or
    token ids; UserError if one is none."""
    words = words if isinstance(words, str) else list(words)
    if all(isinstance(word, str) for word in words):
        return sorted(set(one_token_forms(tokenizer, words, cases, strict)[1]["token_id"].tolist()))
    if strange := [own for own in words if not (isinstance(own, Integral) and 0 <= own < rows)]:
        raise UserError(f"{strange[0]!r} is no token id of this model: they are 0 to {rows - 1}.")
    return sorted(set(map(int, words)))


def tokenised(tokenizer, forms: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    """Yield forms with their token ids inside a text; those with a special token are left out.

    SentencePiece tokenizers put a space before a text of their own accord, so a form is tokenised
    behind a newline, whose own tokens are taken off again.
    """
    special = special_tokens(tokenizer)
    prefix = tokenizer("\n", add_special_tokens=False).input_ids
    for form in forms:
        ids = tokenizer("\n" + form, add_special_tokens=False).input_ids
        if ids[: len(prefix)] == prefix:
            ids = ids[len(prefix) :]
        else:
            ids = tokenizer(form, add_special_tokens=False).input_ids
        if special.isdisjoint(ids):
            yield form, ids


def form_rows(tokenizer, ids: Sequence[int], rows: str) -> list[int]:
    """Return which of a form's tokens become rows of a dictionary.

    ``single`` takes a form that is one token, ``first`` its first token, ``all`` each of its
    tokens. Of several tokens, those of white space alone (SentencePiece's before a digit) say
    nothing and are passed over.
    """
    if rows == "single":
        return list(ids) if len(ids) == 1 else []
    spelled = [token_id for token_id in ids if tokenizer.decode([token_id]).strip()]
    return spelled[:1] if rows == "first" else spelled


def distinct_classes(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out of class names' dictionary the rows that all share, which say nothing of any class.

    Raises:
        UserError: if a class has no row of its own, or two classes have the same rows.
    """
    sets = {name: frozenset(own["token_id"]) for name, own in table.groupby("word", sort=False)}
    common = frozenset.intersection(*sets.values()) if len(sets) > 1 else frozenset()
    if lost := [name for name, own in sets.items() if own <= common]:
        raise UserError(
            f"The classes {', '.join(lost)} have no token of their own: nothing in the dictionary "
            "would tell them from the others. Change the concept's rows, or the names."
        )
    seen: dict[frozenset[int], str] = {}
    for name, own in sets.items():
        if (other := seen.setdefault(own, name)) != name:
            raise UserError(
                f"The classes {other} and {name} share all their tokens, so no head can be told "
                "to write one and not the other. Change the concept's rows, or the names."
            )
    return table[~table["token_id"].isin(common)].reset_index(drop=True)


def unrelated_tokens(
    path: str | Path,
    tokenizer,
    taken: Collection[int],
    cases: Sequence[str],
    leading_space: Sequence[bool],
    seed: int,
    dataset: str,
) -> list[int]:
    """Draw as many rows of the vocabulary as a dictionary has, from words about something else.

    The words stand in a file, one a line; forms of one token are rows, but none of those ``taken``
    by the dictionary. Seed and dataset decide the draw. Where the words have too few rows, none is
    drawn, and the log says so.
    """
    words = distinct_words(read_word_list(path, "unrelated_words"), True)
    rng = np.random.default_rng(seed_for(seed, dataset, "unrelated"))
    drawn: dict[int, None] = {}
    for index in rng.permutation(len(words)):
        for _, ids in tokenised(tokenizer, variants(words[index], cases, leading_space)):
            if len(ids) == 1 and ids[0] not in taken:
                drawn[ids[0]] = None
    if len(drawn) >= len(taken):
        return sorted(list(drawn)[: len(taken)])
    log.warning(
        "No ranking by unrelated words: those of %s have %d forms of one token, the dictionary of "
        "%s has %d.", path, len(drawn), dataset, len(taken),
    )  # fmt: skip
    return []
