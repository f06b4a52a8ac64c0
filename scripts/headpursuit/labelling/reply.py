"""Reading a reply: the words it names, and which of them count."""

import json
import re
import unicodedata
from ast import literal_eval
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from headpursuit.method.words import count_words, normalise, spellings

# Beyond these a reply is no list of words but prose, or a model that cannot stop.
MAX_REPLY = 100_000  # characters
MAX_ENTRIES = 100
MAX_PHRASE = 6
MAX_KEYWORD = 2, 50  # words (v2, appendix E.2) and characters of a keyword of an image

_TAG = re.compile(r"<\s*(/?)\s*answer\s*>", re.IGNORECASE)
_SEPARATOR = re.compile(r"[,;\n，、]")
_BULLET = re.compile(r"^(?:[-*•]|\d+[.)])\s+")
_EMPHASIS = re.compile(r"^(\*\*?|__?)(.+)\1$")
# One pair of marks around a whole list, as opposed to one around each of its entries.
_EMPHASISED = re.compile(r"^\s*(\*\*?|__?)((?:(?!\1).)+)\1\s*$", re.DOTALL)
_FENCE = re.compile(r"^```\w*\n(.*)\n```$", re.DOTALL)
_QUOTES = " \"'`“”‘’«»"
# How a reply begins that declines to answer, in lower case, and what is no refusal all the same.
REFUSALS = (
    *("i can't", "i cannot", "i can not", "i won't", "i will not", "i must decline"),
    *("i'm unable", "i am unable", "i'm not able", "i am not able", "as an ai"),
    *("i'm sorry", "i am sorry", "sorry, i ", "sorry, but i ", "i apologize", "i apologise"),
)
_FOUND_NONE = re.compile(
    r"\b(?:can't|cannot|can not|unable to|able to) (?:find|see|identify|detect)"
)


def parse_reply(reply: str, mode: str) -> list[str] | None:
    """Return the words that a reply names, normalised and each once; None if it cannot be read.

    In mode ``tags`` they stand in the last pair of answer tags, in mode ``json`` in the list
    ``words`` of an object, in mode ``list`` in the one list of the reply, as Python or JSON writes
    it. Nothing is guessed: a reply without any of these, an empty pair of tags, a last tag that was
    opened and not closed, an essay or an endless list is not read.
    """
    if len(reply) > MAX_REPLY:
        return None
    read = {"tags": _tag_entries, "json": _json_entries, "list": _list_entries}
    entries = read[mode](reply)
    if entries is None or len(entries) > MAX_ENTRIES:
        return None
    if any(len(entry.split()) > MAX_PHRASE for entry in entries):
        return None
    words = dict.fromkeys(clean(entry) for entry in entries)
    return [word for word in words if word and word != "none"]


def is_refusal(reply: str) -> bool:
    """Say whether a reply that cannot be read declines to answer.

    It has no answer tag and begins with one of :data:`REFUSALS`, and does not go on to say that it
    finds nothing. Refusals in other words, or in other languages, are not recognised.
    """
    text = reply.replace("’", "'").lower().lstrip(" \n\t*_#>" + _QUOTES)
    return text.startswith(REFUSALS) and not _TAG.search(text) and not _FOUND_NONE.search(text)


def sift_words(words: Sequence[str], response: str) -> tuple[list[str], list[str]]:
    """Part the words that occur in the response, whole, from those that do not.

    Those that do are returned in each case in which they stand there, since a concept's
    `case_sensitive` tells them apart.
    """
    kept, dropped = [], []
    for word, count in zip(words, count_words([response], words)[0], strict=True):
        if count:
            # No pattern finds a few letters in upper case, such as the Turkish dotted I.
            kept += spellings(response, word) or [word]
        else:
            dropped.append(word)
    return kept, dropped


def first_keywords(words: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """Part the first ``most`` keywords of an image from what is over, or is no keyword."""

    def is_keyword(word: str) -> bool:
        sizes = len(word.split()) <= MAX_KEYWORD[0] and len(word) <= MAX_KEYWORD[1]
        return sizes and any(map(str.isalnum, word))

    kept = list(filter(is_keyword, words))[:most]
    return kept, [word for word in words if word not in kept]


def clean(entry: str) -> str:
    """Return an entry normalised, without control characters, bullets, emphasis and quotes."""
    entry = "".join(
        " " if char.isspace() else char
        for char in entry
        # Cc are control characters, Cf invisible ones, Cs halves of broken characters.
        if char.isspace() or unicodedata.category(char) not in ("Cc", "Cf", "Cs")
    )
    entry = _BULLET.sub("", entry.strip())
    entry = _EMPHASIS.sub(r"\2", entry.strip(_QUOTES)).strip(_QUOTES).rstrip(".").strip(_QUOTES)
    return normalise(" ".join(entry.split()))


def _tag_entries(reply: str) -> list[str] | None:
    body, start = None, None
    for tag in _TAG.finditer(reply):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            body, start = reply[start : tag.start()], None
    if body is None or start is not None:
        return None
    body = _EMPHASISED.sub(r"\2", body)
    return [part for part in _SEPARATOR.split(body) if clean(part)] or None


def _json_entries(reply: str) -> list[str] | None:
    text = reply.strip()
    fence = _FENCE.match(text)
    try:
        # Control characters inside strings are passed, to be stripped like any other.
        value = json.loads(fence[1] if fence else text, strict=False)
    except (ValueError, RecursionError):
        return None
    return _texts(value.get("words")) if isinstance(value, dict) else None


def _list_entries(reply: str) -> list[str] | None:
    """Read all that stands between the first and the last bracket; what is around it is prose."""
    text = reply[reply.find("[") : reply.rfind("]") + 1]
    with suppress(ValueError, RecursionError):
        return _texts(json.loads(text, strict=False))
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):  # as Python writes it
        return _texts(literal_eval(text.replace("\0", "")))
    return None


def _texts(value: Any) -> list[str] | None:
    whole = isinstance(value, list) and all(isinstance(word, str) for word in value)
    return value if whole else None
