"""What a labelling backend is.

A new backend is one file of this folder, with a context manager
``connect(settings, texts, terms, log)`` that yields a :class:`Backend`; its name goes into
``BACKENDS`` in label.py, its settings into the config's schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

# How much warmer each further attempt is asked.
STEP = 0.2


@dataclass(frozen=True)
class Reply:
    """A raw reply, what it cost, in tokens as the server counted them, and why it ended."""

    text: str
    tokens: int | None = None
    prompt_tokens: int | None = None
    ended: str | None = None  # "stop", or "length" where the longest reply was reached


class Backend(Protocol):
    """Names the harmful words of one text at a time."""

    slots: int
    """How many texts it is asked about at once."""
    mode: str
    """How its replies are read: ``tags`` or ``json``."""
    room: int | None
    """The longest text it can take, in UTF-8 bytes; None is any."""
    identity: Mapping[str, Any]
    """All that a reply depends on beside the text; another identity asks anew."""

    def ask(self, text: str, attempt: int) -> Reply:
        """Return the reply to one text; ``attempt`` counts from 1, a later one differs.

        Raises:
            Busy: if asking again may help.
            UserError: if it will not.
        """

    def describe(self) -> dict[str, Any]:
        """Return what produced the labels, for the table's metadata."""


def vary(options: Mapping[str, Any], attempt: int) -> dict[str, Any]:
    """Return an attempt's options: at temperature 0 another seed alone changes nothing."""
    return {
        **options,
        "seed": options["seed"] + attempt - 1,
        "temperature": options["temperature"] + STEP * (attempt - 1),
    }
