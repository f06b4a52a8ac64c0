"""A copy of the workflow with a tiny random model, data of its own, and Snakemake to run it."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from snakemake.utils import update_config
from tiny import HEADS, LAYERS, WORDS, make_model

ROOT = Path(__file__).parents[1]
PARTS = ["Snakefile", "config.yaml", "configs", "data", "envs", "profiles", "prompts", "report"]
PARTS += ["rules", "schemas", "scripts", "CITATION.cff", "LICENSE", "requirements.txt"]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")


@dataclass
class Checkout:
    """A copy of the workflow; its runs have the overlays of ``usual``, ``configs/<one>.yaml``."""

    usual: ClassVar[str] = "tiny"
    program: ClassVar[list[str | Path]] = [SNAKEMAKE]
    folder: Path
    patience: float = 900  # seconds that a run may take

    def snakemake(self, *arguments: str, overlay: str | None = None, **env: str | None) -> str:
        """Run Snakemake and return all it printed; AssertionError if it fails."""
        code, said = self.run(*arguments, overlay=overlay, **env)
        assert code == 0, said
        return said

    def refused(self, *arguments: str, overlay: str | None = None, **env: str | None) -> str:
        """Run Snakemake, which is to fail with a message, and return all it printed."""
        code, said = self.run(*arguments, overlay=overlay, **env)
        assert code != 0 and "Traceback" not in said, said
        return said

    def run(
        self, *arguments: str, overlay: str | None = None, **env: str | None
    ) -> tuple[int, str]:
        """Run Snakemake and return its exit status and all it printed."""
        with self.start(*arguments, overlay=overlay, **env) as process:
            try:
                said, _ = process.communicate(timeout=self.patience)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, said

    def start(
        self, *arguments: str, overlay: str | None = None, **env: str | None
    ) -> subprocess.Popen:
        """Start Snakemake as the leader of a process group; its stdout has all that it prints.

        The environment is this process's with ``env`` changed; None takes a variable away.
        """
        overlay = self.usual if overlay is None else overlay
        overlays = [f"configs/{name}.yaml" for name in overlay.split()]
        config = ["--configfile", *overlays] if overlays else []
        cores = [] if "--cores" in arguments else ["--cores", "2"]
        changed = {**_environment(), "OMP_NUM_THREADS": "1", **env}
        return subprocess.Popen(
            [*self.program, *arguments, *cores, *config],
            cwd=self.folder,
            env={key: value for key, value in changed.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def planned(self, *arguments: str, overlay: str | None = None) -> dict[str, int]:
        """Return how many jobs of each rule a dry run lists."""
        said = self.snakemake("-n", *arguments, overlay=overlay)
        if "Nothing to be done" in said:
            return {}
        table = said.split("Job stats:")[1].split("total")[0].splitlines()[3:]
        return {rule: int(number) for rule, number in map(str.split, filter(str.strip, table))}

    def configure(self, name: str, **changes: Any) -> None:
        """Write an overlay: the tiny one with changes."""
        overlay = yaml.safe_load((self.folder / "configs/tiny.yaml").read_text())
        update_config(overlay, changes)
        (self.folder / f"configs/{name}.yaml").write_text(yaml.safe_dump(overlay))

    def path(self, name: str) -> Path:
        """Return the path of a file of the tiny run."""
        return self.folder / "results/tiny" / name


class Preloaded(Checkout):
    """One whose jobs run in forks of Snakemake, so that none of them imports the large libraries.

    Tests of kills, of stages' environments, of the report and of SLURM have the plain one.
    """

    program: ClassVar[list[str | Path]] = [sys.executable, ROOT / "tests/preloaded.py"]


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for what another process or thread is about to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def code_blocks(path: Path) -> list[str]:
    """Return the indented blocks of a Markdown page, without the indent."""
    found = re.findall(
        r"(?:^    .*\n|^\n(?=    ))+", path.read_text(encoding="utf-8"), re.MULTILINE
    )
    return [textwrap.dedent(block) for block in found]


def edit_a_byte(path: Path) -> None:
    """Change a file's last byte, and leave its size and date as they are."""
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_size == before.st_size


def _environment() -> dict[str, str]:
    """Return a user's environment: without what the library sets in the process that imports it."""
    return {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}


TINY = {
    "run": "tiny",
    "sources": {
        "tiny-model": {"kind": "local", "path": "own/model"},
        "tiny-prompts": {"kind": "local", "path": "own/prompts.jsonl"},
        "tiny-words": {"kind": "local", "path": "own/words.csv"},
    },
    "models": {
        "tiny": {
            "source": "tiny-model",
            "layers": LAYERS,
            "heads": HEADS,
            "parameters": 100000,
            "dtype": "float32",
            "chat": False,
        }
    },
    "samples": {
        "rtp": {
            "source": "tiny-prompts",
            "files": "prompts.jsonl",
            "text": "prompt.text",
            "where": {"challenging": True},
            "template": "{prompt}",
            "sample": 30,
        }
    },
    "defaults": {
        "generation": {"max_new_tokens": 16, "temperature": 1.0},
        "positions": "response",
        "pursuit": {"iterations": 5},
        "k": [2],
        "draws": 2,
    },
    "experiments": {"rtp": {"model": "tiny", "count_draws": 1}},
    "tables": {"table1": [], "table2": ["rtp"], "concepts": [], "figure1": []},
    "labeller": {
        "backend": "lexicon",
        "lexicon": {"source": "tiny-words", "files": "words.csv", "text": "word"},
    },
    "compute": {
        "device": "cpu",
        "threads": 1,
        "parts": 2,
        "batch_tokens": {"reading": 512, "responding": 512},
    },
}


def copy_workflow(folder: Path) -> None:
    """Copy the workflow as it is."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / part)


def make_checkout(folder: Path, kind: type[Checkout] = Checkout) -> Checkout:
    """Copy the workflow and write the tiny run's model, data and overlay."""
    copy_workflow(folder)
    own = folder / "own"
    make_model(own / "model")
    rng = random.Random(0)
    with (own / "prompts.jsonl").open("w", encoding="utf-8") as handle:
        for number in range(80):
            text = " ".join(rng.choices(WORDS, k=rng.randint(2, 12)))
            row = {"prompt": {"text": f"{text} {number}"}, "challenging": number % 2 == 0}
            print(json.dumps(row), file=handle)
    with (own / "words.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([["word"], *([word] for word in WORDS[::2])])
    (folder / "configs/tiny.yaml").write_text(yaml.safe_dump(TINY))
    return kind(folder)
