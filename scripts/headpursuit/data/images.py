"""Image data sets: streamed out of Parquet, CSV or rows of pixels, and drawn class by class."""

import csv
import gzip
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from headpursuit.data.prompts import matches_value
from headpursuit.data.sources import source_files
from headpursuit.method.answers import normalise_answer
from headpursuit.run.files import (
    UserError,
    atomic,
    check_table,
    damaged_parquet,
    read_parquet,
    seed_for,
)

log = logging.getLogger(__name__)

# Rows held at once, read or written; it bounds the memory whatever the number of images.
ROW_GROUP = 256
PARTS = ("selection", "evaluation")
SCHEMA = pa.schema(
    {
        "sample_id": pa.string(),
        "part": pa.string(),
        "source": pa.string(),
        "label": pa.int32(),
        "class_name": pa.string(),
        "image": pa.binary(),
    }
)

Where = tuple[Path, int]  # file and row, from 1


def read_images(
    files: Sequence[Path], spec: Mapping[str, Any], part: str, with_images: bool
) -> Iterator[tuple[Where, Any, bytes | None]]:
    """Stream one part of a data set.

    Parquet files hold encoded images (bytes, or the Hub's struct with bytes); CSV files hold paths
    relative to themselves; where ``image`` is null, each line of a CSV file (.gz too, no header)
    holds a square grey image's pixels and then its label.

    Args:
        files: of the part.
        spec: the data set's entry in the config's ``samples``.
        part: ``selection`` or ``evaluation``, whose rows and where are kept.
        with_images: whether images are read or only labels.

    Yields:
        (file and row, label, encoded image or None).

    Raises:
        UserError: if a file or a column is missing or damaged.
    """
    where, rows = spec[part].get("where") or {}, spec[part].get("rows")
    first, last = rows or (1, None)
    for path in files:
        if spec["image"] is None:
            records = _pixel_rows(path, with_images)
        elif path.suffix == ".parquet":
            records = _parquet_rows(path, spec, where, with_images)
        elif path.suffix == ".csv":
            records = _csv_rows(path, spec, where, with_images)
        else:
            raise UserError(f"{path}: image data are read from .parquet or .csv files.")
        for row, (kept, label, image) in enumerate(records, start=1):
            if last is not None and row > last:
                break
            if kept and row >= first:
                yield (path, row), label, image() if with_images else None


def _kept(row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    return all(matches_value(row[name], wanted) for name, wanted in where.items())


def _parquet_rows(path: Path, spec: Mapping[str, Any], where: Mapping, with_images: bool):
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # which would hold the whole file
    except (pa.ArrowException, OSError) as error:
        raise damaged_parquet(path, error) from error
    columns = [spec["label"], *where, *([spec["image"]] if with_images else [])]
    _refuse_missing(path, columns, file.schema_arrow.names)
    for batch in file.iter_batches(batch_size=ROW_GROUP, columns=columns):
        for row in batch.to_pylist():
            yield _kept(row, where), row[spec["label"]], partial(_encoded, row.get(spec["image"]))


def _csv_rows(path: Path, spec: Mapping[str, Any], where: Mapping, with_images: bool):
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            columns = [spec["label"], spec["image"], *where]
            _refuse_missing(path, columns, reader.fieldnames or [])
            for row in reader:
                image = partial(_read, path, row[spec["image"]])
                yield _kept(row, where), row[spec["label"]], image
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}).") from None


def _encoded(value: Any) -> bytes | None:
    return value["bytes"] if isinstance(value, Mapping) else value


def _read(path: Path, name: str) -> bytes:
    try:
        return (path.parent / name).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {name} cannot be read ({error.strerror}).") from error


def _refuse_missing(path: Path, columns: Sequence[str], there: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in there]:
        raise UserError(f"{path}: no column {', '.join(missing)}; it has {', '.join(there)}.")


def _pixel_rows(path: Path, with_images: bool):
    peak = _peak(path) if with_images else 1.0
    for values in _lines(path):
        yield True, int(values[-1]), partial(_drawn, path, values[:-1], peak)


def _drawn(path: Path, pixels: np.ndarray, peak: float) -> bytes:
    side = round(len(pixels) ** 0.5)
    if side * side != len(pixels):
        raise UserError(f"{path}: {len(pixels)} pixels make no square image.")
    grey = np.round(pixels.reshape(side, side) * (255 / peak)).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(grey).save(encoded, "PNG")
    return encoded.getvalue()


def _lines(path: Path) -> Iterator[np.ndarray]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as handle:
            for line in handle:
                yield np.array(line.split(","), dtype=float)
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not rows of pixel values and a label ({error}).") from error


@cache
def _peak(path: Path) -> float:
    return max(values[:-1].max() for values in _lines(path))


def class_names(spec: Mapping[str, Any], labels: set[Any], files: Sequence[Path]) -> dict[Any, str]:
    """Return the class name of every label, in the order in which the model reads them.

    They are the config's ``classes``; else the names that a Parquet file's own metadata give to
    its numbers; else the labels themselves, if they are text. Underscores in the latter two become
    spaces.

    Raises:
        UserError: if a label has no name, or two names are the same once normalised.
    """
    listed = next(filter(None, (_stored_names(file, spec["label"]) for file in files)), None)
    origin = "the labels" if listed is None else "the files' metadata"
    log.info("class names: %s", origin if spec["classes"] is None else "the config")
    if spec["classes"] is None:
        # A CSV file's labels are all text, so digits are taken for numbers there.
        typed = any(file.suffix == ".parquet" for file in files)
        numbers = [o for o in labels if not isinstance(o, str) or (not typed and o.isdecimal())]
        if numbers and not listed:
            some = ", ".join(sorted(map(str, numbers))[:3])
            raise UserError(
                f"classes: the labels are numbers ({some}, ...), and no file of theirs names them. "
                "Give each a name in samples.*.classes, such as {0: zero, 1: one}; or "
                '{0: "0", 1: "1"} if the model is to be asked about numbers.'
            )
        shown = enumerate(listed) if listed else ((label, label) for label in sorted(labels))
        names = {str(label): str(name).replace("_", " ") for label, name in shown}
    else:
        # Keyed by the label itself, or by its name in the file.
        keys = {str(key): name for key, name in spec["classes"].items()}
        stored = dict(enumerate(listed or []))
        of = {key: next((str(n) for n, own in stored.items() if own == key), key) for key in keys}
        names = {of[key]: name for key, name in keys.items()}
    if unnamed := sorted(str(label) for label in labels if str(label) not in names):
        raise UserError(
            f"classes: no name for the labels {', '.join(unnamed)}; named are {', '.join(names)}."
        )
    of_text = {str(label): label for label in labels}
    if empty := [name for label, name in names.items() if label not in of_text]:
        raise UserError(f"The classes {', '.join(empty)} have no image at all.")
    normal = Counter(normalise_answer(name) for name in names.values())
    if same := sorted(name for name, n in normal.items() if n > 1):
        raise UserError(
            f"Several classes are called {', '.join(same)} (but for case, space and punctuation): "
            "an answer could match two. Give them other names under classes."
        )
    return {of_text[label]: name for label, name in names.items()}


def _stored_names(path: Path, column: str) -> list[str] | None:
    """Return the names that a Parquet file's own metadata give to a column's numbers."""
    if path.suffix != ".parquet":
        return None
    stored = (pq.read_schema(path).metadata or {}).get(b"huggingface")
    features = json.loads(stored)["info"]["features"] if stored else {}
    return features.get(column, {}).get("names")


def draw_images(
    labels: Mapping[str, Sequence[tuple[Where, Any]]],
    names: Mapping[Any, str],
    per_class: Mapping[str, int],
    seed: int,
    dataset: str,
) -> dict[str, set[Where]]:
    """Draw images of every class for each part; the parts share none.

    Args:
        labels: part to the place and label of every image of it.
        names: label to class name.
        per_class: part to the most images of a class.
        seed: the config's seed; with data set, part and class it decides the draw.
        dataset: see seed.

    Raises:
        UserError: if a class has no image in a part.
    """
    drawn: dict[str, set[Where]] = {}
    for part in reversed(PARTS):  # evaluation first: selection takes of what it leaves
        taken = set().union(*drawn.values())
        by_class: dict[Any, list[Where]] = {label: [] for label in names}
        for where, label in labels[part]:
            if where not in taken:
                by_class[label].append(where)
        drawn[part] = set()
        for label, there in by_class.items():
            if not there:
                raise UserError(
                    f"samples.{dataset}.{part}: the class {names[label]} has no image "
                    "(left); see its files, rows and where, and per_class."
                )
            rng = np.random.default_rng(seed_for(seed, dataset, part, str(label)))
            some = rng.choice(len(there), min(per_class[part], len(there)), replace=False)
            drawn[part] |= {there[i] for i in some}
    return drawn


def prepare_images(
    provenance: str | Path, spec: Mapping[str, Any], seed: int, dataset: str, path: str | Path
) -> None:
    """Draw a data set's images and write them, selection first, in row groups as they come.

    The class names, in the order of their numbers, stand in the schema's metadata.

    Args:
        provenance: provenance.json of its source.
        spec: its entry in the config's ``samples``.
        seed: the config's seed.
        dataset: its name.
        path: the Parquet file of :data:`SCHEMA`; images stay encoded as they were.

    Raises:
        UserError: if a class has no image or an image does not decode.
    """
    files = {part: source_files(provenance, spec[part]["files"]) for part in PARTS}
    labels = {
        part: [(where, label) for where, label, _ in read_images(files[part], spec, part, False)]
        for part in PARTS
    }
    every = {label for own in labels.values() for _, label in own}
    names = class_names(spec, every, [file for part in PARTS for file in files[part]])
    drawn = draw_images(labels, names, spec["per_class"], seed, dataset)
    numbers = {label: number for number, label in enumerate(names)}
    schema = SCHEMA.with_metadata({"classes": json.dumps(list(names.values()))})
    with (
        atomic(path) as temporary,
        pq.ParquetWriter(temporary, schema, write_page_checksum=True) as writer,
    ):

        def write(records: list[dict[str, Any]]) -> None:
            table = pa.Table.from_pylist(records, schema)
            check_table(path, table)
            writer.write_table(table)

        for part in PARTS:
            waiting: list[dict[str, Any]] = []
            chosen = (own for own in read_images(files[part], spec, part, True)
                      if own[0] in drawn[part])  # fmt: skip
            for count, ((file, row), label, image) in enumerate(chosen):
                open_image(image, f"{file}:{row}")
                record = {"sample_id": f"{dataset}-{part}-{count:06d}"}
                record |= {"part": part, "source": f"{file.name}:{row}", "image": image}
                record |= {"label": numbers[label], "class_name": names[label]}
                waiting.append(record)
                if len(waiting) == ROW_GROUP:
                    write(waiting)
                    waiting.clear()
            if waiting:
                write(waiting)


def open_image(encoded: bytes | None, name: str) -> Image.Image:
    """Decode an image to RGB.

    Raises:
        UserError: naming the image, if it does not decode.
    """
    try:
        return Image.open(io.BytesIO(encoded or b"")).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: the image does not decode ({error}).") from error


def stream_images(path: str | Path, part: str, size: int) -> Iterator[list[dict[str, Any]]]:
    """Read the images of a prepared part, ``size`` at a time."""
    try:
        file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
        _refuse_missing(Path(path), SCHEMA.names, file.schema_arrow.names)
        batches = file.iter_batches(batch_size=ROW_GROUP)
        rows = (row for batch in batches for row in batch.to_pylist() if row["part"] == part)
        while some := list(islice(rows, size)):
            yield some
    except (pa.ArrowException, OSError) as error:
        raise damaged_parquet(path, error) from error


def image_ids(path: str | Path, part: str) -> list[str]:
    """Return the ids of a prepared data set's part, in order."""
    return read_parquet(path, ["sample_id"], [("part", "=", part)])["sample_id"].to_pylist()
