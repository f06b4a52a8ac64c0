"""A replica is changed in one respect: the run says so, or copes and makes the same."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import replica_sources
from conftest import LLAVA, MISTRAL, Rehearsal, replicas
from headpursuit.run.sizes import IMAGES
from PIL import Image
from replica_images import SIZES, llava_config
from replica_models import write
from replica_tokenizer import LLAVA_CHAT, MISTRAL_CHAT, as_json, llava_files, mistral_files
from transformers import AutoProcessor

TET = "convoicon/Thoroughly_Engineered_Toxicity"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, files: dict) -> str:
    """Give what a run prints in which each source lacks something."""
    without = replica_sources.dtd()
    for name in ("train", "test"):
        path = f"data/{name}-00000-of-00001.parquet"
        table = pq.read_table(io.BytesIO(without[path]))
        kept = table.filter(np.array(table["label"].to_pylist()) != 3)
        out = io.BytesIO()
        pq.write_table(kept, out)
        without[path] = out.getvalue()
    changed = {
        "allenai/real-toxicity-prompts": replica_sources.real_toxicity_prompts(column="text"),
        "ylecun/mnist": replica_sources.mnist(label_column="digit"),
        "ufldl-stanford/svhn": replica_sources.svhn(stored=False),
        "tanganke/gtsrb": replica_sources.gtsrb(column="img"),
        "timm/eurosat-rgb": replica_sources.eurosat(stored=False),
        "tanganke/dtd": without,
    }
    targets = ["results/paper/samples/rtp.parquet"]
    targets += [
        f"results/paper/samples/{name}.parquet"
        for name in ("mnist", "svhn", "gtsrb", "eurosat", "dtd")
    ]
    with replicas(tmp_path_factory.mktemp("lacking") / "checkout", {**files, **changed}) as run:
        code, printed = run.run("--keep-going", *targets)
        assert code
        assert not any(run.path(target.removeprefix("results/paper/")).exists()
                       for target in targets)  # fmt: skip
    return " ".join(printed.split())


@pytest.mark.parametrize(
    "complaint",
    [
        "samples.rtp: resources/real-toxicity-prompts/prompts.jsonl has no column 'prompt.text'; "
        "it has filename, begin, end, challenging, text, continuation.",
        "train-00000-of-00001.parquet has no column 'label'; it has image, digit.",
        "train-00000-of-00001.parquet has no column 'image'; it has img, label.",
        "the labels are numbers (0, 1, 2, ...), and no file of theirs names them.",  # SVHN's
        "classes: no name for the labels 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",  # EuroSAT's are by name
        "The classes bubbly have no image at all.",
    ],
)
def test_what_a_source_lacks_is_said(said: str, complaint: str) -> None:
    assert complaint in said
    assert "Traceback (most recent call last)" not in said


def test_a_gate_is_seen_before_anything_runs(
    tmp_path_factory: pytest.TempPathFactory, files: dict
) -> None:
    with replicas(tmp_path_factory.mktemp("gate") / "checkout", files) as run:
        code, printed = run.run("results/paper/preflight.json", HF_TOKEN=None)
    assert code
    for name in (MISTRAL, TET):
        assert f"{name} is gated" in printed
    assert "HF_TOKEN" in printed


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


def test_a_template_without_bos_gets_one(
    tmp_path_factory: pytest.TempPathFactory, files: dict
) -> None:
    chat = MISTRAL_CHAT.removeprefix("{{ bos_token }}")
    changed = {MISTRAL: files[MISTRAL] | mistral_files(chat)}
    with replicas(tmp_path_factory.mktemp("bos") / "checkout", {**files, **changed}) as run:
        run.snakemake("results/paper/samples/tet.parquet")
        made = pq.read_table(run.path("samples/tet.parquet"))["token_ids"].to_pylist()
    assert all(ids[0] == 1 and ids.count(1) == 1 for ids in made)


@pytest.mark.parametrize("source", SIZES)
def test_image_tokens_of_the_real_geometry(tmp_path: Path, source: str) -> None:
    """Of tiles of 336 pixels in patches of 14: the run's patches are coarser."""
    made = llava_files(LLAVA_CHAT, "chat_template.json", 14)
    write(made | {"config.json": as_json(llava_config(14))}, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    for size, tokens in zip(SIZES[source], IMAGES[source].llava_next, strict=True):
        ids = processor(text="<image>", images=Image.new("RGB", size))["input_ids"][0]
        assert list(ids).count(32000) == tokens
