"""Disks that are full, read-only or gone: one message each, and the next run ends."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkout import Checkout
from conftest import copied, results

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")
CACHE = "results/tiny/activations/rtp.parquet"


@pytest.fixture
def mounted() -> Iterator[Callable[[Path], None]]:
    """Give a function that puts a folder on a file system of its own, of 2 MB."""
    folders = []

    def mount(folder: Path) -> None:
        kept = folder.rename(folder.with_name(f"{folder.name}.kept"))
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
        folders.append(folder)
        shutil.copytree(kept, folder, dirs_exist_ok=True)

    yield mount
    for folder in folders:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Take all room of a file system but so many bytes; return the file that takes it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as handle:
        try:
            while True:
                handle.write(bytes(4096))
        except OSError:
            handle.truncate(handle.tell() - leave)
    return filler


@needs_root
@pytest.mark.short
def test_results_are_full(checkout: Checkout, mounted: Callable, finished: Checkout) -> None:
    mounted(checkout.folder / "results")
    (checkout.folder / CACHE).unlink()
    filler = fill(checkout.folder / "results", leave=12288)
    said = checkout.refused()
    step = "no space is left. Free some, then run the same command again"
    assert f"cache_activations: results/tiny/activations: {step}" in said, said
    filler.unlink()
    checkout.snakemake()
    assert results(checkout) == results(finished)


@needs_root
def test_resources_are_full(fresh: Checkout, mounted: Callable, tmp_path: Path) -> None:
    """A model is saved by other libraries, whose errors differ, into a folder of its own."""
    checkout = copied(tmp_path, fresh)
    model = "resources/assembled/assembled/provenance.json"
    checkout.snakemake("results/tiny/tower/assembled.safetensors", overlay="whole")
    mounted(checkout.folder / "resources")
    filler = fill(checkout.folder / "resources", leave=20480)
    said = checkout.refused(model, overlay="whole")
    assert "assemble_model: resources/assembled/assembled: no space is left. Free some" in said
    assert not (checkout.folder / model).exists()
    filler.unlink()
    checkout.snakemake(model, overlay="whole")


@needs_root
@pytest.mark.parametrize("name", ["results", "resources"])
def test_a_folder_is_read_only(checkout: Checkout, mounted: Callable, name: str) -> None:
    mounted(checkout.folder / name)
    (checkout.folder / CACHE).unlink()
    subprocess.run(["mount", "-o", "remount,ro", checkout.folder / name], check=True)
    said = checkout.refused()
    assert f"\n{name}: the file system is read-only. Make it writable" in said
    subprocess.run(["mount", "-o", "remount,rw", checkout.folder / name], check=True)
    checkout.snakemake(CACHE)


def test_the_scratch_folder_is_gone(checkout: Checkout, finished: Checkout) -> None:
    """Nothing of a run depends on it."""
    for name in ("tables/table2.csv", "activations/rtp.parquet", "labels/rtp.parquet"):
        checkout.path(name).unlink()
    gone = checkout.folder / "scratch"
    checkout.snakemake("--default-resources", f"tmpdir='{gone}'", TMPDIR=str(gone))
    assert results(checkout) == results(finished)
