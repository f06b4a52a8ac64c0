import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headpursuit.files import UserError
from headpursuit.prompts import choose_prompts, read_rows, render_prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

# What a data set may hold and no step may change.
HOSTILE = [
    "plain",
    " spaces around ",
    "quotes \" and ' and , commas",
    "two\nlines\r\nand a half",
    "=cmd()",
    "\x1b[31mred",
    "<script>alert(1)</script> </s> <|end|>",
    "\\input{x} %d %s {prompt} {0} ${HOME} $(ls)",
    "nan",
    "null",
    "NA",
    "true",
    "123",
    "1e5",
    "-",
    "naïve 日本 👩‍👩‍👧 e\u0301 \u202egnp",
]


def rows(path: Path, column: str = "text", where: dict[str, Any] | None = None) -> list[Any]:
    return [value for _, value in read_rows([path], column, where)]


def save(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_csv(texts: list[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([("number", "text"), *enumerate(texts)])
    return out.getvalue()


def save_texts(folder: Path, suffix: str, texts: list[str]) -> Path:
    path = folder / f"data{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif suffix == ".csv":
        save(path, as_csv(texts))
    elif suffix == ".json":
        save(path, json.dumps([{"text": text} for text in texts]))
    else:
        save(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_text_is_read_as_it_stands(tmp_path: Path, suffix: str):
    assert rows(save_texts(tmp_path, suffix, HOSTILE)) == HOSTILE


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_suffixes_in_capitals(tmp_path: Path, suffix: str):
    path = save_texts(tmp_path, suffix, HOSTILE)
    assert rows(path.rename(path.with_suffix(suffix.upper()))) == HOSTILE


def test_text_files_give_lines(tmp_path: Path):
    path = save(tmp_path / "a.txt", "\ufeffone\r\n\r\n two \x1b[31m\u2028same line\nnan\n1")
    assert rows(path) == ["one", "", " two \x1b[31m\u2028same line", "nan", "1"]


@pytest.mark.parametrize(("mark", "end"), [("", "\n"), ("\ufeff", "\n"), ("\ufeff", "\r\n")])
def test_byte_order_marks_and_line_ends_are_no_text(tmp_path: Path, mark: str, end: str):
    for name, lines in {
        "a.txt": ["one", "two"],
        "a.csv": ["text,n", "one,1", "two,2"],
        "a.jsonl": ['{"text": "one"}', '{"text": "two"}'],
    }.items():
        path = save(tmp_path / name, mark + "".join(line + end for line in lines))
        assert rows(path) == ["one", "two"]


def test_rows_know_where_they_stand(tmp_path: Path):
    files = [save(tmp_path / "b.txt", "one\ntwo\n"), save(tmp_path / "a.txt", "three\n")]
    files.append(save(tmp_path / "README.md", "not data"))
    found = list(read_rows(files, "text", None))
    assert found == [("b.txt:1", "one"), ("b.txt:2", "two"), ("a.txt:1", "three")]


def test_nested_columns_and_filters(tmp_path: Path):
    records = [
        {"prompt": {"text": "a", "score": 0.5}, "hard": True, "kind": "x", "n": 1},
        {"prompt": {"text": "b", "score": None}, "hard": False, "kind": "y", "n": 2},
        {"prompt": {"text": "c", "score": 1}, "hard": None, "kind": "z", "n": 3},
    ]
    path = save(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)))
    assert rows(path, "prompt.text") == ["a", "b", "c"]
    assert rows(path, "prompt.text", {"hard": True}) == ["a"]
    assert rows(path, "prompt.text", {"hard": False}) == ["b"]
    assert rows(path, "prompt.text", {"kind": ["x", "z"]}) == ["a", "c"]
    assert rows(path, "prompt.text", {"kind": ["x", "z"], "n": 3}) == ["c"]
    assert rows(path, "prompt.text", {"prompt.score": 0.5}) == ["a"]
    assert rows(path, "prompt.text", {"kind": "xyz"}) == []


def test_a_column_with_a_dot_in_its_name_goes_first(tmp_path: Path):
    pq.write_table(pa.table({"a.b": ["flat"], "a": [{"b": "deep"}]}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet", "a.b") == ["flat"]


def test_numbers_in_other_csv_columns_are_numbers(tmp_path: Path):
    path = save(tmp_path / "a.csv", "text,n,ok\n1,1,True\n2,2,False\n3,2,True\n")
    assert rows(path, "text", {"n": 2, "ok": True}) == ["3"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_a_missing_column_is_named_with_those_there(tmp_path: Path, name: str):
    path = save_texts(tmp_path, Path(name).suffix, ["x"])
    for column, where in (("texts", None), ("text", {"texts": 1}), ("text.texts", None)):
        with pytest.raises(UserError, match=r"no column 'text.*'; it has .*text"):
            rows(path, column, where)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latin.jsonl", b'{"text": "caf\xe9"}\n'),
        ("latin.csv", b"text\ncaf\xe9\n"),
        ("latin.txt", b"caf\xe9\n"),
        ("torn.jsonl", b'{"text": "a"}\n{"tex'),
        ("torn.parquet", b"PAR1torn"),
        ("empty.parquet", b"PAR1"),
        ("ragged.csv", b"text,n\na,1\nb,2,3\n"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes):
    with pytest.raises(UserError, match=name.replace(".", r"\.") + ": not readable as"):
        rows(save(tmp_path / name, content))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json", "a.parquet"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str):
    assert rows(save(tmp_path / name, b"")) == []


def test_no_readable_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"No \.jsonl.*among.*weights\.bin"):
        rows(save(tmp_path / "weights.bin", b""))


# Choosing


def numbered(n: int) -> list[tuple[str, str]]:
    return [(f"a.txt:{i + 1}", f"prompt {i}") for i in range(n)]


def test_all_prompts_keep_order_and_source():
    table = choose_prompts(numbered(3), None, 0, "rtp")
    assert table.to_pydict() == {
        "prompt_id": ["rtp-000000", "rtp-000001", "rtp-000002"],
        "text": ["prompt 0", "prompt 1", "prompt 2"],
        "source": ["a.txt:1", "a.txt:2", "a.txt:3"],
    }


def test_empty_and_repeated_prompts_go(caplog: pytest.LogCaptureFixture):
    pairs = [("a:1", "x"), ("a:2", ""), ("a:3", "x"), ("a:4", None), ("a:5", " \n"), ("a:6", "y")]
    with caplog.at_level(logging.INFO):
        table = choose_prompts(pairs, None, 0, "rtp")
    assert table["source"].to_pylist() == ["a:1", "a:6"]
    assert "dropped 4" in caplog.text


@given(st.integers(1, 60), st.data())
def test_a_sample_is_a_subset_in_order(n: int, data: st.DataObject):
    size = data.draw(st.integers(1, n))
    table = choose_prompts(numbered(n), size, 0, "rtp")
    chosen = [int(text.split()[1]) for text in table["text"].to_pylist()]
    assert len(chosen) == size
    assert chosen == sorted(set(chosen))
    assert table["prompt_id"].to_pylist() == [f"rtp-{i:06d}" for i in chosen]


def test_a_sample_depends_on_seed_and_data_set():
    def chosen(seed: int, dataset: str) -> tuple[str, ...]:
        return tuple(choose_prompts(numbered(100), 20, seed, dataset)["text"].to_pylist())

    assert chosen(0, "rtp") == chosen(0, "rtp")
    assert len({chosen(0, "rtp"), chosen(1, "rtp"), chosen(0, "tet")}) == 3


@pytest.mark.parametrize(("there", "asked"), [(0, None), (0, 1), (3, 4)])
def test_too_few_prompts(there: int, asked: int | None):
    with pytest.raises(UserError, match=rf"datasets\.rtp: {there} prompts are there"):
        choose_prompts(numbered(there), asked, 0, "rtp")


# Rendering


def one(text: str) -> pa.Table:
    return choose_prompts([("a.txt:1", text)], None, 0, "rtp")


def test_a_template_s_other_braces_are_text(tokenizer):
    template = "{'a': {prompt}} {0} {} {prompt}"
    table = render_prompts(one("{prompt} {x}"), template, tokenizer, False, None)
    assert table["rendered"].to_pylist() == ["{'a': {prompt} {x}} {0} {} {prompt} {x}"]
    assert table["text"].to_pylist() == ["{prompt} {x}"]


TOKENIZER = make_tokenizer()


@settings(max_examples=50)
@given(st.sampled_from(HOSTILE) | st.text(min_size=1).filter(str.strip))
def test_what_the_model_reads_is_what_is_stored(text: str):
    if "<|" in text:
        return  # the tokenizer's own marks
    table = render_prompts(one(text), "say {prompt}", TOKENIZER, False, None)
    ids = table["token_ids"].to_pylist()[0]
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(ids[1:]) == table["rendered"].to_pylist()[0] == f"say {text}"


def test_a_chat_template_writes_its_own_marks(tokenizer):
    table = render_prompts(one("river"), "Name a {prompt}", tokenizer, True, None)
    expected = "<|start|>user\nName a river<|end|>\n<|start|>assistant\n"
    assert table["rendered"].to_pylist() == [expected]
    ids = table["token_ids"].to_pylist()[0]
    assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert tokenizer.bos_token_id not in ids  # this template has none


def test_a_lacking_chat_template_is_said():
    with pytest.raises(UserError, match="no chat template"):
        render_prompts(one("x"), "{prompt}", make_tokenizer(chat=False), True, None)


def test_a_prompt_too_long_is_named(tokenizer):
    table = one("apple " * 10)
    n = len(render_prompts(table, "{prompt}", tokenizer, False, None)["token_ids"][0])
    render_prompts(table, "{prompt}", tokenizer, False, n)
    with pytest.raises(UserError, match=rf"rtp-000000 \(a\.txt:1\) has {n} tokens"):
        render_prompts(table, "{prompt}", tokenizer, False, n - 1)
