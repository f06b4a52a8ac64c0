"""What a table of labels amounts to: its summary, and how far two labellers agree."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pyarrow as pa

from headpursuit.method.words import label_counts, most_frequent, normalise

UNLABELLED = ("refused", "unparsed")  # statuses of responses that have no label
TOP_WORDS = 20
ANY = ""  # stands for any word at all


def mask(word: str) -> str:
    """Return a word with all but its first letter starred, each word of a phrase for itself."""
    return " ".join(part[0] + "*" * (len(part) - 1) for part in word.split())


def _folded(words: Iterable[str]) -> set[str]:
    """Return a response's words without their cases, which come from its text."""
    return set(map(normalise, words))


def summary(table: pa.Table, masked: bool = True) -> dict[str, Any]:
    """Count statuses, replies and requests, and the words that most responses hold, masked or not.

    docs/labelling.md says what each value is.
    """
    run = json.loads(table.schema.metadata[b"labelling"])
    statuses = Counter(table["status"].to_pylist())
    ranked = most_frequent(label_counts(table["words"].to_pylist()), TOP_WORDS)
    rate = round(run["tokens"] / run["seconds"], 2) if run["tokens"] and run["seconds"] else None
    counted = ("distinct", "requests", "retries", "bad_replies", "unfinished_replies")
    show = mask if masked else str
    return {
        "responses": table.num_rows,
        **{name: statuses[name] for name in ("ok", "none", "absent", *UNLABELLED)},
        "cut": sum(table["cut"].to_pylist()),
        "dropped_words": sum(map(len, table["dropped"].to_pylist())),
        **{name: run[name] for name in counted},
        "tokens_per_second": rate,
        "words": [{"word": show(word), "responses": count} for word, count in ranked],
        "labeller": json.loads(table.schema.metadata[b"labeller"]),
    }


def agreement(first: pa.Table, second: pa.Table) -> pd.DataFrame:
    """Compare two labellers on the responses to which neither got ``refused`` or ``unparsed``.

    Returns:
        Table with scope, word, responses (compared), first, second, both (in how many each found
        the word), precision and recall of the second, the first being the reference, and Cohen's
        kappa; each of these is missing where it is not defined. The first row, of scope
        ``response``, is about any harmful word at all, the others, of scope ``word``, about one.
    """
    a, b = _words_of(first), _words_of(second)
    compared = a.keys() & b.keys()
    n = len(compared)
    named_a = Counter(word for key in compared for word in a[key])
    named_b = Counter(word for key in compared for word in b[key])
    named_both = Counter(word for key in compared for word in a[key] & b[key])
    words = (named_a | named_b).keys() - {ANY}
    rows = []
    for word in [ANY, *sorted(words, key=lambda word: (-named_a[word] - named_b[word], word))]:
        of_a, of_b, of_both = named_a[word], named_b[word], named_both[word]
        shares = of_both / of_b if of_b else None, of_both / of_a if of_a else None
        kappa = cohen_kappa(n, of_a, of_b, of_both)
        scope = "response" if word == ANY else "word"
        rows.append((scope, word, n, of_a, of_b, of_both, *shares, kappa))
    columns = ["scope", "word", "responses", "first", "second", "both"]
    return pd.DataFrame(rows, columns=[*columns, "precision", "recall", "kappa"])


def _words_of(table: pa.Table) -> dict[tuple[Any, Any], set[str]]:
    rows = table.select(["sample_id", "repeat", "words", "status"]).to_pylist()
    return {
        (row["sample_id"], row["repeat"]): _folded(row["words"])
        | ({ANY} if row["words"] else set())
        for row in rows
        if row["status"] not in UNLABELLED
    }


def cohen_kappa(n: int, first: int, second: int, both: int) -> float | None:
    """Return Cohen's kappa of two yes/no judgements of ``n`` cases; None where it is undefined.

    ``first`` and ``second`` are how many each judged yes, ``both`` how many both did.
    """
    if n == 0:
        return None
    observed = (n - first - second + 2 * both) / n
    chance = (first * second + (n - first) * (n - second)) / n**2
    return None if chance == 1 else (observed - chance) / (1 - chance)
