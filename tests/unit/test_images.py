import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headpursuit.data.download import download
from headpursuit.data.images import open_image, prepare_images, stream_images
from headpursuit.run.files import UserError, parquet_metadata
from PIL import Image


def spec(**changes) -> dict:
    part = {"files": "labels.csv"}
    base = {"source": "own", "object": "fruit", "image": "file", "label": "name", "classes": None}
    return {**base, "selection": part, "evaluation": part, **changes}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Give a folder of images with a CSV of labels."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    rng = np.random.default_rng(0)
    with (own / "labels.csv").open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["file", "name", "split"])
        for number in range(30):
            pixels = rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(own / f"{number}.png")
            split = "train" if number >= 10 else "test"
            rows.writerow([f"{number}.png", ["red_apple", "pear"][number % 2], split])
    return own


def prepare(folder: Path, own: dict, per_class=(5, 4)) -> tuple[list[str], pd.DataFrame]:
    """Prepare a data set; return the classes in its metadata, and its table."""
    record = folder.parent / "resources/own"
    download("own", {"kind": "local", "path": str(folder)}, record)
    sizes = dict(zip(("selection", "evaluation"), per_class, strict=True))
    path = folder.parent / "images.parquet"
    prepare_images(record / "provenance.json", own | {"per_class": sizes}, 0, "own", path)
    return parquet_metadata(path)["classes"], pq.read_table(path).to_pandas()


def sizes(table: pd.DataFrame, part: str) -> list[int]:
    return table[table["part"] == part].groupby("label").size().tolist()


def test_a_folder_with_labels(folder: Path) -> None:
    classes, table = prepare(folder, spec())
    assert classes == ["pear", "red apple"]
    assert (table["class_name"] == [classes[number] for number in table["label"]]).all()
    assert (sizes(table, "selection"), sizes(table, "evaluation")) == ([5, 5], [4, 4])
    assert table["source"].is_unique  # the parts share no image
    assert table["sample_id"].is_unique
    for source, image in zip(table["source"], table["image"], strict=True):
        number = int(source.removeprefix("labels.csv:")) - 1
        assert image == (folder / f"{number}.png").read_bytes()
    # What seed 0 draws of these names, now and ever.
    rows = table["source"].str.removeprefix("labels.csv:").astype(int)
    assert rows[table["part"] == "selection"].tolist() == [1, 2, 11, 12, 13, 14, 20, 22, 23, 27]
    assert rows[table["part"] == "evaluation"].tolist() == [3, 4, 5, 7, 16, 19, 26, 30]
    path = folder.parent / "images.parquet"
    assert [len(batch) for batch in stream_images(path, "evaluation", 3)] == [3, 3, 2]


PARQUET = {"files": "*.parquet"}


def save(folder: Path, features: dict, **column) -> None:
    """Write a Parquet file of images and a column, with the Hub's metadata."""
    [values] = column.values()
    encoded = [{"bytes": (folder / f"{i}.png").read_bytes()} for i in range(len(values))]
    stored = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": encoded, **column}).replace_schema_metadata(stored)
    pq.write_table(table, folder / "all.parquet")


def labelled(folder: Path, labels: list, names: list[str] | None = None, **changes) -> dict:
    """Write a Parquet file of images with labels and return its entry of the config."""
    save(folder, {"label": {"names": names, "_type": "ClassLabel"}} if names else {}, label=labels)
    return spec(image="image", label="label", selection=PARQUET, evaluation=PARQUET, **changes)


LAND = ["sea_lake", "river", "road"]


@pytest.mark.parametrize(
    ("labels", "names", "changes", "expected"),
    [
        ([0, 1, 2] * 6, LAND, {}, ["sea lake", "river", "road"]),
        ([0, 1, 2] * 6, LAND, {"classes": {0: "lake", "river": "river", 2: "road"}},
         ["lake", "river", "road"]),
        ([0, 1, 2] * 6, ["0", "1", "2"], {}, ["0", "1", "2"]),  # as MNIST's and SVHN's
        (["2", "0", "1"] * 6, None, {}, ["0", "1", "2"]),
        ([0, 1] * 9, None, {"classes": {0: "0", 1: "1"}}, ["0", "1"]),
    ],
)  # fmt: skip
def test_classes_of_a_parquet_file(folder: Path, labels, names, changes, expected) -> None:
    classes, table = prepare(folder, labelled(folder, labels, names, **changes), (2, 2))
    assert classes == expected
    assert set(table["class_name"]) == set(expected)
    assert table["image"][0] == (folder / f"{int(table['source'][0][12:]) - 1}.png").read_bytes()


def test_names_of_numbers_of_any_width_beside_a_column_of_unknown_type(folder: Path) -> None:
    labels = pa.array([0, 1, 2] * 6, pa.int8())
    own, kind = labelled(folder, labels), {"_type": "ClassLabel"}
    save(folder, {"label": {"names": LAND, **kind}, "other": {"_type": "New"}}, label=labels)
    assert prepare(folder, own, (2, 2))[0] == ["sea lake", "river", "road"]
    save(folder, {"label": {"names": {"0": "sea"}, **kind}}, label=labels)
    with pytest.raises(UserError, match="no file of theirs names them"):
        prepare(folder, own, (2, 2))


@pytest.mark.parametrize("labels", [[3, 10, -1] * 6, [0.0, 1.0] * 9])
def test_numbers_that_nothing_names_are_refused(folder: Path, labels: list) -> None:
    with pytest.raises(UserError, match=r"the labels are numbers \(.*samples\.\*\.classes"):
        prepare(folder, labelled(folder, labels))


def test_numbers_in_a_csv_are_no_names(folder: Path) -> None:
    text = (folder / "labels.csv").read_text().replace("red_apple", "0").replace("pear", "1")
    (folder / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=r"the labels are numbers \(0, 1, \.\.\.\)"):
        prepare(folder, spec())
    named = spec(classes={0: "apple", 1: "pear"})
    assert prepare(folder, named)[0] == ["apple", "pear"]


def captioned(folder: Path, captions: list, **changes) -> dict:
    """Write a Parquet file of images with captions and return its entry of the config."""
    save(folder, {}, caption=captions)
    base = {"source": "own", "image": "image", "references": "caption"}
    return {**base, "selection": PARQUET, "evaluation": PARQUET, **changes}


def test_images_with_captions_are_drawn_from_all(folder: Path) -> None:
    captions = [[f"A cat, number {n}.", f"cat {n}"] for n in range(30)]
    own = captioned(folder, captions, sample={"selection": 12, "evaluation": 9})
    classes, table = prepare(folder, own)
    assert classes == [] and table["label"].isna().all() and table["class_name"].isna().all()
    assert table["part"].tolist() == ["selection"] * 12 + ["evaluation"] * 9
    rows = table["source"].str.removeprefix("all.parquet:").astype(int) - 1
    assert rows.is_unique and rows.max() > 20  # the parts share no image
    assert [list(own) for own in table["references"]] == [captions[row] for row in rows]
    for row, image in zip(rows, table["image"], strict=True):
        assert image == (folder / f"{row}.png").read_bytes()
    own["selection"] = {"files": "*.parquet", "rows": [1, 15]}
    own["evaluation"] = {"files": "*.parquet", "rows": [16, 30]}
    own["sample"] = {"selection": 100, "evaluation": 100}
    assert prepare(folder, own)[1]["source"].tolist() == [f"all.parquet:{n}" for n in range(1, 31)]


def test_captions_in_columns_of_a_csv(folder: Path) -> None:
    part = {"selection": {"files": "labels.csv", "where": {"split": "train"}}}
    own = captioned(folder, [], image="file", references=["name", "split"], **part)
    own |= {"evaluation": {"files": "labels.csv"}, "sample": {"selection": 2, "evaluation": 3}}
    _, table = prepare(folder, own)
    found = {tuple(own) for own in table["references"][:2]}
    assert found <= {("pear", "train"), ("red_apple", "train")}


@pytest.mark.parametrize(
    ("captions", "changes", "said"),
    [
        ([["a"], [""], []], {}, r"own\.references: .*, row 2: there is no text in caption, so"),
        ([["a"]], {}, r"^samples\.own\.selection: there is no image \(left\); see its files, row"),
        ([["a"], ["b"]], {"references": "captions"}, "no column 'captions'; it has image, caption"),
        ([[1], [2]], {}, "row 1: 1 is no text"),
    ],
)
def test_captions_that_cannot_be_used(folder: Path, captions, changes, said: str) -> None:
    own = captioned(folder, captions, sample={"selection": 9, "evaluation": 9}, **changes)
    with pytest.raises(UserError, match=said):
        prepare(folder, own)


@pytest.mark.parametrize(
    ("image", "label", "said"),
    [
        (1, "a", r"all\.parquet:\d: the image does not decode"),
        ({"path": "x"}, "a", r"all\.parquet:\d: the image does not decode"),
        (None, "a", r"all\.parquet:\d: the image does not decode"),
        ("x\0", "a", r"all\.parquet: x\0 cannot be read \(embedded null byte\)"),
        ("x" * 300, "a", r"all\.parquet: x{80} cannot be read \(File name too long\)"),
        (b"", ["a"], r"samples\.own\.label: .*all\.parquet, row 1: \['a'\] is no class"),
        (b"", {"a": 1}, r"samples\.own\.label: .*all\.parquet, row 1: \{'a': 1\} is no class"),
        (b"", None, r"samples\.own\.label: .*all\.parquet, row 1: None is no class"),
        (b"", " ", r"samples\.own\.label: .*all\.parquet, row 1: ' ' is no class"),
    ],
)
def test_cells_that_hold_no_image_or_no_class(folder: Path, image, label, said: str) -> None:
    own = labelled(folder, [label] * 2)
    table = pq.read_table(folder / "all.parquet")
    pq.write_table(table.set_column(0, "image", pa.array([image] * 2)), folder / "all.parquet")
    with pytest.raises(UserError, match=said):
        prepare(folder, own, (1, 1))


def test_rows_of_pixels(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [[*rng.integers(0, 17, 16), number % 2] for number in range(12)]
    rows[0][0] = 16
    text = "".join(f"{','.join(map(str, row))}\n" for row in rows)
    (folder / "pixels.csv.gz").write_bytes(gzip.compress(text.encode()))
    parts = {"selection": [1, 6], "evaluation": [7, 12]}
    own = {part: {"files": "pixels.csv.gz", "rows": own} for part, own in parts.items()}
    own = spec(image=None, label=None, classes={0: "zero", 1: "one"}, **own)
    _, table = prepare(folder, own, (9, 9))
    assert sizes(table, "selection") == sizes(table, "evaluation") == [3, 3]
    first = np.array(open_image(table["image"].iloc[0], "x"))[..., 0]
    assert first.shape == (4, 4)
    assert first.max() == 255
    np.testing.assert_allclose(first.ravel() / 255 * 16, rows[0][:-1], atol=0.04)
    cases = {b"1,2,0\n3,4,1\n": "", b"1,0\n3\n": ".* too short", b"inf,0\n": ".* not finite"}
    for wrong, said in cases.items():
        (folder / "pixels.csv.gz").write_bytes(gzip.compress(wrong))
        with pytest.raises(UserError, match=rf"pixels\.csv\.gz: not rows of square images{said}"):
            prepare(folder, own)


def test_rows_behind_the_last_are_not_read(folder: Path) -> None:
    with (folder / "labels.csv").open("a") as handle:
        handle.write("a,b,c,too many\n")
    part = {"files": "labels.csv", "rows": [1, 29]}
    prepare(folder, spec(selection=part, evaluation=part))
    with pytest.raises(UserError, match=r"samples\.own\.selection\.files: .* more cells"):
        prepare(folder, spec(evaluation=part))


def test_prepared_images_that_lack_a_column_are_refused(folder: Path) -> None:
    prepare(folder, spec())
    path = folder.parent / "images.parquet"
    pq.write_table(pq.read_table(path).drop_columns("image"), path)
    with pytest.raises(UserError, match=r"no column image; it has .* Delete the file"):
        next(stream_images(path, "evaluation", 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "kind"}, "labels.csv has no column 'kind'; it has file, name, split"),
        ({"image": "path"}, "labels.csv has no column 'path'; it has file, name, split"),
        ({"classes": {"pear": "pear"}}, "no name for the labels red_apple"),
        ({"classes": {"pear": "fruit", "red_apple": "Fruit."}}, "Several classes are called fruit"),
        ({"classes": {"pear": "p", "red_apple": "r", "plum": "x"}}, "classes x have no image"),
        ({"selection": {"files": "labels.csv", "rows": [1, 1]}}, "class pear has no image"),
        ({"selection": {"files": "0.png"}}, "0.png is not readable as png: read are .jsonl"),
    ],
)
def test_bad_data_sets(folder: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(folder, spec(**changes))


def test_an_image_that_is_missing_or_broken_is_named(folder: Path) -> None:
    (folder / "7.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(UserError, match=r"labels.csv:8: the image does not decode"):
        prepare(folder, spec(), (10, 5))
    (folder / "7.png").unlink()
    with pytest.raises(UserError, match=r"7.png cannot be read"):
        prepare(folder, spec(), (10, 5))
