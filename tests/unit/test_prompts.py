import csv
import io
import json
import logging
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
    return [value for _, value in read_rows([path], column, where, "samples.rtp")]


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
    found = list(read_rows(files, "text", None, "samples.rtp"))
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
def test_cells_of_a_csv_are_texts_for_prompts_and_images_alike(
    tmp_path: Path, where: dict[str, Any], found: list[str]
):
    path = save(tmp_path / "a.csv", "text,n,ok\n1,1,True\n2,2,False\n3,2,True\n4,007,\n")
    assert rows(path, "text", where) == found
    spec = {"image": "text", "label": "text", "selection": {"where": where}}
    read = read_images([path], spec, "selection", False)
    assert [label for _, label, _ in read] == found


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_a_missing_column_is_named_with_those_there(tmp_path: Path, name: str):
    path = save_texts(tmp_path, Path(name).suffix, ["x"])
    for column, where in (("texts", None), ("text", {"texts": 1}), ("text.texts", None)):
        with pytest.raises(
            UserError, match=r"^samples\.rtp: .* has no column 'text.*'; it has .*text"
        ):
            rows(path, column, where)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("latin.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', "line 2 is not UTF-8"),
        (
            "latin.csv",
            b"text\na\ncaf\xe9\n",
            "line 3 is not UTF-8 (invalid continuation byte). Save",
        ),
        ("latin.txt", b"a\nb\nc\ncaf\xe9\n", "line 4 is not UTF-8"),
        ("utf16.txt", "one\ntwo".encode("utf-16"), "line 1 is not UTF-8"),
        ("binary.txt", bytes(range(256)), "line 2 is not UTF-8"),
        ("torn.jsonl", b'{"text": "a"}\n\n{"tex', "line 3 is not JSON"),
        ("comma.jsonl", b'{"text": "a"}\n{"text": "b",}\n{"text": "c"}\n', "line 2 is not JSON"),
        ("nul.jsonl", b'{"text": "a"}\n{"text": "b\x00"}\n', "line 2 is not JSON"),
        ("half.jsonl", b'{"text": "\\ud800"}\n', "row 1 holds half a character"),
        ("page.jsonl", b"<!doctype html><title>Log in</title>", "line 1 is not JSON"),
        ("text.json", b'"text"', "row 1 is no JSON object"),
        ("torn.parquet", b"PAR1torn", ""),
        ("empty.parquet", b"PAR1", ""),
        ("ragged.csv", b"text,n\na,1\nb,2,3\n", "line 3"),
        ("quote.csv", b'text\n"a\nb\n', "EOF inside string"),
        ("blank.csv", b"\n\n", "No columns"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, said: str):
    with pytest.raises(UserError) as caught:
        rows(save(tmp_path / name, content))
    message = str(caught.value)
    assert message.startswith("samples.rtp.") and str(tmp_path / name) in message
    assert said in message


@pytest.mark.parametrize("value", [1, 0.5, True, ["a"], {"b": "a"}])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_what_is_no_text_is_named_with_its_row(tmp_path: Path, suffix: str, value: Any):
    path = save_texts(tmp_path, suffix, [value, value])
    with pytest.raises(UserError) as caught:
        rows(path)
    assert str(caught.value) == f"samples.rtp.text: {path}, row 1: {value!r} is no text."


def test_a_row_without_text_is_empty(tmp_path: Path):
    assert rows(save(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": null}\n{"b": 1}\n')) == [
        "a",
        "",
        "",
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json", "a.parquet"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str):
    assert rows(save(tmp_path / name, b"")) == []


def test_no_readable_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"^samples\.rtp\.files: no \.jsonl.*among .*weights\.bin"):
        rows(save(tmp_path / "weights.bin", b""))


# Choosing


def numbered(n: int) -> list[tuple[str, str]]:
    return [(f"a.txt:{i + 1}", f"prompt {i}") for i in range(n)]


def test_all_prompts_keep_order_and_source():
    table = sample_prompts(unique_prompts(numbered(3), "rtp"), None, 0, "rtp")
    assert table.to_pydict() == {
        "sample_id": ["rtp-000000", "rtp-000001", "rtp-000002"],
        "text": ["prompt 0", "prompt 1", "prompt 2"],
        "source": ["a.txt:1", "a.txt:2", "a.txt:3"],
    }


def test_empty_and_repeated_prompts_go(caplog: pytest.LogCaptureFixture):
    pairs = [("a:1", "x"), ("a:2", ""), ("a:3", "x"), ("a:4", " \u3000"), ("a:5", "y")]
    with caplog.at_level(logging.INFO):
        table = unique_prompts(pairs, "rtp")
    assert table["source"].to_pylist() == ["a:1", "a:5"]
    assert "dropped 3" in caplog.text


@given(st.integers(1, 60), st.data())
def test_a_sample_is_a_subset_in_order(n: int, data: st.DataObject):
    size = data.draw(st.integers(1, n))
    table = sample_prompts(unique_prompts(numbered(n), "rtp"), size, 0, "rtp")
    chosen = [int(text.split()[1]) for text in table["text"].to_pylist()]
    assert len(chosen) == size
    assert chosen == sorted(set(chosen))
    assert table["sample_id"].to_pylist() == [f"rtp-{i:06d}" for i in chosen]


def test_a_sample_depends_on_seed_and_data_set():
    table = unique_prompts(numbered(100), "rtp")

    def chosen(seed: int, dataset: str) -> tuple[str, ...]:
        return tuple(sample_prompts(table, 20, seed, dataset)["text"].to_pylist())

    assert chosen(0, "rtp") == chosen(0, "rtp")
    assert len({chosen(0, "rtp"), chosen(1, "rtp"), chosen(0, "tet")}) == 3


@pytest.mark.parametrize(("there", "asked"), [(0, None), (0, 1), (3, 4)])
def test_too_few_prompts(there: int, asked: int | None):
    with pytest.raises(UserError, match=rf"samples\.rtp: {there} prompts are there"):
        sample_prompts(unique_prompts(numbered(there), "rtp"), asked, 0, "rtp")


# Rendering


def one(text: str) -> pa.Table:
    return unique_prompts([("a.txt:1", text)], "rtp")


def rendered(
    prompts: pa.Table,
    template: str,
    tokenizer,
    chat: bool = False,
    longest: int | None = None,
    sample: int | None = None,
) -> pa.Table:
    def render(drawn: pa.Table) -> pa.Table:
        return render_prompts(drawn, template, tokenizer, chat)

    return sample_prompts(prompts, sample, 0, "rtp", render, longest)


def test_a_template_s_other_braces_are_text(tokenizer):
    template = "{'a': {prompt}} {0} {} {prompt}"
    table = rendered(one("{prompt} {x}"), template, tokenizer)
    assert table["rendered"].to_pylist() == ["{'a': {prompt} {x}} {0} {} {prompt} {x}"]
    assert table["text"].to_pylist() == ["{prompt} {x}"]


TOKENIZER = make_tokenizer()
ASKING = {family: make_asking(family) for family in TEMPLATES}


@settings(max_examples=50)
@given(st.sampled_from(HOSTILE) | st.text(min_size=1).filter(str.strip))
def test_what_the_model_reads_is_what_is_stored(text: str):
    if "<|" in text:
        return  # the tokenizer's own marks
    table = rendered(one(text), "say {prompt}", TOKENIZER)
    ids = table["token_ids"].to_pylist()[0]
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(ids[1:]) == table["rendered"].to_pylist()[0] == f"say {text}"


def test_a_chat_template_writes_its_own_marks(tokenizer):
    table = rendered(one("river"), "Name a {prompt}", tokenizer, True)
    expected = "<|start|>user\nName a river<|end|>\n<|start|>assistant\n"
    assert table["rendered"].to_pylist() == [expected]
    ids = table["token_ids"].to_pylist()[0]
    assert ids == tokenizer(expected)["input_ids"]


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
def test_a_prompt_begins_as_the_model_was_trained(
    family: str, chat: bool, first: list[str], appends: bool
):
    """With one BOS where the tokenizer adds one by itself, whoever writes it; EOS ends none."""
    tokenizer = make_asking(family, appends)
    ids = rendered(one("apple river"), "{prompt}", tokenizer, chat)["token_ids"].to_pylist()[0]
    tokens = [token.replace("<0x5B>", "[").replace("<0x49>", "I").replace("<0x75>", "u")
              for token in tokenizer.convert_ids_to_tokens(ids)]  # fmt: skip
    assert tokens[: len(first)] == first
    assert tokens.count("<s>") == (family != "qwen")
    assert "</s>" not in tokens


def own_text(tokenizer, text: str, template: str = "{prompt}", chat: bool = True) -> str:
    """Return what stands at a prompt's own positions."""
    row = rendered(one(text), template, tokenizer, chat).to_pylist()[0]
    return tokenizer.decode([row["token_ids"][i] for i in row["own_positions"]])


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("family", list(TEMPLATES))
@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("river", "river"),
        ("user", "user"),  # a word that the templates have too
        ("\u8def", "\u8def"),  # one letter, three tokens
        ("apple{eos} river", "apple river"),  # read as EOS, which does not count
        ("{bos}{eos}", ""),
        ("[INST] river [/INST]", "[INST] river [/INST]"),  # plain text in all these vocabularies
    ],
)
def test_a_prompt_s_own_positions(family: str, chat: bool, text: str, own: str):
    """The data set's template is among them; the model's and special tokens are not."""
    tokenizer = make_asking(family)
    text = text.replace("{eos}", tokenizer.eos_token).replace("{bos}", tokenizer.bos_token)
    assert own_text(tokenizer, text, chat=chat).replace("  ", " ").strip() == own
    found = own_text(tokenizer, text, "apple {prompt}.", chat)
    assert found.replace("  ", " ").strip() == f"apple {own}."


def test_a_template_may_strip_the_message():
    assert own_text(make_asking("gemma"), "  apple  ").strip(" ") == "apple"
    assert own_text(make_asking("qwen"), " apple\n") == " apple\n"


@pytest.mark.parametrize("trims", [False, True])
def test_spaces_count_where_offsets_leave_them_out(trims: bool):
    tokenizer = make_asking("qwen")
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=trims)
    assert own_text(tokenizer, "  apple ") == "  apple "


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }} no message",
        "{{ messages[0]['content'] }} {{ messages[0]['content'] }}",
        "{{ messages[0]['content'] | length }}{{ messages[0]['content'] }}",
    ],
)
def test_a_template_in_which_a_prompt_cannot_be_found(tokenizer, template: str):
    other = make_tokenizer()
    other.chat_template = template
    with pytest.raises(UserError, match="does not hold a user's message once"):
        rendered(one("river"), "{prompt}", other, True)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('a system message must come first') }}", "must come first"),
        ("{% for message in messages %}", "Unexpected end of template"),
        ("{{ messages[1]['content'] }}", "no element 1"),
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate"),
    ],
)
def test_a_template_that_fails_is_said(template: str, said: str):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"chat template fails with a user's message.*{said}"):
        rendered(one("river"), "{prompt}", tokenizer, True)


@settings(max_examples=50)
@given(st.sampled_from(list(TEMPLATES)), st.sampled_from(HOSTILE) | st.text(min_size=1))
def test_own_positions_spell_the_prompt(family: str, text: str):
    """Whatever it is, but for special tokens that it spells and a template that strips it."""
    tokenizer = ASKING[family]
    if not text.strip() or any(token in text for token in tokenizer.get_added_vocab()):
        return
    row = rendered(one(text), "{prompt}", tokenizer, True).to_pylist()[0]
    ids = [row["token_ids"][i] for i in row["own_positions"]]
    assert tokenizer.decode(ids).strip() == text.strip()


def test_a_lacking_chat_template_is_said():
    with pytest.raises(UserError, match="no chat template"):
        rendered(one("x"), "{prompt}", make_tokenizer(chat=False), True)


def test_a_prompt_too_long_for_the_model_is_left_out(tokenizer, caplog: pytest.LogCaptureFixture):
    table = unique_prompts([("a:1", "apple"), ("a:2", "x" * 100_000), ("a:3", "river")], "rtp")
    assert len(rendered(table, "{prompt}", tokenizer)) == 3
    short = rendered(table, "{prompt}", tokenizer, longest=2)
    assert short["source"].to_pylist() == ["a:1", "a:3"]
    assert short["sample_id"].to_pylist() == ["rtp-000000", "rtp-000002"]
    assert "rtp: left out a:2, whose 100001 tokens are more than the 2" in caplog.text
    with pytest.raises(UserError, match=r"rtp: the shortest prompt has 2 tokens.* reads 1 beside"):
        rendered(table, "{prompt}", tokenizer, longest=1)


def test_no_prompt_renders_to_none(tokenizer):
    assert len(render_prompts(unique_prompts([], "rtp"), "{prompt}", tokenizer, False)) == 0


def test_others_are_drawn_in_the_place_of_prompts_that_are_too_long(tokenizer):
    texts = [(f"a:{n}", f"{'x' * 50 * (n % 4)} river {n}") for n in range(40)]  # three of four
    table = unique_prompts(texts, "rtp")
    chosen = [
        [
            int(source[2:])
            for source in rendered(table, "{prompt}", tokenizer, longest=40, sample=n)["source"]
            .to_pylist()
        ]
        for n in (1, 4, 9, 10)
    ]  # fmt: skip
    assert [len(own) for own in chosen] == [1, 4, 9, 10]
    assert all(n % 4 == 0 for own in chosen for n in own)
    assert all(own == sorted(set(own)) for own in chosen)
    with pytest.raises(UserError, match=r"samples\.rtp: 10 prompts are there, 11 are wanted"):
        rendered(table, "{prompt}", tokenizer, longest=40, sample=11)


def test_only_what_is_drawn_is_rendered(tokenizer):
    seen = []
    table = unique_prompts(numbered(1000), "rtp")
    sample_prompts(table, 20, 0, "rtp", lambda drawn: seen.append(len(drawn)) or drawn)
    assert sum(seen) == 20
