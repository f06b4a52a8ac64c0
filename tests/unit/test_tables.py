"""Tables read back as they were, and no text in them acts on CSV, Markdown or LaTeX."""

import csv
import re
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from headpursuit.method.words import tidy_word
from headpursuit.run.contracts import contracts, violations
from headpursuit.run.files import UserError, plain
from headpursuit.run.tables import publish, read_cells, read_csv, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

HOSTILE = [
    "=cmd|' /C calc'!A0",
    *("+1", "-1", "@sum(a1)", "'=x", "''=x", "'x", '"', "a,b", 'a","b\r\nc', "a;b"),
    "<script>alert(1)</script>",
    "</td></tr></table>",
    "&lt;b&gt;",
    "| a | b |\n|---|---|",
    "![x](javascript:alert(1))",
    "`code` **b** _i_ ~s~ $m$",
    "\\end{tabular}\\input{/etc/passwd} \\\\ \\hline",
    "50% & #1 {y} ^2 _z $\\href{x}{y}$",
    "[3cm] *",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe",
    "日本 é 👩‍👩‍👧",
]
TYPED = [*HOSTILE, "nan", "null", "None", "NA", "N/A", "true", "false", "007", "0", "1.0", "1e5"]
TYPED += ["1_000", "inf", "2026-01-01", "'", "''", "'=1", "''-1", " a ", "a\rb", "\r\n", "\tx"]
TYPED += ["\x00", "\ufeffa", '""']


# CSV

TABLES = [own for own in contracts() if any(file.endswith(".csv") for file in own["files"])]
KINDS = {"integer": "i", "number": "f", "boolean": "b"}


def cells(column: dict) -> st.SearchStrategy:
    """Cells that a column's contract allows."""
    low, high = column.get("minimum"), column.get("maximum")
    anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    texts = column.get("enum", TYPED)
    allowed = {
        "string": st.sampled_from(texts) | (st.nothing() if "enum" in column else anything),
        "integer": st.integers(-(2**53) if low is None else low, 2**53),
        "number": st.floats(low, high, allow_nan=False, allow_infinity=False),
        "boolean": st.booleans(),
    }[column["type"]]
    return allowed if column.get("required", True) else st.none() | allowed


@st.composite
def example(draw) -> tuple[str, dict, list[dict]]:
    """A path of a table, its columns, and rows."""
    contract = draw(st.sampled_from(TABLES))
    columns = contract["columns"]
    row = st.fixed_dictionaries({name: cells(column) for name, column in columns.items()})
    key = contract.get("key", columns)
    rows = st.lists(row, max_size=3, unique_by=lambda own: tuple(own[name] for name in key))
    path = draw(st.sampled_from([file for file in contract["files"] if file.endswith(".csv")]))
    return re.sub(r"\{\w+\}", "x", path), columns, draw(rows)


@settings(max_examples=settings().max_examples // 4)
@given(example())
def test_every_table_reads_back_as_it_was(drawn: tuple[str, dict, list[dict]]):
    name, columns, rows = drawn
    integers = [name for name, own in columns.items() if own["type"] == "integer"]
    table = pd.DataFrame(rows, columns=list(columns)).astype(dict.fromkeys(integers, "Int64"))
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_csv(path, table)
        back, written = read_csv(path), read_cells(path)
        assert violations(path, written) == []
    assert back.astype(object).where(back.notna(), None).to_dict("records") == rows
    for name, own in columns.items():
        cells, there = written[name].to_pylist(), [row[name] for row in rows]
        assert [cell is None for cell in cells] == [value is None for value in there]
        if own["type"] == "string":
            assert cells == there
        elif own.get("required", True) and rows:
            assert back[name].dtype.kind == KINDS[own["type"]]


def test_text_stays_text_to_every_reader(tmp_path: Path):
    """Of a table without a contract; and no cell is a formula to a spreadsheet."""
    path = tmp_path / "w.csv"
    write_csv(path, pd.DataFrame({"name": TYPED, "n": [-1.5] * len(TYPED)}))
    back = read_csv(path, ["name"])
    assert list(back["name"]) == TYPED
    assert set(back["n"]) == {"-1.5"}  # a number stays one, without an apostrophe
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))
    assert [len(row) for row in rows] == [2] * (len(TYPED) + 1)
    assert not [row for row in rows if row[0][0] in "=+-@"]


@given(st.lists(st.text(max_size=8).map(tidy_word).filter(bool), min_size=1, max_size=5))
def test_no_word_moves_a_terminal_s_cursor(words: list[str]):
    with TemporaryDirectory() as folder:
        path = Path(folder, "w.csv")
        write_csv(path, pd.DataFrame({"word": words, "form": [f" {word}" for word in words]}))
        content = path.read_text(encoding="utf-8").replace("\n", "")
    assert not any(unicodedata.category(char) == "Cc" for char in content)


def test_missing_values_are_empty_cells(tmp_path: Path):
    table = pd.DataFrame(
        {"word": ["a", "nan"], "value": [np.nan, 1.5], "source": [None, ""], "n": [1, 2]}
    )
    write_csv(tmp_path / "m.csv", table)
    assert (tmp_path / "m.csv").read_text() == "word,value,source,n\na,,,1\nnan,1.5,,2\n"
    back = read_csv(tmp_path / "m.csv", list(table))
    assert back["value"].isna().tolist() == [True, False]
    assert back["source"].isna().tolist() == [True, True]


@pytest.mark.parametrize(
    ("content", "columns", "said"),
    [
        (b"", ["word"], "not a readable table"),
        (b"a,b\n1,2,3\n4,5,6,7\n", ["word"], "not a readable table"),
        (b"word\ncaf\xe9\n", ["word"], "not a readable table"),
        (b"words,count\na,1\n", ["word"], "no column word; it has words, count"),
        (b"condition,layer\nx,1\n", None, "no column head; it has condition, layer"),
        (b"condition,layer,head\nrandom-k1,0,first\n", None, "not a readable table .*'first'"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, content: bytes, columns, said: str):
    path = tmp_path / "heads/x/random.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"(?s)x/random.csv: {said}.*Delete (it|the file) and"):
        read_csv(path, columns)


# Markdown and LaTeX; tests/unit/test_fuzz.py tries the escapes on any text.

ARGUMENTLESS = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^"}
ARGUMENTLESS |= {"textvisiblespace": "␣"}
ARGUMENTLESS |= {"textless": "<", "textgreater": ">", "textbar": "|"}


def typeset(latex: str) -> str:
    """Read back what LaTeX would print, refusing whatever it would act on."""
    out, at = "", 0
    while at < len(latex):
        if command := re.match(r"\\(text[a-z]+)\{\}", latex[at:]):
            out += ARGUMENTLESS[command[1]]
            at += command.end()
        elif sign := re.match(r"\\([&%$#_{}])|\{([\[\]*])\}", latex[at:]):
            out += sign[1] or sign[2]
            at += sign.end()
        else:
            assert latex[at] not in "\\&%$#_{}~^<>|[]*", latex[at:]
            out += latex[at]
            at += 1
    return out


def published_files(folder: Path, text: str) -> dict[str, str]:
    """Publish a table with a text as a cell, as a column's name and in the notes."""
    table = pd.DataFrame({"token": [text, "x"], "n": [3, -1.5]})
    publish(folder / "t.csv", table, table.astype(str).rename(columns={"n": text}), ["On", text])
    return {end: (folder / f"t.{end}").read_text(encoding="utf-8") for end in ("csv", "md", "tex")}


def shape(files: dict[str, str]) -> dict[str, list]:
    """Return all that a reader of each format acts on."""
    printed = r"\\text(backslash|asciitilde|asciicircum|less|greater|bar|visiblespace)\{\}"
    tex = re.sub(rf"{printed}|\\[%$#_{{}}&]|\{{[\[\]*]\}}", "", files["tex"])
    return {
        "csv": [len(row) for row in csv.reader(files["csv"].splitlines(True))],
        "md": [len(re.findall(r"(?<!\\)[|`*_<>$\[\]]", line)) for line in files["md"].split("\n")],
        "tex": [re.findall(r"\\[a-zA-Z]+|\\\\|[&$%#^~{}\[\]]", line) for line in tex.split("\n")],
    }


def test_a_hostile_text_changes_no_format(tmp_path: Path):
    usual = published_files(tmp_path, "plum")
    for text in HOSTILE:
        hostile = published_files(tmp_path, text)
        assert usual != hostile
        assert shape(hostile) == shape(usual), text
        assert "\x1b" not in hostile["md"] + hostile["tex"]
        line = hostile["tex"].split("\\midrule\n")[1].splitlines()[0]
        assert typeset(re.split(r"(?<!\\)&", line)[0].strip()) == plain(text)
