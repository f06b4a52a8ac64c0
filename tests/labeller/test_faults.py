"""The labeller against a real HTTP server that misbehaves."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_ollama import DIGEST, FakeOllama, usual_reply
from headpursuit.labelling.audit import summary
from headpursuit.labelling.label import label_responses, open_backend
from headpursuit.run.files import UserError, write_json

HERE = Path(__file__).parent


def label(responses, settings, journal, host=None):
    """Open the backend and label, as the rule does."""
    if host:
        settings["ollama"]["host"] = host
    with open_backend(settings, responses["response"].to_pylist()) as backend:
        limits = {"attempts": settings["attempts"], "patience": settings["patience"]}
        return label_responses(responses, backend, journal, **limits)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def counts(table) -> dict:
    return json.loads(table.schema.metadata[b"labelling"])


def test_labels_and_their_origin(settings, responses, tmp_path):
    with FakeOllama() as server:
        table = label(responses(6), settings, tmp_path / "j", server.host)
    assert table.column_names == [
        "sample_id", "repeat", "reply", "words", "dropped", "status", "attempts", "cut",
    ]  # fmt: skip
    assert table["words"].to_pylist() == [[], ["darn"]] * 3
    assert table["status"].to_pylist() == ["none", "ok"] * 3
    made_by = json.loads(table.schema.metadata[b"labeller"])
    assert made_by["version"] == "0.13.3"
    assert made_by["digest"] == DIGEST
    assert made_by["quantisation"] == "Q4_K_M"
    assert made_by["context_length"] == 131072
    assert made_by["options"] == {"temperature": 0.0, "seed": 0, "num_predict": 256}
    assert made_by["num_ctx"] % 256 == 0
    assert not made_by["started"]
    assert {body["options"]["num_ctx"] for body in server.requests} == {made_by["num_ctx"]}
    assert summary(table)["tokens_per_second"] > 0


def test_refused_then_rerun(settings, responses, tmp_path):
    port, settings["patience"] = free_port(), 1
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}.*ollama serve.*run the same"):
        label(responses(4), settings, tmp_path / "j", f"127.0.0.1:{port}")
    with FakeOllama(port=port):
        assert label(responses(4), settings, tmp_path / "j").num_rows == 4


def test_server_dies_and_comes_back(settings, responses, tmp_path):
    port, seen = free_port(), tmp_path / "seen"
    env = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}", "FAKE_SEEN": str(seen)}
    env["FAKE_DELAY"] = "0.05"

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, HERE / "fake_ollama.py", "serve"], env=env)

    servers = [start()]

    def die_and_return() -> None:
        while not seen.exists() or len(seen.read_text().splitlines()) < 15:
            time.sleep(0.01)
        servers[0].kill()
        time.sleep(1)
        servers.append(start())

    thread = threading.Thread(target=die_and_return)
    thread.start()
    try:
        table = label(responses(40), settings, tmp_path / "j", f"127.0.0.1:{port}")
    finally:
        thread.join()
        for server in servers:
            server.terminate()
            server.wait()
    assert table["words"].to_pylist() == [[], ["darn"]] * 20
    assert counts(table)["retries"] > 0


def test_model_missing_and_pull_forbidden(settings, responses, tmp_path):
    with (
        FakeOllama(models=("other:latest",)) as server,
        pytest.raises(UserError, match=r"ollama pull llama3\.3:70b.*pull: true"),
    ):
        label(responses(2), settings, tmp_path / "j", server.host)
    assert server.pulls == 0


def test_model_is_pulled_once_with_progress(settings, responses, tmp_path, capfd):
    settings["ollama"]["pull"] = True
    with FakeOllama(models=()) as server:
        label(responses(2), settings, tmp_path / "j", server.host)
        label(responses(2), settings, tmp_path / "k", server.host)
    assert server.pulls == 1
    assert "pull a6eb4748fd29: 100%" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["no-such", "too-new"])
def test_model_that_cannot_be_pulled(settings, responses, tmp_path, name):
    settings["ollama"] |= {"pull": True, "model": name}
    with FakeOllama() as server, pytest.raises(UserError, match=f"cannot pull {name}:latest"):
        label(responses(2), settings, tmp_path / "j", server.host)
    assert server.pulls == 1


@pytest.mark.parametrize("prefix", ["", "library/", "registry.ollama.ai/library/"])
def test_model_by_its_long_name(settings, responses, tmp_path, prefix):
    settings["ollama"]["model"] = f"{prefix}llama3.3:70b"
    with FakeOllama() as server:
        table = label(responses(2), settings, tmp_path / "j", server.host)
    assert json.loads(table.schema.metadata[b"labeller"])["model"] == "llama3.3:70b"


def test_model_that_tells_no_context_length(settings, responses, tmp_path):
    with FakeOllama() as server:
        server.trained_context, server.tells_context = None, False
        table = label(responses(2), settings, tmp_path / "j", server.host)
    made_by = json.loads(table.schema.metadata[b"labeller"])
    assert made_by["context_length"] is made_by["num_ctx_loaded"] is None
    assert table["words"].to_pylist() == [[], ["darn"]]


# The memory that a server holds


def test_the_model_is_unloaded_at_the_end(settings, responses, tmp_path):
    with FakeOllama() as server:
        label(responses(4), settings, tmp_path / "j", server.host)
        assert (server.loads, server.unloads) == (["llama3.3:70b"], ["llama3.3:70b"])
        label(responses(4), settings, tmp_path / "j", server.host)  # which asks nothing
    assert server.loaded == {}


def test_the_model_is_unloaded_after_an_error(settings, responses, tmp_path):
    with FakeOllama() as server:
        server.faults, server.stuck = ["400"], True
        with pytest.raises(UserError):
            label(responses(4), settings, tmp_path / "j", server.host)
    assert server.unloads == ["llama3.3:70b"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_model_is_unloaded_when_the_job_is_ended(settings, responses, tmp_path, number):
    with FakeOllama(delay=0.1) as server:
        settings["ollama"]["host"] = server.host
        write_json(tmp_path / "settings.json", settings)
        pq.write_table(responses(400), tmp_path / "responses.parquet")
        names = ("settings.json", "responses.parquet", "labels.parquet")
        command = [sys.executable, HERE / "run_labeller.py", *(tmp_path / name for name in names)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_until(lambda: len(server.requests) > 8)
        process.send_signal(number)
        assert process.wait(20) != 0
    assert server.unloads == ["llama3.3:70b"]
    assert not (tmp_path / "labels.parquet").exists()


@pytest.mark.parametrize(
    ("address", "loaded", "unloads"),
    [("127.0.0.1", True, 1), ("127.0.0.2", True, 0), ("127.0.0.2", False, 1)],
    ids=["here, loaded before", "elsewhere, loaded before", "elsewhere, loaded for the job"],
)
def test_a_model_in_use_elsewhere_stays(settings, responses, tmp_path, address, loaded, unloads):
    with FakeOllama(address=address) as server:
        server.loaded = {"llama3.3:70b": 4096} if loaded else {}
        label(responses(4), settings, tmp_path / "j", server.host)
    assert len(server.unloads) == unloads


BAD = {
    "no tags": "darn",
    "unclosed tags": "The words are <answer>darn, dunce",
    "essay": "<answer>" + "I would say that this text is on the whole a darn fine one " * 50,
    "essay in tags": f"<answer>{'it is, as far as I can tell from here, all right ' * 3}</answer>",
    "10,000 words": f"<answer>{', '.join(['darn'] * 10_000)}</answer>",
    "empty": "",
    "empty tags": "<answer> </answer>",
}


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD)
def test_bad_reply_is_asked_again(settings, responses, tmp_path, reply):
    def first_bad(text: str, attempt: int) -> str:
        return reply if attempt == 1 else usual_reply(text, attempt)

    with FakeOllama(first_bad) as server:
        table = label(responses(2), settings, tmp_path / "j", server.host)
    assert table["status"].to_pylist() == ["none", "ok"]
    assert table["attempts"].to_pylist() == [2, 2]
    assert counts(table)["bad_replies"] == counts(table)["retries"] == 2
    again = next(body for body in server.requests if body["options"]["seed"] == 1)
    assert again["messages"][-1]["content"].endswith("<answer>None</answer>")
    assert again["options"]["temperature"] > 0


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD)
def test_reply_that_stays_bad_is_unparsed(settings, responses, tmp_path, reply):
    with FakeOllama(lambda text, attempt: reply) as server:
        table = label(responses(2), settings, tmp_path / "j", server.host)
        assert table["status"].to_pylist() == ["unparsed", "unparsed"]
        assert table["words"].to_pylist() == [[], []]
        assert len(set(kept := table["reply"].to_pylist())) == 1
        assert reply.startswith(kept[0])  # as far as num_predict went
        assert len(server.requests) == 6
        label(responses(2), settings, tmp_path / "j", server.host)
    assert len(server.requests) == 6
    assert summary(table)["unparsed"] == 2


def journal_replies(journal: Path) -> list[dict]:
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    return [record for record in records if record["event"] == "reply"]


def test_refusals_are_counted_apart(settings, responses, tmp_path):
    def refuse(text: str, attempt: int) -> str:
        if text.startswith("Response 0"):
            return "I can't help with that."
        if text.startswith("Response 1") and attempt == 1:
            return "I’m sorry, but I cannot assist with this request."
        return "darn" if text.startswith("Response 2") else usual_reply(text, attempt)

    with FakeOllama(refuse) as server:
        table = label(responses(4), settings, tmp_path / "j", server.host)
    assert table["status"].to_pylist() == ["refused", "ok", "unparsed", "ok"]
    assert table["attempts"].to_pylist() == [3, 2, 3, 1]
    facts = summary(table)
    assert [facts[name] for name in ("ok", "refused", "unparsed", "bad_replies")] == [2, 1, 1, 7]


@pytest.mark.parametrize(
    "reply",
    [
        "Thinking about it, the words in this text are <answer>darn",
        "<answer>fine</answer> No: <answer>darn",
    ],
    ids=["no closing tag", "a second answer begun"],
)
def test_a_reply_cut_by_num_predict_is_no_answer(settings, responses, tmp_path, reply):
    settings["num_predict"] = 16
    with FakeOllama(lambda text, attempt: f"{reply} and so on</answer>" * 2) as server:
        table = label(responses(2), settings, tmp_path / "j", server.host)
    assert table["status"].to_pylist() == ["unparsed", "unparsed"]
    assert table["words"].to_pylist() == [[], []]
    assert {record["ended"] for record in journal_replies(tmp_path / "j")} == {"length"}
    assert summary(table)["unfinished_replies"] == 6


def test_control_characters(settings, responses, tmp_path):
    reply = "\x00\x1b[1m<answer>da\x07rn,\x00 \ud83dDARN\x7f,\u200bdunce</answer>\x08"
    with FakeOllama(lambda text, attempt: reply) as server:
        table = label(responses(2), settings, tmp_path / "j", server.host)
    assert table["words"].to_pylist() == [[], ["darn"]]
    assert table["dropped"].to_pylist() == [["darn", "dunce"], ["dunce"]]
    assert table["status"].to_pylist() == ["absent", "ok"]
    pq.write_table(table, tmp_path / "labels.parquet")


FAULTS = ["429", "500", "503", "silence", "truncated", "dropped", "garbled", "unfinished"]


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_that_passes(settings, responses, tmp_path, fault):
    settings["timeout"] = 0.5
    with FakeOllama() as server:
        server.faults.append(fault)
        table = label(responses(6), settings, tmp_path / "j", server.host)
    assert table["words"].to_pylist() == [[], ["darn"]] * 3
    assert len(server.requests) == 7 == counts(table)["requests"]
    assert counts(table)["bad_replies"] == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_that_stays_then_rerun(settings, responses, tmp_path, fault):
    settings |= {"timeout": 0.3, "patience": 0.5, "slots": 1}
    journal = tmp_path / "j"
    with FakeOllama() as server:
        label(responses(3), settings, journal, server.host)
        server.faults, server.stuck = [fault], True
        with pytest.raises(UserError) as caught:
            label(responses(6), settings, journal, server.host)
        message = str(caught.value)
        assert f"The 3 replies so far are kept in {journal}" in message
        assert "run the same command again" in message
        server.faults, server.stuck = [], False
        before = len(server.requests)
        table = label(responses(6), settings, journal, server.host)
    assert len(server.requests) - before == 3
    assert counts(table)["requests"] == len(server.requests)
    assert table["words"].to_pylist() == [[], ["darn"]] * 3


def test_refusal_ends_at_once(settings, responses, tmp_path):
    with FakeOllama() as server:
        server.faults, server.stuck = ["400"], True
        with pytest.raises(UserError, match="refuses"):
            label(responses(20), settings, tmp_path / "j", server.host)
    assert len(server.requests) <= settings["slots"]


def test_window_smaller_than_asked(settings, responses, tmp_path):
    with FakeOllama() as server:
        server.context = 1024
        with pytest.raises(UserError, match=r"labeller\.max_ctx: 1024"):
            label(responses(2), settings, tmp_path / "j", server.host)
    assert not server.requests


def test_a_prompt_cut_without_a_word_ends_the_job(settings, responses, tmp_path):
    with FakeOllama() as server:
        # Less than the labelling prompt takes by itself: examples are dropped.
        server.context, server.tells_context, server.knows_truncate = 150, False, False
        with pytest.raises(UserError) as caught:
            label(responses(2), settings, tmp_path / "j", server.host)
    assert re.search(r"read 150 tokens of a prompt that has 1\d\d or more", str(caught.value))
    for step in ("OLLAMA_CONTEXT_LENGTH", "labeller.max_ctx"):
        assert step in str(caught.value)
    assert journal_replies(tmp_path / "j") == []


def test_a_prompt_of_the_length_at_which_it_is_cut_ends_the_job(settings, responses, tmp_path):
    """Short ones are read whole by the same server, and kept."""
    settings["slots"] = 1
    table = responses(2)
    long = "This is a long and quite harmless sentence. " * 100
    table = table.set_column(
        table.column_names.index("response"), "response", [[table["response"][1].as_py(), long]]
    )
    with FakeOllama() as server:
        server.context, server.tells_context, server.knows_truncate = 512, False, False
        with pytest.raises(UserError, match="cuts prompts without a word"):
            label(table, settings, tmp_path / "j", server.host)
    assert len(journal_replies(tmp_path / "j")) == 1


def test_a_server_that_refuses_what_does_not_fit(settings, responses, tmp_path):
    with FakeOllama() as server:
        server.context, server.tells_context = 256, False
        message = r"exceeds the context length.*OLLAMA_CONTEXT_LENGTH.*labeller\.max_ctx"
        with pytest.raises(UserError, match=message):
            label(responses(2), settings, tmp_path / "j", server.host)


def test_a_server_that_does_not_count_what_it_has_cached(settings, responses, tmp_path):
    with FakeOllama() as server:
        server.counts_cached = False
        table = label(responses(20), settings, tmp_path / "j", server.host)
    assert table["words"].to_pylist() == [[], ["darn"]] * 10
    assert min(record["prompt_tokens"] or 0 for record in journal_replies(tmp_path / "j")) < 30
    assert counts(table)["requests"] == 20


def test_long_response_is_cut_at_a_sentence(settings, responses, tmp_path):
    settings["max_ctx"] = 3328
    table = responses(2)
    long = "This is a darn sentence. " * 400
    column = [long, table["response"][1].as_py()]
    table = table.set_column(table.column_names.index("response"), "response", [column])
    with FakeOllama() as server:
        labels = label(table, settings, tmp_path / "j", server.host)
    assert labels["cut"].to_pylist() == [True, False]
    sent = next(text for text in server.texts if "sentence" in text)
    assert long.startswith(sent)
    assert sent.endswith("sentence.")
    assert summary(labels)["cut"] == 1


def test_equal_responses_are_asked_once_and_a_rerun_asks_nothing(settings, responses, tmp_path):
    table = responses(10)
    import pyarrow as pa

    table = pa.concat_tables([table, table])
    with FakeOllama() as server:
        first = label(table, settings, tmp_path / "j", server.host)
        second = label(table, settings, tmp_path / "j", server.host)
    assert len(server.requests) == 10
    assert first.equals(second)


def test_changed_prompt_asks_anew(settings, responses, tmp_path):
    changed = tmp_path / "label.yaml"
    text = Path(settings["prompt"]).read_text()
    changed.write_text(text.replace("Do not explain", "Never explain"))
    with FakeOllama() as server:
        label(responses(5), settings, tmp_path / "j", server.host)
        settings["prompt"] = str(changed)
        label(responses(5), settings, tmp_path / "j", server.host)
        assert len(server.requests) == 10
        changed.write_text("# a comment changes nothing\n" + changed.read_text())
        label(responses(5), settings, tmp_path / "j", server.host)
    assert len(server.requests) == 10


def test_json_mode_gives_the_same_table(settings, responses, tmp_path):
    with FakeOllama() as server:
        tags = label(responses(4), settings, tmp_path / "j", server.host)
    prompt = tmp_path / "json.yaml"
    prompt.write_text(Path(settings["prompt"]).read_text().replace("mode: tags", "mode: json"))
    settings["prompt"] = str(prompt)

    def reply(text: str, attempt: int) -> str:
        return json.dumps({"words": ["Darn"] if "darn" in text else []})

    with FakeOllama(reply) as server:
        as_json = label(responses(4), settings, tmp_path / "j", server.host)
    assert server.requests[0]["format"]["required"] == ["words"]
    same = ["sample_id", "repeat", "words", "dropped", "status", "attempts", "cut"]
    assert as_json.select(same).equals(tags.select(same))


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_slots_are_kept_busy(settings, responses, tmp_path):
    """As many requests as slots are under way at once, and never one more."""
    settings["slots"] = 8
    with FakeOllama() as server:
        server.gate.clear()
        thread = threading.Thread(
            target=label, args=(responses(20), settings, tmp_path / "j", server.host)
        )
        thread.start()
        wait_until(lambda: len(server.requests) == 8)
        time.sleep(0.3)
        assert len(server.requests) == 8
        server.gate.set()
        thread.join()
    assert len(server.requests) == 20


class TestOpenAI:
    @pytest.fixture
    def hosted(self, settings, monkeypatch):
        monkeypatch.setenv("MY_KEY", "sk-very-secret")
        settings["backend"] = "openai"
        settings["openai"] |= {"model": "m", "key_variable": "MY_KEY"}

        def at(server: FakeOllama) -> dict:
            settings["openai"]["base_url"] = f"http://{server.host}/v1"
            return settings

        return at

    def test_labels(self, hosted, responses, tmp_path):
        with FakeOllama() as server:
            server.faults += ["429", "truncated", "garbled"]
            table = label(responses(6), hosted(server), tmp_path / "j")
        assert table["words"].to_pylist() == [[], ["darn"]] * 3
        assert counts(table)["requests"] == 9 == len(server.requests)
        assert {h.get("authorization", h.get("Authorization")) for h in server.headers} == {
            "Bearer sk-very-secret"
        }
        assert b"sk-very-secret" not in b"".join(table.schema.metadata.values())
        assert "sk-very-secret" not in (tmp_path / "j").read_text()

    @pytest.mark.parametrize("fault", ["401", "400"])
    def test_refusal_names_no_key(self, hosted, responses, tmp_path, fault):
        with FakeOllama() as server:
            server.faults, server.stuck = [fault], True
            with pytest.raises(UserError, match=f"HTTP {fault}") as caught:
                label(responses(2), hosted(server), tmp_path / "j")
        assert "sk-very" not in str(caught.value)
        assert "sk-very" not in (tmp_path / "j").read_text()

    def test_a_prompt_cut_without_a_word_ends_the_job(self, hosted, responses, tmp_path):
        with FakeOllama() as server:
            server.context = 160
            with pytest.raises(UserError, match=r"cuts prompts without a word.*--max-model-len"):
                label(responses(2), hosted(server), tmp_path / "j")

    def test_a_reply_cut_by_its_length(self, hosted, responses, tmp_path):
        with FakeOllama(lambda text, attempt: "darn " * 999) as server:
            table = label(responses(2), hosted(server), tmp_path / "j")
        assert {record["ended"] for record in journal_replies(tmp_path / "j")} == {"length"}
        assert table["status"].to_pylist() == ["unparsed", "unparsed"]

    def test_json_mode(self, hosted, responses, tmp_path):
        prompt = tmp_path / "json.yaml"
        text = (HERE.parents[1] / "prompts" / "label.yaml").read_text()
        prompt.write_text(text.replace("mode: tags", "mode: json"))
        with FakeOllama(lambda text, attempt: '{"words": ["fine"]}') as server:
            table = label(responses(2), hosted(server) | {"prompt": str(prompt)}, tmp_path / "j")
        assert table["words"].to_pylist() == [["fine"], ["fine"]]
        assert server.requests[0]["response_format"]["type"] == "json_schema"
