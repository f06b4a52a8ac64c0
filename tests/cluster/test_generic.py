"""profiles/cluster-generic as it is shipped, for PBS, whose commands are put in front of SLURM."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from on_slurm import PROMPTS, Cluster


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Give a PATH on which PBS's commands are."""
    commands = tmp_path / "bin"
    commands.mkdir()
    source = (Path(__file__).parent / "pbs.py").read_text(encoding="utf-8")
    for name in ("qsub", "qstat", "qdel"):
        (commands / name).write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
        (commands / name).chmod(0o755)
    return f"{commands}:{os.environ['PATH']}"


def test_a_cancelled_job_is_submitted_again(cluster: Cluster, path: str) -> None:
    cluster.first_try("time.sleep(600)")
    run = cluster.start(PROMPTS, profile="cluster-generic", PATH=path)
    subprocess.run(["scancel", cluster.wait_for_a_running_job()], check=True)
    assert run.ended() == 0, run.said
    assert cluster.states() == ["CANCELLED", "COMPLETED"]
    assert [job["MinMemoryNode"] for job in cluster.jobs()] == ["4000M", "8000M"]
    assert [job["TimeLimit"] for job in cluster.jobs()] == ["01:00:00", "02:00:00"]


def test_an_interrupt_cancels_what_runs(cluster: Cluster, path: str) -> None:
    cluster.first_try("time.sleep(600)")
    run = cluster.start(PROMPTS, profile="cluster-generic", PATH=path)
    cluster.wait_for_a_running_job()
    run.process.send_signal(signal.SIGINT)
    assert run.ended() != 0
    assert cluster.states() == ["CANCELLED"]
