import shutil
from pathlib import Path
from typing import Any

import pytest
from checkout import TINY, Checkout, Preloaded, make_checkout
from tiny import WORDS, make_classifier
from tiny_figure1 import prepare_figure1

# Beside the tiny run: what heads write, concepts of one's own, and images.
MORE: dict[str, Any] = {
    "sources": {"judge": {"kind": "local", "path": "own"}},
    "classifiers": {"tiny": {"source": "judge", "path": "judge", "label": "toxic"}},
    "samples": {"asked": {**TINY["samples"]["rtp"], "sample": 20}},
    "concepts": {
        "fruit": {"words": ["apple", "lemon", "turnip"]},
        "tools": {"file": "own/tools.txt"},
    },
    "experiments": {
        "asked": {
            "model": "tiny",
            "samples": "asked",
            "positions": "prompt",
            "pursuit": {"iterations": 6},
            "vocabulary": {"top": 3, "draws": 20, "neighbours": 50},
        },
        "fruit": {
            "model": "tiny",
            "samples": "asked",
            "positions": "prompt",
            "concept": "fruit",
            "measures": ["count", "expected", "toxicity"],
            "classifier": "tiny",
            "alpha": [3.0, -1.0],
            "at": ["all", "response"],
        },
        "tools": {"like": "fruit", "concept": "tools", "measures": []},
    },
    "tables": {"table1": ["asked"], "enhanced": ["fruit"], "concepts": ["tools"]},
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Give a checkout in which a run of all kinds has ended. Not to be changed: copy it."""
    return ended(tmp_path_factory.mktemp("finished") / "checkout")


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Give the same run, on one core, under a path with spaces, and in another language."""
    folder = tmp_path_factory.mktemp("elsewhere") / "ein Ördner 路"
    return ended(folder, "--cores", "1", LANG="C", TZ="Asia/Kathmandu")


def ended(folder: Path, *arguments: str, **env: str) -> Checkout:
    checkout = make_checkout(folder, Preloaded)
    (folder / "own/tools.txt").write_text("\n".join(WORDS[20:24]) + "\n", encoding="utf-8")
    make_classifier(folder / "own/judge")
    checkout.configure("tiny", **prepare_figure1(folder / "own"))
    checkout.configure("tiny", **MORE)
    checkout.snakemake(*arguments, **env)
    return checkout


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    """Give a copy of the finished checkout, to be changed at will."""
    shutil.copytree(finished.folder, tmp_path / "checkout")
    return Preloaded(tmp_path / "checkout")
