"""Prompts: reading rows out of data files, and rendering what the model reads."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headpursuit.files import UserError, seed_for

log = logging.getLogger(__name__)

# File suffix to the builder of the datasets library that reads it.
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
# What a builder is told: "null" is a word like any other, and a byte order mark is no text.
OPTIONS = {
    "csv": {"keep_default_na": False, "na_values": [""]},
    "text": {"encoding": "utf-8-sig"},
    "json": {"parse_agent_traces": False},
}


def read_rows(
    files: Iterable[Path], column: str, where: Mapping[str, Any] | None
) -> Iterator[tuple[str, str]]:
    """Stream the values of a column from data files.

    Args:
        files: .jsonl, .json, .csv, .parquet or .txt files; others are passed over.
        column: its name, with dots into nested columns; a text file's is ``text``.
        where: column to the value, or list of values, that a row must have to be kept.

    Yields:
        (``file name:row``, value) with rows from 1.

    Raises:
        UserError: if no file is readable, a column is missing or a file is damaged.
    """
    readable = [path for path in files if path.suffix.lower() in BUILDERS]
    if not readable:
        raise UserError(f"No {', '.join(BUILDERS)} file among {[str(path) for path in files]}.")
    for path in readable:
        if not path.stat().st_size:
            continue  # no rows, which not every builder takes
        row: Mapping[str, Any] = {}
        try:
            for number, row in enumerate(_open(path, column), start=1):
                if all(_matches(_nested(row, key), value) for key, value in (where or {}).items()):
                    yield f"{path.name}:{number}", _nested(row, column)
        except KeyError as error:
            raise UserError(f"{path}: no column {error}; it has {', '.join(row)}.") from None
        except (UnicodeDecodeError, pa.ArrowInvalid, ValueError) as error:
            raise UserError(f"{path}: not readable as {path.suffix[1:]}: {error}") from error


def _open(path: Path, column: str) -> Iterable[Mapping[str, Any]]:
    from datasets import load_dataset

    builder = BUILDERS[path.suffix.lower()]
    options = dict(OPTIONS.get(builder, {}))
    if builder == "csv":
        options["converters"] = {column: str}  # a prompt of digits is text too
    return load_dataset(builder, data_files=[str(path)], split="train", streaming=True, **options)


def _nested(row: Mapping[str, Any], key: str) -> Any:
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(key)
        value = value[part]
    return value


def _matches(value: Any, wanted: Any) -> bool:
    return (
        value in wanted
        if isinstance(wanted, Sequence) and not isinstance(wanted, str)
        else value == wanted
    )


def choose_prompts(
    rows: Iterable[tuple[str, str]], sample: int | None, seed: int, dataset: str
) -> pa.Table:
    """Drop empty and repeated texts and draw a seeded sample.

    Returns:
        Table with prompt_id, text and source, in the order of the files.

    Raises:
        UserError: if nothing is left, or less than the sample asks for.
    """
    kept: dict[str, str] = {}
    dropped = 0
    for source, text in rows:
        if not isinstance(text, str) or not text.strip() or text in kept:
            dropped += 1
        else:
            kept[text] = source
    if dropped:
        log.info("%s: dropped %d empty or repeated prompts", dataset, dropped)
    wanted = len(kept) if sample is None else sample
    if not kept or wanted > len(kept):
        raise UserError(
            f"datasets.{dataset}: {len(kept)} prompts are there, {max(wanted, 1)} are wanted; "
            "see its files, where and sample."
        )
    chosen = np.arange(len(kept))
    if wanted < len(kept):
        rng = np.random.default_rng(seed_for(seed, dataset, "sample"))
        chosen = np.sort(rng.choice(len(kept), size=wanted, replace=False))
    texts = list(kept)
    return pa.table(
        {
            "prompt_id": [f"{dataset}-{i:06d}" for i in chosen],
            "text": [texts[i] for i in chosen],
            "source": [kept[texts[i]] for i in chosen],
        }
    )


def as_responses(prompts: pa.Table) -> pa.Table:
    """Return the prompts' texts as rows to be labelled beside responses; their sample is -1."""
    return pa.table(
        {
            "prompt_id": prompts["prompt_id"],
            "sample": pa.array([-1] * len(prompts), pa.int32()),
            "response": prompts["text"],
        }
    )


def render_prompts(
    prompts: pa.Table, template: str, tokenizer, chat: bool, max_tokens: int | None
) -> pa.Table:
    """Add what the model reads: the rendered text and its token ids.

    Args:
        prompts: table of :func:`choose_prompts`.
        template: holds ``{prompt}``; its other braces are plain text.
        tokenizer: a Hugging Face tokenizer.
        chat: whether the text goes through the tokenizer's chat template as a user's message.
        max_tokens: the longest prompt that leaves room for a response; None for no limit.

    Raises:
        UserError: if the chat template is missing or a prompt is too long.
    """
    if chat and not tokenizer.chat_template:
        raise UserError("models.*.chat is true, but the tokenizer has no chat template.")
    texts = [template.replace("{prompt}", text) for text in prompts["text"].to_pylist()]
    if chat:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            for text in texts
        ]
    # A chat template writes the special tokens itself.
    ids = tokenizer(texts, add_special_tokens=not chat)["input_ids"]
    for prompt_id, source, own in zip(
        prompts["prompt_id"].to_pylist(), prompts["source"].to_pylist(), ids, strict=True
    ):
        if max_tokens is not None and len(own) > max_tokens:
            raise UserError(
                f"{prompt_id} ({source}) has {len(own)} tokens; the model reads {max_tokens} and "
                "a response. Leave it out, or lower generation.max_new_tokens."
            )
    columns = {
        "rendered": pa.array(texts, pa.string()),
        "token_ids": pa.array(ids, pa.list_(pa.int32())),
    }
    for name, column in columns.items():
        prompts = prompts.append_column(name, column)
    return prompts
