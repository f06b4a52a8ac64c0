"""What each table of a run holds: ``schemas/tables.yaml``, checked and printed.

``python -m headpursuit.run.contracts`` prints docs/columns.md; ``make docs`` writes it.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from headpursuit.run.files import ROOT

SCHEMA = ROOT / "schemas" / "tables.yaml"

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
_NAMES = {"integer": "a whole number", "boolean": "True or False"}


@cache
def contracts() -> list[Mapping[str, Any]]:
    """Return every kind of table: its files, columns and key."""
    return yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))["tables"]


def contract_of(path: str | Path, columns: Collection[str]) -> Mapping[str, Any] | None:
    """Return the contract of a run's table; None for other files.

    Args:
        path: of the table, whose end counts.
        columns: its columns: of two kinds of tables under one name, the likelier is taken.
    """
    found = [
        (template.count("/"), len(template), len({*columns} & {*contract["columns"]}), number)
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
        how = _other_columns(wanted, there)
        return [f"{how}; it has {', '.join(there)} and should have {', '.join(wanted)}"]
    broken = []
    columns = {}
    for name, column in contract["columns"].items():
        values = table[name].combine_chunks()
        complaint, columns[name] = _check_column(values, column)
        broken += [f"column {name}{complaint}"] if complaint else []
    if not broken and (repeated := _repeated(columns, contract.get("key"))):
        broken.append(repeated)
    return broken


def _other_columns(wanted: list[str], there: list[str]) -> str:
    if sorted(wanted) == sorted(there):
        return "its columns are in another order"
    missing = [name for name in wanted if name not in there]
    return f"it lacks {', '.join(missing)}" if missing else "it has further columns"


def _check_column(
    values: pa.Array, column: Mapping[str, Any], rows: pa.Array | None = None
) -> tuple[str, pa.Array]:
    """Return what is wrong with a column (nothing: empty), and its values in their type.

    Args:
        values: the column, or the items of all its lists.
        column: its contract.
        rows: of items, the row that each is in.
    """
    kind, wanted = values.type, column["type"]

    def at(place: int, complaint: str) -> tuple[str, pa.Array]:
        row = place if rows is None else rows[place].as_py()
        # repr: the value may be anything, control characters included.
        value = f"{values[place].as_py()!r:.60}" if values[place].is_valid else "it"
        return f", row {row + 1}: {value} {complaint}", values

    if pa.types.is_null(kind):  # every cell is empty
        lacks = len(values) and column.get("required", True)
        return at(0, "is empty") if lacks else ("", values)
    if _IS["string"](kind) and wanted in _CAST:
        try:
            values = values.cast(_CAST[wanted])
        except pa.ArrowInvalid:
            place = next(i for i, cell in enumerate(values) if not _casts(cell, _CAST[wanted]))
            return at(place, f"is not {_NAMES.get(wanted, f'a {wanted}')}")
    elif not _IS[wanted](kind):
        return f": its type is {kind}, which is no {wanted}", values
    if wanted == "array":
        items, parents = pc.list_flatten(values), pc.list_parent_indices(values)
        complaint = _check_column(items, column["items"], parents)[0]
        if complaint:
            return complaint, values
    for refused, complaint in _refusals(values, column):
        place = pc.index(refused, True).as_py()
        if place >= 0:
            return at(place, complaint)
    return "", values


def _casts(cell: pa.Scalar, kind: pa.DataType) -> bool:
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


def _repeated(columns: Mapping[str, pa.Array], key: list[str] | None) -> str | None:
    if not key:
        return None
    counts = (
        pa.table({name: columns[name] for name in key}).group_by(key).aggregate([([], "count_all")])
    )
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    if not len(twice):
        return None
    first = ", ".join(f"{name} {twice[name][0].as_py()!r:.60}" for name in key)
    return f"{first} stands in {twice['count_all'][0].as_py()} rows, and should in one"


# The documentation

HEADER = """# The columns of every table

What [files.md](files.md) lists as CSV or Parquet, under `results/<run>/`, and the paper's values in
`data/`. A table has exactly these columns, in this order; that is checked when it is written, and
again by `python -m headpursuit verify`. Cells of a CSV file are read in the types given here.
Where nothing else is said, every row has a value; an empty text is no value. Messages count rows
from 1, the heading apart. This file is generated from `schemas/tables.yaml` by `make docs`.
"""


def record() -> str:
    """Return the contracts as Markdown."""
    parts = [HEADER]
    for contract in contracts():
        parts.append(f"\n## {', '.join(f'`{file}`' for file in contract['files'])}\n")
        if "key" in contract:
            parts.append(
                f"One row for each {', '.join(f'`{name}`' for name in contract['key'])}.\n"
            )
        parts.append("| column | type | content |\n|---|---|---|")
        for name, column in contract["columns"].items():
            parts.append(f"| `{name}` | {_type(column)} | {column['description']} |")
    return "\n".join(parts) + "\n"


def _type(column: Mapping[str, Any]) -> str:
    if column["type"] == "array":
        return f"list of: {_type(column['items'])}"
    said = [column["type"]]
    if "enum" in column:
        said = [f"one of {', '.join(f'`{value}`' for value in column['enum'])}"]
    low, high = column.get("minimum"), column.get("maximum")
    if low is not None:
        said.append(f"from {low}" + ("" if high is None else f" to {high}"))
    if not column.get("required", True):
        said.append("may be empty")
    return "; ".join(said)


if __name__ == "__main__":
    print(record(), end="")
