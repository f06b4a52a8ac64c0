"""How tables and figures name methods and measures, and write numbers."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from headpursuit.run.experiments import alpha_name
from headpursuit.run.files import plain

METHOD_NAMES = {
    "somp": "SOMP",
    "logit_lens": "logit lens",
    "unrelated": "unrelated words",
    "size": "size of write",
    "random": "random",
}
# The measures that have a ratio, in the order of the tables' rows, and as they are shown.
MEASURE_NAMES = {
    "occurrences": "occurrences",
    "expected": "expected",
    "toxicity": "toxicity",
    "exact_match": "exact match",
    "first_word": "first word",
    "f1": "F1",
    "f1_others": "F1, others",
    "cider": "CIDEr",
}


def number(value: Any, form: str = ".2f") -> str:
    """Return a number as text; empty where it is missing."""
    return "" if pd.isna(value) else format(value, form)


def interval(row: Mapping[str, Any], centre: str, low: str, high: str, form: str = ".2f") -> str:
    """Return a number with its limits as text; empty where it is missing."""
    if pd.isna(row[centre]):
        return ""
    return f"{number(row[centre], form)} {limits(row, low, high, form)}".strip()


def ratio_text(row: Mapping[str, Any], low: str = "ci_low", high: str = "ci_high") -> str:
    """Return a row's ratio with its limits as text, or that it is not defined."""
    return interval(row, "value", low, high) or "not defined"


def limits(row: Mapping[str, Any], low: str, high: str, form: str = ".2f") -> str:
    """Return limits as text; empty where they are missing."""
    return f"[{number(row[low], form)}, {number(row[high], form)}]" if pd.notna(row[low]) else ""


def bare(token: str) -> str:
    """Return a token on one line, without the mark of a space before it."""
    return plain(token).lstrip("Ġ▁␣ ") or plain(token)


def scaling(heads: int | None = None, alpha: float | None = None, at: str = "all") -> list[str]:
    """Return what a text says of how heads are scaled."""
    said = [] if heads is None else [f"{heads} heads"]
    said += [] if alpha is None else [f"alpha {alpha_name(alpha)}"]
    return said + ([] if at == "all" else [at])


def by_text(said: Mapping[str, str]) -> str:
    """Return what is said of each of several experiments, once for those it is the same of."""
    of: dict[str, list[str]] = {}
    for name, text in said.items():
        of.setdefault(text, []).append(name)
    if len(of) == 1:
        return next(iter(of))
    return ", ".join(f"{text} ({', '.join(names)})" for text, names in of.items())
