"""Runs of the tiny configuration to be disturbed, and one that was not."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from checkout import Checkout, make_checkout
from tiny import WORDS
from tiny_vision import HEADS, LAYERS, write_pixels

# Not results: when a file was made, how fast, and what the machine was like.
INCIDENTAL = {"logs", "benchmarks", "preflight.json", "provenance.json", "run.html"}


def make_whole(folder: Path) -> Checkout:
    """Make a checkout whose overlay ``whole`` covers text, table 1 and images."""
    checkout = make_checkout(folder)
    write_pixels(folder / "own/pixels.csv.gz", np.random.default_rng(0), 90)
    text = yaml.safe_load((folder / "configs/tiny.yaml").read_text())
    shipped = dict.fromkeys(("countries", "months", "numbers", "colours"))
    model = {**text["models"]["tiny"], "layers": LAYERS, "heads": HEADS}
    rows = {"files": "pixels.csv.gz"}
    checkout.configure(
        "whole",
        sources={"pixels": {"kind": "local", "path": "own/pixels.csv.gz"}},
        models={"assembled": model},
        datasets={"asked": {**text["datasets"]["rtp"], "sample": 20, "positions": "prompt"}},
        table1={
            "datasets": ["asked"], "heads": None, "top": 3, "iterations": 6,
            "random_sets": {"draws": 20, "neighbours": 50},
            "concepts": {**shipped, "fruit": ["apple", "lemon", "turnip"]},
        },
        image_datasets={
            "stripes": {
                "source": "pixels", "object": "fruit", "image": None, "label": None,
                "classes": dict(enumerate(WORDS[:3])),
                "selection": {**rows, "rows": [1, 60]}, "evaluation": {**rows, "rows": [61, 90]},
            },
        },
        vision={
            "model": "assembled", "datasets": ["stripes"], "max_new_tokens": 3,
            "template": "See {image} What {object} is it? One of: {classes}. Answer:",
            "images": {"selection": 8, "evaluation": 8}, "batch_images": 7,
            "heads": {"methods": ["somp", "size"], "k": [1], "draws": 2},
            "build": {
                "language_model": "tiny", "dataset": "stripes", "trained": None,
                "tower": {
                    "image_size": 4, "patch_size": 2, "hidden_size": 8, "layers": 1, "heads": 2
                },
                "training": {
                    "tower_epochs": 2, "epochs": 1, "batch_size": 10, "tower_rate": 1e-3,
                    "projector_rate": 1e-2, "end_weight": 0.3,
                },
            },
        },
    )  # fmt: skip
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


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for a condition; AssertionError if it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def group(leader: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Give a checkout in which the text run has ended. Not to be changed: copy it."""
    checkout = make_checkout(tmp_path_factory.mktemp("finished") / "checkout")
    checkout.snakemake()
    return checkout


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    """Give a copy of the finished text run, to be disturbed."""
    shutil.copytree(finished.folder, tmp_path / "checkout")
    return Checkout(tmp_path / "checkout")


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Give a checkout in which nothing has run. Not to be run in: copy it."""
    return make_whole(tmp_path_factory.mktemp("fresh") / "checkout")
