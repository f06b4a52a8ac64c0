"""What each table of a run holds: ``schemas/tables.yaml``, and whether a table keeps to it."""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headpursuit.run.files import shipped

# How far rounding may carry a sum past its end; a run is not lost to that.
SLACK = 1e-6

_IS = {
    "string": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    "integer": pa.types.is_integer,
    "number": lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind),
    "boolean": pa.types.is_boolean,
    "binary": pa.types.is_binary,
    "array": lambda kind: pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind),
}
_CAST = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
_NAMES = {"integer": "a whole number", "number": "a number", "boolean": "True or False"}


def contracts() -> list[Mapping[str, Any]]:
    """Return every kind of table, of ``schemas/tables.yaml``: its files, columns and key."""
    return shipped("schemas/tables.yaml")["tables"]


def contract_of(path: str | Path, columns: Collection[str]) -> Mapping[str, Any] | None:
    """Return the contract of a run's table; None for other files.

    Args:
        path: of the table, whose end counts; or a template of the contracts.
        columns: its columns: of two kinds of tables under one name, the likelier is taken.
    """
    found = [
        (
            template.count("/"),
            len(re.sub(r"\{\w+\}", "", template)),
            len({*columns} & {*contract["columns"]}),
            number,
        )
        for number, contract in enumerate(contracts())
        for template in contract["files"]
        if _pattern(template).search(Path(path).as_posix())
    ]
    # The closest template counts: an experiment may have the name of a folder.
    return contracts()[max(found)[3]] if found else None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    literal = re.split(r"\{\w+\}", template)
    return re.compile(r"(?:^|/)" + r"[^/]+".join(map(re.escape, literal)) + "$")


def violations(path: str | Path, table: pa.Table) -> list[str]:
    """Return in what a table breaks its contract: a line for each column that does.

    Args:
        path: where the table is, or is to be; a table of no contract breaks none.
        table: as it is in a Parquet file; of a CSV file every cell as text, empty ones as None.
    """
    contract = contract_of(path, table.column_names)
    if contract is None:
        return []
    wanted, there = list(contract["columns"]), table.column_names
    if wanted != there:
        missing = [name for name in wanted if name not in there]
        how = f"it lacks {', '.join(missing)}" if missing else "it has further columns"
        if sorted(wanted) == sorted(there):
            how = "its columns are in another order"
        return [f"{how}; it has {', '.join(there)} and should have {', '.join(wanted)}"]
    found = {name: _complaint(table[name], own) for name, own in contract["columns"].items()}
    broken = [f"column {name}{said}" for name, said in found.items() if said]
    if not broken and "key" in contract and (repeated := _repeated(table, contract["key"])):
        broken.append(repeated)
    return broken


def _complaint(column: pa.ChunkedArray, contract: Mapping[str, Any]) -> str | None:
    values = column.combine_chunks()
    said = _check(values, contract)
    if not said and _IS["array"](values.type):
        rows = pc.list_parent_indices(values)
        said = _check(pc.list_flatten(values), contract["items"], rows)
    return said


def _check(
    values: pa.Array, contract: Mapping[str, Any], rows: pa.Array | None = None
) -> str | None:
    """Return what is wrong with the first wrong value; of items of lists ``rows`` has the rows."""
    kind, wanted = values.type, contract["type"]

    def at(place: int, complaint: str) -> str:
        # repr: the value may be anything, control characters included.
        value = f"{values[place].as_py()!r:.60}" if values[place].is_valid else "it"
        row = place if rows is None else rows[place].as_py()
        return f", row {row + 1}: {value} {complaint}"

    if pa.types.is_null(kind):  # every cell is empty
        values = values.cast(_CAST.get(wanted, pa.string()))
    elif _IS["string"](kind) and wanted in _CAST:
        try:
            values = values.cast(_CAST[wanted])
        except pa.ArrowInvalid:
            place = next(n for n, cell in enumerate(values) if not _reads(cell, _CAST[wanted]))
            return at(place, f"is not {_NAMES[wanted]}")
    elif not _IS[wanted](kind):
        return f": its type is {kind}, which is no {wanted}"
    for refused, complaint in _refusals(values, contract):
        place = pc.index(refused, True).as_py()
        if place >= 0:
            return at(place, complaint)
    return None


def _reads(cell: pa.Scalar, kind: pa.DataType) -> bool:
    try:
        cell.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _refusals(values: pa.Array, column: Mapping[str, Any]) -> Iterator[tuple[pa.Array, str]]:
    """Yield, for each rule of a column, which values break it and what is said of them."""
    slack = 0
    if column.get("required", True):
        yield values.is_null(), "is empty"
        yield values.is_null(nan_is_null=True), "is not a number"
    if pa.types.is_floating(values.type):
        yield pc.is_inf(values), "is no finite number"
        slack = SLACK
    if "minimum" in column:
        yield pc.less(values, column["minimum"] - slack), f"is less than {column['minimum']}"
    if "maximum" in column:
        yield pc.greater(values, column["maximum"] + slack), f"is more than {column['maximum']}"
    if "enum" in column:
        # None, as an empty cell, is judged by `required`.
        known = pc.is_in(values, value_set=pa.array([*column["enum"], None], values.type))
        yield pc.invert(known), f"is not one of {', '.join(column['enum'])}"


def _repeated(table: pa.Table, key: list[str]) -> str | None:
    counts = table.group_by(key).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    if not len(twice):
        return None
    row = twice.slice(0, 1).to_pylist()[0]
    first = ", ".join(f"{name} {row[name]!r:.60}" for name in key)
    return f"{first} stands in {row['count_all']} rows, and should in one"
