import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from headpursuit.data.convert import convert_gguf
from headpursuit.method.models import load_tokenizer, open_model
from headpursuit.run.files import UserError, read_json, sha256
from safetensors.torch import load_file
from tiny import HEADS, LAYERS
from tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def converted(model_path, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("source")
    known = write_gguf(folder / "tiny.gguf", model_path("llama"))
    source = {"name": "wheel", "kind": "wheel", "id": "w", "version": "1", "licence": "MIT"}
    (folder / "provenance.json").write_text(json.dumps(source))
    target = tmp_path_factory.mktemp("models") / "tiny"
    convert_gguf(folder / "tiny.gguf", target / "provenance.json", folder / "provenance.json")
    return {"gguf": folder / "tiny.gguf", "folder": target, "known": known}


def test_weights_are_the_dequantised_ones(converted):
    found = load_file(converted["folder"] / "model.safetensors")
    assert set(found) == set(converted["known"])
    for name, expected in converted["known"].items():
        assert found[name].dtype == torch.float32
        np.testing.assert_array_equal(found[name].numpy(), expected, err_msg=name)


def test_the_model_opens_by_its_provenance_and_answers_as_the_original(converted, model):
    """So the order of rows is right too."""
    spec = {"path": "x", "gguf": "tiny.gguf", "dtype": "float32", "layers": LAYERS, "heads": HEADS}
    own, _, identity = open_model(converted["folder"] / "provenance.json", spec, "cpu")
    assert identity["weights_sha256"] == [sha256(converted["folder"] / "model.safetensors")]
    ids = torch.arange(10)[None] * 31
    with torch.inference_mode():
        a, b = (decoder.model(ids).logits.flatten() for decoder in (own, model("llama")))
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.98


def test_the_tokenizer_keeps_its_ids(converted, tokenizer):
    own = load_tokenizer(converted["folder"])
    assert own.eos_token == "<|end|>"
    assert tokenizer.get_vocab().items() <= own.get_vocab().items()


def test_provenance_says_where_it_comes_from(converted):
    folder, record = converted["folder"], read_json(converted["folder"] / "provenance.json")
    assert record["kind"] == "converted"
    assert record["from"]["id"] == "w"
    assert record["gguf"] == {"path": "tiny.gguf", "sha256": sha256(converted["gguf"])}
    assert record["licence"] == "MIT"
    listed = {own["path"]: own["sha256"] for own in record["files"]}
    there = {path.name for path in folder.iterdir()} - {"provenance.json"}
    assert set(listed) == there
    assert all(sha256(folder / name) == own for name, own in listed.items())


def test_converting_again_gives_the_same_weights(converted, tmp_path: Path):
    source = converted["gguf"].parent / "provenance.json"
    convert_gguf(converted["gguf"], tmp_path / "provenance.json", source)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert sha256(tmp_path / name) == sha256(converted["folder"] / name)


@pytest.mark.parametrize("keep", [None, -1000])
def test_a_torn_or_missing_file_is_refused_and_leaves_no_provenance(
    converted, tmp_path: Path, keep: int | None
):
    source = shutil.copytree(converted["gguf"].parent, tmp_path / "source")
    (source / "tiny.gguf").unlink()
    if keep is not None:
        (source / "tiny.gguf").write_bytes(converted["gguf"].read_bytes()[:keep])
    target = tmp_path / "m" / "provenance.json"
    with pytest.raises(UserError, match=r"tiny\.gguf: the model does not load"):
        convert_gguf(source / "tiny.gguf", target, source / "provenance.json")
    assert not target.exists()
