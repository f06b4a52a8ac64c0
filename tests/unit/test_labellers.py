"""The parts of labelling that need no server. tests/labeller has those that do."""

import json
import re
import unicodedata
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from headpursuit.labelling import audit, prompt, used_labellers
from headpursuit.labelling.backend import Reply, vary
from headpursuit.labelling.journal import Journal, journal_key
from headpursuit.labelling.label import label_responses, open_backend, read_texts
from headpursuit.labelling.lexicon import Lexicon
from headpursuit.labelling.reply import (
    MAX_ENTRIES,
    MAX_PHRASE,
    clean,
    is_refusal,
    parse_reply,
    sift_words,
)
from headpursuit.method.words import count_words, normalise
from headpursuit.run.config import load_config, run_labellers
from headpursuit.run.files import UserError
from headpursuit.run.retry import Busy, persist
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "prompts/label.yaml"
modes = pytest.mark.parametrize("mode", prompt.MODES)
# What a model might answer: anything, and things that look like an answer.
scraps = st.sampled_from(
    ["<answer>", "</answer>", "< Answer >", ",", "\n", "None", '{"words":', "[]"]
)
replies = st.lists(st.text() | scraps, max_size=12).map("".join)
# Words as they come out of a reply: nothing more to clean off, nothing that parts entries.
words = (
    st.text(st.characters(exclude_characters=",;，、<>", exclude_categories=["C", "Z"]), min_size=1)
    .map(clean)
    .filter(lambda word: word and clean(word) == word and word != "none")
)


# Replies


@modes
@given(reply=replies)
def test_any_reply_is_read_or_refused(mode, reply):
    found = parse_reply(reply, mode)
    if found is not None:
        assert len(found) <= MAX_ENTRIES and len(set(found)) == len(found)
        for word in found:
            assert word and len(word.split()) <= MAX_PHRASE and word == " ".join(word.split())
            assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in word)


@modes
@given(named=st.lists(words, unique=True, max_size=20), before=st.text(), after=st.text())
def test_what_is_rendered_is_read_back(mode, named, before, after):
    reply = prompt.render(named, mode)
    assert parse_reply(reply, mode) == named
    if mode == "tags" and "<" not in before + after:
        assert parse_reply(f"{before}{reply}{after}", mode) == named


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("<answer>None</answer>", []),
        ("<ANSWER> none. </ANSWER>", []),
        ("<answer>Darn, darn; DARN.</answer>", ["darn"]),
        ('<answer>"darn", “heck”, *fool*</answer>', ["darn", "heck", "fool"]),
        ("<answer>- darn\n- heck\n2. fool\n**dunce**</answer>", ["darn", "heck", "fool", "dunce"]),
        ("<answer>total dunce, darn</answer>", ["total dunce", "darn"]),
        ("<answer>draft</answer> no: <answer>darn</answer>", ["darn"]),
        ("<answer>first <answer>darn</answer>", ["darn"]),
        ("**<answer>darn, heck</answer>**", ["darn", "heck"]),
        ("<answer>**darn, heck**</answer>", ["darn", "heck"]),
        ("**<answer>**darn, heck**</answer>**", ["darn", "heck"]),
        ("<answer>\n*darn, heck, fool*\n</answer>", ["darn", "heck", "fool"]),
        ("<answer>**darn**, **heck**</answer>", ["darn", "heck"]),
        ("<answer>d**n, **heck**, f***</answer>", ["d**n", "heck", "f***"]),
        ("<answer>**None**</answer>", []),
        ("<Answer>darn</aNSWER>", ["darn"]),
        ("```\n<answer>darn, heck</answer>\n```", ["darn", "heck"]),
        ("<answer>\n```\ndarn\nheck\n```\n</answer>", ["darn", "heck"]),
        ("<answer>`darn`, `heck`</answer>", ["darn", "heck"]),
        ("<answer>darn</answer>\n<answer>None</answer>", []),
        ("I can't help with that. <answer>None</answer>", []),
        ("<answer>darn</answer> Or rather: <answer>heck", None),
        ("darn", None),
        ("<answer>darn", None),
        ("darn</answer>", None),
        ("</answer>darn<answer>", None),
        ("<answer></answer>", None),
        ("<answer> , </answer>", None),
        ("", None),
        ("<answer>I would say that this text is quite fine</answer>", None),
        (f"<answer>{', '.join(map(str, range(101)))}</answer>", None),
    ],
)
def test_tags(reply, found):
    assert parse_reply(reply, "tags") == found


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        ("I can't help with that.", True),
        ("I can’t assist with this request.", True),
        ("**I cannot** provide that.", True),
        ("I'm sorry, but I won't list such words.", True),
        ("I am unable to process this text.", True),
        ("Sorry, but I can't do that.", True),
        ("As an AI language model, I do not repeat such words.", True),
        ('{"words": ["I can\'t"]', False),
        ("I cannot find any harmful word in this text.", False),
        ("I'm unable to identify any such word.", False),
        ("Sorry: darn, heck", False),
        ("The word is: darn. I can't see another.", False),
        ("I can't help with that. <answer></answer>", False),
        ("darn", False),
        ("", False),
    ],
)
def test_refusals(reply, refused):
    assert parse_reply(reply, "tags") is None
    assert is_refusal(reply) == refused


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"words": []}', []),
        ('{"words": ["Darn", "darn", "x, y"]}', ["darn", "x, y"]),
        ('```json\n{"words": ["darn"]}\n```', ["darn"]),
        ('{"words": ["da\nrn"]}', ["da rn"]),
        ('{"words": "darn"}', None),
        ('{"words": [1]}', None),
        ('{"other": []}', None),
        ('["darn"]', None),
        ('{"words": ["darn"', None),
        ("[" * 100_000, None),
    ],
)
def test_json(reply, found):
    assert parse_reply(reply, "json") == found


@given(named=st.lists(words, unique=True, max_size=8), response=st.text())
def test_every_word_is_kept_or_dropped(named, response):
    response = " ".join([response, *named[::2]])
    kept, dropped = sift_words(named, response)
    assert sorted({*map(normalise, kept), *dropped}) == sorted(named)
    counts = dict(zip(named, count_words([response], named)[0] if named else [], strict=True))
    assert all(counts[word] for word in kept) and not any(counts[word] for word in dropped)


def test_a_word_inside_another_is_dropped():
    assert sift_words(["darn", "total dunce"], "Undarned, a TOTAL\n dunce.") == (
        ["TOTAL dunce"],
        ["darn"],
    )


# The prompt and its window


@modes
def test_the_shipped_prompt_answers_itself(tmp_path, mode):
    raw = yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) | {"mode": mode}
    (tmp_path / "prompt.yaml").write_text(yaml.safe_dump(raw))
    shipped = prompt.load_prompt(tmp_path / "prompt.yaml")
    chat = shipped.messages("the response")
    assert [message["role"] for message in chat] == ["system", *["user", "assistant"] * 3, "user"]
    assert "the response" in chat[-1]["content"]
    for example, message in zip(shipped.examples, chat[2::2], strict=True):
        named = parse_reply(message["content"], mode)
        assert sift_words(named, example.response) == (list(example.words), [])


def test_a_second_attempt_is_reminded_and_warmer():
    shipped = prompt.load_prompt("prompts/label.yaml")
    assert shipped.answer.strip() not in shipped.messages("text")[-1]["content"]
    assert shipped.messages("text", 2)[-1]["content"].endswith(shipped.answer.strip())
    options = {"temperature": 0.0, "seed": 5}
    assert vary(options, 1) == options
    assert vary(options, 2)["seed"] == 6 and vary(options, 2)["temperature"] > 0


def test_comments_do_not_change_the_prompt_and_text_does(tmp_path):
    text = SHIPPED.read_text(encoding="utf-8")
    (tmp_path / "a.yaml").write_text(f"# hello\n{text}")
    (tmp_path / "b.yaml").write_text(text.replace("Do not explain", "Never explain"))
    shipped = prompt.load_prompt(SHIPPED)
    assert prompt.load_prompt(tmp_path / "a.yaml").digest == shipped.digest
    assert prompt.load_prompt(tmp_path / "b.yaml").digest != shipped.digest
    key = journal_key("text", {"prompt": shipped.digest})
    assert key != journal_key("text", {"prompt": "another"})
    assert key != journal_key("another", {"prompt": shipped.digest})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "xml"}, "mode must be one of"),
        ({"template": "no place"}, "template must be"),
        ({"template": "{response} {response}"}, "template must be"),
        ({"system": None}, "system must be"),
        ({"answer": {"json": "x"}}, r"answer\.tags"),
        ({"examples": [{"response": "x"}]}, "each of examples"),
        ({"extra": 1}, "its keys must be"),
    ],
)
def test_a_wrong_prompt_file_says_what_is_wrong(tmp_path, change, said):
    path = tmp_path / "prompt.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) | change))
    with pytest.raises(UserError, match=said):
        prompt.load_prompt(path)


def test_a_prompt_file_that_is_not_there_or_not_yaml(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        prompt.load_prompt(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe: [")
    with pytest.raises(UserError, match="not YAML"):
        prompt.load_prompt(tmp_path / "bad.yaml")


@given(texts=st.lists(st.text(max_size=3000), max_size=4), limit=st.integers(3000, 8192))
def test_no_prompt_overflows_its_window(texts, limit):
    shipped = prompt.load_prompt(SHIPPED)
    num_ctx, room = prompt.fit_window(shipped, texts, 256, limit)
    assert num_ctx <= limit
    for text in texts:
        sent = prompt.cut(text, room)
        chat = shipped.messages(sent, attempt=2)
        # A token is at least a byte, so these bytes bound the tokens.
        assert sum(len(message["content"].encode()) for message in chat) + 256 < num_ctx
        assert sent == text or num_ctx == limit


@pytest.mark.parametrize(
    ("first", "second", "stops"),
    [
        (None, None, False),  # no count is told
        (0, None, False),
        (7, None, False),  # as many as words
        (6, 6, True),
        (6, None, False),
        (6, 100, False),  # the second time, when nothing is cached, all are counted
    ],
)
def test_a_count_below_the_words_is_a_cut_prompt(first, second, stops):
    chat = [
        {"role": "system", "content": "one two,  three -- 4"},
        {"role": "user", "content": "x y z"},
    ]
    fewest = prompt.fewest_tokens(*(message["content"] for message in chat))
    assert fewest == 7
    asked = []

    def recount(messages):
        asked.append(messages)
        return second

    with pytest.raises(UserError) if stops else nullcontext():
        prompt.refuse_cut(chat, first, recount, "Enlarge it")
    assert len(asked) == (first == 6)
    for messages in asked:
        assert messages[0]["content"].endswith("\none two,  three -- 4")
        assert messages[1:] == chat[1:]


def test_the_examples_may_stand_in_the_question(tmp_path):
    """The original wording has a system text and one message, with its examples in it."""
    raw = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    examples = "Text: Darn it. Answer: <answer>darn</answer>\n"
    raw |= {"examples": [], "answer": {"tags": ""}, "template": f"{examples}Text: {{response}}"}
    (tmp_path / "original.yaml").write_text(yaml.safe_dump(raw))
    original = prompt.load_prompt(tmp_path / "original.yaml")
    for attempt in (1, 2):
        chat = original.messages("the response", attempt)
        assert [message["role"] for message in chat] == ["system", "user"]
        assert chat[1]["content"] == f"{examples}Text: the response"
    (tmp_path / "original.yaml").write_text(yaml.safe_dump(raw | {"system": ""}))
    chat = prompt.load_prompt(tmp_path / "original.yaml").messages("the response")
    assert [message["role"] for message in chat] == ["user"]


def test_a_window_without_room_is_refused():
    with pytest.raises(UserError, match=r"labeller\.max_ctx: 1024"):
        prompt.fit_window(prompt.load_prompt(SHIPPED), [], 256, 1024)


@given(text=st.text(), room=st.integers(1, 40))
def test_a_cut_text_is_the_beginning(text, room):
    kept = prompt.cut(text, room)
    assert text.startswith(kept) and len(kept.encode()) <= room
    assert (kept == text) == (len(text.encode()) <= room)


@pytest.mark.parametrize(
    ("text", "room", "kept"),
    [
        ("One. Two! Three?", 12, "One. Two!"),
        ("He said “no.” Then he left.", 22, "He said “no.”"),
        ("Version 1.2 is out now", 18, "Version 1.2 is"),
        ("好。不好", 10, "好。"),
        ("ééééé", 5, "éé"),
    ],
)
def test_a_cut_is_at_a_sentence_else_a_word_else_a_character(text, room, kept):
    assert prompt.cut(text, room) == kept


# The journal, patience


def test_the_journal_comes_back_from_disk(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.sending("k", 1)
        journal.failed("k", 1, "no")
        journal.sending("k", 1)
        journal.reply("k", 1, Reply("a\n\ud83d\x00 b", 3, 9), 0.5)
        with pytest.raises(UserError, match="another run"), Journal(tmp_path / "j"):
            pass
    with (tmp_path / "j").open("ab") as handle:
        handle.write(b'{"key": "k", "event": "reply"}\nnull\n\xff\n{"key": "k", "att')
    for _ in range(2):
        with Journal(tmp_path / "j") as again:
            assert [record["reply"] for record in again.replies["k"]] == ["a\n\ud83d\x00 b"]
            assert again.sent["k"] == 2
    with Journal(tmp_path / "j") as again:
        again.sending("k", 2)
    assert (tmp_path / "j").read_bytes().splitlines()[-1].startswith(b'{"key": "k", "attempt": 2')


def test_busy_seconds_are_those_with_a_request_under_way():
    journal = Journal(None)
    for end, seconds in ((10.0, 4.0), (11.0, 2.0), (30.0, 1.0)):
        journal.replies["k"].append({"at": end, "seconds": seconds})
    assert journal.busy_seconds(["k"]) == pytest.approx(6.0)


def test_patience_ends_with_the_reason():
    calls = []

    def call():
        calls.append(1)
        raise Busy("HTTP 503")

    with pytest.raises(UserError, match=r"HTTP 503 \(tried for 0.3 s\)"):
        persist(call, 0.3)
    assert len(calls) > 1


# Labels without a server


class Scripted(Lexicon):
    """Answers what it is told to."""

    def __init__(self, answers: dict[str, str], room: int | None = None):
        super().__init__(["unused"])
        self.answers, self.room, self.asked, self.mode = answers, room, [], "tags"

    def ask(self, text: str, attempt: int) -> Reply:
        self.asked.append(text)
        return Reply(self.answers[text])


def responses(*texts: str | None) -> pa.Table:
    n = len(texts)
    ids = [f"p{i}" for i in range(n)]
    samples, texts = pa.array([0] * n, pa.int32()), pa.array(texts, pa.string())
    return pa.table({"sample_id": ids, "repeat": samples, "response": texts})


def test_statuses():
    backend = Scripted(
        {
            "a darn thing": "<answer>Darn, heck</answer>",
            "fine": "<answer>None</answer>",
            "good": "<answer>darn</answer>",
            "bad": "no tags",
            "worse": "I'm sorry, I can't.",
        }
    )
    table = label_responses(
        responses("a darn thing", "fine", "good", "bad", " ", None, "fine", "worse"),
        backend,
        attempts=2,
    )
    assert table["status"].to_pylist() == [
        *("ok", "none", "absent", "unparsed", "none", "none", "none", "refused")
    ]
    assert table["words"].to_pylist() == [["darn"], [], [], [], [], [], [], []]
    assert table["dropped"].to_pylist() == [["heck"], [], ["darn"], [], [], [], [], []]
    assert table["attempts"].to_pylist() == [1, 1, 1, 2, 0, 0, 1, 2]
    asked = ["a darn thing", "bad", "bad", "fine", "good", "worse", "worse"]
    assert sorted(backend.asked) == asked
    facts = audit.summary(table)
    assert (facts["responses"], facts["distinct"], facts["requests"]) == (8, 5, 7)
    assert (facts["retries"], facts["bad_replies"]) == (2, 4)
    assert (facts["unparsed"], facts["refused"], facts["unfinished_replies"]) == (1, 1, 0)
    assert (facts["dropped_words"], facts["tokens_per_second"]) == (2, None)


def test_a_text_that_is_cut_is_marked_and_judged_by_what_was_sent():
    backend = Scripted({"Fine. ": "", "Fine.": "<answer>darn</answer>"}, room=8)
    table = label_responses(responses("Fine. Darn it."), backend)
    assert table["cut"].to_pylist() == [True]
    assert table["words"].to_pylist() == [[]]  # the word stands behind the cut
    assert table["dropped"].to_pylist() == [["darn"]]


def test_a_word_list(tmp_path):
    settings = {"backend": "lexicon"}
    texts = responses("Darn, a Total  Dunce!", "undarned")
    with open_backend(settings, [], ["DARN", "total dunce", "", "darn"]) as backend:
        table = label_responses(texts, backend)
    assert table["words"].to_pylist() == [["Darn", "Total Dunce"], []]
    assert json.loads(table.schema.metadata[b"labeller"])["n_terms"] == 2
    with pytest.raises(UserError, match="empty"), open_backend(settings, [], [" "]):
        pass


def test_prompts_are_labelled_beside_responses(tmp_path):
    pq.write_table(responses("x"), tmp_path / "r.parquet")
    prompts = pa.table({"sample_id": ["p0"], "text": ["y"]})
    pq.write_table(prompts, tmp_path / "p.parquet")
    table = read_texts([tmp_path / "r.parquet"], [tmp_path / "p.parquet"])
    assert table["repeat"].to_pylist() == [0, -1]
    assert table["response"].to_pylist() == ["x", "y"]


# Summary and agreement


@given(word=words)
def test_a_masked_word_shows_its_first_letters_only(word):
    for shown, whole in zip(audit.mask(word).split(), word.split(), strict=True):
        assert shown[0] == whole[0] and set(shown[1:]) <= {"*"} and len(shown) == len(whole)


@given(text=st.text() | st.just("<script>'\"&"))
def test_the_page_holds_text_only(text):
    facts = {"ok": 1, "words": [{"word": text, "responses": 2}], "labeller": {text: text}}
    page = audit.summary_html(facts, text)
    tags = set(re.findall(r"<(/?\w+)", page))
    # fmt: off
    known = {"meta", "style", "/style", "title", "/title", "h1", "/h1", "h2", "/h2", "table",
             "/table", "tr", "th"}
    # fmt: on
    assert tags <= known | {"td"}


def labels(*rows: tuple[list[str], str]) -> pa.Table:
    named, statuses = zip(*rows, strict=True)
    n = len(rows)
    columns = {"sample_id": list(range(n)), "repeat": [0] * n, "status": statuses}
    return pa.table(columns | {"words": pa.array(named, pa.list_(pa.string()))})


def test_agreement_by_hand():
    first = labels((["a", "b"], "ok"), (["a"], "ok"), ([], "none"), ([], "none"), (["c"], "ok"))
    second = labels((["a"], "ok"), ([], "none"), (["a"], "ok"), ([], "absent"), ([], "refused"))
    table = audit.agreement(first, second).set_index("word")
    assert list(table.index) == ["", "a", "b"]  # "c" is in no response that both labelled
    assert table["scope"].tolist() == ["response", "word", "word"]
    assert table["responses"].tolist() == [4, 4, 4]
    counts = ["first", "second", "both"]
    assert table[counts].to_numpy().tolist() == [[2, 2, 1], [2, 2, 1], [1, 0, 0]]
    assert table.loc["a", ["precision", "recall"]].tolist() == [0.5, 0.5]
    assert table["precision"].isna().tolist() == [False, False, True]
    assert table.loc["", "kappa"] == 0.0  # two of four agree, as chance alone would


def test_a_word_is_one_word_in_the_audit_whatever_its_cases(tmp_path):
    texts = responses("A Darn thing", "DARN it, darn", "oh Damn, darn")
    with open_backend({"backend": "lexicon"}, [], ["darn", "damn"]) as backend:
        table = label_responses(texts, backend)
    assert table["words"].to_pylist() == [["Darn"], ["DARN", "darn"], ["darn", "Damn"]]
    assert audit.summary(table)["words"] == [
        {"word": "d***", "responses": 3},
        {"word": "d***", "responses": 1},
    ]
    compared = audit.agreement(table, table)
    assert compared[["word", "both"]].to_numpy().tolist() == [["", 3], ["darn", 3], ["damn", 1]]


@pytest.mark.parametrize(
    ("cells", "kappa"),
    # n, first's yes, second's yes, both's
    [((50, 25, 30, 20), 0.4), ((10, 4, 4, 4), 1.0), ((10, 5, 5, 0), -1.0)],
)
def test_kappa(cells, kappa):
    assert audit.cohen_kappa(*cells) == pytest.approx(kappa)


@pytest.mark.parametrize("cells", [(0, 0, 0, 0), (5, 0, 0, 0), (5, 5, 5, 5)])
def test_kappa_of_constants_is_undefined(cells):
    assert audit.cohen_kappa(*cells) is None


# The config


def test_which_labellers_a_config_asks(demo):
    demo["labeller"]["second"] = "ollama"
    config = load_config(demo)
    assert used_labellers(config) == run_labellers(config) == ["lexicon", "ollama"]
    demo["concepts"] = {name: {"words": ["mine"]} for name in demo["concepts"]}
    assert run_labellers({**config, "concepts": load_config(demo)["concepts"]}) == []


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("openai", "labeller.openai.base_url: missing"),
        ("openai", "labeller.openai.model: missing"),
        ("lexicon", "labeller.second: lexicon is the first already"),
    ],
)
def test_a_labeller_that_cannot_be_asked(demo, second, said):
    demo["labeller"]["second"] = second
    with pytest.raises(UserError, match=re.escape(said)):
        load_config(demo)
