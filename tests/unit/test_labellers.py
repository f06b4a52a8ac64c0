"""The parts of labelling that need no server. tests/labeller has those that do."""

import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import label_responses as label_responses_script
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from headpursuit.labelling import audit, prompt
from headpursuit.labelling.backend import Answer, connection
from headpursuit.labelling.journal import Journal, journal_key
from headpursuit.labelling.label import label_responses, open_backend
from headpursuit.labelling.lexicon import Lexicon
from headpursuit.labelling.ollama import Ollama, Server
from headpursuit.labelling.openai import open_http
from headpursuit.labelling.reply import clean, is_refusal, parse_reply, sift_words
from headpursuit.run.config import load_config
from headpursuit.run.files import UserError, write_json
from headpursuit.run.retry import Busy, persist
from headpursuit.run.uses import run_labellers
from hypothesis import given, settings
from hypothesis import strategies as st

SHIPPED = Path(__file__).parents[2] / "prompts/label.yaml"
RAW = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
modes = pytest.mark.parametrize("mode", ["tags", "json"])
# Words as they come out of a reply: nothing more to clean off, nothing that parts entries.
words = (
    st.text(st.characters(exclude_characters=",;，、<>", exclude_categories=["C", "Z"]), min_size=1)
    .map(clean)
    .filter(lambda word: word and clean(word) == word and word != "none")
)


@pytest.fixture
def load(tmp_path):
    """Load the shipped prompt with some of its keys changed."""

    def load(**changes) -> prompt.Prompt:
        (tmp_path / "prompt.yaml").write_text(yaml.safe_dump(RAW | changes))
        return prompt.load_prompt(tmp_path / "prompt.yaml")

    return load


# Replies (any at all are in test_fuzz.py)


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
        ("<ANSWER> None. </ANSWER>", []),
        ("<answer>Darn, darn; DARN.</answer>", ["darn"]),
        ('<answer>"darn", “heck”, *fool*, `dunce`</answer>', ["darn", "heck", "fool", "dunce"]),
        ("<answer>- darn\n- heck\n2. fool\n**dunce**</answer>", ["darn", "heck", "fool", "dunce"]),
        ("<answer>total dunce, darn</answer>", ["total dunce", "darn"]),
        ("<answer>draft</answer> no: <answer>darn</answer>", ["darn"]),
        ("<answer>first <answer>darn</answer>", ["darn"]),
        ("**<answer>**darn, heck**</answer>**", ["darn", "heck"]),
        ("<answer>\n*darn, heck, fool*\n</answer>", ["darn", "heck", "fool"]),
        ("<answer>**darn**, **heck**</answer>", ["darn", "heck"]),
        ("<answer>d**n, **heck**, f***</answer>", ["d**n", "heck", "f***"]),
        ("<answer>\n```\ndarn\nheck\n```\n</answer>", ["darn", "heck"]),
        (
            "\x00\x1b[1m<answer>da\x07rn,\x00 \ud83dDARN\x7f,\u200bfool</answer>\x08",
            ["darn", "fool"],
        ),
        ("<answer>darn</answer> Or rather: <answer>heck", None),
        ("</answer>darn<answer>", None),
        ("<answer> , </answer>", None),
        ("", None),
        ("<answer>I would say that this text is quite fine</answer>", None),
        (f"<answer>{', '.join(map(str, range(101)))}</answer>", None),
    ],
)
def test_tags(reply, found):
    assert parse_reply(reply, "tags") == found


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


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
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
        ("", False),
    ],
)
def test_refusals(reply, refused):
    assert parse_reply(reply, "tags") is None
    assert is_refusal(reply) == refused


# The prompt and its window


@modes
def test_the_shipped_prompt_answers_itself(load, mode):
    shipped = load(mode=mode)
    chat = shipped.messages("the response")
    assert [message["role"] for message in chat] == ["system", *["user", "assistant"] * 3, "user"]
    assert "the response" in chat[-1]["content"]
    for example, message in zip(shipped.examples, chat[2::2], strict=True):
        named = parse_reply(message["content"], mode)
        assert sift_words(named, example["response"]) == (example["words"], [])
    reminder = shipped.answer.strip()
    assert reminder not in chat[-1]["content"]
    assert shipped.messages("text", 2)[-1]["content"].endswith(reminder)


def test_the_examples_may_stand_in_the_question(load):
    """The original wording has a system text and one message, with its examples in it."""
    examples = "Text: Darn it. Answer: <answer>darn</answer>\n"
    own = {"examples": [], "answer": {"tags": ""}, "template": f"{examples}Text: {{response}}"}
    for attempt in (1, 2):
        chat = load(**own).messages("the response", attempt)
        assert [message["role"] for message in chat] == ["system", "user"]
        assert chat[1]["content"] == f"{examples}Text: the response"
    assert [message["role"] for message in load(**own, system="").messages("text")] == ["user"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "xml"}, "mode must be"),
        ({"template": "no place"}, "template must be"),
        ({"template": "{response} {response}"}, "template must be"),
        ({"system": None}, "system must be"),
        ({"answer": {"json": "x"}}, r"answer\.tags must be"),
        ({"examples": [{"response": "x"}]}, "examples must have"),
        ({"extra": 1}, "its keys must be"),
    ],
)
def test_a_wrong_prompt_file_is_refused(load, change, said):
    with pytest.raises(UserError, match=rf"labeller\.prompt: .*{said}"):
        load(**change)


def test_a_prompt_for_images_has_their_number_and_no_text(tmp_path):
    shipped = SHIPPED.with_name("keywords.yaml")
    raw = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    for mode in ("list", "json", "tags"):
        (tmp_path / "prompt.yaml").write_text(yaml.safe_dump(raw | {"mode": mode}))
        own = prompt.load_prompt(tmp_path / "prompt.yaml", per_image=3)
        system, question = own.messages(b"an image", attempt=2)
        assert "images" not in system and question["images"] == [b"an image"]
        said = system["content"] + question["content"]
        assert "exactly 3 different" in said and "{per_image}" not in said
        assert own.digest != prompt.load_prompt(tmp_path / "prompt.yaml", per_image=5).digest
    for change, told in (
        ({"examples": [{"response": "x", "words": ["y"]}]}, r"examples must be \[\]"),
        ({"template": "{response}"}, r"holds \{response\} never"),
    ):
        (tmp_path / "prompt.yaml").write_text(yaml.safe_dump(raw | change))
        with pytest.raises(UserError, match=rf"labeller\.keywords\.prompt: .*{told}"):
            prompt.load_prompt(tmp_path / "prompt.yaml", per_image=5)


def test_a_prompt_file_that_is_not_yaml(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe: [")
    with pytest.raises(UserError, match="not YAML"):
        prompt.load_prompt(tmp_path / "bad.yaml")


@settings(max_examples=50)
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


def test_a_window_without_room_is_refused():
    with pytest.raises(UserError, match=r"labeller\.max_ctx: 1024"):
        prompt.fit_window(prompt.load_prompt(SHIPPED), [], 256, 1024)


@settings(max_examples=50)
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


def test_the_journal_comes_back_from_disk(tmp_path, caplog):
    facts = {"tokens": 3, "prompt_tokens": 9, "ended": "stop", "seconds": 0.5}
    with Journal(tmp_path / "j") as journal:
        journal.write("sent", "k", 1)
        journal.write("failed", "k", 1, why="no")
        journal.write("sent", "k", 1)
        journal.write("reply", "k", 1, reply="a\n\ud83d\x00 b", **facts)
        with pytest.raises(UserError, match="another run"), Journal(tmp_path / "j"):
            pass
    with (tmp_path / "j").open("ab") as handle:
        whole = {"key": "k", "event": "reply", "at": 1.0, "reply": "a", **facts}
        for wrong in ({"reply": None}, {"tokens": "3"}, {"seconds": "0.5"}, {"at": None}):
            handle.write(json.dumps(whole | wrong).encode() + b"\n")
        handle.write(b'{"key": "k", "event": "reply"}\nnull\n\xff\n{"key": "k", "att')
    for _ in range(2):
        with Journal(tmp_path / "j") as again:
            assert [record["reply"] for record in again.replies["k"]] == ["a\n\ud83d\x00 b"]
            assert again.sent["k"] == 2
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "8 unreadable line(s) passed over"
    ] * 2
    with Journal(tmp_path / "j") as again:
        again.write("sent", "k", 2)
    assert (tmp_path / "j").read_bytes().splitlines()[-1].startswith(b'{"key": "k", "attempt": 2')


def test_busy_seconds_are_those_with_a_request_under_way():
    journal = Journal(None)
    for end, seconds in ((10.0, 4.0), (11.0, 2.0), (30.0, 1.0)):
        journal.replies["k"].append({"at": end, "seconds": seconds})
    assert journal.busy_seconds(["k"]) == pytest.approx(6.0)


def test_a_key_stands_for_all_that_shapes_a_reply(load):
    digests = [load().digest, load(system="Mark words.").digest, load(mode="json").digest]
    keys = [journal_key(text, {"prompt": digest}) for text in "ab" for digest in digests]
    assert len(set(keys)) == 6
    assert load().digest == prompt.load_prompt(SHIPPED).digest  # whose comments do not count


def test_patience_ends_with_the_reason(monkeypatch):
    def call():
        calls.append(1)
        raise Busy("HTTP 503")

    calls = []
    monkeypatch.setattr("headpursuit.run.retry.FIRST_WAIT", 0.05)
    with pytest.raises(UserError, match=r"HTTP 503 \(tried for 0.3 s\)"):
        persist(call, 0.3)
    assert len(calls) > 1


# What servers answer


def answering(handler) -> Ollama:
    """Make a backend whose server is a function."""
    made = object.__new__(Ollama)
    made.server = Server("first", 1)
    made.server._client._mounts = {}
    made.server._client._transport = httpx.MockTransport(handler)
    made.model, made.mode, made.num_ctx = "llama3.3:70b", "tags", 256
    return made


def test_a_server_that_refuses_says_what_to_do_or_how_long_to_leave_it_alone():
    """Ollama's client drops the headers of what refuses."""
    reply = httpx.Response(404, json={"error": "not found"})
    with pytest.raises(UserError, match=r"HTTP 404.*`ollama pull llama3\.3:70b`"):
        answering(lambda request: reply)._chat([], {})
    reply = httpx.Response(429, json={"error": "slow down"}, headers={"Retry-After": "7"})
    with pytest.raises(Busy, match=r"first:11434: HTTP 429: .*slow down") as caught:
        answering(lambda request: reply)._chat([], {})
    assert caught.value.after == 7


def test_a_redirect_is_followed_without_the_key(monkeypatch):
    def handler(request: httpx.Request) -> httpx.Response:
        keys.append((request.url.host, request.headers.get("authorization")))
        if request.url.host == "first":
            return httpx.Response(307, headers={"Location": f"http://other{request.url.path}"})
        said = {"done": True, "message": {"role": "assistant", "content": "a"}, "eval_count": 1}
        return httpx.Response(200, json=said)

    keys = []
    monkeypatch.setenv("OLLAMA_API_KEY", "secret\n")
    assert answering(handler)._chat([], {}) == Answer("a", 1)
    assert keys == [("first", "Bearer secret"), ("other", None)]


def test_no_proxy_leads_to_this_machine(monkeypatch):
    """Nothing listens at the proxy."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with httpx.Client(**connection("MY_KEY", 1)) as http:
        for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "0.0.0.0:80"):
            assert http._transport_for_url(httpx.URL(f"http://{host}/api")) is http._transport
        with pytest.raises(httpx.ConnectError):
            http.get("http://example.org")


@pytest.mark.parametrize("key", ["sec\nret", "secr\u00e9t", "  "])
def test_a_key_that_no_header_can_hold_is_not_told(monkeypatch, key):
    monkeypatch.setenv("OLLAMA_API_KEY", key)
    with pytest.raises(UserError, match="OLLAMA_API_KEY") as caught:
        Server("127.0.0.1:9", 1)
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "proxy", "said"),
    [
        ("http://first:port", "", "[Pp]ort"),
        ("http://[::1", "", "Invalid"),
        ("http://first", "socks5://127.0.0.1:9", "socksio"),
    ],
)
def test_what_keeps_a_client_from_being_opened_is_told(monkeypatch, host, proxy, said):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(
        UserError, match=rf"labeller\.ollama\.host or OLLAMA_HOST, or a .*: .*{said}"
    ):
        Server(host, 1)
    with pytest.raises(UserError, match=rf"labeller\.openai\.base_url, or a proxy .*: .*{said}"):
        open_http({"base_url": host, "key_variable": "MY_KEY"}, 1)


# Labels without a server


class Scripted(Lexicon):
    """Answers what it is told to."""

    def __init__(self, answers: dict[str, str], room: int | None = None):
        super().__init__(["unused"])
        self.answers, self.room, self.asked, self.mode = answers, room, [], "tags"

    def ask(self, text: str, attempt: int) -> Answer:
        self.asked.append(text)
        return Answer(self.answers[text])


def responses(*texts: str | None) -> pa.Table:
    ids = [f"p{i}" for i in range(len(texts))]
    repeats = pa.array([0] * len(texts), pa.int32())
    return pa.table({"sample_id": ids, "repeat": repeats, "response": pa.array(texts, pa.string())})


def test_statuses_and_their_summary():
    backend = Scripted(
        {
            "a darn thing": "<answer>Darn, heck</answer>",
            "fine": "<answer>None</answer>",
            "good": "<answer>darn</answer>",
            "bad": "no tags",
            "worse": "I'm sorry, I can't.",
        }
    )
    texts = responses("a darn thing", "fine", "good", "bad", " ", None, "fine", "worse")
    table = label_responses(texts, backend, attempts=2)
    assert table["status"].to_pylist() == [
        *("ok", "none", "absent", "unparsed", "none", "none", "none", "refused")
    ]
    assert table["words"].to_pylist() == [["darn"], [], [], [], [], [], [], []]
    assert table["dropped"].to_pylist() == [["heck"], [], ["darn"], [], [], [], [], []]
    assert table["attempts"].to_pylist() == [1, 1, 1, 2, 0, 0, 1, 2]
    asked = ["a darn thing", "bad", "bad", "fine", "good", "worse", "worse"]
    assert sorted(backend.asked) == asked
    assert audit.summary(table) == {
        **{"responses": 8, "distinct": 5, "requests": 7, "retries": 2},
        **{"ok": 1, "none": 4, "absent": 1, "refused": 1, "unparsed": 1},
        **{"cut": 0, "dropped_words": 2, "bad_replies": 4, "unfinished_replies": 0},
        **{"tokens_per_second": None, "words": [{"word": "d***", "responses": 1}]},
        "labeller": backend.facts,
    }


def test_a_text_that_is_cut_is_marked_and_judged_by_what_was_sent():
    backend = Scripted({"Fine.": "<answer>darn</answer>"}, room=8)
    table = label_responses(responses("Fine. Darn it."), backend)
    assert table["cut"].to_pylist() == [True]
    assert table["words"].to_pylist() == [[]]  # the word stands behind the cut
    assert table["dropped"].to_pylist() == [["darn"]]


def test_a_word_list():
    """A word is one word in the audit, whatever its cases."""
    texts = responses("A Darn thing", "DARN it, darn", "a Total  Dunce, darn", "undarned")
    terms = ["DARN", "total dunce", "", "darn"]
    with open_backend({"backend": "lexicon"}, [], terms) as backend:
        table = label_responses(texts, backend)
    expected = [["Darn"], ["DARN", "darn"], ["darn", "Total Dunce"], []]
    assert table["words"].to_pylist() == expected
    assert json.loads(table.schema.metadata[b"labeller"])["n_terms"] == 2
    masked = [{"word": "d***", "responses": 3}, {"word": "t**** d****", "responses": 1}]
    assert audit.summary(table)["words"] == masked
    both = audit.agreement(table, table)[["word", "both"]].to_numpy().tolist()
    assert both == [["", 3], ["darn", 3], ["total dunce", 1]]
    with pytest.raises(UserError, match="empty"), open_backend({"backend": "lexicon"}, [], [" "]):
        pass


def test_prompts_are_labelled_beside_responses_and_compared(tmp_path):
    (tmp_path / "terms.csv").write_text("text\ndarn\n")
    record = {"kind": "local", "root": str(tmp_path), "files": [{"path": "terms.csv", "size": 10}]}
    write_json(tmp_path / "provenance.json", record)
    pq.write_table(responses("darn"), tmp_path / "r.parquet")
    prompts = pa.table({"sample_id": ["p0"], "text": ["fine"]})
    pq.write_table(prompts, tmp_path / "p.parquet")
    lexicon = {"files": "terms.csv", "text": "text", "where": None}
    asked = {"backend": "lexicon", "attempts": 1, "patience": 1, "lexicon": lexicon}
    job = SimpleNamespace(params=SimpleNamespace(labeller=asked), log=[tmp_path / "log"])
    job.input = SimpleNamespace(
        responses=[tmp_path / "r.parquet"], prompts=[tmp_path / "p.parquet"], images=[]
    )
    job.input.lexicon = tmp_path / "provenance.json"
    job.output = SimpleNamespace(labels=tmp_path / "l.parquet", summary=tmp_path / "s.json")
    label_responses_script.main(job)
    table = pq.read_table(tmp_path / "l.parquet")
    assert table["repeat"].to_pylist() == [0, -1]
    assert table["words"].to_pylist() == [["darn"], []]
    assert json.loads((tmp_path / "s.json").read_text()) == audit.summary(table)
    job.input.first, job.output.agreement = tmp_path / "l.parquet", tmp_path / "a.csv"
    label_responses_script.main(job)
    assert pd.read_csv(tmp_path / "a.csv")["both"].tolist() == [1, 1]


# Agreement


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


@pytest.mark.parametrize(
    ("cells", "kappa"),
    # n, first's yes, second's yes, both's; of constants it is undefined
    [
        ((50, 25, 30, 20), 0.4),
        ((10, 4, 4, 4), 1.0),
        ((10, 5, 5, 0), -1.0),
        ((0, 0, 0, 0), None),
        ((5, 0, 0, 0), None),
        ((5, 5, 5, 5), None),
    ],
)
def test_kappa(cells, kappa):
    assert audit.cohen_kappa(*cells) == (kappa if kappa is None else pytest.approx(kappa))


# The config


def test_which_labellers_a_config_asks(demo):
    demo["labeller"]["second"] = "ollama"
    config = load_config(demo)
    assert run_labellers(config) == ["lexicon", "ollama"]
    demo["concepts"] = {name: {"words": ["mine"]} for name in demo["concepts"]}
    assert run_labellers({**config, "concepts": load_config(demo)["concepts"]}) == []
