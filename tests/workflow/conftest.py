import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkout import TINY, Checkout, Preloaded, make_checkout
from tiny import WORDS, make_classifier
from tiny_figure1 import prepare_figure1

# Beside the tiny run: what heads write, concepts of one's own, and images.
MORE: dict[str, Any] = {
    "sources": {
        "judge": {"kind": "local", "path": "own"},
        "quiz": {"kind": "local", "path": "own/quiz"},
    },
    "classifiers": {"tiny": {"source": "judge", "path": "judge", "label": "toxic"}},
    "samples": {
        "asked": {**TINY["samples"]["rtp"], "sample": 20},
        "quiz": {"source": "quiz", "files": "train.jsonl", "text": "question", "sample": 12},
        "quiz-asked": {
            **{"source": "quiz", "files": "validation.jsonl", "text": "question", "sample": 30},
            **{"references": ["answer.value", "answer.aliases"], "excluding": "quiz"},
        },
        "albums": {
            **{"source": "photos", "image": "file", "references": ["one", "two"]},
            "template": "See {image} Say what it shows:",
            "sample": {"selection": 9, "evaluation": 10},
            **{part: {"files": "captions.csv"} for part in ("selection", "evaluation")},
        },
    },
    "concepts": {
        "fruit": {"words": ["apple", "lemon", "turnip"]},
        "tools": {"file": "own/tools.txt"},
        "seen": {"words": WORDS[:20]},
        "answers": {"words": ["apple", "lemon", "turnip"]},
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
            "measures": ["occurrences", "expected", "toxicity"],
            "classifier": "tiny",
            "alpha": [3.0, -1.0],
            "at": ["all", "response"],
        },
        "tools": {"like": "fruit", "concept": "tools", "measures": []},
        "quiz": {"like": "tools", "samples": "quiz", "concept": "answers"},
        "quiz-asked": {
            "like": "quiz",
            "samples": "quiz-asked",
            "measures": ["f1", "occurrences"],
            "heads_from": "quiz",
            "methods": ["somp"],
            "draws": 0,
            "alpha": 3.0,
            "at": "all",
        },
        "albums": {
            "model": "assembled",
            "samples": "albums",
            "concept": "seen",
            "measures": ["occurrences", "cider"],
            "positions": "image",
            "generation": {"max_new_tokens": 6, "temperature": 0.0},
        },
    },
    "tables": {
        **{"table1": ["asked"], "enhanced": ["fruit"], "concepts": ["tools"]},
        **{"figure2": ["quiz-asked"], "figure5": ["albums"]},
    },
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


def write_quiz(folder: Path) -> None:
    """Write questions in two parts that have some in common; a fruit answers one in three."""
    folder.mkdir()
    for part, numbers in (("train", range(40)), ("validation", range(20, 80))):
        lines = []
        for number in numbers:
            value = ["apple", WORDS[1], WORDS[3]][number % 3]
            answer = {"value": value, "aliases": [f"The {value.title()}!", *WORDS[4:9]]}
            question = f"Which {WORDS[number % 40]} is number {number}"
            question = f" {question.upper()}" if part == "validation" else question
            lines.append(json.dumps({"question": question, "answer": answer}))
        (folder / f"{part}.jsonl").write_text("\n".join(lines))


def write_captions(path: Path) -> None:
    """Write two captions for each image of the folder of photos.

    One has every second word, so that some response shares one on any processor.
    """
    rows = [f"{n}.png,A {WORDS[n % 5]} apple.,{' '.join(WORDS[n % 2 :: 2])}" for n in range(24)]
    path.write_text("\n".join(["file,one,two", *rows]))


def ended(folder: Path, *arguments: str, **env: str) -> Checkout:
    checkout = make_checkout(folder, Preloaded)
    (folder / "own/tools.txt").write_text("\n".join(WORDS[20:24]) + "\n", encoding="utf-8")
    make_classifier(folder / "own/judge")
    checkout.configure("tiny", **prepare_figure1(folder / "own"))
    write_quiz(folder / "own/quiz")
    write_captions(folder / "own/photos/captions.csv")
    checkout.configure("tiny", **MORE)
    (folder / "said.txt").write_text(checkout.snakemake(*arguments, **env), encoding="utf-8")
    return checkout


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    """Give a copy of the finished checkout, to be changed at will."""
    shutil.copytree(finished.folder, tmp_path / "checkout")
    return Preloaded(tmp_path / "checkout")
