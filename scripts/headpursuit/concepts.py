"""Concepts: dictionaries of their own, and how many heads two of them share."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from pathlib import Path

import pandas as pd

from headpursuit.files import UserError
from headpursuit.heads import Head, top_heads
from headpursuit.words import form_rows, tokenised, variants


def concept_words(concept: str, words: Sequence[str] | str) -> list[str]:
    """Return a concept's words, from the config's list or from the file it names.

    Args:
        concept: its name, for messages.
        words: the words, or the path of a text file with one word or phrase a line.

    Raises:
        UserError: if the file is missing or not UTF-8, or there is no word.
    """
    if isinstance(words, str):
        try:
            words = Path(words).read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise UserError(f"table1.concepts.{concept}: {error}") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"table1.concepts.{concept}: {words} is not UTF-8 (byte {error.start})."
            ) from None
    words = [word for word in dict.fromkeys(" ".join(word.split()) for word in words) if word]
    if not words:
        raise UserError(f"table1.concepts.{concept}: there is no word.")
    return words


def concept_dictionary(
    concept: str, words: Sequence[str], tokenizer, rows: str, leading_space: Sequence[bool]
) -> pd.DataFrame:
    """Turn a concept's words into rows of the unembedding matrix.

    Words are looked up as they are written ("May" is a month, "may" is not).

    Args:
        concept: its name.
        words: of :func:`concept_words`.
        tokenizer: a Hugging Face tokenizer.
        rows: the config's ``dictionary.rows``.
        leading_space: the config's ``dictionary.leading_space``.

    Returns:
        Table with word, split (all ``selection``), form, token_id and token: what a ranking reads.

    Raises:
        UserError: if no word gives a row.
    """
    records = []
    for word in words:
        for form, ids in tokenised(tokenizer, variants(word, ["written"], leading_space)):
            chosen = form_rows(tokenizer, ids, rows)
            tokens = tokenizer.convert_ids_to_tokens(chosen)
            records += [(word, "selection", form, *own) for own in zip(chosen, tokens, strict=True)]
    if not records:
        raise UserError(
            f"table1.concepts.{concept}: dictionary.rows: {rows} leaves no row of the vocabulary "
            f"for any of its {len(words)} words; 'first' or 'all' also takes words of several "
            "tokens."
        )
    return pd.DataFrame(records, columns=["word", "split", "form", "token_id", "token"])


def jaccard(a: Sequence[Head], b: Sequence[Head]) -> float:
    """Return the Jaccard index of two sets of heads: shared over all."""
    return len(set(a) & set(b)) / len(set(a) | set(b))


def chance_jaccard(k: int, n: int) -> float:
    """Return the expected Jaccard index of two random sets of k out of n heads."""
    ways = {shared: comb(k, shared) * comb(n - k, k - shared) for shared in range(k + 1)}
    return sum(count * s / (2 * k - s) for s, count in ways.items()) / comb(n, k)


def concept_overlaps(
    dataset: str,
    rankings: Mapping[str, pd.DataFrame],
    ks: Sequence[int],
    layers: tuple[int, int],
) -> pd.DataFrame:
    """Compare the top heads of each two concepts.

    Args:
        dataset: name of the data set.
        rankings: concept to its ranking.
        ks: the config's ``heads.k``.
        layers: first and last candidate layer.

    Returns:
        Table with dataset, heads (k), concept, other, shared, jaccard and chance (the expected
        index of two random sets of k of the candidate heads).
    """
    rows = []
    for k in ks:
        sets = {name: top_heads(ranking, k, *layers) for name, ranking in rankings.items()}
        for (one, mine), (other, theirs) in combinations(sets.items(), 2):
            candidates = int(rankings[one]["layer"].between(*layers).sum())
            shared = len(set(mine) & set(theirs))
            rows.append(
                (
                    dataset,
                    k,
                    one,
                    other,
                    shared,
                    jaccard(mine, theirs),
                    chance_jaccard(k, candidates),
                )
            )
    columns = ["dataset", "heads", "concept", "other", "shared", "jaccard", "chance"]
    return pd.DataFrame(rows, columns=columns)


def display(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Return the overlaps as text cells, a row for each data set, k and pair of concepts."""
    return pd.DataFrame(
        {
            "data": overlaps["dataset"],
            "heads": overlaps["heads"].astype(str),
            "concepts": overlaps["concept"] + ", " + overlaps["other"],
            "shared": overlaps["shared"].astype(str),
            "Jaccard (chance)": [
                f"{own:.2f} ({chance:.2f})"
                for own, chance in zip(overlaps["jaccard"], overlaps["chance"], strict=True)
            ],
        }
    )


def notes(model: str, layers: tuple[int, int]) -> str:
    """Return what a reader of the overlaps has to know."""
    return (
        f"Model {model}. Top heads of layers {layers[0]} to {layers[1]} by the variance that SOMP "
        "explains with a concept's words; Jaccard: heads that both concepts have over heads that "
        "either has, and in brackets what two random sets of as many heads would give on average."
    )
