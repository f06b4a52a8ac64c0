"""A replica is changed in one respect: the run says so, or copes and makes the same."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import replica_sources
from conftest import LLAVA, MISTRAL, Rehearsal, replicas
from headpursuit.run.sizes import IMAGES
from PIL import Image
from replica_images import SIZES, llava_config
from replica_models import write
from replica_tokenizer import LLAVA_CHAT, MISTRAL_CHAT, as_json, llava_files
from transformers import AutoProcessor

TET = "convoicon/Thoroughly_Engineered_Toxicity"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, files: dict) -> Iterator[Rehearsal]:
    """Give a run of some jobs on sources in the other form that they may have."""
    bare = json.loads(files[MISTRAL]["tokenizer_config.json"])
    del bare["chat_template"]
    config = json.loads(files[MISTRAL]["config.json"])
    config["dtype"] = config.pop("torch_dtype")
    changed = {
        MISTRAL: files[MISTRAL]
        | {
            "config.json": as_json(config),
            "tokenizer_config.json": as_json(bare),
            "chat_template.jinja": MISTRAL_CHAT.encode(),
        },
        LLAVA: {key: value for key, value in files[LLAVA].items() if key != "chat_template.json"}
        | {"chat_template.jinja": LLAVA_CHAT.encode()},
        TET: replica_sources.thoroughly_engineered_toxicity(lists="List"),
    }
    with replicas(tmp_path_factory.mktemp("other") / "checkout", {**files, **changed}) as run:
        run.snakemake(
            "results/paper/samples/tet.parquet",
            "results/paper/activations/mnist.parquet",
        )
        yield run


@pytest.mark.parametrize(
    ("name", "log", "template"),
    [
        ("samples/tet.parquet", "prepare_samples/tet", "tokenizer_config.json"),
        ("activations/mnist.parquet", "cache_activations/mnist", "chat_template.json"),
    ],
)
def test_both_forms_are_read(
    finished: Rehearsal, other: Rehearsal, name: str, log: str, template: str
) -> None:
    """And the log says which it was."""
    assert pq.read_table(other.path(name)).equals(pq.read_table(finished.path(name)))
    for run, file in ((finished, template), (other, "chat_template.jinja")):
        assert f"chat template: {file}\n" in run.path(f"logs/{log}.log").read_text()


@pytest.mark.parametrize("source", SIZES)
def test_image_tokens_of_the_real_geometry(tmp_path: Path, source: str) -> None:
    """Of tiles of 336 pixels in patches of 14: the run's patches are coarser."""
    made = llava_files(LLAVA_CHAT, "chat_template.json", 14)
    write(made | {"config.json": as_json(llava_config(14))}, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    for size, tokens in zip(SIZES[source], IMAGES[source].llava_next, strict=True):
        ids = processor(text="<image>", images=Image.new("RGB", size))["input_ids"][0]
        assert list(ids).count(32000) == tokens
