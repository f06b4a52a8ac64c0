"""Whatever a model writes, every format of a table keeps its shape."""

import csv
import re
from pathlib import Path

import pandas as pd
import pytest
from headpursuit.publish import overlap, published, ratio, table1
from headpursuit.run.contracts import contract_of
from headpursuit.run.tables import write_csv, write_latex, write_markdown

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
# Each kind of table: its file, a column that it alone has, and how it is shown.
KINDS = {
    "table1": ("table1", "coherence_p", table1.display),
    "ratios": ("table2", "heads_from", lambda table: ratio.display(table, "iqr", 0.95)),
    "overlap": ("figure4.overlap", "jaccard", overlap.display),
    "published": ("published", "artefact", published.display),
}


def example(kind: str, text: str) -> pd.DataFrame:
    """Return rows of a table with a text in every cell that may hold any."""
    values = {"string": text, "integer": 3, "number": 0.5, "boolean": True}
    file, column, _ = KINDS[kind]
    columns = contract_of(f"tables/{file}.csv", [column])["columns"]
    row = {key: own.get("enum", [values[own["type"]]])[0] for key, own in columns.items()}
    methods = columns["method"]["enum"] if kind == "table1" else [row.get("method")]
    return pd.DataFrame([row | {"method": method} for method in methods])[list(columns)]


def written(folder: Path, kind: str, text: str) -> dict[str, str]:
    table, (file, _, display) = example(kind, text), KINDS[kind]
    paths = {"csv": folder / f"tables/{file}.csv", "md": folder / "t.md", "tex": folder / "t.tex"}
    write_csv(paths["csv"], table)
    write_markdown(paths["md"], display(table), f"Notes on {text}")
    write_latex(paths["tex"], display(table), f"Notes on {text}", "tab:t")
    return {key: path.read_text(encoding="utf-8") for key, path in paths.items()}


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_changes_no_format(tmp_path: Path, kind: str, text: str) -> None:
    plain = written(tmp_path, kind, PLAIN)
    hostile = written(tmp_path, kind, text)
    assert plain != hostile
    assert shape(hostile) == shape(plain)
    assert "\x1b" not in hostile["md"] + hostile["tex"]
    for row in csv.reader(hostile["csv"].splitlines(True)):
        assert not [cell for cell in row if re.match(r"[=+\-@\t\r]", cell)]
