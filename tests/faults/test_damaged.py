"""Damaged files: each is named with what to do, none is overwritten, and the next run mends it."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from checkout import Checkout
from conftest import results
from safetensors.torch import load_file, save_file
from tiny import WORDS, make_tokenizer


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


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
        "scores/rtp.parquet": (drop_column, "publish_ratios"),
    },
]


@pytest.mark.parametrize(
    "damage", [pytest.param(DAMAGE[0], marks=pytest.mark.short), DAMAGE[1]], ids=["first", "second"]
)
def test_files_of_a_run(checkout: Checkout, finished: Checkout, damage: dict) -> None:
    for name, (how, _) in damage.items():
        how(checkout.path(name))
    left = {name: checkout.path(name).read_bytes() for name in damage}
    rules = sorted({rule for _, rule in damage.values()})
    code, said = checkout.run("--keep-going", "--allowed-rules", *rules)
    assert code != 0
    assert "Traceback" not in said
    lines = said.splitlines()
    for name, (_, rule) in damage.items():
        named = [line for line in lines if line.startswith(f"{rule}: results/tiny/{name}: ")]
        assert named, (name, said)
        assert all("elete" in line and "run again" in line for line in named), named
        assert checkout.path(name).read_bytes() == left[name]
        checkout.path(name).unlink()
    checkout.snakemake()
    assert results(checkout) == results(finished)


@pytest.fixture
def another_model(checkout: Checkout):
    """Give a copy of the tiny model, and a run ``other`` of it."""
    folder = checkout.folder / "own/other"
    shutil.copytree(checkout.folder / "own/model", folder)
    checkout.configure(
        "other",
        run="other",
        sources={"other-model": {"kind": "local", "path": "own/other"}},
        models={"tiny": {"source": "other-model"}},
    )
    return folder


def refused(checkout: Checkout, target: str) -> str:
    """Run the other model up to a file; return what is said of its failure."""
    code, said = checkout.run(f"results/other/{target}", overlay="other")
    assert code != 0
    assert "Traceback" not in said
    return said


@pytest.mark.short
def test_weights_that_change_on_disk(checkout: Checkout, another_model: Path) -> None:
    """One bit of the user's own model: it is another one, and what stands on it is made anew."""
    checkout.snakemake("results/other/samples/rtp.parquet", overlay="other")
    flip(another_model / "model.safetensors")
    planned = checkout.planned("results/other/samples/rtp.parquet", overlay="other")
    assert planned["download_source"] == planned["prepare_samples"] == 1


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("tokenizer", "own/other: no tokenizer is there (tokenizer.json and others). See that"),
        ("config.json", "own/other/config.json is missing, so this is no model. See that"),
    ],
)
def test_a_model_that_lacks_files(
    checkout: Checkout, another_model: Path, lacking: str, message: str
) -> None:
    for path in another_model.glob(f"{lacking}*"):
        path.unlink()
    assert message in refused(checkout, "samples/rtp.parquet")


def test_activations_that_are_not_finite(checkout: Checkout, another_model: Path) -> None:
    """They are refused when they are cached, with layer and sample."""
    weights = load_file(another_model / "model.safetensors")
    token = make_tokenizer().convert_tokens_to_ids(f"Ġ{WORDS[5]}")
    weights["model.embed_tokens.weight"][token] = torch.inf
    save_file(weights, another_model / "model.safetensors", {"format": "pt"})
    said = refused(checkout, "activations/rtp.parquet")
    assert "cache_activations: Layer 0, sample rtp-" in said, said
    assert "an activation is not finite in float32" in said
    assert not list((checkout.folder / "results/other/activations").iterdir())


def test_samples_that_are_all_the_same(checkout: Checkout) -> None:
    """Nothing varies, so no head is better than another."""
    prompts = checkout.folder / "own/prompts.jsonl"
    line = prompts.read_text().splitlines()[0]
    prompts.write_text("\n".join([line] * 80) + "\n")
    checkout.configure("same", run="same", experiments={"rtp": {"positions": "last"}})
    code, said = checkout.run("results/same/rankings/rtp.csv", overlay="same")
    assert code != 0
    assert "No head's write varies over the samples" in said, said
    assert "Traceback" not in said
