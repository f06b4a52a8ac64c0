"""The labeller against a real HTTP server that misbehaves."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from checkout import wait_until
from fake_ollama import DIGEST, FakeOllama, free_port, usual_reply
from headpursuit.labelling.audit import summary
from headpursuit.run.files import UserError

HERE = Path(__file__).parent


def journalled(tmp_path: Path) -> list[dict]:
    records = map(json.loads, (tmp_path / "journal").read_text().splitlines())
    return [record for record in records if record["event"] == "reply"]


def with_text(table: pa.Table, text: str) -> pa.Table:
    """Put a text in the place of a table's first response."""
    texts = [text, *table["response"].to_pylist()[1:]]
    return table.set_column(table.column_names.index("response"), "response", [texts])


def test_labels_and_their_origin(responses, label):
    with FakeOllama() as server:
        table = label(responses(6), server.host)
        again = label(pa.concat_tables([responses(6)] * 2), server.host)
    assert table["words"].to_pylist() == [[], ["darn"]] * 3
    assert table["status"].to_pylist() == ["none", "ok"] * 3
    made_by = json.loads(table.schema.metadata[b"labeller"])
    assert made_by["num_ctx"] == made_by["num_ctx_loaded"]
    assert made_by["num_ctx"] % 256 == 0
    expected = {"version": "0.13.3", "digest": DIGEST, "quantisation": "Q4_K_M", "started": False}
    expected |= {"context_length": 131072, "model": "llama3.3:70b"}
    expected["options"] = {"temperature": 0.0, "seed": 0, "num_predict": 256}
    assert made_by.items() >= expected.items()
    assert {body["options"]["num_ctx"] for body in server.requests} == {made_by["num_ctx"]}
    assert summary(table)["tokens_per_second"] > 0
    # Equal responses are asked about once, and a second run asks nothing.
    assert len(server.requests) == 6
    assert again.slice(6).equals(table) and again.slice(0, 6).equals(table)
    # The model is loaded and leaves the memory each time.
    assert server.unloads == ["llama3.3:70b"] * 2 and server.loaded == {}


def test_an_older_server_tells_less(responses, label):
    with FakeOllama() as server:
        server.modern = False
        table = label(responses(2), server.host)
    made_by = json.loads(table.schema.metadata[b"labeller"])
    assert made_by["context_length"] is made_by["num_ctx_loaded"] is None
    assert table["words"].to_pylist() == [[], ["darn"]]


def test_refused_then_rerun(settings, responses, label):
    port, settings["patience"] = free_port(), 1
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}.*ollama serve.*run the same"):
        label(responses(4), f"127.0.0.1:{port}")
    with FakeOllama(port=port) as server:
        assert label(responses(4), server.host).num_rows == 4


def test_server_dies_and_comes_back(responses, label, tmp_path):
    port = free_port()
    env = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}", "FAKE_DELAY": "0.05"}

    def serve() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, HERE / "fake_ollama.py", "serve"], env=env)

    servers = [serve()]

    def die_and_return() -> None:
        wait_until(lambda: (tmp_path / "journal").exists() and len(journalled(tmp_path)) > 10)
        servers[0].kill()
        servers.append(serve())

    thread = threading.Thread(target=die_and_return)
    thread.start()
    try:
        table = label(responses(40), f"127.0.0.1:{port}")
    finally:
        thread.join()
        for server in servers:
            server.terminate()
            server.wait()
    assert table["words"].to_pylist() == [[], ["darn"]] * 20
    assert summary(table)["retries"] > 0


def test_model_missing_and_pull_forbidden(responses, label):
    message = r"ollama pull llama3\.3:70b.*pull: true"
    with FakeOllama(models=("other:latest",)) as server, pytest.raises(UserError, match=message):
        label(responses(2), server.host)
    assert server.pulls == 0


def test_model_is_pulled_once_with_progress(settings, responses, label, capfd):
    settings["ollama"]["pull"] = True
    with FakeOllama(models=()) as server:
        label(responses(2), server.host)
        label(responses(2), server.host)
    assert server.pulls == 1
    assert "pull a6eb4748fd29: 100%" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["no-such", "too-new"])
def test_model_that_cannot_be_pulled(settings, responses, label, name):
    settings["ollama"] |= {"pull": True, "model": name}
    with FakeOllama() as server, pytest.raises(UserError, match=f"cannot pull {name}"):
        label(responses(2), server.host)
    assert server.pulls == 1


def test_model_by_its_long_name(settings, responses, label):
    settings["ollama"]["model"] = "registry.ollama.ai/library/llama3.3:70b"
    with FakeOllama() as server:
        table = label(responses(2), server.host)
    assert json.loads(table.schema.metadata[b"labeller"])["model"] == "llama3.3:70b"


# The memory that a server holds


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_model_is_unloaded_when_the_job_is_ended(settings, responses, start, tmp_path, number):
    with FakeOllama(delay=0.1) as server:
        settings["ollama"]["host"] = server.host
        process = start(responses(400))
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
def test_a_model_in_use_elsewhere_stays(responses, label, address, loaded, unloads):
    with FakeOllama(address=address) as server:
        server.loaded = {"llama3.3:70b": 4096} if loaded else {}
        label(responses(4), server.host)
    assert len(server.unloads) == unloads


# Replies


@pytest.mark.parametrize(
    "reply",
    ["", "<answer>" + "I would say that this text is on the whole a darn fine one " * 50],
    ids=["empty", "essay"],
)
def test_bad_replies_are_asked_again_and_end_unparsed(settings, responses, label, tmp_path, reply):
    """Of two responses the first is answered well the second time, the other never."""

    def answer(text: str, attempt: int) -> str:
        good = "Response 0" in text and attempt == 2
        return usual_reply(text, attempt) if good else reply

    settings["num_predict"] = 99
    with FakeOllama(answer) as server:
        table = label(responses(2), server.host)
        label(responses(2), server.host)
    assert len(server.requests) == 5
    assert table["status"].to_pylist() == ["none", "unparsed"]
    assert table["attempts"].to_pylist() == [2, 3]
    assert table["words"].to_pylist() == [[], []]
    kept = table["reply"].to_pylist()[1]
    assert reply.startswith(kept)  # as far as num_predict went
    facts = summary(table)
    assert (facts["bad_replies"], facts["retries"], facts["unparsed"]) == (4, 3, 1)
    assert facts["unfinished_replies"] == (4 if len(reply) > 99 else 0)
    again = next(body for body in server.requests if body["options"]["seed"] == 1)
    assert again["messages"][-1]["content"].endswith("<answer>None</answer>")
    assert again["options"]["temperature"] > 0


def test_json_mode(settings, responses, label, tmp_path):
    text = Path(settings["prompt"]).read_text().replace("mode: tags", "mode: json")
    (tmp_path / "json.yaml").write_text(text)
    settings["prompt"] = str(tmp_path / "json.yaml")
    with FakeOllama(lambda text, attempt: '{"words": ["Darn"]}') as server:
        table = label(responses(2), server.host)
        settings["backend"] = "openai"
        settings["openai"]["base_url"] = f"http://{server.host}/v1"
        assert label(responses(2))["words"].equals(table["words"])
    assert table["words"].to_pylist() == [[], ["darn"]]
    assert server.requests[0]["format"]["required"] == ["words"]
    assert server.requests[-1]["response_format"]["type"] == "json_schema"


# Requests


@pytest.mark.parametrize(
    "fault", ["503", "silence", "truncated", "dropped", "garbled", "unfinished"]
)
def test_a_fault_passes_or_ends_the_job(settings, responses, label, tmp_path, fault):
    settings |= {"timeout": 0.5, "slots": 1}
    with FakeOllama() as server:
        server.faults.append(fault)
        assert summary(label(responses(3), server.host))["requests"] == len(server.requests) == 4
        server.faults, server.stuck = [fault], True
        settings["patience"] = 0.5
        with pytest.raises(UserError) as caught:
            label(responses(6), server.host)
        assert f"The 3 replies so far are kept in {tmp_path / 'journal'}" in str(caught.value)
        assert "run the same command again" in str(caught.value)
        server.faults, server.stuck = [], False
        before = len(server.requests)
        table = label(responses(6), server.host)
    assert len(server.requests) - before == 3
    assert summary(table)["requests"] == len(server.requests)
    assert summary(table)["bad_replies"] == 0
    assert table["words"].to_pylist() == [[], ["darn"]] * 3


def test_refusal_ends_at_once(settings, responses, label):
    with FakeOllama() as server:
        server.faults, server.stuck = ["400"], True
        with pytest.raises(UserError, match="HTTP 400"):
            label(responses(20), server.host)
    assert len(server.requests) <= settings["slots"]
    assert server.unloads == ["llama3.3:70b"]


def test_slots_are_kept_busy(settings, responses, label):
    """As many requests as slots are under way at once, and never one more."""
    settings["slots"] = 8
    with FakeOllama() as server:
        server.gate.clear()
        thread = threading.Thread(target=label, args=(responses(20), server.host))
        thread.start()
        wait_until(lambda: len(server.requests) == 8)
        time.sleep(0.3)
        assert len(server.requests) == 8
        server.gate.set()
        thread.join()
    assert len(server.requests) == 20


def test_changed_prompt_asks_anew(settings, responses, label, tmp_path):
    text = Path(settings["prompt"]).read_text()
    settings["prompt"] = str(tmp_path / "label.yaml")
    changed = text.replace("Do not explain", "Never explain")
    asked = []
    with FakeOllama() as server:
        for prompt in (text, changed, f"# a comment changes nothing\n{changed}"):
            (tmp_path / "label.yaml").write_text(prompt)
            label(responses(5), server.host)
            asked.append(len(server.requests))
    assert asked == [5, 10, 10]


# Contexts


def test_window_smaller_than_asked(responses, label):
    with FakeOllama() as server:
        server.context = 1024
        with pytest.raises(UserError, match=r"1024 tokens of context.*labeller\.max_ctx"):
            label(responses(2), server.host)
    assert not server.requests


@pytest.mark.parametrize(
    ("context", "sentences", "said", "kept"),
    [
        # Less than the labelling prompt takes by itself: examples are dropped.
        (150, 1, r"read 150 tokens of a prompt that has 1\d\d or more", 0),
        # Long ones are cut. The short one is read whole, and kept.
        (512, 100, "read 512 tokens of a prompt that has", 1),
    ],
)
def test_a_prompt_cut_without_a_word_ends_the_job(
    settings, responses, label, tmp_path, context, sentences, said, kept
):
    settings["slots"] = 1
    table = with_text(responses(2), "This is a long and quite harmless sentence. " * sentences)
    with FakeOllama() as server:
        server.context, server.modern = context, False
        with pytest.raises(UserError) as caught:
            label(table.take([1, 0]), server.host)
    assert re.search(said, str(caught.value))
    for step in ("OLLAMA_CONTEXT_LENGTH", "labeller.max_ctx"):
        assert step in str(caught.value)
    assert len(journalled(tmp_path)) == kept


def test_a_server_that_refuses_what_does_not_fit(settings, responses, label):
    settings["slots"] = 1

    def shrink(text: str, attempt: int) -> str:
        server.context = 256
        return usual_reply(text, attempt)

    message = r"exceeds the context length.*OLLAMA_CONTEXT_LENGTH.*labeller\.max_ctx"
    with FakeOllama(shrink) as server, pytest.raises(UserError, match=message):
        label(responses(2), server.host)


def test_a_server_that_does_not_count_what_it_has_cached(responses, label, tmp_path):
    with FakeOllama() as server:
        server.counts_cached = False
        table = label(responses(20), server.host)
    assert table["words"].to_pylist() == [[], ["darn"]] * 10
    assert min(record["prompt_tokens"] or 0 for record in journalled(tmp_path)) < 30
    assert summary(table)["requests"] == 20


def test_long_response_is_cut_at_a_sentence(settings, responses, label):
    settings["max_ctx"] = 3328
    long = "This is a darn sentence. " * 400
    with FakeOllama() as server:
        labels = label(with_text(responses(2), long), server.host)
    assert labels["cut"].to_pylist() == [True, False]
    sent = next(text for text in server.texts if "sentence" in text)
    assert long.startswith(sent) and sent.endswith("sentence.")
    assert summary(labels)["cut"] == 1


# An OpenAI-compatible server


@pytest.fixture
def hosted(settings, monkeypatch):
    """Run one that wants a key."""
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with FakeOllama() as server:
        settings["backend"] = "openai"
        settings["openai"] |= {"base_url": f"http://{server.host}/v1", "key_variable": "MY_KEY"}
        yield server


def test_openai(hosted, responses, label, tmp_path):
    def answer(text: str, attempt: int) -> str:
        return "darn " * 999 if text.startswith("Response 0") else usual_reply(text, attempt)

    hosted.faults += ["429", "truncated", "garbled"]
    hosted.reply = answer
    table = label(responses(6))
    assert table["words"].to_pylist() == [[], ["darn"]] * 3
    facts = summary(table)
    assert facts["requests"] == 11 == len(hosted.requests)  # three faults, three long replies
    assert (facts["unparsed"], facts["unfinished_replies"]) == (1, 3)
    assert {headers["authorization"] for headers in hosted.headers} == {"Bearer sk-very-secret"}
    assert b"sk-very-secret" not in b"".join(table.schema.metadata.values())
    assert "sk-very-secret" not in (tmp_path / "journal").read_text()


@pytest.mark.parametrize("fault", ["401", "400"])
def test_openai_refusal_names_no_key(hosted, responses, label, tmp_path, fault):
    hosted.faults, hosted.stuck = [fault], True
    with pytest.raises(UserError, match=f"HTTP {fault}") as caught:
        label(responses(2))
    assert "sk-very" not in str(caught.value)
    assert "sk-very" not in (tmp_path / "journal").read_text()


def test_openai_prompt_cut_without_a_word(hosted, responses, label):
    hosted.context = 160
    with pytest.raises(UserError, match=r"cuts prompts without a word.*--max-model-len"):
        label(responses(2))
