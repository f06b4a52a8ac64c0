"""Two runs at once: of the same results, and of two configurations side by side."""

from pathlib import Path

import pytest
from checkout import Checkout, wait_until
from conftest import copied, results


def locked(checkout: Checkout) -> bool:
    return any((checkout.folder / ".snakemake/locks").glob("*"))


@pytest.mark.short
def test_the_same_results(checkout: Checkout, finished: Checkout) -> None:
    """The second run says so and does nothing; the first is not disturbed."""
    checkout.path("labels/rtp.parquet").unlink()
    first = checkout.start()
    wait_until(lambda: locked(checkout))
    said = checkout.refused()
    assert first.poll() is None
    assert "Please make sure that no other Snakemake process is trying to create the same" in said
    said, _ = first.communicate()
    assert first.returncode == 0, said
    assert results(checkout) == results(finished)


def test_two_configurations(checkout: Checkout, finished: Checkout) -> None:
    """Side by side they share what is downloaded; each makes what it makes alone."""
    for name in ("one", "two"):
        checkout.configure(name, run=name)
    runs = {name: checkout.start("--cores", "1", overlay=name) for name in ("one", "two")}
    for run in runs.values():
        said, _ = run.communicate()
        assert run.returncode == 0, said
    for name in runs:
        for table in ("table2.csv", "table2.draws.csv"):
            made = checkout.folder / f"results/{name}/tables/{table}"
            assert made.read_bytes() == finished.path(f"tables/{table}").read_bytes()


def test_two_configurations_that_download_the_same(fresh: Checkout, tmp_path: Path) -> None:
    """Before anything is downloaded the second has to wait, and is told so."""
    checkout = copied(tmp_path, fresh)
    activations = "activations/rtp.parquet"
    targets = {name: f"results/{name}/{activations}" for name in ("one", "two")}
    for name in targets:
        checkout.configure(name, run=name)
    first = checkout.start(targets["one"], overlay="one")
    wait_until(lambda: locked(checkout))
    said = checkout.refused(targets["two"], overlay="two")
    assert "no other Snakemake process is trying to create the same files" in said
    said, _ = first.communicate()
    assert first.returncode == 0, said
    checkout.snakemake(targets["two"], overlay="two")
