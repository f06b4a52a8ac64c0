"""Odd places and settings: the results are those of any other."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import Checkout, Preloaded, make_checkout
from conftest import results


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Give a home that nobody can write."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:  # who may write anything, so the whole file system has to refuse
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], check=True)
    yield folder
    if os.geteuid() == 0:
        subprocess.run(["umount", folder], check=True)


def test_an_odd_path_and_a_home_that_is_none(
    finished: Checkout, tmp_path: Path, home: Path
) -> None:
    """Quotes, spaces and a dollar in the path; Turkish, and a far time zone."""
    other = make_checkout(tmp_path / 'o\'clock "dir" $HOME & ü', Preloaded)
    turkish = {"LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati"}
    # Snakemake itself keeps a cache there.
    other.snakemake(HOME=str(home), XDG_CACHE_HOME=str(tmp_path / "cache"), **turkish)
    assert results(other) == results(finished)


@pytest.mark.short
def test_braces_in_the_path(tmp_path: Path) -> None:
    other = make_checkout(tmp_path / "{dataset}")
    said = other.refused()
    assert "Snakemake takes braces in a path for wildcards. Rename the folder" in said


def test_no_home_and_results_elsewhere(checkout: Checkout, finished: Checkout) -> None:
    """HOME is not set, LC_ALL=C, and results lie on another file system than the rest."""
    elsewhere = Path("/dev/shm") / f"headpursuit-{os.getpid()}"
    if not elsewhere.parent.is_dir():
        pytest.skip("needs /dev/shm, a file system of its own")
    try:
        shutil.move(checkout.folder / "results", elsewhere)
        (checkout.folder / "results").symlink_to(elsewhere)
        checkout.path("samples/rtp.parquet").unlink()
        checkout.snakemake(HOME=None, LC_ALL="C")
        assert results(checkout) == results(finished)
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)
