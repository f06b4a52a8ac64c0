"""Tables: CSV, and Markdown and LaTeX with every cell escaped."""

from pathlib import Path

import pandas as pd

from headpursuit.files import UserError, write_text

# Columns whose cells are text even where they look like numbers or truth values.
_TEXT = ("word", "form", "token", "atoms", "split")


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as UTF-8 CSV with the shortest digits that read back as the same number."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


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
    return table


def write_markdown(path: str | Path, table: pd.DataFrame, notes: str) -> None:
    """Write a table of text cells as Markdown, with notes below it."""
    cells = table.map(escape_markdown)
    body = cells.to_markdown(index=False, disable_numparse=True)
    write_text(path, f"{body}\n\n{notes}\n")


def escape_markdown(text: str) -> str:
    """Escape what Markdown, or HTML inside of it, would act on."""
    text = " ".join(str(text).split())
    for sign in "\\`*_|<>[]":
        text = text.replace(sign, f"\\{sign}" if sign not in "<>" else f"&{'lg'[sign == '>']}t;")
    return text


def write_latex(path: str | Path, table: pd.DataFrame, caption: str, label: str) -> None:
    """Write a table of text cells as LaTeX (booktabs), escaped."""
    latex = (
        table.style.hide(axis="index")
        .format(escape="latex")
        .format_index(escape="latex", axis="columns")
    )
    body = latex.to_latex(hrules=True, caption=caption, label=label, position_float="centering")
    write_text(path, body)
