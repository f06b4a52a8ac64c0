"""The server that the labeller starts itself: `ollama` on the PATH is the scripted server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from headpursuit.labelling import ollama as backend_module
from headpursuit.labelling.label import label_responses, open_backend
from headpursuit.run.files import UserError, write_json

HERE = Path(__file__).parent


@pytest.fixture
def binary(tmp_path, monkeypatch):
    """Put an `ollama` on the PATH that writes down its process ids."""
    script = tmp_path / "bin" / "ollama"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "fake_ollama.py"}" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_PIDS", str(tmp_path / "pids"))
    # Nothing may listen where a real server usually does.
    monkeypatch.setattr(backend_module, "DEFAULT_HOST", "127.0.0.1:9")
    return script


def started(tmp_path: Path) -> list[int]:
    return [int(pid) for pid in (tmp_path / "pids").read_text().split()]


def alive(pids: list[int]) -> list[int]:
    return [
        pid
        for pid in pids
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def gone(pids: list[int], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_started_and_ended_with_its_children(binary, settings, responses, tmp_path):
    table = responses(4)
    with open_backend(settings, table["response"].to_pylist(), log=tmp_path / "log") as backend:
        labels = label_responses(table, backend, tmp_path / "j")
        assert len(alive(started(tmp_path))) == 2
    assert labels["words"].to_pylist() == [[], ["darn"]] * 2
    assert json.loads(labels.schema.metadata[b"labeller"])["started"]
    assert gone(started(tmp_path))


def test_ended_after_an_error(binary, settings, tmp_path):
    with pytest.raises(ZeroDivisionError), open_backend(settings, ["text"]):
        raise ZeroDivisionError
    assert gone(started(tmp_path))


def test_ended_when_the_model_is_missing(binary, settings, tmp_path):
    settings["ollama"]["model"] = "llama3.3:8b"
    with pytest.raises(UserError, match="ollama pull"), open_backend(settings, ["text"]):
        pass
    assert gone(started(tmp_path))


def test_restarted_when_it_dies(binary, settings, responses, tmp_path):
    table = responses(20)
    with open_backend(settings, table["response"].to_pylist()) as backend:
        os.kill(started(tmp_path)[0], signal.SIGKILL)
        labels = label_responses(table, backend, tmp_path / "j", patience=30)
    assert labels["words"].to_pylist() == [[], ["darn"]] * 10
    pids = started(tmp_path)
    assert len(pids) == 4
    os.kill(pids[1], signal.SIGKILL)  # the dead server's runner is nobody's


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ended_when_the_labeller_is_killed(binary, settings, responses, tmp_path, number):
    if number == signal.SIGKILL and not Path("/usr/bin/setpriv").exists():
        pytest.skip("needs setpriv (util-linux)")
    write_json(tmp_path / "settings.json", settings)
    pq.write_table(responses(200), tmp_path / "responses.parquet")
    names = ("settings.json", "responses.parquet", "labels.parquet")
    command = [sys.executable, HERE / "run_labeller.py", *(tmp_path / name for name in names)]
    environment = {**os.environ, "FAKE_DELAY": "0.3", "OLLAMA_HOST": "127.0.0.1:9"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    journal = tmp_path / "labels.journal.jsonl"
    deadline = time.monotonic() + 30
    while not journal.exists() or journal.read_text().count('"reply"') < 8:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(20) != 0
    # A server that is killed outright cannot end its runner; Ollama's own ends it on SIGTERM.
    pids = started(tmp_path)
    assert gone(pids[:1] if number == signal.SIGKILL else pids)
    for pid in alive(pids):
        os.kill(pid, signal.SIGKILL)
    assert not (tmp_path / "labels.parquet").exists()


def test_sigterm_waits_for_no_reply(binary, settings, responses, tmp_path):
    settings |= {"slots": 1, "timeout": 100}
    write_json(tmp_path / "settings.json", settings)
    pq.write_table(responses(20), tmp_path / "responses.parquet")
    names = ("settings.json", "responses.parquet", "labels.parquet")
    command = [sys.executable, HERE / "run_labeller.py", *(tmp_path / name for name in names)]
    environment = {**os.environ, "FAKE_PROMPT_ONES": "3", "OLLAMA_HOST": "127.0.0.1:9"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    journal = tmp_path / "labels.journal.jsonl"
    deadline = time.monotonic() + 30
    while not journal.exists() or journal.read_text().count('"sent"') < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) != 0
    assert gone(started(tmp_path))
    assert journal.read_text().count('"reply": ') == 3


def test_no_binary(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(backend_module, "DEFAULT_HOST", "127.0.0.1:9")
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(UserError, match=r"no `ollama` is installed.*labeller\.ollama\.host"),
        open_backend(settings, ["text"]),
    ):
        pass


def test_other_machine_in_the_environment_is_not_replaced(binary, settings, monkeypatch, tmp_path):
    settings["patience"] = 0.5
    monkeypatch.setenv("OLLAMA_HOST", "127.1.2.3:9")
    with (
        pytest.raises(UserError, match=r"no Ollama server answers at 127\.1\.2\.3:9"),
        open_backend(settings, ["text"]),
    ):
        pass
    assert not (tmp_path / "pids").exists()
