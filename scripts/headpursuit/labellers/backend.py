"""What a labelling backend is, and how long the patience with it lasts.

A new backend is one file of this folder, with a context manager
``connect(settings, texts, terms, log)`` that yields a :class:`Backend`; its name goes into
``BACKENDS`` in label.py, its settings into the config's schema.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from headpursuit.files import UserError

T = TypeVar("T")
LONGEST_WAIT = 60
# How much warmer each further attempt is asked.
STEP = 0.2
# HTTP answers after which the same request may yet succeed.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class Busy(Exception):
    """The request failed in a way that may pass: ask again, after ``after`` seconds if given."""

    def __init__(self, reason: str, after: float = 0.0):
        """Keep the reason, for people, and the pause."""
        super().__init__(reason)
        self.after = after


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


def persist(call: Callable[[], T], patience: float, stop: Event | None = None) -> T:
    """Call until it does not raise :class:`Busy`, for at most ``patience`` seconds.

    Waits grow exponentially with full jitter, so that the slots of a server that comes back do
    not all return in the same moment. A set ``stop`` ends the waiting at once.

    Raises:
        UserError: with the reason of the last :class:`Busy`.
    """
    stop = stop or Event()
    retrying = Retrying(
        retry=retry_if_exception_type(Busy),
        wait=_wait,
        stop=stop_after_delay(patience) | stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        reraise=True,
    )
    try:
        return retrying(call)
    except Busy as error:
        raise UserError(f"{error} (tried for {patience:g} s)") from error


_backoff = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception()
    return max(_backoff(state), error.after)
