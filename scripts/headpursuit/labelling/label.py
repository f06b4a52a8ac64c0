"""Asking a backend about every response or image, once each, and keeping every reply."""

import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from headpursuit.labelling.journal import Journal, journal_key
from headpursuit.labelling.lexicon import Lexicon
from headpursuit.labelling.ollama import open_ollama
from headpursuit.labelling.openai import OpenAI
from headpursuit.labelling.prompt import cut
from headpursuit.labelling.reply import first_keywords, is_refusal, parse_reply, sift_words
from headpursuit.run.files import UserError
from headpursuit.run.retry import Busy, persist

_COLUMNS = {
    "reply": pa.string(),
    "words": pa.list_(pa.string()),
    "dropped": pa.list_(pa.string()),
    "status": pa.string(),
    "attempts": pa.int32(),
    "cut": pa.bool_(),
}


@contextmanager
def open_backend(
    settings: dict, asked: list[str | bytes], terms: Iterable[str] = (), log: Path | None = None
) -> Iterator[Any]:
    """Open the backend that ``settings``, the config's ``labeller``, names; see backend.py.

    It gets the context length that the longest of ``asked`` needs. ``terms`` are the words of
    backend ``lexicon``. A server that is started here writes into ``log``, and ends with the block.
    """
    asked = [own or "" for own in asked]
    match settings["backend"]:
        case "lexicon":
            yield Lexicon(terms)
        case "openai":
            yield OpenAI(settings, asked)
        case "ollama":
            with open_ollama(settings, asked, log) as backend:
                yield backend


def label_responses(
    responses: pa.Table,
    backend: Any,
    journal: Path | None = None,
    *,
    attempts: int = 3,
    patience: float = 900,
) -> pa.Table:
    """Ask a backend for the harmful words of each response (sample_id, repeat, response).

    Or for the keywords of each image, where there is a column image in the place of response.
    Equal ones are asked about once, empty ones never, and those with a reply in the journal
    not again. A reply that cannot be read is asked for again, up to ``attempts`` replies; a request
    that fails is repeated with growing pauses for up to ``patience`` seconds.

    Returns:
        Table in the order of ``responses``, with the columns that docs/labelling.md describes. Its
        metadata hold, as JSON, ``labeller`` (the backend's facts) and ``labelling`` (counts).

    Raises:
        UserError: if the server stays out of reach or refuses; the journal is kept.
    """
    column = "image" if "image" in responses.column_names else "response"
    texts = [text or "" for text in responses[column].to_pylist()]
    asked = [cut(text, backend.room) for text in texts]
    keys = {text: journal_key(text, backend.identity) for text in asked if text.strip()}
    with Journal(journal) as log:
        _ask_all(keys, backend, log, attempts, patience)
        counts = _counts(list(keys.values()), backend.mode, log)
    given = responses.select(["sample_id", "repeat"])
    rows = [
        {**row, **_judge(log.replies[keys.get(sent)], sent, backend), "cut": sent != text}
        for row, text, sent in zip(given.to_pylist(), texts, asked, strict=True)
    ]
    schema = pa.schema([*given.schema, *_COLUMNS.items()])
    metadata = {"labeller": json.dumps(backend.facts), "labelling": json.dumps(counts)}
    return pa.Table.from_pylist(rows, schema.with_metadata(metadata))


def _ask_all(keys: dict, backend: Any, log: Journal, attempts: int, patience: float) -> None:
    stop = Event()

    def settle(text: str | bytes, key: str) -> None:
        try:
            while not stop.is_set() and not _settled(log.replies[key], backend.mode, attempts):
                persist(lambda: _ask(text, key, backend, log), patience, stop)
        except BaseException:
            stop.set()  # here, so that no other slot begins a request meanwhile
            raise

    bar = tqdm(total=len(keys), desc="label", unit="text", mininterval=5)
    with ThreadPoolExecutor(backend.slots) as pool, bar:
        futures = [pool.submit(settle, text, key) for text, key in keys.items()]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException as error:
            # What is under way still arrives in the journal; nothing new is begun.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, UserError) or log.path is None:
                raise
            done = sum(len(log.replies[key]) for key in keys.values())
            raise UserError(
                f"{error}\nThe {done} replies so far are kept in {log.path}. Once the cause is "
                "mended, run the same command again: it goes on from there and asks nothing twice."
            ) from error


def _ask(text: str | bytes, key: str, backend: Any, log: Journal) -> None:
    attempt = len(log.replies[key]) + 1
    log.write("sent", key, attempt)
    started = time.monotonic()
    try:
        answer = backend.ask(text, attempt)
    except (Busy, UserError) as error:
        log.write("failed", key, attempt, why=str(error))
        raise
    seconds = round(time.monotonic() - started, 4)
    log.write("reply", key, attempt, **asdict(answer), seconds=seconds)


def _settled(replies: list[dict], mode: str, attempts: int) -> bool:
    readable = bool(replies) and parse_reply(replies[-1]["reply"], mode) is not None
    return readable or len(replies) >= attempts


def _judge(replies: list[dict], text: str | bytes, backend: Any) -> dict:
    """Read the last reply; a text that was never asked about is an empty one."""
    row = {"reply": "", "words": [], "dropped": [], "status": "none", "attempts": len(replies)}
    if not replies:
        return row
    reply = replies[-1]["reply"]
    # Halves of broken characters cannot be stored as UTF-8.
    row["reply"] = reply.encode("utf-8", "replace").decode()
    named = parse_reply(reply, backend.mode)
    if named is None:
        return row | {"status": "refused" if is_refusal(reply) else "unparsed"}
    most = backend.per_image
    kept, dropped = first_keywords(named, most) if most else sift_words(named, text)
    status = "ok" if kept else "absent" if dropped else "none"
    return row | {"words": kept, "dropped": dropped, "status": status}


def _counts(keys: list[str], mode: str, log: Journal) -> dict:
    replies = [record for key in keys for record in log.replies[key]]
    requests = sum(log.sent[key] for key in keys)
    return {
        "distinct": len(keys),
        "requests": requests,
        "retries": requests - len(keys),
        "bad_replies": sum(parse_reply(record["reply"], mode) is None for record in replies),
        "unfinished_replies": sum(record["ended"] == "length" for record in replies),
        "tokens": sum(record["tokens"] or 0 for record in replies),
        "seconds": round(log.busy_seconds(keys), 3),
    }
