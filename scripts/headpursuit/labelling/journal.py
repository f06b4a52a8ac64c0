"""The journal: every request and every raw reply, on disk before anything is made of them."""

import fcntl
import hashlib
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Self

from headpursuit.labelling.backend import Reply
from headpursuit.run.files import UserError

logger = logging.getLogger(__name__)


def journal_key(text: str, identity: Mapping[str, Any]) -> str:
    """Return the key of a text's replies: it changes with whatever a reply depends on."""
    material = json.dumps([text, identity], sort_keys=True)
    return hashlib.sha256(material.encode()).hexdigest()


class Journal:
    """Append-only JSON lines, each handed to the system before the next request.

    A line is {"key", "attempt", "event", "at"} with event ``sent``, ``failed`` (why) or ``reply``
    (text, tokens, prompt_tokens, ended, seconds). A request that was killed on its way has
    ``sent`` and nothing after, so the count of requests stays right across kills. With no path it
    is kept in memory only.
    """

    def __init__(self, path: Path | None):
        """Read what an earlier run left at ``path``."""
        self.path = path
        self.replies: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.sent: Counter[str] = Counter()
        self._lock = Lock()
        self._handle = None

    def __enter__(self) -> Self:
        """Open for appending, alone."""
        if self.path is None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = self.path.open("ab+")
        try:
            self._claim()
            self._load()
        except BaseException:
            self._handle.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._handle is not None:
            self._handle.close()

    def sending(self, key: str, attempt: int) -> None:
        """Note that a request is about to leave."""
        self._write({"key": key, "attempt": attempt, "event": "sent"})

    def failed(self, key: str, attempt: int, why: str) -> None:
        """Note that a request brought no reply."""
        self._write({"key": key, "attempt": attempt, "event": "failed", "why": why})

    def reply(self, key: str, attempt: int, reply: Reply, seconds: float) -> None:
        """Keep a reply."""
        record = {"key": key, "attempt": attempt, "event": "reply", "reply": reply.text}
        record |= {"tokens": reply.tokens, "prompt_tokens": reply.prompt_tokens}
        self._write({**record, "ended": reply.ended, "seconds": round(seconds, 4)})

    def busy_seconds(self, keys: Iterable[str]) -> float:
        """Return how long at least one of these requests was under way, pauses left out."""
        spans = [
            (record["at"] - record["seconds"], record["at"])
            for key in keys
            for record in self.replies.get(key, ())
        ]
        total, reached = 0.0, float("-inf")
        for start, end in sorted(spans):
            total += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return total

    def _claim(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.path}: another run is labelling into this journal. Wait for it, or end it."
            ) from None
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s: not locked (%s)", self.path, error)

    def _load(self) -> None:
        self._handle.seek(0)
        torn = 0
        line = b"\n"
        for line in self._handle:
            record = _decode(line)
            if record is None:
                torn += bool(line.strip())
            else:
                self._note(record)
        if not line.endswith(b"\n"):  # a kill left half a line; the next one starts afresh
            self._handle.write(b"\n")
        if torn:
            logger.warning("%s: %d unreadable line(s) passed over", self.path, torn)

    def _write(self, record: dict[str, Any]) -> None:
        record["at"] = round(time.time(), 4)
        # Escaped to ASCII, so that no character a model may send can break a line.
        line = json.dumps(record).encode("ascii") + b"\n"
        with self._lock:
            if self._handle is not None:
                self._handle.write(line)
                self._handle.flush()
            self._note(record)

    def _note(self, record: dict[str, Any]) -> None:
        if record["event"] == "sent":
            self.sent[record["key"]] += 1
        elif record["event"] == "reply":
            self.replies[record["key"]].append(record)


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not {"key", "attempt", "event", "at"} <= set(record):
        return None
    if record["event"] == "reply" and not {"reply", "seconds", "tokens"} <= set(record):
        return None
    return record
