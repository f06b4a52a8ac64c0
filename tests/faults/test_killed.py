"""Runs that are killed: what was computed stays, and the next run ends as if nothing had been."""

import os
import random
import shutil
import signal
import subprocess
import time
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest
import yaml
from checkout import Checkout, Preloaded, wait_until
from conftest import copied, results
from pyarrow import parquet

RESUMED, SEPARATE = 24, 6  # kills of one run that goes on each time, and of runs of their own


@pytest.fixture(scope="module")
def undisturbed(fresh: Checkout, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Give the files of a run of text, table 1 and images that nothing disturbed."""
    checkout = copied(tmp_path_factory.mktemp("undisturbed"), fresh)
    checkout.snakemake(overlay="whole")
    return results(checkout)


def refuse_half_files(checkout: Checkout, undisturbed: dict[str, bytes]) -> None:
    """Fail if a file is there that is neither whole nor known to be unfinished."""
    marks = (checkout.folder / ".snakemake/incomplete").glob("*")
    begun = {urlsafe_b64decode(mark.name).decode() for mark in marks}
    for name, content in results(checkout).items():
        folder = Path(*Path(name).parts[:-1])
        # A folder of resources counts when its record is there, which is written last.
        records = [f"{folder}/provenance.json", f"{folder.parent}/provenance.json"]
        counts = name.startswith("results/") or any(
            (checkout.folder / record).exists() and record not in begun for record in records
        )
        assert content == undisturbed[name] or not counts or name in begun, name


def killed(process: subprocess.Popen, jobs: int, seconds: float) -> bool:
    """Kill a run outright, with all its jobs, so many jobs and seconds on; say if it still ran."""
    while jobs and (line := process.stdout.readline()):
        jobs -= "Finished jobid" in line
    time.sleep(seconds)
    running = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return running


def finish(checkout: Checkout, overlay: str, undisturbed: dict[str, bytes]) -> None:
    """Let a killed run end, and compare all it made with what an undisturbed one made."""
    checkout = Preloaded(checkout.folder)
    checkout.snakemake("--unlock", overlay=overlay)
    checkout.snakemake(overlay=overlay)
    made = results(checkout)
    assert made.keys() == undisturbed.keys()
    assert [name for name in made if made[name] != undisturbed[name]] == []
    assert checkout.planned(overlay=overlay) == {}
    # Nor is anything left of the files that were being written.
    roots = (checkout.folder / root for root in ("results", "resources"))
    assert not [path for root in roots for path in root.rglob(".*.????????.*")]


def test_killed_again_and_again(fresh: Checkout, undisturbed: dict, tmp_path: Path) -> None:
    """Text, table 1 and images in one run that is killed at random moments and goes on."""
    checkout, moments, kills = copied(tmp_path, fresh, Checkout), random.Random(0), 0
    while kills < RESUMED:
        jobs, seconds = moments.choice([0, 1, 1, 2]), moments.uniform(0, 2.5)
        # As --unlock does, which finish() calls: each call is another start of Snakemake.
        shutil.rmtree(checkout.folder / ".snakemake/locks", ignore_errors=True)
        process = checkout.start(overlay="whole")
        if not killed(process, jobs, seconds + (3 if jobs == 0 else 0)):
            break
        kills += 1
        refuse_half_files(checkout, undisturbed)
    assert kills >= RESUMED // 2
    finish(checkout, "whole", undisturbed)


def test_killed_while_it_answers(fresh: Checkout, tmp_path: Path) -> None:
    """Answers about images: loops that were finished, here of one row, are not computed again."""
    checkout = copied(tmp_path, fresh, Checkout)
    overlay = checkout.folder / "configs/whole.yaml"
    small = yaml.safe_load(overlay.read_text())
    small["compute"] |= {"batch_images": 1, "parts": 1, "batch_tokens": {"responding": 1}}
    overlay.write_text(yaml.safe_dump(small))
    target = "results/tiny/responses/stripes/scaled/part-1.parquet"
    process = checkout.start(target, overlay="whole")
    journal = checkout.path("responses/stripes/scaled/.part-1.journal")
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = journal.read_bytes().count(b"\n") - 1
    assert not checkout.path("responses/stripes/scaled/part-1.parquet").exists()
    checkout.snakemake("--unlock", overlay="whole")
    checkout.snakemake(target, overlay="whole")
    assert not journal.exists()
    log = checkout.path("logs/intervene/stripes/part-1.log").read_text()
    assert f"{kept} finished batches are in the journal" in log
    part = checkout.path("responses/stripes/scaled/part-1.parquet")
    assert 0 < kept < parquet.read_metadata(part).num_rows
    resumed = part.read_bytes()
    part.unlink()
    checkout.snakemake(target, overlay="whole")
    assert part.read_bytes() == resumed


@pytest.mark.parametrize(
    "seed", [pytest.param(1, marks=pytest.mark.short), *range(2, SEPARATE + 1)]
)
def test_killed_once(fresh: Checkout, finished: Checkout, tmp_path: Path, seed: int) -> None:
    """The text run, killed at a random moment of its whole length."""
    checkout, moment = copied(tmp_path, fresh, Checkout), random.Random(seed)
    process = checkout.start()
    assert killed(process, moment.randrange(1, 24), moment.uniform(0, 2.5))
    expected = results(finished)
    refuse_half_files(checkout, expected)
    finish(checkout, "tiny", expected)
