"""One run of configs/v2.yaml over config.yaml, on replicas of all their sources: make rehearsal-v2.

Data sets have few classes, fewer questions are drawn, and captions end after 8 tokens, since a
random model never ends them itself. Else the run is the shipped one.
"""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import replica_images
import replica_models
import replica_sources
import torch
import yaml
from conftest import JUDGE, LLAVA, MISTRAL, Rehearsal, replicas
from headpursuit.method.vision import load_processor, render_question
from headpursuit.run.files import shipped
from headpursuit.run.sizes import IMAGES
from headpursuit.run.tables import read_csv
from PIL import Image
from replica_models import write
from replica_names import DIGITS, DTD, EUROSAT, GTSRB, RESISC45
from replica_tokenizer import as_json
from replica_vlms import CAPTIONS, GEMMA, QWEN, VICUNA, make, qwen_files, real_config
from transformers import AutoConfig, AutoModelForImageTextToText

CLASSES = {"mnist": DIGITS, "svhn": DIGITS, "eurosat": EUROSAT}
CLASSES |= {"gtsrb": GTSRB[13:19], "resisc45": RESISC45[:6], "dtd": DTD[:6]}
SMALLER = {
    "samples": {"triviaqa": {"sample": 60}, "triviaqa-validation": {"sample": 40}},
    "experiments": {"colours-captions": {"generation": {"max_new_tokens": 8}}},
}
SEED, SHIPPED = shipped("config.yaml"), shipped("configs/v2.yaml")


class Full(Rehearsal):
    """Its runs are the full version's."""

    usual = "v2 machine smaller"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Full]:
    """Give the full version's whole run and its manifest."""
    folder = tmp_path_factory.mktemp("v2")
    with replicas(folder / "run", v2_files(folder), Full) as run:
        (run.folder / "configs/smaller.yaml").write_text(yaml.safe_dump(SMALLER))
        run.snakemake("all", "audit")
        yield run


def v2_files(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return the files of all repositories, by their ids."""
    made = {name: own() for name, own in replica_sources.DATASETS.items()}
    for dataset in ("gtsrb", "resisc45", "dtd"):
        few = replica_sources.image_set(dataset, CLASSES[dataset])
        made[SEED["sources"][dataset]["id"]] = few
    made["AnyModal/flickr30k"] = replica_sources.flickr30k()
    made[MISTRAL] = replica_models.mistral(folder / "mistral", questions=60)
    asked = CAPTIONS[VICUNA]
    made[LLAVA] = replica_images.llava_next(folder / "llava", CLASSES, asked)
    made[JUDGE] = replica_models.roberta_toxicity(folder / "judge")
    return made | {name: make(name, folder / name, CLASSES) for name in (VICUNA, GEMMA, QWEN)}


def captioned() -> list[str]:
    """Return the experiments whose captions are compared with published values."""
    tables = SHIPPED["tables"]
    return [
        name
        for own in ("table13", "table15", "table16", "table17", "figure10")
        for name in tables[own]
    ]


def table(full: Full, name: str) -> pd.DataFrame:
    return read_csv(full.path(f"tables/{name}.csv"))


# The models


@pytest.mark.parametrize(
    ("entry", "name"), [("llava-13b", VICUNA), ("gemma", GEMMA), ("qwen", QWEN)]
)
def test_the_config_states_the_models_sizes(tmp_path: Path, entry: str, name: str) -> None:
    """Of the real config.json, by a model without weights."""
    write({"config.json": as_json(real_config(name))}, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    stated, text = SHIPPED["models"][entry], config.get_text_config()
    assert (stated["layers"], stated["heads"]) == (
        text.num_hidden_layers, text.num_attention_heads
    )  # fmt: skip
    assert stated["parameters"] == sum(own.numel() for own in model.parameters())
    assert SHIPPED["sources"][stated["source"]]["id"] == name


@pytest.mark.parametrize("source", replica_images.SIZES)
def test_image_tokens_of_qwens_real_geometry(tmp_path: Path, source: str) -> None:
    """Of images in their own size, up to 12.8 million pixels: the run's are smaller."""
    files, config = qwen_files()
    images = json.loads(files["preprocessor_config.json"]) | {"max_pixels": 12845056}
    files |= {"preprocessor_config.json": as_json(images), "config.json": as_json(config)}
    write(files, tmp_path)
    processor = load_processor(tmp_path)
    question = render_question(processor, "{image} What is it?", "", [], chat=True)
    for size, tokens in zip(replica_images.SIZES[source], IMAGES[source].qwen, strict=True):
        image = Image.new("RGB", size)
        asked = processor(text=[question], images=[[image]], return_tensors="pt")
        assert (asked["input_ids"][0] == config["image_token_id"]).sum() == tokens


# The run


def test_no_job_failed_and_nothing_is_left_to_do(full: Full) -> None:
    assert len(full.sound_logs()) > 450
    assert full.planned() == {}


def test_every_published_value_has_its_counterpart(full: Full) -> None:
    found = table(full, "published")
    assert len(found) == 498 + 8
    assert found["experiment"].notna().all(), found[found["experiment"].isna()]
    assert (found["own_model"] == found["model"]).all()
    assert not found["remarks"].str.contains("another model|elsewhere").any()
    changed = {name for own in found["settings"].dropna() for name in own.split()}
    captions = {f"experiments.{name}.generation.max_new_tokens" for name in captioned()}
    assert changed == captions | {"samples.triviaqa.sample"}
    legible = found["published"].notna() & found["own"].notna()
    assert found["inside"].notna().equals(legible)
    assert found["own"].notna().mean() > 0.8  # the others' baseline is 0 in the replicas
    by_table = found.groupby("source")["own"].count()
    assert by_table.min() > 0 and len(by_table) == 1 + 2 + 7 + 3


@pytest.mark.parametrize("name", SHIPPED["tables"])
def test_every_table_is_full(full: Full, name: str) -> None:
    shipped = SHIPPED["tables"][name]
    rows, used = table(full, name), yaml.safe_load(full.path("config.yaml").read_text())
    assert list(dict.fromkeys(rows["experiment"])) == shipped
    for experiment, own in rows.groupby("experiment"):
        spec = used["experiments"][experiment]
        alphas = spec["alpha"] if isinstance(spec["alpha"], list) else [spec["alpha"]]
        methods = [*spec["methods"], *(["random"] if spec["draws"] else [])]
        wanted = set(product(methods, spec["k"], alphas))
        for _, measured in own.groupby("measure"):
            keys = zip(measured["method"], measured["heads"], measured["alpha"], strict=True)
            assert set(keys) == wanted
    pixels = np.asarray(Image.open(full.path(f"figures/{name}.png")).convert("L"))
    assert pixels.std() > 5 and full.path(f"figures/{name}.pdf").stat().st_size > 1000


def test_both_groups_of_questions_are_measured(full: Full) -> None:
    found = table(full, "figure2")
    assert set(found["measure"]) == {"f1", "f1_others"}
    assert (found.groupby("measure")["before"].first() > 0).all()
    chosen, measured = (
        pq.read_table(full.path(f"samples/{name}.parquet"))["text"].to_pylist()
        for name in ("triviaqa", "answers")
    )
    assert len(measured) == 40 and not set(chosen) & set(measured)


def test_each_models_captions_answer_its_own_prompt(full: Full) -> None:
    for experiment, name in (
        *(("colours-captions", VICUNA), ("colours-captions-llava-13b", VICUNA)),
        *(("colours-captions-gemma", GEMMA), ("colours-captions-qwen", QWEN)),
    ):
        schema = pq.read_schema(full.path(f"responses/{experiment}/baseline/part-1.parquet"))
        assert CAPTIONS[name] in json.loads(schema.metadata[b"identity"])["question"]
    found = table(full, "table13")
    assert (found[found["measure"] == "cider"]["before"] > 0).all()


def test_every_file_is_as_the_manifest_says(full: Full) -> None:
    assert full.read("verify", "results/paper").startswith("All files are as")
