"""Damaged files: each is named with what to do, none is overwritten, and the next run mends it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkout import Checkout
from conftest import results


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def empty(path: Path) -> None:
    cut(path, 0)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file; its size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def drop_column(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(table.column_names[-1]), path)


def drop_csv_column(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")


def put_nan(path: Path) -> None:
    table = pq.read_table(path)
    values = np.array(table["z"].to_pylist(), dtype=np.float32)
    values[3, 0] = np.nan  # of layer 0
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    pq.write_table(table.set_column(table.schema.get_field_index("z"), "z", column), path)


# What is damaged, how, and the rule that reads it. The rules of one run do not feed each other.
DAMAGE = [
    {
        "expected/rtp/part-2.parquet": (drop_column, "measure"),
        "activations/rtp.parquet": (put_nan, "rank_heads"),
        "heads/rtp/selected.csv": (drop_csv_column, "draw_controls"),
        "tables/table2.csv": (empty, "compare_published"),
    },
    {
        "samples/rtp.parquet": (cut, "respond"),
        "labels/rtp.parquet": (cut, "split_words"),
        "activations/rtp.parquet": (flip, "rank_heads"),
    },
    {"scores/rtp.parquet": (drop_column, "publish_ratios")},  # which reads rankings, too
]


@pytest.mark.parametrize(
    "damage",
    [pytest.param(DAMAGE[0], marks=pytest.mark.short), *DAMAGE[1:]],
    ids=["first", "second", "third"],
)
def test_files_of_a_run(checkout: Checkout, finished: Checkout, damage: dict) -> None:
    for name, (how, _) in damage.items():
        how(checkout.path(name))
    left = {name: checkout.path(name).read_bytes() for name in damage}
    rules = sorted({rule for _, rule in damage.values()})
    said = checkout.refused("--keep-going", "--allowed-rules", *rules)
    lines = said.splitlines()
    for name, (_, rule) in damage.items():
        named = [line for line in lines if line.startswith(f"{rule}: results/tiny/{name}: ")]
        assert named, (name, said)
        assert all("elete" in line and "run again" in line for line in named), named
        assert checkout.path(name).read_bytes() == left[name]
        checkout.path(name).unlink()
    checkout.snakemake()
    assert results(checkout) == results(finished)


@pytest.mark.short
def test_weights_that_change_on_disk(checkout: Checkout) -> None:
    """One bit of the user's own model: it is another one, and what stands on it is made anew."""
    made = "results/tiny/samples/rtp.parquet"
    assert checkout.planned(made) == {}
    flip(checkout.folder / "own/model/model.safetensors")
    planned = checkout.planned(made)
    assert planned["download_source"] == planned["prepare_samples"] == 1
