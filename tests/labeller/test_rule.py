"""The rules themselves, run by Snakemake: killed and resumed, compared, summed up."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import yaml
from checkout import wait_until
from fake_ollama import FakeOllama
from headpursuit.run.files import write_parquet

ROOT = Path(__file__).parents[2]
RULES = ["download_source", "label_responses", "label_second", "split_words"]


class Run:
    """A folder that holds baseline responses, and Snakemake to label them."""

    targets = ("results/night/labels/rtp.agreement.csv",)

    def __init__(self, folder: Path, responses, **labeller):
        self.folder, self.labels = folder, folder / "results/night/labels"
        write_parquet(folder / "results/night/responses/rtp/baseline/part-1.parquet", responses)
        (folder / "terms.csv").write_text("text\ndarn\nfine\n")
        lexicon = {"source": "terms", "files": "terms.csv", "where": None}
        overlay = {
            "run": "night",
            "sources": {"terms": {"kind": "local", "path": str(folder / "terms.csv")}},
            "concepts": {"toxic": {"labelled": {"texts": ["response"]}}},
            "compute": {"parts": 1},
            "labeller": {
                **{"backend": "ollama", "second": "lexicon", "lexicon": lexicon},
                **labeller,
            },
        }
        self.overlay = overlay
        self.configure()
        configs = [ROOT / "config.yaml", ROOT / "configs/demo.yaml", folder / "overlay.yaml"]
        self.command = [
            *(Path(sys.executable).with_name("snakemake"), "--snakefile", ROOT / "Snakefile"),
            *("--directory", folder, "--cores", "2", "--configfile", *configs),
            *("--allowed-rules", *RULES, "--"),
        ]

    def configure(self, **more) -> None:
        """Write the overlay, with more keys."""
        (self.folder / "overlay.yaml").write_text(yaml.safe_dump({**self.overlay, **more}))

    def start(self) -> subprocess.Popen:
        with (self.folder / "said").open("w") as said:
            return subprocess.Popen(
                [*self.command, *self.targets], stdout=said, stderr=said, start_new_session=True
            )

    def finish(self, seconds: float = 120) -> int:
        process = self.start()
        try:
            return process.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def events(self) -> list[str]:
        lines = (self.labels / "rtp.journal.jsonl").read_text().splitlines()
        return [json.loads(line)["event"] for line in lines if line]

    def summary(self) -> dict:
        return json.loads((self.labels / "rtp.summary.json").read_text())


def test_killed_in_the_middle_then_rerun(tmp_path, responses):
    """Requests seen = distinct responses + retries, where what was under way is retried."""
    with FakeOllama(delay=0.02) as server:
        night = Run(tmp_path, responses(200), slots=8, ollama={"host": server.host})
        process = night.start()
        wait_until(lambda: len(server.requests) >= 100)
        server.gate.clear()  # all slots are now under way, and stay so
        wait_until(lambda: night.events().count("sent") - night.events().count("reply") == 8)
        time.sleep(0.5)  # the last of them arrives
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        server.gate.set()
        with (night.labels / "rtp.journal.jsonl").open("ab") as half:
            half.write(b'{"key": "abc", "attem')  # the half line of a kill while writing
        assert not (night.labels / "rtp.parquet").exists()
        subprocess.run([*night.command[:-1], "--unlock"], check=True, capture_output=True)
        assert night.finish() == 0, night.said()
        facts = night.summary()
        assert (facts["distinct"], facts["retries"]) == (200, 8)  # what was under way
        assert facts["requests"] == len(server.requests) == 208
    labels = pq.read_table(night.labels / "rtp.parquet")
    words = dict(zip(labels["sample_id"].to_pylist(), labels["words"].to_pylist(), strict=True))
    assert words == {f"p{n}": ["darn"] if n % 2 else [] for n in range(200)}
    assert facts["words"] == [{"word": "d***", "responses": 100}]  # masked
    assert facts["labeller"]["quantisation"] == "Q4_K_M"
    table = pd.read_csv(night.labels / "rtp.agreement.csv").set_index(["scope", "word"])
    # The word list has "fine" too, which is in every response.
    assert table.loc[("word", "darn"), ["first", "second", "both"]].tolist() == [100, 100, 100]
    assert table.loc[("word", "fine"), ["first", "second", "both"]].tolist() == [0, 200, 0]
    second = json.loads((night.labels / "second/rtp.summary.json").read_text())
    assert (second["ok"], second["labeller"]["backend"]) == (200, "lexicon")
