"""Tables: CSV, and Markdown and LaTeX with every cell escaped."""

import re
from collections.abc import Sequence
from html import escape as escape_html
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from headpursuit.files import UserError, atomic, check_table, plain, write_text

# Columns whose cells are text even where they look like numbers or truth values.
_TEXT = ("word", "form", "token", "tokens", "atoms", "split")

# Text that a spreadsheet would take for a formula, and text that looks as if guarded against it.
_FORMULA = re.compile(r"'*[=+\-@]")
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


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as UTF-8 CSV with the shortest digits that read back as the same number.

    Text that a spreadsheet would take for a formula gets an apostrophe before it, which
    :func:`read_csv` takes off again. Numbers are left alone.

    Raises:
        UserError: if the table breaks its contract; nothing is written.
    """
    text = _map_text(table, _guard).to_csv(index=False, lineterminator="\n")
    check_table(path, read_cells(StringIO(text)))
    write_text(path, text)


def read_cells(source: str | Path | StringIO) -> pa.Table:
    """Read a CSV file with every cell as text, None where it is empty."""
    cells = pd.read_csv(source, dtype=str, keep_default_na=False, na_values=[""], index_col=False)
    return pa.table({name: pa.array(column, pa.string()) for name, column in cells.items()})


def _map_text(table: pd.DataFrame, change) -> pd.DataFrame:
    text = table.select_dtypes(exclude=["number", "bool"])
    return table.assign(**{name: text[name].map(change) for name in text})


def _guard(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _unguard(cell: Any) -> Any:
    guarded = isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell)
    return cell[1:] if guarded else cell


def read_csv(path: str | Path, columns: list[str]) -> pd.DataFrame:
    """Read a CSV file; text such as "nan" or "null" stays text, only empty cells are missing.

    Raises:
        UserError: if the file is empty, unreadable or lacks one of the columns.
    """
    try:
        table = pd.read_csv(
            path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(_TEXT, str)
        )
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a readable table ({error}). Delete it and run again."
        ) from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(map(str, table))}. "
            "Delete it and run again."
        )
    return _map_text(table, _unguard)


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
