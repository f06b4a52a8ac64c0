import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import make_checkout
from on_slurm import Cluster


@pytest.fixture
def slurm() -> Path:
    """Give the folder of the SLURM that runs."""
    if "TEST_SLURM" not in os.environ:
        pytest.skip("no SLURM: make test-slurm")
    return Path(os.environ["TEST_SLURM"])


@pytest.fixture
def cluster(slurm: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Give a fresh checkout. Tests run side by side, but for those that need SLURM alone."""
    with (slurm / "lock").open("w") as lock:
        alone = request.node.get_closest_marker("alone")
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        checkout = Cluster(make_checkout(tmp_path / "checkout").folder)
        yield checkout
        for name in ("slurm_logs", "log"):  # for the eyes of who looks into a failure
            for path in (checkout.folder / ".snakemake" / name).rglob("*.log"):
                print(f"--- {path}\n{path.read_text(errors='replace')[-1500:]}")
