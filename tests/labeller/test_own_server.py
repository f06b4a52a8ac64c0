"""The server that the labeller starts itself: `ollama` on the PATH is the scripted server."""

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from checkout import wait_until
from headpursuit.labelling.label import label_responses, open_backend
from headpursuit.run.files import UserError


@pytest.fixture
def pids(tmp_path, monkeypatch):
    """Put an `ollama` on the PATH, and list the processes of all its servers."""
    script = tmp_path / "bin" / "ollama"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("fake_ollama.py")}" "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_PIDS", str(tmp_path / "pids"))
    return lambda: [int(pid) for pid in (tmp_path / "pids").read_text().split()]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for_the_end(pids) -> None:
    wait_until(lambda: not any(map(alive, pids())), 15)


def test_restarted_when_it_dies_and_ended_with_its_children(pids, settings, responses, tmp_path):
    texts = responses(12)
    with open_backend(settings, texts["response"].to_pylist()) as backend:
        os.kill(pids()[0], signal.SIGKILL)
        labels = label_responses(texts, backend, tmp_path / "j", patience=30)
        assert len(pids()) == 4 and all(map(alive, pids()[2:]))
    assert labels["words"].to_pylist() == [[], ["darn"]] * 6
    assert json.loads(labels.schema.metadata[b"labeller"])["started"]
    wait_for_the_end(pids)  # of the dead server's child, too


def test_ended_after_an_error(pids, settings):
    settings["ollama"]["model"] = "llama3.3:8b"
    with pytest.raises(UserError, match="ollama pull"), open_backend(settings, ["text"]):
        pass
    wait_for_the_end(pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ended_when_the_labeller_is_killed(pids, settings, responses, start, tmp_path, number):
    if number == signal.SIGKILL and not Path("/usr/bin/setpriv").exists():
        pytest.skip("needs setpriv (util-linux)")
    process = start(responses(200), FAKE_DELAY="0.3")
    journal = tmp_path / "labels.journal.jsonl"
    wait_until(lambda: journal.exists() and journal.read_text().count('"reply"') >= 8)
    process.send_signal(number)
    assert process.wait(20) != 0
    wait_for_the_end(pids)
    assert not (tmp_path / "labels.parquet").exists()


def test_sigterm_waits_for_no_reply(pids, settings, responses, start, tmp_path):
    settings["timeout"] = 100
    process = start(responses(20), FAKE_DELAY="60")
    journal = tmp_path / "labels.journal.jsonl"
    wait_until(lambda: journal.exists() and journal.read_text().count('"sent"') == 4)
    process.terminate()
    assert process.wait(20) != 0
    wait_for_the_end(pids)
    assert not (tmp_path / "labels.parquet").exists()


def test_no_binary(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = r"no `ollama` is installed.*labeller\.ollama\.host"
    with pytest.raises(UserError, match=message), open_backend(settings, ["text"]):
        pass


def test_other_machine_in_the_environment_is_not_replaced(pids, settings, monkeypatch, tmp_path):
    settings["patience"] = 0.5
    monkeypatch.setenv("OLLAMA_HOST", "127.1.2.3:9")
    message = r"no Ollama server answers at 127\.1\.2\.3:9.*ollama serve.*run the same"
    with pytest.raises(UserError, match=message), open_backend(settings, ["text"]):
        pass
    assert not (tmp_path / "pids").exists()
