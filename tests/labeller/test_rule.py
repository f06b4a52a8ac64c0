"""The rules themselves, run by Snakemake: killed and resumed, compared, summed up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from fake_ollama import FakeOllama
from headpursuit.run.files import write_parquet

ROOT = Path(__file__).parents[2]
RULES = ["download_source", "label_responses", "label_second", "summarise_labels"]
RULES += ["compare_labels"]


ENDS = ("parquet", "summary.html", "agreement.csv")
TARGETS = [f"results/night/labels/rtp.{end}" for end in ENDS]


class Run:
    """A folder that holds baseline responses, and Snakemake to label them."""

    def __init__(self, folder: Path, responses, labeller: dict):
        self.folder, self.labels = folder, folder / "results/night/labels"
        write_parquet(folder / "results/night/responses/rtp/baseline/part-1.parquet", responses)
        (folder / "terms.csv").write_text("text\ndarn\nfine\n")
        lexicon = {"source": "terms", "files": "terms.csv", "where": None}
        overlay = {
            "run": "night",
            "sources": {"terms": {"kind": "local", "path": str(folder / "terms.csv")}},
            "concepts": {"toxic": {"labelled": {"texts": ["response"]}}},
            "compute": {"parts": 1},
            "labeller": {"second": "lexicon", "lexicon": lexicon, **labeller},
        }
        (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
        configs = [ROOT / "config.yaml", ROOT / "configs/demo.yaml", folder / "overlay.yaml"]
        self.command = [
            *(Path(sys.executable).with_name("snakemake"), "--snakefile", ROOT / "Snakefile"),
            *("--directory", folder, "--cores", "2", "--configfile", *configs),
            *("--allowed-rules", *RULES, "--"),
        ]

    def start(self) -> subprocess.Popen:
        with (self.folder / "said").open("w") as said:
            return subprocess.Popen(
                [*self.command, *TARGETS], stdout=said, stderr=said, start_new_session=True
            )

    def finish(self, seconds: float = 120) -> int:
        process = self.start()
        try:
            return process.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def unlock(self) -> None:
        subprocess.run([*self.command[:-1], "--unlock"], check=True, capture_output=True)


def in_flight(journal: Path) -> int:
    events = [json.loads(line)["event"] for line in journal.read_text().splitlines() if line]
    return events.count("sent") - events.count("reply")


@pytest.fixture
def run(tmp_path, responses):
    def make(n: int, **labeller) -> Run:
        return Run(tmp_path, responses(n), labeller)

    return make


def test_killed_in_the_middle_then_rerun(run):
    """Requests seen = distinct responses + retries, where what was under way is retried."""
    with FakeOllama(delay=0.02) as server:
        night = run(200, backend="ollama", slots=8, ollama={"host": server.host})
        process, journal = night.start(), night.labels / "rtp.journal.jsonl"
        night.wait_until(lambda: len(server.requests) >= 100)
        server.gate.clear()  # all slots are now under way, and stay so
        night.wait_until(lambda: in_flight(journal) == 8)
        time.sleep(0.5)  # the last of them arrives
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        server.gate.set()
        with journal.open("ab") as half:
            half.write(b'{"key": "abc", "attem')  # the half line of a kill while writing
        assert not (night.labels / "rtp.parquet").exists()
        night.unlock()
        assert night.finish() == 0, night.said()
        facts = json.loads((night.labels / "rtp.summary.json").read_text())
        assert facts["distinct"] == 200
        assert facts["retries"] == 8  # what was under way
        assert facts["requests"] == len(server.requests) == 208
        # With the labels gone and the journal there, nothing is asked.
        (night.labels / "rtp.parquet").unlink()
        assert night.finish() == 0, night.said()
        assert facts["requests"] == len(server.requests)
    labels = pq.read_table(night.labels / "rtp.parquet")
    words = dict(zip(labels["sample_id"].to_pylist(), labels["words"].to_pylist(), strict=True))
    assert words == {f"p{n}": ["darn"] if n % 2 else [] for n in range(200)}
    table = pd.read_csv(night.labels / "rtp.agreement.csv").set_index(["scope", "word"])
    # The word list has "fine" too, which is in every response.
    assert table.loc[("word", "darn"), ["first", "second", "both"]].tolist() == [100, 100, 100]
    assert table.loc[("word", "fine"), ["first", "second", "both"]].tolist() == [0, 200, 0]
    page = (night.labels / "rtp.summary.html").read_text()
    assert "d***" in page
    assert "darn" not in page
    assert "Q4_K_M" in page


def test_a_hostile_reply_stays_text(run):
    word = "<script>alert(1)</script>"
    reply = f"<answer>fine, {word}</answer>"
    with FakeOllama(lambda text, attempt: reply) as server:
        night = run(3, backend="ollama", ollama={"host": server.host, "model": "x<b>:1"})
        server.models.append("x<b>:1")
        assert night.finish() == 0, night.said()
    page = (night.labels / "rtp.summary.html").read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert pq.read_table(night.labels / "rtp.parquet")["dropped"].to_pylist() == [[word]] * 3


def test_a_failure_tells_the_way_out(run):
    with FakeOllama(models=()) as server:
        night = run(3, backend="ollama", ollama={"host": server.host, "pull": False})
        assert night.finish() != 0
    assert "ollama pull llama3.3:70b" in night.said()
    assert "Traceback" not in night.said()
