"""Whatever a model writes, every format of a table keeps its shape."""

import csv
import re
from pathlib import Path

import pandas as pd
import pytest
from headpursuit import concepts, figure1, published, table1, table2
from headpursuit.contracts import contract_of
from headpursuit.tables import write_csv, write_latex, write_markdown

PLAIN = "plum"
HOSTILE = [
    "<script>alert(1)</script>",
    "</td></tr></table>",
    "| a | b |\n|---|---|",
    "\\end{tabular}\\input{/etc/passwd}",
    "50% & x \\\\ \\hline $y$ {z} #1 ^~_",
    "=cmd|' /C calc'!A0",
    "+1",
    "-2+3",
    "@SUM(A1:A9)",
    'a","b\r\nc',
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe",
    "![x](javascript:alert(1)) `code` **b**",
    "$\\href{x}{y}$",
]
DISPLAY = {
    "table1": table1.display,
    "table2": lambda table: table2.display(table, "iqr", 0.95),
    "figure1": lambda table: figure1.display(table, "sd", 0.95),
    "published": published.display,
    "concepts": concepts.display,
}


def example(name: str, text: str) -> pd.DataFrame:
    """Return rows of a table with a text in every cell that may hold any."""
    values = {"string": text, "integer": 3, "number": 0.5, "boolean": True}
    columns = contract_of(f"tables/{name}.csv")["columns"]
    row = {key: own.get("enum", [values[own["type"]]])[0] for key, own in columns.items()}
    methods = columns["method"]["enum"] if name == "table1" else [row.get("method")]
    return pd.DataFrame([row | {"method": method} for method in methods])[list(columns)]


def written(folder: Path, name: str, text: str) -> dict[str, str]:
    table, display = example(name, text), DISPLAY[name]
    write_csv(folder / f"tables/{name}.csv", table)
    write_markdown(folder / "t.md", display(table), f"Notes on {text}")
    write_latex(folder / "t.tex", display(table), f"Notes on {text}", "tab:t")
    return {
        "csv": (folder / f"tables/{name}.csv").read_text(encoding="utf-8"),
        "md": (folder / "t.md").read_text(encoding="utf-8"),
        "tex": (folder / "t.tex").read_text(encoding="utf-8"),
    }


def shape(files: dict[str, str]) -> dict[str, list]:
    """Return all that a reader of each format acts on."""
    # What an escape prints is text.
    text = {"%", "$", "#", "_", "{", "}", "&"}
    printed = r"\\text(backslash|asciitilde|asciicircum|less|greater|bar|visiblespace)\{\}"
    tex = re.sub(rf"{printed}|\\[{''.join(text)}]|\{{[\[\]*]\}}", "", files["tex"])
    return {
        "csv": [len(row) for row in csv.reader(files["csv"].splitlines(True))],
        "md": [len(re.findall(r"(?<!\\)[|`*_<>$\[\]]", line)) for line in files["md"].split("\n")],
        "tex": [re.findall(r"\\[a-zA-Z]+|\\\\|[&$%#^~{}\[\]]", line) for line in tex.split("\n")],
    }


@pytest.mark.parametrize("name", DISPLAY)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_changes_no_format(tmp_path: Path, name: str, text: str) -> None:
    plain = written(tmp_path, name, PLAIN)
    hostile = written(tmp_path, name, text)
    assert plain != hostile
    assert shape(hostile) == shape(plain)
    assert "\x1b" not in hostile["md"] + hostile["tex"]
    for row in csv.reader(hostile["csv"].splitlines(True)):
        assert not [cell for cell in row if re.match(r"[=+\-@\t\r]", cell)]
