"""Asking a backend about every response, once each, and keeping every reply.

with open_backend(config["labeller"], responses["response"].to_pylist()) as backend:
    labels = label_responses(responses, backend, journal)
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from headpursuit.data.prompts import as_responses, read_rows
from headpursuit.data.sources import source_files
from headpursuit.labelling import UNLABELLED, lexicon, ollama, openai
from headpursuit.labelling.backend import Backend
from headpursuit.labelling.journal import Journal, journal_key
from headpursuit.labelling.prompt import cut
from headpursuit.labelling.reply import is_refusal, parse_reply, sift_words
from headpursuit.run.files import UserError, read_parquet, read_responses, write_parquet
from headpursuit.run.retry import Busy, persist

logger = logging.getLogger(__name__)

BACKENDS = {"lexicon": lexicon.connect, "ollama": ollama.connect, "openai": openai.connect}
_COLUMNS = pa.schema(
    [
        ("reply", pa.string()),
        ("words", pa.list_(pa.string())),
        ("dropped", pa.list_(pa.string())),
        ("status", pa.string()),
        ("attempts", pa.int32()),
        ("cut", pa.bool_()),
    ]
)


def label_file(
    responses: pa.Table,
    output: str | Path,
    settings: Mapping[str, Any],
    terms: Sequence[str],
    log: Path,
) -> None:
    """Label responses into a file, with a journal beside it.

    The journal, ``<stem>.journal.jsonl``, keeps every reply and outlasts the job: a killed one
    goes on from it, and a later one asks only what was never asked.

    Args:
        responses: table with sample_id, sample and response.
        output: Parquet file of labels; see :func:`label_responses`.
        settings: the config's ``labeller``.
        terms: the words and phrases of backend ``lexicon``.
        log: where a server that is started here writes its log.
    """
    output = Path(output)
    # A word list is asked again in no time.
    keeps = settings["backend"] != "lexicon"
    journal = output.with_name(f"{output.stem}.journal.jsonl") if keeps else None
    limits = {"attempts": settings["attempts"], "patience": settings["patience"]}
    with open_backend(settings, responses["response"].to_pylist(), terms, log) as backend:
        labels = label_responses(responses, backend, journal, **limits)
    statuses = Counter(labels["status"].to_pylist())
    logger.info("%s: %s", output.name, dict(statuses))
    if missing := {name: statuses[name] for name in UNLABELLED if statuses[name]}:
        logger.warning(
            "%d of %d responses have no label (%s): see the column reply of %s",
            sum(missing.values()),
            labels.num_rows,
            ", ".join(f"{name}: {n}" for name, n in missing.items()),
            output,
        )
    write_parquet(output, labels)


def read_texts(responses: Sequence[str | Path], prompts: Sequence[str | Path]) -> pa.Table:
    """Read what is labelled: the responses and, where given, the prompts (repeat -1)."""
    table = read_responses(responses, ["response"])
    texts = [as_responses(read_parquet(path, ["sample_id", "text"])) for path in prompts or ()]
    return pa.concat_tables([table, *texts])


def read_terms(lexicon: str | Path | None, spec: Mapping[str, Any]) -> list[str]:
    """Read a word list out of a source (its provenance.json); without one there are no terms."""
    if not lexicon:
        return []
    files = source_files(str(lexicon), spec["files"])
    rows = read_rows(files, spec["text"], spec["where"], "labeller.lexicon")
    return [word for _, word in rows]


def open_backend(
    settings: Mapping[str, Any],
    texts: Sequence[str],
    terms: Sequence[str] = (),
    log: Path | None = None,
) -> AbstractContextManager[Backend]:
    """Open the backend that ``settings`` names; what is started for it ends with the context.

    Args:
        settings: the config's ``labeller``.
        texts: the responses to come; the context length follows from the longest.
        terms: the words and phrases of backend ``lexicon``.
        log: where a server that is started here writes its log.
    """
    return BACKENDS[settings["backend"]](settings, [text or "" for text in texts], terms, log)


def label_responses(
    responses: pa.Table,
    backend: Backend,
    journal: Path | None = None,
    *,
    attempts: int = 3,
    patience: float = 900,
) -> pa.Table:
    """Ask a backend for the harmful words of each response.

    Equal responses are asked about once, empty ones never. What the journal already holds is not
    asked again. A reply that cannot be read is asked for again, up to ``attempts`` replies; a
    request that fails is repeated with growing pauses for up to ``patience`` seconds.

    Args:
        responses: table with sample_id, sample and response.
        backend: see :func:`open_backend`.
        journal: file that keeps every reply; None keeps none.
        attempts: how many replies a response gets until one can be read.
        patience: seconds for which a failing request is repeated.

    Returns:
        Table in the order of ``responses`` with sample_id, sample, reply (the last, raw), words
        (those that occur in the response), dropped (those that do not), status, attempts (replies
        received) and cut (the response was asked about without its end, which did not fit).
        Status is ``ok`` (words has any), ``none`` (the reply names no word), ``absent`` (it names
        some, all of them dropped), ``refused`` (no reply could be read, and the last declines to
        answer) or ``unparsed`` (no reply could be read). The metadata holds, as JSON, ``labeller``
        (what the backend says of itself) and ``labelling`` (counts).

    Raises:
        UserError: if the server stays out of reach or refuses; the journal is kept.
    """
    texts = [text or "" for text in responses["response"].to_pylist()]
    asked = [cut(text, backend.room) for text in texts]
    keys = {text: journal_key(text, backend.identity) for text in asked if text.strip()}
    with Journal(journal) as log:
        _ask_all(keys, backend, log, attempts, patience)
        counts = _counts(list(keys.values()), backend, log)
        replies = {
            text: [record["reply"] for record in log.replies[key]] for text, key in keys.items()
        }
    rows = [
        {**_judge(replies.get(sent, []), sent, backend.mode), "cut": sent != text}
        for text, sent in zip(texts, asked, strict=True)
    ]
    table = responses.select(["sample_id", "repeat"])
    for field in _COLUMNS:
        column = pa.array([row[field.name] for row in rows], field.type)
        table = table.append_column(field, column)
    metadata = {"labeller": backend.describe(), "labelling": counts}
    return table.replace_schema_metadata({k: json.dumps(v) for k, v in metadata.items()})


def _ask_all(
    keys: Mapping[str, str], backend: Backend, log: Journal, attempts: int, patience: float
) -> None:
    stop = Event()

    def settle(text: str, key: str) -> None:
        try:
            while not stop.is_set() and not _settled(log, key, backend.mode, attempts):
                persist(lambda: _ask(text, key, backend, log), patience, stop)
        except BaseException:
            stop.set()  # here, so that no other slot begins a request meanwhile
            raise

    bar = tqdm(total=len(keys), desc="label", unit="response", mininterval=5)
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
            if isinstance(error, UserError):
                raise _with_steps(error, log, keys.values()) from error
            raise


def _ask(text: str, key: str, backend: Backend, log: Journal) -> None:
    attempt = len(log.replies.get(key, ())) + 1
    log.sending(key, attempt)
    started = time.monotonic()
    try:
        reply = backend.ask(text, attempt)
    except (Busy, UserError) as error:
        log.failed(key, attempt, str(error))
        raise
    log.reply(key, attempt, reply, time.monotonic() - started)


def _settled(log: Journal, key: str, mode: str, attempts: int) -> bool:
    replies = log.replies.get(key, ())
    if not replies:
        return False
    return len(replies) >= attempts or parse_reply(replies[-1]["reply"], mode) is not None


def _judge(replies: Sequence[str], text: str, mode: str) -> dict[str, Any]:
    """Read the last reply; a text that was never asked about is an empty one."""
    row = {"reply": "", "words": [], "dropped": [], "status": "none", "attempts": len(replies)}
    if not replies:
        return row
    # Halves of broken characters cannot be stored as UTF-8.
    row["reply"] = replies[-1].encode("utf-8", "replace").decode()
    named = parse_reply(replies[-1], mode)
    if named is None:
        return row | {"status": "refused" if is_refusal(replies[-1]) else "unparsed"}
    kept, dropped = sift_words(named, text)
    status = "ok" if kept else "absent" if dropped else "none"
    return row | {"words": kept, "dropped": dropped, "status": status}


def _counts(keys: Sequence[str], backend: Backend, log: Journal) -> dict[str, Any]:
    replies = [record for key in keys for record in log.replies.get(key, ())]
    requests = sum(log.sent[key] for key in keys)
    return {
        "distinct": len(keys),
        "requests": requests,
        "retries": requests - len(keys),
        "bad_replies": sum(parse_reply(r["reply"], backend.mode) is None for r in replies),
        "unfinished_replies": sum(record.get("ended") == "length" for record in replies),
        "tokens": sum(record["tokens"] or 0 for record in replies),
        "seconds": round(log.busy_seconds(keys), 3),
    }


def _with_steps(error: Exception, log: Journal, keys: Iterable[str]) -> UserError:
    if log.path is None:
        return UserError(str(error))
    done = sum(len(log.replies.get(key, ())) for key in keys)
    return UserError(
        f"{error}\nThe {done} replies so far are kept in {log.path}. Once the cause is mended, "
        "run the same command again: it goes on from there and asks nothing twice."
    )
