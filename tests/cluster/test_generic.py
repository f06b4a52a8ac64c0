"""profiles/cluster-generic as it is shipped, for PBS, whose commands are put in front of SLURM."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from on_slurm import Cluster


@pytest.fixture
def pbs(tmp_path: Path) -> dict[str, str]:
    """Give the profile, and a PATH on which PBS's commands are."""
    commands = tmp_path / "bin"
    commands.mkdir()
    source = (Path(__file__).parent / "pbs.py").read_text(encoding="utf-8")
    for name in ("qsub", "qstat", "qdel"):
        (commands / name).write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
        (commands / name).chmod(0o755)
    return {"profile": "cluster-generic", "PATH": f"{commands}:{os.environ['PATH']}"}


def test_a_cancelled_job_is_submitted_again(cluster: Cluster, pbs: dict[str, str]) -> None:
    run, job = cluster.start_a_job("time.sleep(600)", **pbs)
    subprocess.run(["scancel", job], check=True)
    assert run.ended() == 0, run.said
    assert cluster.states() == ["CANCELLED", "COMPLETED"]
    assert [job["MinMemoryNode"] for job in cluster.jobs()] == ["4000M", "8000M"]
    assert [job["TimeLimit"] for job in cluster.jobs()] == ["01:00:00", "02:00:00"]


def test_an_interrupt_cancels_what_runs(cluster: Cluster, pbs: dict[str, str]) -> None:
    run, _ = cluster.start_a_job("time.sleep(600)", **pbs)
    run.process.send_signal(signal.SIGINT)
    assert run.ended() != 0
    assert cluster.states() == ["CANCELLED"]
