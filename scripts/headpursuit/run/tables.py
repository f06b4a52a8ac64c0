"""Tables: CSV, and Markdown and LaTeX with every cell escaped."""

import csv
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape as escape_html
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from headpursuit.run.contracts import contract_of
from headpursuit.run.files import (
    UserError,
    atomic,
    check_table,
    plain,
    refuse_missing,
    write_text,
)

# How CSV cells of a contract's type are read; others are text. It stands here, since results depend
# on it, and contracts.py enters no hash.
TYPES = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
# Text that a spreadsheet would take for a formula, and text that looks as if guarded against it.
_FORMULA = r"'*[=+\-@]"
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {sign: f"{{{sign}}}" for sign in "[]*"}  # after a line's end they would be its arguments
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "␣": r"\textvisiblespace{}",
    }
)


def lay_out(path: str, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a table with its contract's columns, empty where a row lacks them."""
    table = pd.DataFrame(list(rows))
    columns = contract_of(path, table.columns)["columns"]
    optional = [name for name, own in columns.items() if not own.get("required", True)]
    integers = {name: "Int64" for name in optional if columns[name]["type"] == "integer"}
    return table.reindex(columns=list(columns)).astype(integers)


# CSV


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as UTF-8 CSV with the shortest digits that read back as the same number.

    Text that a spreadsheet would take for a formula gets an apostrophe before it, which
    :func:`read_csv` takes off again. Numbers are left alone.

    Raises:
        UserError: if the table breaks its contract; nothing is written.
    """
    text = table.select_dtypes(exclude=["number", "bool"])
    table = table.assign(**{name: text[name].map(_guard) for name in text})
    content = table.to_csv(index=False, lineterminator="\n")
    if "\r" in content:  # Python's writer does not quote it, and readers take it for a line's end
        content = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    check_table(path, read_cells(StringIO(content)))
    write_text(path, content)


def _guard(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and re.match(_FORMULA, cell) else cell


def read_cells(source: str | Path | StringIO) -> pa.Table:
    """Read a CSV file of :func:`write_csv` with every cell as text, None where it is empty."""
    cells = pd.read_csv(source, dtype=str, keep_default_na=False, na_values=[""], index_col=False)
    texts = {name: pa.array(column, pa.string()) for name, column in cells.items()}
    guarded = f"^'({_FORMULA})"
    return pa.table(
        {name: pc.replace_substring_regex(own, guarded, r"\1") for name, own in texts.items()}
    )


def read_csv(path: str | Path, columns: Collection[str] | None = None) -> pd.DataFrame:
    """Read a CSV file; its columns have the types of the table's contract, text where it has none.

    Empty cells are missing, an empty text among them; text such as "nan", "1" or "true" is text.

    Args:
        path: the file.
        columns: those that have to be there; None for all of the contract.

    Raises:
        UserError: if the file is empty, unreadable or lacks one of the columns.
    """
    try:
        cells = read_cells(path)
        known = (contract_of(path, cells.column_names) or {"columns": {}})["columns"]
        kinds = {name: TYPES.get(own["type"], pa.string()) for name, own in known.items()}
        types = [(name, kinds.get(name, pa.string())) for name in cells.column_names]
        table = cells.cast(pa.schema(types)).to_pandas()
    except ValueError as error:
        raise UserError(
            f"{path}: not a readable table ({error}). Delete it and run again."
        ) from error
    refuse_missing(path, known if columns is None else columns, list(table))
    return table


# Markdown, LaTeX, figures


def publish(
    path: str | Path, table: pd.DataFrame, shown: pd.DataFrame, notes: Iterable[str]
) -> None:
    """Write a table as CSV and, beside it, as text cells with notes as Markdown and LaTeX.

    ``path`` is the CSV file's; LaTeX's label is its name: ``tab:table2-tests``.
    """
    path, said = Path(path), " ".join(notes)
    write_csv(path, table)
    write_markdown(path.with_suffix(".md"), shown, said)
    label = f"tab:{path.stem.replace('.', '-')}"
    write_latex(path.with_suffix(".tex"), shown, said, label)


def write_markdown(path: str | Path, table: pd.DataFrame, notes: str) -> None:
    """Write a table of text cells as Markdown, with notes below it."""
    cells = table.map(escape_markdown).rename(columns=escape_markdown)
    body = cells.to_markdown(index=False, disable_numparse=True)
    # At the start of a line these would begin a heading, a list or a line across.
    below = re.sub(r"^(\d*)([#+=.)-])", r"\1\\\2", escape_markdown(notes))
    write_text(path, f"{body}\n\n{below}\n")


def escape_markdown(text: Any) -> str:
    """Escape what Markdown, or HTML inside of it, would act on."""
    return re.sub(r"([\\`*_|\[\]~$])", r"\\\1", escape_html(plain(text), quote=False))


def escape_latex(text: Any) -> str:
    """Escape what LaTeX would act on."""
    return plain(text).translate(_LATEX)


def write_latex(path: str | Path, table: pd.DataFrame, caption: str, label: str) -> None:
    """Write a table of text cells as LaTeX (booktabs), escaped."""
    latex = table.map(escape_latex).rename(columns=escape_latex).style.hide(axis="index")
    body = latex.to_latex(
        hrules=True, caption=escape_latex(caption), label=label, position_float="centering"
    )
    write_text(path, body)


def save_figure(figure, paths: Sequence[str | Path]) -> None:
    """Write a figure as pdf and png, without a date, so that equal numbers give equal bytes."""
    for path in paths:
        with atomic(path) as part:
            dateless = {"CreationDate": None} if str(path).endswith("pdf") else {"Software": None}
            figure.savefig(part, dpi=200, metadata=dateless)
