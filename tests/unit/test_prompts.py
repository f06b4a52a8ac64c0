import csv
import errno
import io
import json
import logging
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headpursuit.data.images import read_images
from headpursuit.data.prompts import read_rows, render_prompts, sample_prompts, unique_prompts
from headpursuit.run.files import UserError
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEMPLATES, make_asking, make_tokenizer
from tokenizers.processors import ByteLevel

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
    *("nan", "null", "NA", "true", "123", "1e5", "-"),
    "naïve 日本 👩‍👩‍👧 e\u0301 \u202egnp",
]
DATES = ["2020-01-01", "2021-02-03 04:05:06"]
SUFFIXES = [".jsonl", ".json", ".csv", ".parquet"]


def rows(path: Path, column: str = "text", where: dict[str, Any] | None = None) -> list[Any]:
    spec = {"text": column, "where": where}
    return [value for _, value in read_rows([path], spec, "samples.rtp")]


def save(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def save_texts(folder: Path, suffix: str, texts: list[Any]) -> Path:
    path, records = folder / f"data{suffix}", [{"text": text} for text in texts]
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif suffix == ".csv":
        out = io.StringIO()
        csv.writer(out).writerows([("number", "text"), *enumerate(texts)])
        save(path, out.getvalue())
    else:
        lines = "\n".join(map(json.dumps, records))
        save(path, json.dumps(records) if suffix == ".json" else lines)
    return path


@pytest.mark.parametrize("texts", [HOSTILE, DATES], ids=["hostile", "dates"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_is_read_as_it_stands(tmp_path: Path, suffix: str, texts: list[str]):
    path = save_texts(tmp_path, suffix, texts)
    assert rows(path) == texts
    assert rows(path.rename(path.with_suffix(suffix.upper()))) == texts


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.txt", "\ufeffone\r\n\r\n two \x1b[31m\u2028same line\nnan\n1",
         ["one", "", " two \x1b[31m\u2028same line", "nan", "1"]),
        ("a.csv", "\ufefftext,n\r\none,1\r\ntwo,2\r\n", ["one", "two"]),
        ("a.jsonl", '\ufeff{"text": "one"}\r\n\r\n{"text": "two"}\r\n', ["one", "two"]),
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n{"b": 1}\n', ["a", "", ""]),
        ("a.json", '\ufeff[{"text": "one"},\n {"b": 1},\n "two"]', ["one", "", "two"]),
        ("a.csv", 'text,n,n\n"one"1,2,3\n"two",\n', ["one1", "two"]),
        ("a.json", '\n{\n "text": "one",\n "b": {}\n}\n', ["one"]),
        ("a.json", '{"b": {"c": 1},\n"text": "one"}', ["one"]),
        ("a.json", '[\n  {"text": "one"},\n  "two"\n]\n', ["one", "two"]),
        *((f"empty{suffix}", "", []) for suffix in (".txt", ".jsonl", ".json", ".csv")),
    ],
)  # fmt: skip
def test_marks_and_line_ends_are_no_text_and_nothing_is_empty(tmp_path, name, content, found):
    assert rows(save(tmp_path / name, content)) == found


def test_rows_know_where_they_stand(tmp_path: Path):
    files = [save(tmp_path / "b.txt", "one\ntwo\n"), save(tmp_path / "a.txt", "three\n")]
    other = save(tmp_path / "README.md", "not data")
    found = list(read_rows([*files, other], {"text": "text"}, "samples.rtp"))
    assert found == [("b.txt:1", "one"), ("b.txt:2", "two"), ("a.txt:1", "three")]
    with pytest.raises(UserError, match=r"^samples\.rtp\.files: no \.jsonl.*among .*README\.md"):
        rows(other)


RECORDS = [
    {"prompt": {"text": "a", "score": 0.5}, "hard": True, "kind": "x", "n": 1},
    {"prompt": {"text": "b", "score": None}, "hard": False, "kind": "y", "n": 2},
    {"prompt": {"text": "c", "score": 1.0}, "hard": None, "kind": "z", "n": 3},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("where", "found"),
    [
        (None, ["a", "b", "c"]),
        ({"hard": True}, ["a"]),
        ({"hard": False}, ["b"]),
        ({"kind": ["x", "z"], "n": 3}, ["c"]),
        ({"prompt.score": 0.5}, ["a"]),
        ({"kind": "xyz"}, []),
    ],
)
def test_nested_columns_and_filters(tmp_path: Path, suffix: str, where, found):
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        save(path, "\n".join(map(json.dumps, RECORDS)))
    else:
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    assert rows(path, "prompt.text", where) == found


def test_a_column_with_a_dot_in_its_name_goes_first(tmp_path: Path):
    pq.write_table(pa.table({"a.b": ["flat"], "a": [{"b": "deep"}]}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet", "a.b") == ["flat"]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"n": 2, "ok": True}, ["3"]),
        ({"n": [1, "007"]}, ["1", "4"]),
        ({"n": "7"}, []),
        ({"ok": "True"}, ["1", "3"]),
        ({"ok": False}, ["2"]),
        ({"ok": None}, ["4"]),
    ],
)
def test_cells_of_a_csv_are_texts_for_prompts_and_images_alike(tmp_path: Path, where, found):
    path = save(tmp_path / "a.csv", "text,n,ok\n1,1,True\n2,2,False\n3,2,True\n4,007,\n")
    assert rows(path, "text", where) == found
    spec = {"image": "text", "label": "text", "selection": {"where": where}}
    read = read_images([path], spec, "selection", False)
    assert [label for _, label, _ in read] == found


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_column_is_named_with_those_there(tmp_path: Path, suffix: str):
    path = save_texts(tmp_path, suffix, ["x"])
    said = r"^samples\.rtp: .* no column 'text.*'; it has .*text"
    for column, where in (("texts", None), ("text", {"texts": 1}), ("text.texts", None)):
        with pytest.raises(UserError, match=said):
            rows(path, column, where)
    said = said if suffix in (".csv", ".parquet") else r"row 1: there is no text in texts"
    with pytest.raises(UserError, match=said):
        list(read_rows([path], {"text": "text", "references": "texts"}, "samples.rtp"))
    twice = save(tmp_path / "a.csv", "text,n,text\na,1,b\n")
    with pytest.raises(UserError, match=r"^samples\.rtp: .* has several columns 'text'"):
        rows(twice)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("latin.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', "row 2 is not UTF-8"),
        ("latin.csv", b"text\na\ncaf\xe9\n", "row 2 is not UTF-8"),
        ("latin.txt", b"a\nb\nc\ncaf\xe9\n", "row 4 is not UTF-8"),
        ("half.jsonl", b'{"text": "\\ud800"}\n', "row 1 is not UTF-8, or holds half a character"),
        ("torn.jsonl", b'{"text": "a"}\n\n{"tex', "line 3 is not JSON"),
        ("comma.jsonl", b'{"text": "a"}\n{"text": "b",}\n{"text": "c"}\n', "line 2 is not JSON"),
        ("number.json", b"1", "row 1 is no JSON object"),
        ("deep.json", b"[" * 100_000, ""),
        ("torn.parquet", b"PAR1torn", ""),
        ("ragged.csv", b"text,n\na,1\nb,2,3\n", "line 3"),
        ("quote.csv", b'text\n"a\nb\n', "a quote after line 1 is never closed"),
        ("quote.csv", b'text\na\n"', "a quote after line 2 is never closed"),
        ("empty.parquet", b"", "size is 0 bytes"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, said: str):
    with pytest.raises(UserError) as caught:
        rows(save(tmp_path / name, content))
    message = str(caught.value)
    assert message.startswith(f"samples.rtp.files: {tmp_path / name} is not readable as ")
    assert said in message


def test_a_disk_that_refuses_is_no_damage(tmp_path: Path, monkeypatch):
    def refused(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "denied")

    path = save(tmp_path / "a.txt", "one\n")
    monkeypatch.setattr(Path, "open", lambda *_, **__: refused())
    with pytest.raises(PermissionError):
        rows(path)


@pytest.mark.parametrize(
    ("suffix", "value"),
    [(".jsonl", True), (".jsonl", ["a"]), (".parquet", {"b": "a"}), (".parquet", date(2020, 1, 1))],
)
def test_what_is_no_text_is_named_with_its_row(tmp_path: Path, suffix: str, value: Any):
    path = save_texts(tmp_path, suffix, [value, value])
    with pytest.raises(UserError) as caught:
        rows(path)
    assert str(caught.value) == f"samples.rtp.text: {path}, row 1: {value!r} is no text."


# Choosing


def test_all_prompts_keep_order_and_source_and_empty_and_repeated_ones_go(caplog):
    pairs = [("a:1", "x"), ("a:2", ""), ("a:3", "x"), ("a:4", " \u3000"), ("a:5", "y")]
    with caplog.at_level(logging.INFO):
        table = sample_prompts(unique_prompts(pairs, "rtp"), None, 0, "rtp")
    assert table.to_pydict() == {
        "sample_id": ["rtp-000000", "rtp-000001"],
        "text": ["x", "y"],
        "source": ["a:1", "a:5"],
        "references": [[], []],
    }
    assert "dropped 3" in caplog.text


def test_no_text_of_the_excluded_samples_is_left(caplog):
    rows = [(f"a:{n}", f"Which  Café is no. {n}?", f"answer {n}") for n in range(50)]
    others = [(f"b:{n}", f"which cafe\u0301 IS no. {n}? ", "another") for n in range(0, 200, 3)]
    with caplog.at_level(logging.INFO):
        table = sample_prompts(unique_prompts(rows, "qa", others), 20, 0, "qa")
    numbers = [int(text[18:-1]) for text in table["text"].to_pylist()]
    assert len(set(numbers)) == 20 and all(number % 3 for number in numbers)
    assert table["references"].to_pylist() == [[f"answer {number}"] for number in numbers]
    assert "qa: dropped 17 prompts that the excluded samples have" in caplog.text


NAMES = ["Ann", "Bo"]
NESTED = {"value": "Paris", "aliases": ["paris", "", None, "City of Light"]}


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["answer.value"], ["Paris"]),
        (["answer.aliases"], ["paris", "City of Light"]),
        (["answer.value", "answer.aliases"], ["Paris", "paris", "City of Light"]),
        (["one", "two", "answer.value"], ["first", "Paris"]),
        (["people.name"], NAMES),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_references_are_texts_and_lists_of_several_columns(tmp_path, suffix, columns, found):
    """As the Hub stores them: a Sequence of features is a mapping of lists."""
    row = {"q": "x", "answer": NESTED, "one": "first", "two": " ", "people": {"name": NAMES}}
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        save(path, json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    spec = {"text": "q", "where": None, "references": columns}
    assert list(read_rows([path], spec, "samples.qa")) == [(f"a{suffix}:1", "x", *found)]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"value": null, "aliases": []}', "row 2: there is no text in answer.value or answer.al"),
        ("{}", "row 2: there is no text in answer.value or answer.aliases, so nothing can be mea"),
        ('{"value": "a", "aliases": [1]}', "row 2: 1 is no text."),
        ('{"value": "a", "aliases": ["\\ud800"]}', "row 2 is not UTF-8, or holds half a character"),
    ],
)
def test_a_question_without_an_answer_is_named(tmp_path: Path, answer: str, said: str):
    right = '{"q": "x", "answer": {"value": "a", "aliases": []}}'
    path = save(tmp_path / "a.jsonl", f'{right}\n{{"q": "y", "answer": {answer}}}')
    spec = {"text": "q", "references": ["answer.value", "answer.aliases"]}
    with pytest.raises(UserError) as caught:
        list(read_rows([path], spec, "samples.qa"))
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_a_sample_is_a_subset_in_order_that_depends_on_seed_and_data_set():
    table = unique_prompts([(f"a.txt:{i + 1}", f"prompt {i}") for i in range(100)], "rtp")

    def chosen(seed: int, dataset: str, size: int = 6) -> list[int]:
        seen = []
        drawn = sample_prompts(
            table, size, seed, dataset, lambda rows: seen.append(len(rows)) or rows
        )
        assert sum(seen) == len(drawn) == size  # only what is drawn is rendered
        numbers = [int(text.split()[1]) for text in drawn["text"].to_pylist()]
        assert drawn["sample_id"].to_pylist() == [f"rtp-{i:06d}" for i in numbers]
        return numbers

    assert chosen(0, "rtp") == [11, 22, 64, 66, 73, 95]
    assert len({tuple(chosen(*own)) for own in ((0, "rtp"), (1, "rtp"), (0, "tet"))}) == 3
    assert chosen(0, "rtp", 100) == list(range(100))


def test_no_prompt_at_all():
    with pytest.raises(UserError, match=r"samples\.rtp: 0 prompts are there, 1 are wanted"):
        sample_prompts(unique_prompts([], "rtp"), None, 0, "rtp")


# Rendering


def rendered(texts: list[str], template: str, tokenizer, chat=False, longest=None, sample=None):
    """Draw prompts of some texts and render them."""
    table = unique_prompts([(f"a:{n}", text) for n, text in enumerate(texts)], "rtp")
    render = lambda drawn: render_prompts(drawn, template, tokenizer, chat)  # noqa: E731
    return sample_prompts(table, sample, 0, "rtp", render, longest)


def test_a_template_s_other_braces_are_text(tokenizer):
    table = rendered(["{prompt} {x}"], "{'a': {prompt}} {0} {} {prompt}", tokenizer)
    assert table["rendered"].to_pylist() == ["{'a': {prompt} {x}} {0} {} {prompt} {x}"]
    assert table["text"].to_pylist() == ["{prompt} {x}"]


TOKENIZER = make_tokenizer()
ASKING = {family: make_asking(family) for family in TEMPLATES}


@settings(max_examples=50)
@given(st.sampled_from(HOSTILE) | st.text(min_size=1).filter(str.strip))
def test_what_the_model_reads_is_what_is_stored(text: str):
    if "<|" in text:
        return  # the tokenizer's own marks
    [row] = rendered([text], "say {prompt}", TOKENIZER).to_pylist()
    assert row["token_ids"][0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(row["token_ids"][1:]) == row["rendered"] == f"say {text}"


def test_a_chat_template_writes_its_own_marks(tokenizer):
    [row] = rendered(["river"], "Name a {prompt}", tokenizer, True).to_pylist()
    assert row["rendered"] == "<|start|>user\nName a river<|end|>\n<|start|>assistant\n"
    assert row["token_ids"] == tokenizer(row["rendered"])["input_ids"]


@pytest.mark.parametrize("appends", [False, True])
@pytest.mark.parametrize(
    ("family", "chat", "first"),
    [
        ("mistral", False, ["<s>", "▁apple", "▁river"]),
        ("mistral", True, ["<s>", "▁", "[", "I"]),
        ("llava_next", False, ["<s>", "▁apple", "▁river"]),
        ("llava_next", True, ["<s>", "▁", "[", "I"]),
        ("gemma", False, ["<s>", "▁apple", "▁river"]),
        ("gemma", True, ["<s>", "<start_of_turn>", "▁", "u"]),
        ("qwen", False, ["apple", "Ġriver"]),
        ("qwen", True, ["<|im_start|>", "s", "y"]),
    ],
)
def test_a_prompt_begins_as_the_model_was_trained(family, chat, first, appends: bool):
    """With one BOS where the tokenizer adds one by itself, whoever writes it; EOS ends none."""
    tokenizer = make_asking(family, appends)
    [ids] = rendered(["apple river"], "{prompt}", tokenizer, chat)["token_ids"].to_pylist()
    tokens = [token.replace("<0x5B>", "[").replace("<0x49>", "I").replace("<0x75>", "u")
              for token in tokenizer.convert_ids_to_tokens(ids)]  # fmt: skip
    assert tokens[: len(first)] == first
    assert tokens.count("<s>") == (family != "qwen")
    assert "</s>" not in tokens


def own_text(tokenizer, text: str, template: str = "{prompt}", chat: bool = True) -> str:
    """Return what stands at a prompt's own positions."""
    [row] = rendered([text], template, tokenizer, chat).to_pylist()
    return tokenizer.decode([row["token_ids"][i] for i in row["own_positions"]])


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("family", list(TEMPLATES))
@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("user", "user"),  # a word that the templates have too
        ("\u8def", "\u8def"),  # one letter, three tokens
        ("apple{eos} river", "apple river"),  # read as EOS, which does not count
        ("{bos}{eos}", ""),
        ("[INST] river [/INST]", "[INST] river [/INST]"),  # plain text in all these vocabularies
    ],
)
def test_a_prompt_s_own_positions(family: str, chat: bool, text: str, own: str):
    """The data set's template is among them; the model's and special tokens are not."""
    tokenizer = ASKING[family]
    text = text.replace("{eos}", tokenizer.eos_token).replace("{bos}", tokenizer.bos_token)
    assert own_text(tokenizer, text, chat=chat).replace("  ", " ").strip() == own
    found = own_text(tokenizer, text, "apple {prompt}.", chat)
    assert found.replace("  ", " ").strip() == f"apple {own}."


@settings(max_examples=50)
@given(st.sampled_from(list(TEMPLATES)), st.sampled_from(HOSTILE) | st.text(min_size=1))
def test_own_positions_spell_the_prompt(family: str, text: str):
    """Whatever it is, but for special tokens that it spells and a template that strips it."""
    tokenizer = ASKING[family]
    if text.strip() and not any(token in text for token in tokenizer.get_added_vocab()):
        found = own_text(tokenizer, text)
        assert found == text or (family != "qwen" and found.strip() == text.strip())


def test_spaces_count_where_offsets_leave_them_out():
    tokenizer = make_asking("qwen")
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    assert own_text(tokenizer, "  apple ") == "  apple "


NOT_ONCE = "does not hold a user's message once"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template"),
        ("{{ messages | length }} no message", NOT_ONCE),
        ("{{ messages[0]['content'] }} {{ messages[0]['content'] }}", NOT_ONCE),
        ("{{ messages[0]['content'] | length }}{{ messages[0]['content'] }}", NOT_ONCE),
        ("{{ raise_exception('a system message must come first') }}", "must come first"),
        ("{% for message in messages %}", "Unexpected end of template"),
        ("{{ messages[1]['content'] }}", "no element 1"),
    ],
)
def test_a_template_that_does_not_fit_is_said(template: str | None, said: str):
    tokenizer = make_tokenizer(chat=False)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=said):
        rendered(["river"], "{prompt}", tokenizer, True)


def test_a_prompt_too_long_for_the_model_is_left_out(tokenizer, caplog: pytest.LogCaptureFixture):
    texts = ["apple", "x" * 100_000, "river"]
    assert len(rendered(texts, "{prompt}", tokenizer)) == 3
    short = rendered(texts, "{prompt}", tokenizer, longest=2)
    assert short["source"].to_pylist() == ["a:0", "a:2"]
    assert short["sample_id"].to_pylist() == ["rtp-000000", "rtp-000002"]
    assert "rtp: left out a:1, whose 100001 tokens are more than the 2" in caplog.text
    with pytest.raises(UserError, match=r"rtp: the shortest prompt has 2 tokens.* reads 1 beside"):
        rendered(texts, "{prompt}", tokenizer, longest=1)


def test_others_are_drawn_in_the_place_of_prompts_that_are_too_long(tokenizer):
    texts = [f"{'x' * 50 * (n % 4)} river {n}" for n in range(40)]  # three of four are too long
    for sample in (1, 9, 10):
        found = rendered(texts, "{prompt}", tokenizer, longest=40, sample=sample)
        chosen = [int(source[2:]) for source in found["source"].to_pylist()]
        assert len(chosen) == sample and chosen == sorted(set(chosen))
        assert all(n % 4 == 0 for n in chosen)
    with pytest.raises(UserError, match=r"samples\.rtp: 10 prompts are there, 11 are wanted"):
        rendered(texts, "{prompt}", tokenizer, longest=40, sample=11)
