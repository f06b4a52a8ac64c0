"""What a tower is not trained on, and which tower is not taken for another."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from headpursuit.data.sources import write_provenance
from headpursuit.data.tower import (
    TRAINED,
    accuracy,
    ask,
    assemble,
    load_trained,
    make_processor,
    read_parts,
    save_trained,
    train,
)
from headpursuit.run.files import UserError
from tiny_figure1 import prepare_figure1


@pytest.fixture(scope="module")
def tiny(model_path, tmp_path_factory) -> dict:
    """An untrained tower before the tiny text model, and images."""
    own = tmp_path_factory.mktemp("own")
    config = prepare_figure1(own)
    write_provenance(own / "record.json", {"kind": "local"}, None, own, ["pixels.csv.gz"])
    build = config["models"]["assembled"]["build"]
    processor = make_processor(model_path("llama"), build["tower"])
    model = assemble(model_path("llama"), build["tower"], processor.image_token_id)
    samples = config["samples"]["stripes"]
    return {"data": own / "record.json", "build": build, "processor": processor,
            "model": model, "samples": samples, "folder": model_path("llama")}  # fmt: skip


def test_the_tower_learns_and_the_language_model_does_not(tiny: dict):
    model, processor, samples = tiny["model"], tiny["processor"], tiny["samples"]
    classes, images = read_parts(tiny["data"], samples, processor)
    assert [len(labels) for _, labels in images.values()] == [60, 30]
    question = ask(processor, samples, classes)
    before = deepcopy(model.state_dict())
    train(model, images["selection"], question, tiny["build"]["training"], 0)
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert all(name.startswith(TRAINED) for name in changed)
    assert {f"{part}weight" for part in ("linear_1.", "linear_2.")} <= {
        name.removeprefix(TRAINED[1]) for name in changed
    }
    assert accuracy(model, images["evaluation"], question)["images"] == 30


def test_images_in_both_parts_and_long_names_are_refused(tiny: dict):
    same = tiny["samples"] | {"evaluation": {"files": "pixels.csv.gz", "rows": [60, 90]}}
    with pytest.raises(UserError, match="1 images are in both parts"):
        read_parts(tiny["data"], same, tiny["processor"])
    with pytest.raises(UserError, match=r"answers in one token.*\['wren'\]"):
        ask(tiny["processor"], tiny["samples"], ["apple", "wren"])


def test_a_tower_that_learned_other_images_or_is_another_is_refused(tiny: dict, tmp_path: Path):
    path, samples, model = tmp_path / "tower.safetensors", tiny["samples"], tiny["model"]
    save_trained(model, path, samples)
    load_trained(model, path, samples)
    with pytest.raises(UserError, match=r"learned .*Set models\.\*\.build\.trained to null"):
        load_trained(model, path, samples | {"evaluation": {"files": "pixels.csv.gz"}})
    for change in ({"hidden_size": 16}, {"layers": 2}):
        other = assemble(tiny["folder"], tiny["build"]["tower"] | change, 300)
        with pytest.raises(UserError, match=r"not the tower of models\.\*\.build\.tower"):
            load_trained(other, path, samples)
    path.write_bytes(b"no tower")
    with pytest.raises(UserError, match="not the tower"):
        load_trained(model, path, samples)
