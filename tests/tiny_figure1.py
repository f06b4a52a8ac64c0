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
    part = {"files": "pixels.csv.gz"}
    split = {"files": "labels.csv"}
    model = {"path": "", "gguf": None, "layers": LAYERS, "heads": HEADS, "parameters": 100000}
    model |= {"dtype": "float32", "chat": False}
    return {
        "sources": {
            "pixels": {"kind": "local", "path": "own/pixels.csv.gz"},
            "photos": {"kind": "local", "path": "own/photos"},
        },
        "models": {"assembled": {"source": "tiny-model", **model}},
        "image_datasets": {
            "stripes": {
                "source": "pixels", "object": "fruit", "image": None, "label": None,
                "classes": FRUIT,
                "selection": {**part, "rows": [1, 60]}, "evaluation": {**part, "rows": [61, 90]},
            },
            "photos": {
                "source": "photos", "object": "thing", "image": "file", "label": "kind",
                "classes": DIGITS,
                "selection": {**split, "where": {"split": "train"}},
                "evaluation": {**split, "where": {"split": "test"}},
            },
        },
        "vision": {
            "model": "assembled", "datasets": ["stripes", "photos"], "max_new_tokens": 3,
            "template": "See {image} What {object} is it? One of: {classes}. Answer:",
            "images": {"selection": 8, "evaluation": 8}, "batch_images": 7, "cross": True,
            "heads": {"methods": ["somp", "unrelated", "size"], "k": [1, 2], "draws": 2},
            "build": {
                "language_model": "tiny", "dataset": "stripes", "trained": None,
                "tower": {"image_size": 4, "patch_size": 2, "hidden_size": 8, "layers": 1,
                          "heads": 2},
                "training": {"tower_epochs": 2, "epochs": 1, "batch_size": 10, "tower_rate": 1e-3,
                             "projector_rate": 1e-2, "end_weight": 0.3},
            },
        },
    }  # fmt: skip
