"""How the Hub and the labellers' servers are asked again after a failure that may pass."""

import logging
from collections.abc import Callable, Mapping
from threading import Event
from typing import TypeVar

from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from headpursuit.run.files import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds, each before it is drawn
LONGEST_ASKED = 300.0  # seconds for which a server may ask to be left alone
# HTTP statuses after which the same request may yet succeed.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class Busy(Exception):
    """The request failed in a way that may pass: ask again, after ``after`` seconds if given."""

    def __init__(self, reason: str, after: float = 0.0):
        """Keep the reason, for people, and the pause."""
        super().__init__(reason)
        self.after = after


def asked_to_wait(headers: Mapping[str, str]) -> float:
    """Return the seconds of a ``Retry-After`` header; its form with a date counts as none."""
    asked = headers.get("Retry-After", "")
    return min(float(asked), LONGEST_ASKED) if asked.isdecimal() else 0.0


def ask(call: Callable[[], T], stop: stop_base, end: Event | None = None) -> T:
    """Call until it does not raise :class:`Busy`; ``stop`` says when to give up.

    Waits grow exponentially, with full jitter so that callers do not return in the same moment,
    and last at least as long as the server asks. Setting ``end`` ends them at once.

    Raises:
        Busy: the last one.
    """
    end = end or Event()
    backoff = wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)
    retrying = Retrying(
        retry=retry_if_exception_type(Busy),
        wait=lambda state: max(backoff(state), state.outcome.exception().after),
        stop=stop | stop_when_event_set(end),
        sleep=sleep_using_event(end),
        before_sleep=lambda state: log.warning(
            "%s; trying again in %.0f s", state.outcome.exception(), state.next_action.sleep
        ),
        reraise=True,
    )
    return retrying(call)


def persist(call: Callable[[], T], patience: float, end: Event | None = None) -> T:
    """Call until it does not raise :class:`Busy`, for at most ``patience`` seconds.

    Raises:
        UserError: with the reason of the last :class:`Busy`.
    """
    try:
        return ask(call, stop_after_delay(patience), end)
    except Busy as error:
        raise UserError(f"{error} (tried for {patience:g} s)") from error
