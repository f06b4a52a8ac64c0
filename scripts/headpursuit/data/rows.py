"""Rows of data files, with their values as they stand there.

The datasets library reads no rows here: its readers of JSON and CSV take texts for dates and
numbers, and that of Parquet refuses files for columns that nobody reads, is many times slower, and
needs a cache folder in the home.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headpursuit.run.files import UserError, refusal

BATCH = 256  # rows of a file held at once; it bounds the memory that images take
SURROGATE = re.compile("[\ud800-\udfff]")


class _NoColumnError(Exception):
    """A file has no column, or several, of a name."""


def kept_rows(
    path: Path, columns: Collection[str], where: Mapping[str, Any] | None, key: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream the rows of a data file (:data:`READERS`) that ``where`` keeps.

    Args:
        path: the file. All cells of a CSV file are texts; a text file's column is ``text``.
        columns: their names, with dots into nested ones.
        where: column to the value, or list of values, that a row must have to be kept.
        key: the config's key of the samples, for messages.

    Yields:
        (row, from 1; column to value, None where a row has none).

    Raises:
        UserError: if the file is damaged or lacks a column.
    """
    where = where or {}
    try:
        for number, row in enumerate(_rows(path, [*columns, *where]), start=1):
            if all(matches_value(row[name], value) for name, value in where.items()):
                yield number, row
    except _NoColumnError as error:
        raise UserError(f"{key}: {path} has {error}. Correct the name there.") from None
    except (ValueError, TypeError, OSError, RecursionError, pa.ArrowException) as error:
        if refusal(error, path):
            raise
        raise UserError(
            f"{key}.files: {path} is not readable as {path.suffix[1:]}: {error}"
        ) from error


def _rows(path: Path, names: Collection[str]) -> Iterator[dict[str, Any]]:
    if path.suffix.lower() not in READERS:
        raise ValueError(f"read are {', '.join(READERS)}")
    missing, there = set(names), {}
    for number, row in enumerate(READERS[path.suffix.lower()](path, names), start=1):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {number} is no JSON object")
        found = {}
        for name in names:
            with suppress(KeyError):
                found[name] = _nested(row, name)
        if missing:
            missing -= found.keys()
            there |= dict.fromkeys(row)
        texts = (text for value in found.values() for text in _listed(value))
        if any(isinstance(text, str) and SURROGATE.search(text) for text in texts):
            raise ValueError(f"row {number} is not UTF-8, or holds half a character. Correct it")
        yield dict.fromkeys(names) | found
    if missing and there:
        raise _lacking(sorted(missing), there)


def _nested(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping):
            raise KeyError(name)
        value = value[part]
    return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def column_names(named: str | list[str] | None) -> list[str]:
    """Return the columns that a config's key names: one, several or none."""
    return [] if named is None else _listed(named)


def references_in(row: Mapping[str, Any], columns: Iterable[str], place: str) -> list[str]:
    """Return the texts of a row's columns, each of which holds one or a list; blank ones left out.

    Raises:
        UserError: that begins with the place, if a value is no text, or all are blank.
    """
    values = [value for name in columns for value in _listed(row[name]) if value is not None]
    if wrong := [value for value in values if not isinstance(value, str)]:
        raise UserError(f"{place}: {wrong[0]!r:.60} is no text.")
    found = [value for value in values if value.strip()]
    if columns and not found:
        raise UserError(
            f"{place}: there is no text in {' or '.join(columns)}, so nothing can be measured "
            "against it. Correct the row, or keep it out by where."
        )
    return found


def _lacking(missing: Iterable[str], there: Iterable[str]) -> _NoColumnError:
    names = ", ".join(there).encode(errors="replace").decode()
    return _NoColumnError(f"no column {', '.join(map(repr, missing))}; it has {names}")


def _top(names: Collection[str], there: list[str]) -> list[str]:
    """Return the columns that hold the named ones."""
    top = dict.fromkeys(name if name in there else name.partition(".")[0] for name in names)
    if missing := [name for name in top if name not in there]:
        raise _lacking(missing, there)
    if repeated := [name for name in top if there.count(name) > 1]:
        raise _NoColumnError(f"several columns {', '.join(map(repr, repeated))}")
    return list(top)


# What is no UTF-8 comes as surrogates, which _rows refuses.
AS_TEXT = {"encoding": "utf-8-sig", "errors": "surrogateescape"}


def _csv(path: Path, names: Collection[str]) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    header: list[str] = []
    ended, line = False, 0

    def lines() -> Iterator[str]:
        nonlocal ended
        yield from text
        ended = True

    with path.open(newline="", **AS_TEXT) as text:
        rows = csv.reader(lines())
        try:
            for cells in filter(None, rows):
                if ended:  # only within quotes does a row go on behind the last line
                    raise ValueError(f"a quote after line {line} is never closed")
                line = rows.line_num
                if not header:
                    header = cells
                    _top(names, header)
                elif len(cells) > len(header):
                    raise ValueError(f"line {line} has more cells than the header")
                else:
                    yield dict(zip_longest(header, cells, fillvalue=""))
        except csv.Error as error:
            raise ValueError(f"after line {line}: {error}") from error
    if not header:
        _top(names, header)


def _text(path: Path, _: Collection[str]) -> Iterator[Mapping[str, Any]]:
    with path.open(**AS_TEXT) as lines:
        yield from ({"text": line.removesuffix("\n")} for line in lines)


def _json(path: Path, _: Collection[str]) -> Iterator[Any]:
    """Read an object a line; or one object, or list of objects or texts, over several lines."""
    with path.open(**AS_TEXT) as lines:
        for number, line in enumerate(lines, start=1):
            if not (own := line.strip()):
                continue
            goes_on = own[0] == "[" or (own[0] == "{" and own[-1] != "}")
            try:
                found = json.loads(line + lines.read() if goes_on else line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON ({error})") from error
            for row in found if isinstance(found, list) else [found]:
                yield {"text": row} if isinstance(row, str) else row


def _parquet(path: Path, names: Collection[str]) -> Iterator[Mapping[str, Any]]:
    with pq.ParquetFile(path, pre_buffer=False) as file:  # a buffer would hold it whole
        columns = _top(names, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=BATCH, columns=columns):
            yield from batch.to_pylist()


READERS: Mapping[str, Callable[[Path, Collection[str]], Iterator[Any]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _text,
}


def matches_value(value: Any, wanted: Any) -> bool:
    """Say whether a cell has the value that a ``where`` wants, or one of its list.

    All cells of a CSV file are texts, so a number or a truth value also matches its spelling.
    """
    if isinstance(wanted, list):
        return any(matches_value(value, one) for one in wanted)
    if wanted is None:
        return value is None or value == ""
    if isinstance(value, str) and isinstance(wanted, bool):
        return value.lower() == str(wanted).lower()
    if isinstance(value, str) and isinstance(wanted, int | float):
        with suppress(ValueError):
            return float(value) == wanted
    return value == wanted
