"""Prompts: which are drawn out of data files, and what the model reads of them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headpursuit.data.rows import READERS, column_names, kept_rows, references_in
from headpursuit.data.sources import size_of
from headpursuit.method.answers import normalise_answer
from headpursuit.method.special import as_user, opened, special_tokens
from headpursuit.run.files import UserError, seed_for

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    {
        "sample_id": pa.string(),
        "text": pa.string(),
        "source": pa.string(),
        "references": pa.list_(pa.string()),
    }
)
PLACEHOLDER = "headpursuit"  # a message that shows what the chat template writes around it


def read_rows(
    files: Iterable[Path], spec: Mapping[str, Any], key: str
) -> Iterator[tuple[str, ...]]:
    """Stream texts from data files (:func:`.rows.kept_rows`) of known formats.

    Args:
        files: the files; of a format that is not known they are passed over.
        spec: the config's entry, with the column ``text``, perhaps ``where``, and ``references``.
        key: where the entry stands, for messages.

    Yields:
        (``file name:row``, text) with rows from 1; the text is empty where there is none. Where
        there are columns of references, these follow (:func:`.rows.references_in`).

    Raises:
        UserError: if no file is readable, a column is missing, a file is damaged, or a value is
            no text.
    """
    files, column, references = list(files), spec["text"], column_names(spec.get("references"))
    readable = [path for path in files if path.suffix.lower() in READERS]
    if not readable:
        raise UserError(
            f"{key}.files: no {', '.join(READERS)} file among {', '.join(map(str, files))}."
        )
    for path in readable:
        if size_of(path) == 0 and path.suffix.lower() != ".parquet":
            continue  # a text of no rows
        for number, row in kept_rows(path, [column, *references], spec.get("where"), key):
            text = "" if row[column] is None else row[column]
            if not isinstance(text, str):
                raise UserError(f"{key}.text: {path}, row {number}: {text!r:.60} is no text.")
            own = references_in(row, references, f"{key}.references: {path}, row {number}")
            yield f"{path.name}:{number}", text, *own


def unique_prompts(
    rows: Iterable[tuple[str, ...]], dataset: str, others: Iterable[tuple[str, ...]] = ()
) -> pa.Table:
    """Drop empty and repeated texts, and those that other samples have, but for case and space.

    Args:
        rows: of :func:`read_rows`.
        dataset: name of the samples.
        others: rows of the other samples.

    Returns:
        Table with sample_id, text, source and references, in the order of the files.
    """
    theirs = {_as_compared(text) for _, text, *_ in others}
    kept: dict[str, dict[str, Any]] = {}
    dropped = Counter()
    for source, text, *references in rows:
        if not text.strip() or text in kept:
            dropped["empty or repeated prompts"] += 1
        elif theirs and _as_compared(text) in theirs:
            dropped["prompts that the excluded samples have"] += 1
        else:
            own = {"sample_id": f"{dataset}-{len(kept):06d}", "text": text, "source": source}
            kept[text] = {**own, "references": references}
    for what, number in dropped.items():
        log.info("%s: dropped %d %s", dataset, number, what)
    return pa.Table.from_pylist(list(kept.values()), SCHEMA)


def _as_compared(text: str) -> str:
    return normalise_answer(text, ("case", "space"))


def sample_prompts(
    prompts: pa.Table,
    sample: int | None,
    seed: int,
    dataset: str,
    render: Callable[[pa.Table], pa.Table] = lambda drawn: drawn,
    longest: int | None = None,
) -> pa.Table:
    """Draw a sample of the prompts that the model can read, in the order of the files.

    Seed and data set decide the draw. Only what is drawn is rendered. In the place of a prompt that
    is too long another one is drawn.

    Args:
        prompts: table of :func:`unique_prompts`.
        sample: how many; None takes all.
        seed: the config's.
        dataset: name of the samples.
        render: adds what the model reads (:func:`render_prompts`).
        longest: tokens of the longest prompt that leaves room for a response; None for no limit.

    Raises:
        UserError: if there are none, or fewer than the sample asks for.
    """
    rng = np.random.default_rng(seed_for(seed, dataset, "sample"))
    left, found, shortest = np.arange(len(prompts)), render(prompts[:0]), []
    wanted = len(left) if sample is None else sample
    while len(left) and len(found) < wanted:
        drawn = rng.choice(left, size=min(wanted - len(found), len(left)), replace=False)
        left = np.setdiff1d(left, drawn)
        rendered = render(prompts.take(np.sort(drawn)))
        if longest is not None:
            lengths = pc.list_value_length(rendered["token_ids"])
            for source, length in zip(rendered["source"], lengths, strict=True):
                if length.as_py() > longest:
                    log.warning(
                        "%s: left out %s, whose %s tokens are more than the %d that the model "
                        "reads beside a response", dataset, source, length, longest,
                    )  # fmt: skip
            shortest.append(pc.min(lengths).as_py())
            rendered = rendered.filter(pc.less_equal(lengths, longest))
        found = pa.concat_tables([found, rendered])
    if shortest and not len(found):
        raise UserError(
            f"samples.{dataset}: the shortest prompt has {min(shortest)} tokens, and the model "
            f"reads {longest} beside a response. Lower generation.max_new_tokens."
        )
    if len(found) < (sample or 1):
        raise UserError(
            f"samples.{dataset}: {len(found)} prompts are there, {sample or 1} are wanted; "
            "see its files, where and sample."
        )
    places = pc.index_in(found["sample_id"], prompts["sample_id"])  # later draws stand behind
    return found.take(pc.sort_indices(places))


def render_prompts(prompts: pa.Table, template: str, tokenizer, chat: bool) -> pa.Table:
    """Add what the model reads: the rendered text, its token ids, and which positions are its own.

    Own are the positions of the text itself: not those of special tokens, nor of what the chat
    template writes around it. A text that spells a special token (``</s>``) is read as the
    tokenizer reads it, as that token.

    Args:
        prompts: table of :func:`unique_prompts`.
        template: holds ``{prompt}``; its other braces are plain text.
        tokenizer: a Hugging Face tokenizer.
        chat: whether the text goes through the tokenizer's chat template as a user's message.

    Raises:
        UserError: if the chat template is missing or does not hold the text, or if the tokenizer
            cannot say where tokens stand.
    """
    texts = [template.replace("{prompt}", text) for text in prompts["text"].to_pylist()]
    spans = [(0, len(text)) for text in texts]
    if chat:
        texts, spans = _through_chat(tokenizer, texts)
    ids, own = _tokenise(tokenizer, texts, spans)
    prompts = prompts.append_column("rendered", pa.array(texts, pa.string()))
    for name, column in (("token_ids", ids), ("own_positions", own)):
        prompts = prompts.append_column(name, pa.array(column, pa.list_(pa.int32())))
    return prompts


def _through_chat(tokenizer, texts: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """Put texts through the chat template; return them with where each begins and ends there."""
    # The template may strip a text, so what stands around another one shows where it is.
    head, found, tail = as_user(tokenizer, PLACEHOLDER).partition(PLACEHOLDER)
    rendered = [as_user(tokenizer, text) for text in texts]
    fits = [
        len(whole) >= len(head + tail) and whole.startswith(head) and whole.endswith(tail)
        for whole in rendered
    ]
    if not found or PLACEHOLDER in tail or not all(fits):
        raise UserError(
            "models.*.chat is true, but the tokenizer's chat template does not hold a user's "
            "message once, with the same text around it whatever the message."
        )
    return rendered, [(len(head), len(whole) - len(tail)) for whole in rendered]


def _tokenise(
    tokenizer, texts: Sequence[str], spans: Sequence[tuple[int, int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return each text's token ids and the positions of those that stand for its own span."""
    if not tokenizer.is_fast:
        raise UserError(
            "The tokenizer does not say where in a text its tokens stand: its folder needs a "
            "tokenizer.json."
        )
    special = special_tokens(tokenizer)
    ids, own = [], []
    for text, (begin, end) in zip(texts, spans, strict=True):
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids.append(found["input_ids"])
        own.append([])
        reached = 0
        for place, (first, last) in enumerate(found["offset_mapping"]):
            # Some tokenizers' offsets leave spaces out, so a token begins where the last ended.
            inside = min(first, reached) < end and last > begin
            if inside and found["input_ids"][place] not in special:
                own[-1].append(place)
            reached = last
    whole = opened(tokenizer, ids)
    added = [len(row) - len(text) for row, text in zip(whole, ids, strict=True)]
    return whole, [[before + i for i in places] for before, places in zip(added, own, strict=True)]
