"""Weights that wait on disk until they are needed, and quantised ones that cannot be read here."""

import json
from pathlib import Path

import pytest
from headpursuit.method.models import load_model
from headpursuit.method.weights import write_weights
from headpursuit.run.files import UserError
from tiny import HEADS, LAYERS, said


def split(family: str) -> dict[str, str]:
    """Return a device map by which all layers but the first wait on disk."""
    if family == "gpt2":
        parts = ["transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"]
        layers = "transformer.h"
    else:
        parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
        layers = "model.layers"
    waiting = {f"{layers}.{i}": "disk" if i else "cpu" for i in range(LAYERS)}
    return dict.fromkeys(parts, "cpu") | waiting


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_split_model_gives_the_same_bytes(model_path, tmp_path: Path, family: str) -> None:
    folder = model_path(family)
    whole = load_model(folder, "float32", "cpu")
    parts = load_model(folder, "float32", "cpu", (LAYERS, HEADS), split(family))
    waiting = {name for name, own in parts.model.named_parameters() if own.is_meta}
    assert any(".2." in name for name in waiting) and not any(".0." in name for name in waiting)
    assert said(parts, folder) == said(whole, folder)
    for name, decoder in (("whole", whole), ("parts", parts)):
        write_weights(tmp_path / name, decoder, {"name": "tiny"})
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


def test_auto_is_the_whole_model_where_there_is_room(model_path) -> None:
    folder = model_path("llama")
    whole = load_model(folder, "float32", "cpu")
    auto = load_model(folder, "float32", "cpu", None, "auto")
    assert not any(own.is_meta for own in auto.model.parameters())
    assert said(auto, folder) == said(whole, folder)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"quant_method": "awq", "bits": 4}, "quantised by awq.*gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "by bitsandbytes.*bitsandbytes"),
        ({"quant_method": "mystery"}, "quantised by mystery, and .* does not know how"),
    ],
)
def test_what_does_not_load_is_refused_by_name(
    model_path, tmp_path: Path, said: dict, named: str
) -> None:
    for path in model_path("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    with pytest.raises(UserError, match=named) as refused:
        load_model(tmp_path, "float32", "cpu")
    assert "\n" not in str(refused.value)
