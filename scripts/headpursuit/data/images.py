"""Images: read out of data files, drawn by class or from all, and stored for the model to read."""

import io
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from headpursuit.data.rows import BATCH, column_names, kept_rows, references_in
from headpursuit.data.sources import source_files
from headpursuit.method.answers import normalise_answer
from headpursuit.run.experiments import of_classes
from headpursuit.run.files import (
    UserError,
    atomic,
    check_table,
    damaged_parquet,
    refusal,
    refuse_missing,
    seed_for,
)

log = logging.getLogger(__name__)

PARTS = ("selection", "evaluation")
SCHEMA = pa.schema(
    {
        "sample_id": pa.string(),
        "part": pa.string(),
        "source": pa.string(),
        "label": pa.int32(),
        "class_name": pa.string(),
        "references": pa.list_(pa.string()),
        "image": pa.binary(),
    }
)

Where = tuple[Path, int]  # file and row, from 1


def read_images(
    files: Sequence[Path], spec: Mapping[str, Any], part: str, with_images: bool, dataset: str = "*"
) -> Iterator[tuple[Where, Any, bytes | None]]:
    """Stream a part (``selection`` or ``evaluation``) of ``spec``, the samples ``dataset``.

    The column ``image`` holds encoded images (bytes, or the Hub's struct with bytes) or paths
    relative to the file. Where ``image`` is null, each line of a CSV file (.gz too, no header)
    holds a square grey image's pixels and then its label.

    Yields:
        (file and row, the image's label or list of references, encoded image or None where only
        these are read).

    Raises:
        UserError: if a file or a column is missing or damaged.
    """
    first, last = spec[part].get("rows") or (1, float("inf"))
    references = column_names(spec.get("references"))
    label, image = spec.get("label") or "label", spec["image"] or "image"
    columns = [*(references or [label]), *([image] if with_images else [])]
    for path in files:
        if spec["image"] is None:
            rows = _pixel_rows(path)
        else:
            key = f"samples.{dataset}.{part}"
            rows = kept_rows(path, columns, spec[part].get("where"), key)
        for number, row in takewhile(lambda row: row[0] <= last, rows):
            if number >= first:
                place = f"{path}, row {number}"
                if references:
                    own = references_in(row, references, f"samples.{dataset}.references: {place}")
                else:
                    own = _class_of(row[label], f"samples.{dataset}.label: {place}")
                yield (path, number), own, _encoded(path, row[image]) if with_images else None


def _pixel_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        values = pd.read_csv(path, header=None, dtype=float).to_numpy()
        if not np.isfinite(values).all():
            raise ValueError("a cell is empty or not finite, or a row too short")
        pixels, labels = values[:, :-1], values[:, -1].astype(int).tolist()
        side = round(pixels.shape[1] ** 0.5)
        square = pixels.reshape(len(labels), side, side) * (255 / (pixels.max() or 1))
        images = np.round(square).astype(np.uint8)
    except (ValueError, OSError, EOFError) as error:
        if refusal(error, path):
            raise
        raise UserError(f"{path}: not rows of square images and labels ({error}).") from error
    for number, (label, image) in enumerate(zip(labels, images, strict=True), start=1):
        yield number, {"label": label, "image": image}


def _class_of(label: Any, place: str) -> Any:
    if label is None or isinstance(label, list | Mapping) or not str(label).strip():
        raise UserError(f"{place}: {label!r:.60} is no class. Correct the row.")
    return label


def _encoded(path: Path, image: Any) -> Any:
    """Return the encoded image that a file's cell holds or names; what else it holds as it is."""
    if isinstance(image, np.ndarray):
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "PNG")
        return encoded.getvalue()
    if isinstance(image, str):
        try:
            return (path.parent / image).read_bytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", error)
            raise UserError(f"{path}: {image:.80} cannot be read ({why}).") from error
    return image.get("bytes") if isinstance(image, Mapping) else image


def class_names(spec: Mapping[str, Any], labels: set[Any], files: Sequence[Path]) -> dict[Any, str]:
    """Return the class name of every label, in the order in which the model reads them.

    They are the config's ``classes``; else the names that a Parquet file's own metadata give to
    its numbers; else the labels themselves, if they are text. Underscores in the latter two become
    spaces.

    Raises:
        UserError: if a label has no name, a class no image, or two names are the same once
            normalised.
    """
    stored = next(filter(None, (_label_names(file, spec["label"]) for file in files)), None)
    listed = dict(enumerate(stored)) if stored else {label: label for label in labels}
    if spec["classes"]:  # keyed by the label itself, or by its name in the file
        of = {str(name): str(label) for label, name in listed.items()}
        names = {of.get(str(key), str(key)): name for key, name in spec["classes"].items()}
    else:
        # All cells of a CSV file are text, so digits are taken for numbers there.
        typed = any(file.suffix.lower() != ".csv" for file in files)
        numbers = [o for o in labels if not isinstance(o, str) or (not typed and o.isdecimal())]
        if numbers and not stored:
            some = ", ".join(sorted(map(str, numbers))[:3])
            raise UserError(
                f"classes: the labels are numbers ({some}, ...), and no file of theirs names them. "
                "Give each a name in samples.*.classes, such as {0: zero, 1: one}; or "
                '{0: "0", 1: "1"} if the model is to be asked about numbers.'
            )
        names = {str(label): str(listed[label]).replace("_", " ") for label in sorted(listed)}
    origin = "the files' metadata" if stored else "the labels"
    log.info("class names: %s", "the config" if spec["classes"] else origin)
    of_text = {str(label): label for label in labels}
    if unnamed := sorted(of_text.keys() - names.keys()):
        raise UserError(
            f"classes: no name for the labels {', '.join(unnamed)}; named are {', '.join(names)}."
        )
    if empty := [name for label, name in names.items() if label not in of_text]:
        raise UserError(f"The classes {', '.join(empty)} have no image at all.")
    normal = Counter(map(normalise_answer, names.values()))
    if same := sorted(name for name, n in normal.items() if n > 1):
        raise UserError(
            f"Several classes are called {', '.join(same)} (but for case, space and punctuation): "
            "an answer could match two. Give them other names under classes."
        )
    return {of_text[label]: name for label, name in names.items()}


def _label_names(path: Path, column: str) -> list[str] | None:
    """Return the names that a Parquet file's metadata give to a column's numbers, if they do."""
    if path.suffix.lower() != ".parquet":
        return None
    from datasets import ClassLabel, Features  # which takes seconds, and few files come this far

    stored = (pq.read_schema(path).metadata or {}).get(b"huggingface", b"")
    try:
        own = json.loads(stored)["info"]["features"][column]
        feature = Features.from_dict({column: own})[column]
    except (ValueError, LookupError, TypeError):  # none, or not as the Hub writes them
        return None
    return feature.names if isinstance(feature, ClassLabel) else None


def draw_images(
    labels: Mapping[str, Sequence[tuple[Where, Any]]],
    names: Mapping[Any, str],
    each: Mapping[str, int],
    seed: int,
    dataset: str,
) -> dict[str, set[Where]]:
    """Draw up to so many images of ``each`` class for each part; the parts share none.

    Seed, data set, part and class decide the draw. Images without classes are all of class None.

    Raises:
        UserError: if a class has no image in a part.
    """
    drawn: dict[str, set[Where]] = {}
    for part in reversed(PARTS):  # evaluation first: selection takes of what it leaves
        taken = set().union(*drawn.values())
        drawn[part] = set()
        by_class = defaultdict(list)
        for place, label in labels[part]:
            if place not in taken:
                by_class[label].append(place)
        for label, name in names.items():
            if not (there := by_class[label]):
                has = "there is" if label is None else f"the class {name} has"
                raise UserError(
                    f"samples.{dataset}.{part}: {has} no image (left); "
                    "see its files, rows and where, and per_class or sample."
                )
            rng = np.random.default_rng(seed_for(seed, dataset, part, str(label)))
            some = rng.choice(len(there), min(each[part], len(there)), replace=False)
            drawn[part] |= {there[i] for i in some}
    return drawn


def prepare_images(
    provenance: str | Path, spec: Mapping[str, Any], seed: int, dataset: str, path: str | Path
) -> None:
    """Draw a data set's images and write them (:data:`SCHEMA`), selection first, as they come.

    Images stay encoded as they were. The class names stand in the schema's metadata.

    Raises:
        UserError: if a class has no image or an image does not decode.
    """
    files = {part: source_files(provenance, spec[part]["files"]) for part in PARTS}

    def read(part: str, with_images: bool) -> Iterator[tuple[Where, Any, bytes | None]]:
        return read_images(files[part], spec, part, with_images, dataset)

    classed = of_classes(spec)
    labels = {
        part: [(where, own if classed else None) for where, own, _ in read(part, False)]
        for part in PARTS
    }
    names, each = {None: ""}, spec.get("sample")
    if classed:
        every = {label for own in labels.values() for _, label in own}
        names = class_names(spec, every, [file for part in PARTS for file in files[part]])
        each = spec["per_class"]
    drawn = draw_images(labels, names, each, seed, dataset)
    numbers = {label: number for number, label in enumerate(names)}

    def shows(own: Any) -> dict[str, Any]:
        if classed:
            return {"label": numbers[own], "class_name": names[own], "references": []}
        return {"references": own}

    def records() -> Iterator[dict[str, Any]]:
        for part in PARTS:
            chosen = (found for found in read(part, True) if found[0] in drawn[part])
            for number, ((file, row), own, image) in enumerate(chosen):
                open_image(image, f"{file}:{row}")
                yield {
                    "sample_id": f"{dataset}-{part}-{number:06d}",
                    "part": part,
                    "source": f"{file.name}:{row}",
                    "image": image,
                    **shows(own),
                }

    listed = list(names.values()) if classed else []
    schema = SCHEMA.with_metadata({"classes": json.dumps(listed)})
    with (
        atomic(path) as temporary,
        pq.ParquetWriter(temporary, schema, write_page_checksum=True) as writer,
    ):
        rows = records()
        while some := list(islice(rows, BATCH)):
            table = pa.Table.from_pylist(some, schema)
            check_table(path, table)
            writer.write_table(table)


def open_image(encoded: Any, name: str) -> Image.Image:
    """Decode an image to RGB.

    Raises:
        UserError: naming the image, if it does not decode.
    """
    try:
        return Image.open(io.BytesIO(encoded)).convert("RGB")
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: the image does not decode ({error}).") from error


def stream_images(path: str | Path, part: str, size: int) -> Iterator[list[dict[str, Any]]]:
    """Read the images of a prepared part, ``size`` at a time."""
    try:
        file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
        refuse_missing(path, SCHEMA.names, file.schema_arrow.names)
        batches = file.iter_batches(batch_size=BATCH, columns=SCHEMA.names)
        rows = (row for batch in batches for row in batch.to_pylist() if row["part"] == part)
        while some := list(islice(rows, size)):
            yield some
    except (pa.ArrowException, OSError) as error:
        raise damaged_parquet(path, error) from error
