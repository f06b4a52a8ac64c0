import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from headpursuit.convert import convert_gguf
from headpursuit.files import UserError, read_json, sha256
from headpursuit.models import load_model, load_tokenizer, open_model
from safetensors.torch import load_file
from tiny import HEADS, LAYERS, LONGEST, WIDTH

# Name in GGUF and in transformers, and how it is stored.
PARTS = {
    "attn_q": ("self_attn.q_proj", Kind.Q8_0),
    "attn_k": ("self_attn.k_proj", Kind.Q4_1),
    "attn_v": ("self_attn.v_proj", Kind.Q4_0),
    "attn_output": ("self_attn.o_proj", Kind.Q8_0),
    "ffn_gate": ("mlp.gate_proj", Kind.Q4_1),
    "ffn_up": ("mlp.up_proj", Kind.F16),
    "ffn_down": ("mlp.down_proj", Kind.F32),
    "attn_norm": ("input_layernorm", Kind.F32),
    "ffn_norm": ("post_attention_layernorm", Kind.F32),
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows as llama.cpp keeps those of queries and keys, for its rotary embedding."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


def write_gguf(path: Path, folder: Path) -> dict[str, np.ndarray]:
    """Write a tiny Llama as GGUF and return what its weights then are, by their usual names."""
    weights = {k: v.numpy() for k, v in load_file(folder / "model.safetensors").items()}
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    tokens = vocabulary["model"]["vocab"] | {
        own["content"]: own["id"] for own in vocabulary["added_tokens"]
    }
    special = {own["content"] for own in vocabulary["added_tokens"]}

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(LONGEST)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    listed = sorted(tokens, key=tokens.get)
    writer.add_token_list(listed)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in listed]
    )
    writer.add_token_merges(["Ġ apple", "Ġ river"])
    writer.add_bos_token_id(tokens["<|begin|>"])
    writer.add_eos_token_id(tokens["<|end|>"])

    known = {}

    def add(name: str, usual: str, kind: Kind, heads: int | None = None) -> None:
        weight = weights[f"{usual}.weight"].astype(np.float32)
        stored = quantize(weight if heads is None else interleaved(weight, heads), kind)
        writer.add_tensor(f"{name}.weight", stored, raw_dtype=kind)
        # Rows are quantised one by one, so their order does not matter to the values.
        known[f"{usual}.weight"] = dequantize(quantize(weight, kind), kind)

    add("token_embd", "model.embed_tokens", Kind.Q8_0)
    add("output", "lm_head", Kind.Q8_0)
    add("output_norm", "model.norm", Kind.F32)
    for layer in range(LAYERS):
        for name, (usual, kind) in PARTS.items():
            heads = {"attn_q": HEADS, "attn_k": 2}.get(name)
            add(f"blk.{layer}.{name}", f"model.layers.{layer}.{usual}", kind, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return known


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


def test_logits_are_close_to_the_original_s(converted, model):
    """So the order of rows is right too."""
    ids = torch.arange(10)[None] * 31
    own = load_model(converted["folder"], "float32", "cpu", (LAYERS, HEADS))
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


def test_the_converted_model_opens_by_its_provenance(converted):
    spec = {"path": "x", "gguf": "tiny.gguf", "dtype": "float32", "layers": 3, "heads": 4}
    decoder, _, identity = open_model(converted["folder"] / "provenance.json", spec, "cpu")
    assert decoder.shape == (LAYERS, HEADS)
    assert identity["weights_sha256"] == [sha256(converted["folder"] / "model.safetensors")]


def test_converting_again_gives_the_same_weights(converted, tmp_path: Path):
    source = converted["gguf"].parent / "provenance.json"
    convert_gguf(converted["gguf"], tmp_path / "provenance.json", source)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert sha256(tmp_path / name) == sha256(converted["folder"] / name)


@pytest.mark.parametrize("keep", [0, 4, 2000, -1000])
def test_a_torn_file_is_refused_and_leaves_no_provenance(converted, tmp_path: Path, keep: int):
    source = shutil.copytree(converted["gguf"].parent, tmp_path / "source")
    content = converted["gguf"].read_bytes()
    (source / "tiny.gguf").write_bytes(content[:keep])
    target = tmp_path / "m" / "provenance.json"
    with pytest.raises(UserError, match=r"tiny\.gguf: transformers cannot read it"):
        convert_gguf(source / "tiny.gguf", target, source / "provenance.json")
    assert not target.exists()


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.gguf"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "m" / "p.json", tmp_path / "p.json")
