"""The data sets of config.yaml in small: real ids, files, columns, nesting and metadata."""

import colorsys
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from replica_names import BROKEN, DIGITS, DTD, EUROSAT, GTSRB, GTSRB_CORRUPTED, PLAIN, RESISC45

SCORES = ["profanity", "sexually_explicit", "identity_attack", "flirtation", "threat", "insult"]
SCORES += ["severe_toxicity", "toxicity"]
TEXT = {"dtype": "string", "_type": "Value"}
Files = dict[str, bytes]


def sentence(rng: random.Random, low: int, high: int) -> str:
    """Return some plain words, now and then one that is several tokens."""
    some = rng.choices(PLAIN, k=rng.randint(low, high))
    if rng.random() < 0.3:
        some[rng.randrange(len(some))] = rng.choice(BROKEN)
    return " ".join(some)


def parquet(columns: dict[str, pa.Array], features: dict[str, Any] | None) -> bytes:
    """Write columns as the Hub's Parquet files have them: features stand in the metadata."""
    table = pa.table(columns)
    if features:
        stored = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(stored)
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=100)
    return out.getvalue()


# Text


def challenging() -> list[str]:
    """Return the prompts of RealToxicityPrompts that config.yaml keeps."""
    rows = map(json.loads, real_toxicity_prompts()["prompts.jsonl"].splitlines())
    return [row["prompt"]["text"] for row in rows if row["challenging"]]


def real_toxicity_prompts() -> Files:
    """allenai/real-toxicity-prompts: one JSON Lines file, one prompt in four is challenging."""
    rng = random.Random(1)
    lines = []
    for number in range(80):
        row: dict[str, Any] = {"filename": f"{rng.getrandbits(64):016x}.txt"}
        row |= {"begin": rng.randrange(500), "end": 500 + rng.randrange(500)}
        row["challenging"] = number % 4 == 0
        for name in ("prompt", "continuation"):
            scores = {key: None if rng.random() < 0.1 else rng.random() for key in SCORES}
            row[name] = {"text": sentence(rng, 6, 16), **scores}
        lines.append(json.dumps(row))
    return {"prompts.jsonl": "\n".join([*lines, ""]).encode(), "README.md": b"---\n---\n"}


def queries() -> list[str]:
    """Return TET's prompts, of several lines."""
    rng = random.Random(2)
    return [f"{sentence(rng, 4, 9)}:\n\n{sentence(rng, 6, 14)}?" for _ in range(20)]


def thoroughly_engineered_toxicity(lists: str = "Sequence") -> Files:
    """convoicon/Thoroughly_Engineered_Toxicity: one file; ``lists`` is how metadata call them."""
    rng, n = random.Random(6), len(queries())
    metrics = [[rng.random() for _ in range(3)] for _ in range(n)]
    columns = {
        "conversation_id": pa.array([f"{rng.getrandbits(128):032x}" for _ in range(n)]),
        "metrics": pa.array(metrics, pa.list_(pa.float64())),
        "query": pa.array(queries()),
    }
    features = {
        "conversation_id": TEXT,
        "metrics": {"feature": {"dtype": "float64", "_type": "Value"}, "_type": lists},
        "query": TEXT,
    }
    return {"data/train-00000-of-00001.parquet": parquet(columns, features), "README.md": b"-\n"}


ANSWERS = ["France", "Japan", "Brazil", *PLAIN[5:12]]


def question(rng: random.Random, number: int) -> tuple[str, str]:
    """Return a question, in which a word tells of its answer, and that answer."""
    kind = number % len(ANSWERS)
    clue = " ".join([PLAIN[30 + kind]] * 3)
    return f"Which {clue} {sentence(rng, 2, 5)} {number}?", ANSWERS[kind]


def trivia_qa() -> Files:
    """mandarjoshi/trivia_qa: rc.nocontext, nested legacy Sequences of structs, other configs."""
    listed = {"feature": TEXT, "_type": "Sequence"}
    pages = {"doc_source": TEXT, "filename": TEXT, "title": TEXT, "wiki_context": TEXT}
    found = {"description": TEXT, "filename": TEXT, "title": TEXT, "url": TEXT}
    answer = {
        **dict.fromkeys(("aliases", "normalized_aliases"), listed),
        **dict.fromkeys(
            ("matched_wiki_entity_name", "normalized_matched_wiki_entity_name",
             "normalized_value", "type", "value"), TEXT
        ),
    }  # fmt: skip
    features = {
        **dict.fromkeys(("question", "question_id", "question_source"), TEXT),
        "entity_pages": {"feature": pages, "_type": "Sequence"},
        "search_results": {"feature": found, "_type": "Sequence"},
        "answer": answer,
    }
    strings = pa.list_(pa.string())

    def rows(seed: int, n: int, answered: bool) -> bytes:
        rng = random.Random(seed)
        asked, values = zip(*(question(rng, number) for number in range(n)), strict=True)
        values = values if answered else ["<unk>"] * n
        empty = {name: pa.array([[]] * n, strings) for name in (*pages, *found)}
        columns = {
            "question": pa.array(asked),
            "question_id": pa.array([f"tc_{number}" for number in range(n)]),
            "question_source": pa.array(["http://www.triviacountry.com/"] * n),
            "entity_pages": pa.StructArray.from_arrays([empty[k] for k in pages], list(pages)),
            "search_results": pa.StructArray.from_arrays([empty[k] for k in found], list(found)),
            "answer": pa.StructArray.from_arrays(
                [
                    pa.array([[value, f"The {value.upper()}"] for value in values], strings)
                    if key.endswith("aliases")
                    else pa.array(["WikipediaEntity"] * n if key == "type" else values)
                    for key in answer
                ],
                list(answer),
            ),
        }
        return parquet(columns, features)

    return {
        "rc.nocontext/train-00000-of-00001.parquet": rows(3, 1010, True),
        "rc.nocontext/validation-00000-of-00001.parquet": rows(4, 1010, True),
        "rc.nocontext/test-00000-of-00001.parquet": rows(5, 10, False),
        "rc/train-00000-of-00026.parquet": b"of another configuration",
        "unfiltered.nocontext/train-00000-of-00001.parquet": b"of another configuration",
        "README.md": b"---\n---\n",
    }


# Images


@dataclass(frozen=True)
class Looks:
    """How a data set's images are made: their sizes (one after the other), mode and format."""

    sizes: Sequence[tuple[int, int]]
    mode: str = "RGB"
    form: str = "JPEG"


def image(rng: np.random.Generator, size: tuple[int, int], label: int, n: int, looks: Looks):
    """Draw stripes whose colour, direction and width are those of a class, with some noise."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / max(size)
    angle, waves = np.pi * label / n, 2 + label % 5
    wave = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))
    colour = np.array(colorsys.hsv_to_rgb(label / n, 0.8, 0.4 + 0.5 * (label % 3) / 2))
    pixels = colour * (0.65 + 0.35 * wave[..., None]) + rng.normal(0, 0.03, (height, width, 3))
    made = Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8)).convert(looks.mode)
    out = io.BytesIO()
    made.save(out, looks.form)
    return out.getvalue()


def image_file(seed: int, names: Sequence[str], looks: Looks) -> bytes:
    """Return a Parquet file with an image of every class, in mixed order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(len(names)).tolist()
    encoded = [
        {
            "bytes": image(rng, looks.sizes[i % len(looks.sizes)], label, len(names), looks),
            "path": None if i % 2 else f"{i:05d}.{looks.form.lower()}",
        }
        for i, label in enumerate(labels)
    ]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array(encoded, struct), "label": pa.array(labels, pa.int64())}
    named = {"names": list(names), "_type": "ClassLabel"}
    return parquet(columns, {"image": {"_type": "Image"}, "label": named})


LOOKS = {
    "mnist": Looks([(28, 28)], "L", "PNG"),
    "svhn": Looks([(32, 32)], form="PNG"),
    "gtsrb": Looks([(50, 48), (29, 30), (61, 59), (112, 108)], form="PNG"),
    "eurosat": Looks([(64, 64)]),
    "resisc45": Looks([(256, 256)]),
    "dtd": Looks([(640, 480), (480, 640), (300, 300)]),
}


# Of each: its repository, the folder of its train and test files, seed, class names, other files.
IMAGES = {
    "mnist": ("ylecun/mnist", "mnist", 10, DIGITS, []),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits", 20, DIGITS, [
        "cropped_digits/extra-00000-of-00002.parquet",
        "full_numbers/train-00000-of-00001.parquet",
    ]),
    "gtsrb": ("tanganke/gtsrb", "data", 30, GTSRB, [
        f"data/{kind}-00000-of-00001.parquet" for kind in GTSRB_CORRUPTED
    ]),
    "eurosat": ("timm/eurosat-rgb", "data", 40, EUROSAT, [
        "data/validation-00000-of-00001.parquet"
    ]),
    "resisc45": ("timm/resisc45", "data", 50, RESISC45, [
        "data/validation-00000-of-00001.parquet"
    ]),
    "dtd": ("tanganke/dtd", "data", 60, DTD, []),
}  # fmt: skip


def image_set(dataset: str, names: Sequence[str] = ()) -> Files:
    """Return the files of one of :data:`IMAGES`, with all classes or the ``names`` alone."""
    _, folder, seed, listed, others = IMAGES[dataset]
    made = {
        f"{folder}/{part}-00000-of-00001.parquet": image_file(own, names or listed, LOOKS[dataset])
        for own, part in ((seed, "train"), (seed + 1, "test"))
    }
    return made | dict.fromkeys(others, b"not asked for") | {"README.md": b"---\n---\n"}


# What Flickr30k's images show, one after the other: quantities, sentiments and colours.
SHOWN = [
    "two happy people in red near the water",
    "a lonely woman in a green street",
    "three angry men with several blue chairs",
    "many children play with a yellow ball",
    "a sad man sits on a white table",
    "one calm friend with a black cat",
]


def flickr_image(rng: np.random.Generator, number: int) -> bytes:
    """Return one of Flickr30k's images, which shows what ``SHOWN`` says."""
    size = [(500, 375), (375, 500), (500, 333)][number % 3]
    return image(rng, size, number % len(SHOWN), len(SHOWN), Looks([]))


def flickr30k() -> Files:
    """AnyModal/flickr30k: in three parts, train in several files, five captions an image."""

    def rows(seed: int, part: str) -> bytes:
        rng, n = np.random.default_rng(seed), 2 * len(SHOWN)
        encoded = [{"bytes": flickr_image(rng, i), "path": f"{seed}{i}.jpg"} for i in range(n)]
        said = [SHOWN[i % len(SHOWN)] for i in range(n)]
        captions = [[text, f"{text} .", f"A photo of {text}.", text.title(), text] for text in said]
        strings = pa.list_(pa.string())
        columns = {
            "image": pa.array(encoded, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "alt_text": pa.array([[" ".join(own)] for own in captions], strings),
            "sentids": pa.array([[str(5 * i + j) for j in range(5)] for i in range(n)], strings),
            "split": pa.array([part] * n),
            "img_id": pa.array([str(i) for i in range(n)]),
            "filename": pa.array([f"{seed}{i}.jpg" for i in range(n)]),
            "original_alt_text": pa.array(captions, strings),
        }
        return parquet(columns, None)

    return {
        "data/train-00000-of-00009.parquet": rows(70, "train"),
        "data/train-00001-of-00009.parquet": b"not asked for",
        "data/validation-00000-of-00001.parquet": b"not asked for",
        "data/test-00000-of-00001.parquet": rows(71, "test"),
        "README.md": b"---\n---\n",
    }


DATASETS: dict[str, Callable[[], Files]] = {
    "allenai/real-toxicity-prompts": real_toxicity_prompts,
    "convoicon/Thoroughly_Engineered_Toxicity": thoroughly_engineered_toxicity,
    "mandarjoshi/trivia_qa": trivia_qa,
    **{repository: partial(image_set, name) for name, (repository, *_) in IMAGES.items()},
}
