"""What a table of labels amounts to: its summary, and how far two labellers agree."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

TOP_WORDS = 20


def mask(word: str) -> str:
    """Return a word with all but its first letter starred, each word of a phrase for itself."""
    return " ".join(part[0] + "*" * (len(part) - 1) for part in word.split())


def summary(table: pa.Table) -> dict[str, Any]:
    """Summarise labels for a report; the words are masked.

    Returns:
        responses, distinct (texts asked about), each status's count, cut, bad_replies (replies
        that could not be read), requests, retries (requests beyond one a text: bad replies,
        failures, kills), dropped_words, tokens_per_second (of replies, over the time in which
        at least one request was under way; None where the server counts none) and words
        (the most frequent, masked, with the number of responses).
    """
    run = json.loads((table.schema.metadata or {})[b"labelling"])
    statuses = Counter(table["status"].to_pylist())
    words = Counter(word for words in table["words"].to_pylist() for word in set(words))
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:TOP_WORDS]
    rate = run["tokens"] / run["seconds"] if run["tokens"] and run["seconds"] else None
    return {
        "responses": table.num_rows,
        **{name: statuses[name] for name in ("ok", "none", "absent", "unparsed")},
        "cut": sum(table["cut"].to_pylist()),
        "dropped_words": sum(map(len, table["dropped"].to_pylist())),
        **{name: run[name] for name in ("distinct", "requests", "retries", "bad_replies")},
        "tokens_per_second": rate,
        "words": [{"word": mask(word), "responses": count} for word, count in ranked],
    }


def agreement(first: pa.Table, second: pa.Table) -> pa.Table:
    """Compare two labellers on the responses that both could label.

    The first is the reference: a word's recall is the share of the responses where the first
    named it in which the second did too, its precision the reverse; either is null where it has
    no case. The metadata's ``agreement`` holds, as JSON, the responses compared, those left out
    (``unparsed`` by either, or in one table only) and Cohen's kappa of whether a response holds
    any harmful word (null where both are constant).

    Returns:
        Table with word, first, second, both (numbers of responses), precision and recall.
    """
    a, b = _words_of(first), _words_of(second)
    shared = [key for key in a if key in b]
    named_a = Counter(word for key in shared for word in a[key])
    named_b = Counter(word for key in shared for word in b[key])
    both = Counter(word for key in shared for word in a[key] & b[key])
    words = sorted(named_a | named_b, key=lambda word: (-(named_a[word] + named_b[word]), word))
    facts = {
        "responses": len(shared),
        "left_out": max(first.num_rows, second.num_rows) - len(shared),
        "kappa": cohen_kappa((bool(a[key]), bool(b[key])) for key in shared),
    }
    columns = {
        "word": words,
        "first": [named_a[word] for word in words],
        "second": [named_b[word] for word in words],
        "both": [both[word] for word in words],
        "precision": [both[word] / named_b[word] if named_b[word] else None for word in words],
        "recall": [both[word] / named_a[word] if named_a[word] else None for word in words],
    }
    counts = [(name, pa.int64()) for name in ("first", "second", "both")]
    shares = [(name, pa.float64()) for name in ("precision", "recall")]
    schema = pa.schema([("word", pa.string()), *counts, *shares])
    return pa.table(columns, schema=schema.with_metadata({"agreement": json.dumps(facts)}))


def cohen_kappa(pairs: Iterable[tuple[bool, bool]]) -> float | None:
    """Return Cohen's kappa of paired yes/no judgements; None where chance alone agrees fully."""
    cells = Counter(pairs)
    n = cells.total()
    if n == 0:
        return None
    yes_a = (cells[True, True] + cells[True, False]) / n
    yes_b = (cells[True, True] + cells[False, True]) / n
    observed = (cells[True, True] + cells[False, False]) / n
    chance = yes_a * yes_b + (1 - yes_a) * (1 - yes_b)
    return None if chance == 1 else (observed - chance) / (1 - chance)


def _words_of(table: pa.Table) -> dict[tuple[Any, Any], set[str]]:
    rows = table.select(["prompt_id", "sample", "words", "status"]).to_pylist()
    return {
        (row["prompt_id"], row["sample"]): set(row["words"])
        for row in rows
        if row["status"] != "unparsed"
    }
