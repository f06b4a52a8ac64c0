"""Runs of the tiny configuration to be disturbed, and one that was not."""

import shutil
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from checkout import Checkout, Preloaded, make_checkout
from headpursuit.run.experiments import merge
from tiny_figure1 import prepare_figure1

# Not results: when a file was made, how fast, and what the machine was like.
INCIDENTAL = {"logs", "benchmarks", "preflight.json", "provenance.json", "run.html"}


def make_whole(folder: Path) -> Checkout:
    """Make a checkout whose overlay ``whole`` covers text, single heads, a concept and images."""
    checkout = make_checkout(folder)
    checkout.configure("tiny", tables={"figure1": []})
    text = {"model": "tiny", "samples": "rtp", "positions": "prompt"}
    vocabulary = {"top": 3, "draws": 20, "neighbours": 50}
    whole = {
        "concepts": {"fruit": {"words": ["apple", "lemon", "turnip"]}},
        "experiments": {
            "asked": {**text, "pursuit": {"iterations": 6}, "vocabulary": vocabulary},
            "fruit": {**text, "concept": "fruit"},
            "stripes": {"methods": ["somp", "size"], "k": [1]},
        },
        "tables": {"table1": ["asked"], "concepts": ["fruit"], "figure1": ["stripes"]}
        | {"figure4": []},
    }
    checkout.configure("whole", **merge(prepare_figure1(folder / "own"), whole))
    return checkout


def results(checkout: Checkout) -> dict[str, bytes]:
    """Return every whole file of a run that its configuration decides, by its path."""
    found = {}
    for root in ("results", "resources"):
        for path in sorted((checkout.folder / root).rglob("*")):
            name = path.relative_to(checkout.folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if path.is_file() and not hidden and not INCIDENTAL & set(name.parts):
                # A label file's metadata say how long the labeller took.
                timed = name.match("labels/*.parquet")
                found[str(name)] = content(path) if timed else path.read_bytes()
    return found


def content(path: Path) -> bytes:
    """Return the rows of a Parquet file, without its metadata."""
    return repr(pq.read_table(path).to_pylist()).encode()


def group(leader: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


def copied(folder: Path, original: Checkout, kind: type[Checkout] = Preloaded) -> Checkout:
    """Copy a checkout, to be disturbed; kills and signals want a plain one."""
    shutil.copytree(original.folder, folder / "checkout")
    return kind(folder / "checkout")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Give a checkout in which the text run has ended. Not to be changed: copy it."""
    checkout = make_checkout(tmp_path_factory.mktemp("finished") / "checkout", Preloaded)
    checkout.snakemake()
    return checkout


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    """Give a copy of the finished text run, to be disturbed."""
    return copied(tmp_path, finished)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Give a checkout in which nothing has run. Not to be run in: copy it."""
    return make_whole(tmp_path_factory.mktemp("fresh") / "checkout")
