"""Runs that are told to stop: they end within seconds and leave no process and no lock."""

import os
import signal
import time
from pathlib import Path

import pytest
from checkout import Checkout, wait_until
from conftest import copied, group

# The jobs of this run would take hours.
SLOW = {
    "experiments": {"rtp": {"generation": {"max_new_tokens": 200, "samples": 2000}}},
    "compute": {"batch_tokens": {"responding": 300}},
}
TARGET = "results/tiny/responses/rtp/baseline/part-1.parquet"
JOURNAL = "responses/rtp/baseline/.part-1.journal"
SECONDS = 20  # on a machine that may be busy with more


@pytest.fixture
def slow(finished: Checkout, tmp_path: Path) -> Checkout:
    """Give a checkout whose responses are far from made, and some of them in the journal."""
    checkout = copied(tmp_path, finished, Checkout)
    checkout.configure("slow", **SLOW)
    return checkout


@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        pytest.param(signal.SIGINT, True, marks=pytest.mark.short, id="Ctrl-C"),
        pytest.param(signal.SIGINT, False, id="SIGINT to Snakemake"),
        pytest.param(signal.SIGTERM, True, id="SIGTERM to all"),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.short, id="SIGTERM to Snakemake"),
    ],
)
def test_told_to_stop(slow: Checkout, number: int, to_all: bool) -> None:
    process = slow.start(TARGET, overlay="slow")
    journal = slow.path(JOURNAL)
    wait_until(lambda: journal.exists() and journal.read_text().count("\n") > 3)
    (os.killpg if to_all else os.kill)(process.pid, number)
    started = time.monotonic()
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert time.monotonic() - started < SECONDS
    assert group(process.pid) == []
    assert not list((slow.folder / ".snakemake").glob("locks/*"))
    assert "Traceback" not in said
    # What was computed stays.
    assert journal.read_text().count("\n") > 3


def test_snakemake_alone_is_killed(slow: Checkout) -> None:
    """Its jobs end too, so that none works on beside the next run's."""
    process = slow.start(TARGET, overlay="slow")
    journal = slow.path(JOURNAL)
    wait_until(lambda: journal.exists() and journal.read_text().count("\n") > 3)
    process.kill()
    wait_until(lambda: group(process.pid) == [], SECONDS)
    process.communicate()
    # The lock stays; Snakemake says what to do about it.
    assert "--unlock" in slow.refused(TARGET, overlay="slow")
