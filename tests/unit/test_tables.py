import csv
import html
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from headpursuit.files import UserError
from headpursuit.tables import (
    escape_latex,
    escape_markdown,
    plain,
    read_csv,
    write_csv,
    write_latex,
    write_markdown,
)
from headpursuit.words import tidy_word
from hypothesis import given
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


def texts(path: Path) -> list[str]:
    return list(read_csv(path, ["word"])["word"])


# CSV


def test_hostile_words_read_back_exactly(tmp_path: Path):
    path = tmp_path / "w.csv"
    table = pd.DataFrame({"word": HOSTILE, "count": range(len(HOSTILE))})
    write_csv(path, table)
    assert texts(path) == HOSTILE
    write_csv(path, read_csv(path, ["word", "count"]))
    assert texts(path) == HOSTILE


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
def test_any_word_reads_back_exactly(tmp_path_factory, words: list[str]):
    path = tmp_path_factory.mktemp("t") / "w.csv"
    write_csv(path, pd.DataFrame({"word": words, "form": [f" {word}" for word in words]}))
    assert texts(path) == words
    assert list(read_csv(path, [])["form"]) == [f" {word}" for word in words]
    # Nothing that moves a terminal's cursor.
    content = path.read_text(encoding="utf-8").replace("\n", "")
    assert not any(unicodedata.category(char) == "Cc" for char in content)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_numbers_read_back_to_the_last_bit(tmp_path_factory, values: list[float]):
    path = tmp_path_factory.mktemp("t") / "n.csv"
    write_csv(path, pd.DataFrame({"value": values}))
    assert np.array_equal(read_csv(path, ["value"])["value"].astype(float), values)


def test_missing_values_are_empty_cells(tmp_path: Path):
    table = pd.DataFrame(
        {"word": ["a", "nan"], "value": [np.nan, 1.5], "source": [None, "seed"], "n": [1, 2]}
    )
    write_csv(tmp_path / "m.csv", table)
    assert (tmp_path / "m.csv").read_text() == "word,value,source,n\na,,,1\nnan,1.5,seed,2\n"
    back = read_csv(tmp_path / "m.csv", list(table))
    assert back["value"].isna().tolist() == [True, False]
    assert back["source"].isna().tolist() == [True, False]
    assert list(back["word"]) == ["a", "nan"]
    assert list(back["n"]) == [1, 2]


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
