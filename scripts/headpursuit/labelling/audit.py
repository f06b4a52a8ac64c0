"""What a table of labels amounts to: its summary, and how far two labellers agree."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import pandas as pd
import pyarrow as pa

from headpursuit.labelling import UNLABELLED
from headpursuit.method.words import normalise

TOP_WORDS = 20


def mask(word: str) -> str:
    """Return a word with all but its first letter starred, each word of a phrase for itself."""
    return " ".join(part[0] + "*" * (len(part) - 1) for part in word.split())


def _folded(words: Iterable[str]) -> set[str]:
    """Return a response's words without their cases, which come from its text."""
    return set(map(normalise, words))


def summary(table: pa.Table) -> dict[str, Any]:
    """Summarise labels for a report; the words are masked.

    Returns:
        responses, distinct (texts asked about), each status's count, cut, bad_replies (replies
        that could not be read), unfinished_replies (that reached labeller.num_predict), requests,
        retries (requests beyond one a text: bad replies, failures, kills), dropped_words,
        tokens_per_second (of replies, over the time in which at least one request was under way;
        None where the server counts none), words (the most frequent, masked, with the number of
        responses) and labeller (what the backend said).
    """
    run = json.loads(table.schema.metadata[b"labelling"])
    statuses = Counter(table["status"].to_pylist())
    words = Counter(word for words in table["words"].to_pylist() for word in _folded(words))
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:TOP_WORDS]
    rate = round(run["tokens"] / run["seconds"], 2) if run["tokens"] and run["seconds"] else None
    return {
        "responses": table.num_rows,
        **{name: statuses[name] for name in ("ok", "none", "absent", *UNLABELLED)},
        "cut": sum(table["cut"].to_pylist()),
        "dropped_words": sum(map(len, table["dropped"].to_pylist())),
        **{name: run[name] for name in ("distinct", "requests", "retries")},
        **{name: run[name] for name in ("bad_replies", "unfinished_replies")},
        "tokens_per_second": rate,
        "words": [{"word": mask(word), "responses": count} for word, count in ranked],
        "labeller": json.loads(table.schema.metadata[b"labeller"]),
    }


def summary_html(facts: Mapping[str, Any], title: str) -> str:
    """Return a summary as a page of its own; every text is escaped, whoever wrote it."""
    counts = {name: value for name, value in facts.items() if name not in ("words", "labeller")}
    words = [(row["word"], row["responses"]) for row in facts["words"]]  # masks can be equal
    parts = [("Labels", counts.items()), ("Most frequent words (masked)", words)]
    parts += [("Labeller", facts["labeller"].items())]
    tables = (_rows(heading, rows) for heading, rows in parts)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title>{_STYLE}'
    return f"<!doctype html>{head}<h1>{escape(title)}</h1>{''.join(tables)}\n"


# A page may load nothing, whatever got into it.
_STYLE = (
    """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; """
    """style-src 'unsafe-inline'"><style>body { font: 15px/1.45 system-ui, sans-serif; """
    "margin: 1.5rem 2rem } h1 { font-size: 1.5rem } h2 { font-size: 1.1rem } th, td { "
    "text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; "
    "border-bottom: 1px solid #e1e4e8; unicode-bidi: isolate }</style>"
)


def _rows(heading: str, rows: Iterable[tuple[str, Any]]) -> str:
    cells = "".join(
        f"<tr><th>{escape(str(name))}<td>{escape(_text(value))}" for name, value in rows
    )
    return f"<h2>{escape(heading)}</h2><table>{cells}</table>"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def agreement(first: pa.Table, second: pa.Table) -> pd.DataFrame:
    """Compare two labellers on the responses that both labelled (neither got ``refused`` or
    ``unparsed``).

    The first is the reference: recall is the share of the responses where the first found
    something in which the second did too, precision the reverse; either is missing where it has
    no case. Cohen's kappa is over the same yes/no judgements, one a response; it is missing
    where both are constant.

    Returns:
        Table with scope, word, responses (compared), first, second, both (numbers of responses),
        precision, recall and kappa. The first row, of scope ``response``, is about any harmful
        word at all; the others, of scope ``word``, about one each.
    """
    a, b = _words_of(first), _words_of(second)
    pairs = [(a[key], b[key]) for key in a if key in b]
    n = len(pairs)
    named_a = Counter(word for words, _ in pairs for word in words)
    named_b = Counter(word for _, words in pairs for word in words)
    both = Counter(word for words_a, words_b in pairs for word in words_a & words_b)
    any_a = sum(bool(words) for words, _ in pairs)
    any_b = sum(bool(words) for _, words in pairs)
    any_both = sum(bool(words_a and words_b) for words_a, words_b in pairs)
    words = sorted(named_a | named_b, key=lambda word: (-named_a[word] - named_b[word], word))
    rows = [
        ("response", "", *_compare(n, any_a, any_b, any_both)),
        *(("word", w, *_compare(n, named_a[w], named_b[w], both[w])) for w in words),
    ]
    counts = ["responses", "first", "second", "both"]
    return pd.DataFrame(rows, columns=["scope", "word", *counts, "precision", "recall", "kappa"])


def _compare(n: int, first: int, second: int, both: int) -> tuple[int | float | None, ...]:
    precision = both / second if second else None
    recall = both / first if first else None
    return n, first, second, both, precision, recall, cohen_kappa(n, first, second, both)


def cohen_kappa(n: int, first: int, second: int, both: int) -> float | None:
    """Return Cohen's kappa of two yes/no judgements of n cases; None where it is undefined.

    Args:
        n: number of cases.
        first: how many the first judged yes.
        second: how many the second judged yes.
        both: how many both did.
    """
    if n == 0:
        return None
    observed = (n - first - second + 2 * both) / n
    chance = (first * second + (n - first) * (n - second)) / n**2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def _words_of(table: pa.Table) -> dict[tuple[Any, Any], set[str]]:
    rows = table.select(["sample_id", "repeat", "words", "status"]).to_pylist()
    return {
        (row["sample_id"], row["repeat"]): _folded(row["words"])
        for row in rows
        if row["status"] not in UNLABELLED
    }
