"""The labeller against a real HTTP server that misbehaves."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_ollama import DIGEST, FakeOllama, usual_reply
from headpursuit.files import UserError
from headpursuit.labellers.audit import summary
from headpursuit.labellers.label import label_responses, open_backend

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
        "prompt_id", "sample", "reply", "words", "dropped", "status", "attempts", "cut",
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


def test_model_that_no_registry_has(settings, responses, tmp_path):
    settings["ollama"] |= {"pull": True, "model": "no-such"}
    with FakeOllama() as server, pytest.raises(UserError, match="cannot pull no-such:latest"):
        label(responses(2), settings, tmp_path / "j", server.host)
    assert server.pulls == 1


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
        assert table["reply"].to_pylist() == [reply, reply]
        assert len(server.requests) == 6
        label(responses(2), settings, tmp_path / "j", server.host)
    assert len(server.requests) == 6
    assert summary(table)["unparsed"] == 2


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


def test_long_response_is_cut_at_a_sentence(settings, responses, tmp_path):
    settings["max_ctx"] = 3328
    table = responses(2)
    long = "This is a darn sentence. " * 400
    column = [long, table["response"][1].as_py()]
    table = table.set_column(2, "response", [column])
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
    same = ["prompt_id", "sample", "words", "dropped", "status", "attempts", "cut"]
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

    def test_json_mode(self, hosted, responses, tmp_path):
        prompt = tmp_path / "json.yaml"
        text = (HERE.parents[1] / "prompts" / "label.yaml").read_text()
        prompt.write_text(text.replace("mode: tags", "mode: json"))
        with FakeOllama(lambda text, attempt: '{"words": ["fine"]}') as server:
            table = label(responses(2), hosted(server) | {"prompt": str(prompt)}, tmp_path / "j")
        assert table["words"].to_pylist() == [["fine"], ["fine"]]
        assert server.requests[0]["response_format"]["type"] == "json_schema"
