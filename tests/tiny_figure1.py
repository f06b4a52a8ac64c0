"""What a tiny run of figure 1 reads, and the overlay that makes it run."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import WORDS
from tiny_vision import HEADS, LAYERS, write_pixels

FRUIT = {0: WORDS[0], 1: WORDS[1], 2: WORDS[2]}
# Names that a reader of CSV could take for numbers.
DIGITS = {WORDS[5]: "7", WORDS[6]: "9"}


def write_folder(folder: Path, rng: np.random.Generator) -> None:
    """Write a folder of images of many shapes with a CSV of labels."""
    folder.mkdir()
    lines = ["file,kind,split"]
    for number in range(24):
        high, wide = rng.integers(5, 12, 2)
        pixels = rng.integers(0, 255, (high, wide, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{WORDS[5 + number % 2]},{'train' if number < 14 else 'test'}")
    (folder / "labels.csv").write_text("\n".join([*lines, ""]))


def prepare_figure1(own: Path) -> dict[str, Any]:
    """Write two image data sets into ``own`` and return the overlay that uses them.

    The tower is trained in the run, through the tiny text model.
    """
    rng = np.random.default_rng(0)
    write_pixels(own / "pixels.csv.gz", rng, 90)
    write_folder(own / "photos", rng)
    part, split = {"files": "pixels.csv.gz"}, {"files": "labels.csv"}
    question = {
        "template": "See {image} What {object} is it? One of: {classes}. Answer:",
        "per_class": {"selection": 8, "evaluation": 8},
    }
    build = {
        "language_model": "tiny", "samples": "stripes",
        "tower": {"image_size": 4, "patch_size": 2, "hidden_size": 8, "layers": 1, "heads": 2},
        "training": {"tower_epochs": 2, "epochs": 1, "batch_size": 10, "tower_rate": 1e-3,
                     "projector_rate": 1e-2, "end_weight": 0.3},
    }  # fmt: skip
    model = {"layers": LAYERS, "heads": HEADS, "parameters": 100000, "dtype": "float32"}
    own_heads = {"methods": ["somp", "unrelated", "size"], "k": [1, 2], "draws": 2}
    answers = {"generation": {"max_new_tokens": 3, "temperature": 0.0}, "positions": "image"}
    return {
        "sources": {
            "pixels": {"kind": "local", "path": "own/pixels.csv.gz"},
            "photos": {"kind": "local", "path": "own/photos"},
        },
        "models": {"assembled": {"source": "tiny-model", "chat": False, "build": build, **model}},
        "samples": {
            "stripes": {
                "source": "pixels", "object": "fruit", "image": None, "label": None,
                "classes": FRUIT, **question,
                "selection": {**part, "rows": [1, 60]}, "evaluation": {**part, "rows": [61, 90]},
            },
            "photos": {
                "source": "photos", "object": "thing", "image": "file", "label": "kind",
                "classes": DIGITS, **question,
                "selection": {**split, "where": {"split": "train"}},
                "evaluation": {**split, "where": {"split": "test"}},
            },
        },
        "experiments": {
            "stripes": {
                "model": "assembled", "samples": "stripes", "concept": "classes",
                "measures": ["exact_match"], **own_heads, **answers,
            },
            "photos": {"like": "stripes", "samples": "photos"},
            "stripes-from-photos": {
                "like": "stripes", "heads_from": "photos", "methods": ["size"], "draws": 1
            },
        },
        "tables": {"figure1": ["stripes", "photos"], "figure4": ["stripes-from-photos"]},
        "compute": {"batch_images": 7},
    }  # fmt: skip
