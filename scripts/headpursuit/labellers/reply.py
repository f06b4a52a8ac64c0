"""Reading a reply: the words it names, and which of them the response really holds."""

import json
import re
import unicodedata
from collections.abc import Sequence

from headpursuit.words import count_words, normalise, spellings

# Beyond these a reply is no list of words but prose, or a model that cannot stop.
MAX_ENTRIES = 100
MAX_PHRASE = 6

_TAG = re.compile(r"<\s*(/?)\s*answer\s*>", re.IGNORECASE)
_SEPARATOR = re.compile(r"[,;\n，、]")
_BULLET = re.compile(r"^(?:[-*•]|\d+[.)])\s+")
_EMPHASIS = re.compile(r"^(\*\*?|__?)(.+)\1$")
_FENCE = re.compile(r"^```\w*\n(.*)\n```$", re.DOTALL)
_QUOTES = " \"'`“”‘’«»"


def parse_reply(reply: str, mode: str) -> list[str] | None:
    """Return the words that a reply names, normalised and each once; None if it cannot be read.

    In mode ``tags`` they stand in the last complete pair of answer tags, in mode ``json`` in the
    list ``words`` of an object. Nothing is guessed: a reply without either, an empty pair of
    tags, an essay or an endless list is not read.
    """
    entries = _json_entries(reply) if mode == "json" else _tag_entries(reply)
    if entries is None or len(entries) > MAX_ENTRIES:
        return None
    if any(len(entry.split()) > MAX_PHRASE for entry in entries):
        return None
    words = dict.fromkeys(clean(entry) for entry in entries)
    return [word for word in words if word and word != "none"]


def sift_words(words: Sequence[str], response: str) -> tuple[list[str], list[str]]:
    """Part the words that occur in the response, whole, from those that do not.

    Those that do are returned in each case in which they stand there, since `words.case_sensitive`
    tells them apart.
    """
    found = count_words([response], words)[0] if words else []
    kept = [
        form
        for word, count in zip(words, found, strict=True)
        if count
        for form in spellings(response, word) or [word]
    ]
    dropped = [word for word, count in zip(words, found, strict=True) if not count]
    return kept, dropped


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
    entries = [part for part in _SEPARATOR.split(body or "") if clean(part)]
    return entries or None


def _json_entries(reply: str) -> list[str] | None:
    text = reply.strip()
    fence = _FENCE.match(text)
    try:
        # Control characters inside strings are passed, to be stripped like any other.
        value = json.loads(fence[1] if fence else text, strict=False)
    except (ValueError, RecursionError):
        return None
    words = value.get("words") if isinstance(value, dict) else None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return None
    return words
