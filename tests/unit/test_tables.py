import csv
import html
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from headpursuit.method.words import tidy_word
from headpursuit.run.contracts import contracts, violations
from headpursuit.run.files import UserError
from headpursuit.run.tables import (
    escape_latex,
    escape_markdown,
    plain,
    read_cells,
    read_csv,
    write_csv,
    write_latex,
    write_markdown,
)
from hypothesis import given, settings
from hypothesis import strategies as st

HOSTILE = [
    "=cmd()",
    "+1",
    "-1",
    "@sum(a1)",
    "'=x",
    "''=x",
    "'x",
    "nan",
    "null",
    "None",
    "true",
    "1",
    "1e5",
    '"',
    "a,b",
    "a;b",
    "<script>alert(1)</script>",
    "&lt;b&gt;",
    "| a | b |",
    "[x](http://y)",
    "`code` *b* _i_ ~s~ $m$",
    "\\input{x} \\\\",
    "50% & #1 {y} ^2 _z",
    "[3cm] *",
    "日本 é 👩‍👩‍👧",
]


# CSV

TYPED = [*HOSTILE, "NA", "N/A", "None", "false", "007", "0", "1.0", "1_000", "inf", "2026-01-01"]
TYPED += ["=1+1", "'", "''", "'=1", "''-1", " a ", "a\rb", "\r\n", "\tx", "\x00", "\ufeffa", '""']
TABLES = [own for own in contracts() if any(file.endswith(".csv") for file in own["files"])]


def cells(column: dict) -> st.SearchStrategy:
    """Cells that a column's contract allows."""
    low, high = column.get("minimum"), column.get("maximum")
    anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    allowed = {
        "string": st.sampled_from(column.get("enum", TYPED))
        | (st.nothing() if "enum" in column else anything),
        "integer": st.integers(-(2**53) if low is None else low, 2**53),
        "number": st.floats(low, high, allow_nan=False, allow_infinity=False),
        "boolean": st.booleans(),
    }[column["type"]]
    return allowed if column.get("required", True) else st.none() | allowed


def example(contract: dict) -> st.SearchStrategy:
    """A path of a table and its rows."""
    columns = contract["columns"]
    rows = st.lists(
        st.fixed_dictionaries({name: cells(column) for name, column in columns.items()}),
        max_size=3,
        unique_by=lambda row: tuple(row[name] for name in contract.get("key", columns)),
    )
    paths = [re.sub(r"\{\w+\}", "x", file) for file in contract["files"] if file.endswith(".csv")]
    return st.tuples(st.sampled_from(paths), rows)


@pytest.mark.parametrize("contract", TABLES, ids=lambda own: own["files"][0])
@settings(max_examples=settings().max_examples // 5)
@given(st.data())
def test_every_table_reads_back_as_it_was(tmp_path_factory, contract: dict, data):
    path, rows = data.draw(example(contract))
    path = tmp_path_factory.mktemp("t") / path
    integers = [name for name, own in contract["columns"].items() if own["type"] == "integer"]
    table = pd.DataFrame(rows, columns=list(contract["columns"])).astype(
        dict.fromkeys(integers, "Int64")
    )
    write_csv(path, table)
    back = read_csv(path, list(table))
    assert back.astype(object).where(back.notna(), None).to_dict("records") == rows
    for name, own in contract["columns"].items():
        written, there = read_cells(path)[name].to_pylist(), [row[name] for row in rows]
        assert [cell is None for cell in written] == [value is None for value in there]
        if own["type"] == "string":
            assert written == there
        elif own.get("required", True) and rows:
            assert (
                back[name].dtype.kind
                == {"integer": "i", "number": "f", "boolean": "b"}[own["type"]]
            )
    assert violations(path, read_cells(path)) == []


def test_a_table_of_no_contract_is_text(tmp_path: Path):
    path = tmp_path / "w.csv"
    write_csv(path, pd.DataFrame({"name": TYPED, "n": range(len(TYPED))}))
    back = read_csv(path, ["name"])
    assert list(back["name"]) == TYPED
    assert list(back["n"]) == [str(n) for n in range(len(TYPED))]


def test_no_cell_is_a_formula_to_a_spreadsheet(tmp_path: Path):
    path = tmp_path / "w.csv"
    numbers = [-1.5] * len(HOSTILE)
    write_csv(path, pd.DataFrame({"word": HOSTILE, "value": numbers, "note": HOSTILE}))
    with path.open(encoding="utf-8", newline="") as handle:
        for row in list(csv.DictReader(handle)):
            assert row["word"][0] not in "=+-@\t\r"
            assert row["note"] == row["word"]
            assert row["value"] == "-1.5"  # a number stays one


@given(st.lists(st.text(max_size=8).map(tidy_word).filter(bool), min_size=1, max_size=5))
def test_no_word_moves_a_terminal_s_cursor(tmp_path_factory, words: list[str]):
    path = tmp_path_factory.mktemp("t") / "w.csv"
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
    assert list(back["word"]) == ["a", "nan"]


def test_a_required_text_is_never_empty(tmp_path: Path):
    table = pd.DataFrame({"word": [""], "count": [1], "rank": [1], "split": ["heldout"]})
    with pytest.raises(UserError, match="column word, row 1: it is empty"):
        write_csv(tmp_path / "words/x.csv", table)


def test_every_other_reader_sees_the_same_rows(tmp_path: Path):
    write_csv(tmp_path / "t.csv", pd.DataFrame({"name": TYPED, "n": range(len(TYPED))}))
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))
    assert [len(row) for row in rows] == [2] * (len(TYPED) + 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a readable table"),
        (b"a,b\n1,2,3\n4,5,6,7\n", "not a readable table"),
        (b"word\ncaf\xe9\n", "not a readable table"),
        (b"words,count\na,1\n", "no column word; it has words, count"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, content: bytes, said: str):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_csv(tmp_path / "t.csv", ["word"])


def test_a_cell_of_another_type_is_named(tmp_path: Path):
    (tmp_path / "heads/x").mkdir(parents=True)
    (tmp_path / "heads/x/random.csv").write_text("condition,layer,head\nrandom-k1-d00,0,first\n")
    with pytest.raises(UserError, match=r"heads/x/random.csv: not a readable table .*'first'"):
        read_csv(tmp_path / "heads/x/random.csv", ["layer"])


# Markdown and LaTeX

HARD = [*HOSTILE, "two\n\nlines", "\x1b[31mred\x1b[0m", "tab\there", "\u202egnp.exe", "", "\x00"]


@given(st.text(max_size=30) | st.sampled_from(HARD))
def test_a_plain_text_is_one_line_of_visible_signs(text: str):
    line = plain(text)
    assert plain(line) == line
    assert not any(unicodedata.category(char) == "Cc" for char in line)
    assert "\u202e" not in line


@given(st.text(max_size=30) | st.sampled_from(HARD))
def test_markdown_shows_the_text_and_does_nothing_else(text: str):
    escaped = escape_markdown(text)
    assert not re.search(r"[<>]", escaped)
    # Every sign that Markdown acts on stands behind a backslash.
    rest = re.sub(r"\\[\\`*_|\[\]~$]", "", escaped)
    assert not re.search(r"[\\`*_|\[\]~$]", rest)
    assert not re.search(r"&(?!(amp|lt|gt);)", rest)
    shown = html.unescape(re.sub(r"\\([\\`*_|\[\]~$])", r"\1", escaped))
    assert shown == plain(text)


def test_a_markdown_table_keeps_its_shape(tmp_path: Path):
    table = pd.DataFrame({"word": HARD, "other": HARD[::-1]})
    write_markdown(tmp_path / "t.md", table, "A *note* with <b>")
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").split("\n")
    body, rest = lines[: len(HARD) + 2], lines[len(HARD) + 2 :]
    assert rest == ["", r"A \*note\* with &lt;b&gt;", ""]
    for line in body:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3, line
    cells = [re.split(r"(?<!\\)\|", line)[1].strip() for line in body[2:]]
    assert cells == [escape_markdown(text).strip() for text in HARD]


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


@given(st.text(max_size=30) | st.sampled_from(HARD))
def test_latex_prints_the_text_and_does_nothing_else(text: str):
    assert typeset(escape_latex(text)) == plain(text)


def test_a_latex_table_keeps_its_shape(tmp_path: Path):
    table = pd.DataFrame({"a_b [95%]": HARD, "other": HARD[::-1]})
    write_latex(tmp_path / "t.tex", table, "95% of {x} & y_z", "tab:t")
    content = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert "\\caption{95\\% of \\{x\\} \\& y\\_z}" in content
    assert "\\label{tab:t}" in content
    assert "a\\_b {[}95\\%{]} & other \\\\" in content
    body = content.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert len(body) == len(HARD)
    for line, first, second in zip(body, HARD, HARD[::-1], strict=True):
        assert line.endswith(" \\\\")
        cells = re.split(r"(?<!\\)&", line.removesuffix("\\\\"))
        assert [typeset(cell.strip()) for cell in cells] == [
            *(plain(text).strip() for text in (first, second))
        ]
