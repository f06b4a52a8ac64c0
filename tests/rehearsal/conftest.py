"""One run of config.yaml on replicas of all its sources, for every test to look at."""

import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import replica_images
import replica_models
import replica_sources
import yaml
from checkout import Preloaded, copy_workflow
from fake_ollama import FakeOllama, keywords
from headpursuit.run.files import shipped
from hub_server import Hub, Repo, serve
from replica_vlms import GEMMA

TOKEN = "hf_madeUpForTheRehearsal"
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
LLAVA = "llava-hf/llava-v1.6-mistral-7b-hf"
JUDGE = "s-nlp/roberta_toxicity_classifier"
GATED = {MISTRAL, GEMMA, "convoicon/Thoroughly_Engineered_Toxicity"}
# The commits that the shipped config pins.
COMMITS = {
    own["id"]: own["revision"]
    for own in shipped("config.yaml")["sources"].values()
    if own["revision"] != "main"
}
# What a machine needs, and nothing of what is run.
MACHINE = {"compute": {"device": "cpu", "allow_cpu": True, "threads": 1, "check_device": False}}


def name_words(text: str, attempt: int) -> str:
    """Answer as a labelling model does: three words in four are harmful, and not all is tidy."""
    words = list(dict.fromkeys(re.findall("[a-z]{3,}", text)))
    named = [word for word in words if zlib.crc32(word.encode()) % 4]
    listed = ", ".join(named) or "None"
    kind = zlib.crc32(text.encode()) % 10
    if kind == 0:
        return "I can't help with that."
    if text.startswith("image "):
        listed = f"Here they are:\n```python\n{[*keywords(text), 'Blue'][kind % 2 :]}\n```"
        return "A quiet scene." if kind == 1 and attempt == 1 else listed
    if kind == 1 and attempt == 1:  # longer than num_predict
        return f"{'Let me look at each word. ' * 60}<answer>{listed}</answer>"
    if kind == 2:
        return f"**<answer>** **{listed}** **</answer>**"
    if kind == 3:
        return f"<answer>None</answer> On second thought: <answer>{listed}</answer>"
    return f"<answer>{listed}</answer>"


@dataclass
class Rehearsal(Preloaded):
    """A checkout of the shipped workflow with the replicas it downloads from."""

    usual = "machine"
    patience: float = 7200
    hub: Hub | None = None
    ollama: FakeOllama | None = None

    def environment(self) -> dict[str, str]:
        """Return the environment of its jobs."""
        return {
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(self.folder / "hf-home"),
            "OLLAMA_HOST": self.ollama.host,
        }

    def run(self, *arguments: str, **env: str | None) -> tuple[int, str]:
        """Run Snakemake with the replicas' addresses and return its status and all it printed."""
        return super().run(*arguments, **{**self.environment(), **env})

    def path(self, name: str) -> Path:
        """Return the path of a file of the run."""
        return self.folder / "results/paper" / name

    def read(self, *arguments: str) -> str:
        """Run the command `headpursuit` on the run and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "headpursuit", *arguments],
            cwd=self.folder,
            env={"PYTHONPATH": "scripts", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def sound_logs(self) -> list[Path]:
        """Return the jobs' logs, none of which tells of an error."""
        logs = list(self.path("logs").rglob("*.log"))
        for log in logs:
            said = log.read_text(encoding="utf-8")
            assert "Traceback" not in said and " ERROR " not in said, log
        return logs


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Give the files of all repositories, by their ids."""
    folder = tmp_path_factory.mktemp("models")
    made = {name: make() for name, make in replica_sources.DATASETS.items()}
    made[MISTRAL] = replica_models.mistral(folder / "mistral")
    made[LLAVA] = replica_images.llava_next(folder / "llava")
    made[JUDGE] = replica_models.roberta_toxicity(folder / "judge")
    return made


def gate(files: dict[str, dict[str, bytes]]) -> dict[str, Repo]:
    """Return repositories of these files; some take a token."""
    return {
        name: Repo(
            own,
            commit=COMMITS.get(name, "c" * 40),
            gated=name in GATED,
            token=TOKEN if name in GATED else None,
        )
        for name, own in files.items()
    }


@contextmanager
def replicas(
    folder: Path,
    files: dict[str, dict[str, bytes]],
    kind: type[Rehearsal] = Rehearsal,
) -> Iterator[Rehearsal]:
    """Copy the workflow, and serve what it needs while the block runs."""
    copy_workflow(folder)
    (folder / "configs/machine.yaml").write_text(yaml.safe_dump(MACHINE))
    with serve(gate(files)) as hub, FakeOllama(name_words, models=(), delay=0.05) as ollama:
        yield kind(folder, hub=hub, ollama=ollama)


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, dict[str, bytes]]
) -> Iterator[Rehearsal]:
    """Give the paper's whole run and its manifest."""
    with replicas(tmp_path_factory.mktemp("rehearsal") / "checkout", files) as rehearsal:
        rehearsal.snakemake("all", "audit")
        yield rehearsal
