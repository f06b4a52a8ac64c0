"""The journal: every request and every raw reply, on disk before anything is made of them.

It is the record of what a labeller said, kept for good, of all prompts and models that were ever
asked; ``journaled`` in method/batches.py resumes one job, and is deleted at its end. One for both
would need every part of either: writing from threads and a lock here, an order there.
"""

import fcntl
import hashlib
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, Self

from headpursuit.run.files import UserError

logger = logging.getLogger(__name__)


def journal_key(asked: str | bytes, identity: Mapping[str, Any]) -> str:
    """Return the key of a text's or image's replies: it changes with all that they depend on."""
    asked = asked if isinstance(asked, str) else hashlib.sha256(asked).hexdigest()
    material = json.dumps([asked, identity], sort_keys=True)
    return hashlib.sha256(material.encode()).hexdigest()


class Journal:
    """Append-only JSON lines, each handed to the system before the next request.

    A line is {"key", "attempt", "event", "at"} with event ``sent``, ``failed`` (and why) or
    ``reply`` (and reply, tokens, prompt_tokens, ended, seconds). A request that was killed on its
    way has ``sent`` and nothing after, so the count of requests stays right across kills.
    """

    def __init__(self, path: Path | None):
        """Take the file's path; without one, nothing is kept."""
        self.path = path
        self.replies: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.sent: Counter[str] = Counter()
        self._lock = Lock()

    def __enter__(self) -> Self:
        """Open the file for appending, alone, and read what an earlier run left."""
        if self.path is None:
            self._file = BytesIO()
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.path}: another run is labelling into this journal. Wait for it, or end it."
            ) from None
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s: not locked (%s)", self.path, error)
        self._file.seek(0)
        line, damaged = b"\n", 0
        for line in self._file:
            try:
                self._note(json.loads(line))
            except (ValueError, LookupError, TypeError):
                damaged += 1
        if damaged:
            logger.warning("%s: %d unreadable line(s) passed over", self.path, damaged)
        if not line.endswith(b"\n"):  # a kill left half a line; the next one starts afresh
            self._file.write(b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def write(self, event: str, key: str, attempt: int, **facts: Any) -> None:
        """Write what happens to a request."""
        record = {"key": key, "attempt": attempt, "event": event, **facts}
        record["at"] = round(time.time(), 4)
        # Escaped to ASCII, so that no character a model may send can break a line.
        line = json.dumps(record).encode("ascii") + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            self._note(record)

    def busy_seconds(self, keys: Iterable[str]) -> float:
        """Return how long at least one of these requests was under way, pauses left out."""
        replies = [record for key in keys for record in self.replies[key]]
        total, reached = 0.0, float("-inf")
        for start, end in sorted((own["at"] - own["seconds"], own["at"]) for own in replies):
            total += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return total

    def _note(self, record: dict[str, Any]) -> None:
        if record["event"] == "sent":
            self.sent[record["key"]] += 1
        elif record["event"] == "reply":
            number = int | float
            forms = {"reply": str, "tokens": int | None, "seconds": number, "at": number}
            kept = {name: record[name] for name in forms}
            if not all(isinstance(kept[name], form) for name, form in forms.items()):
                raise TypeError("a value of another form")
            self.replies[record["key"]].append({**kept, "ended": record.get("ended")})
