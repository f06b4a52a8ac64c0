"""A tiny Llama of tests/tiny.py as a GGUF file."""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
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
