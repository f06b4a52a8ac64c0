"""The weights file gives what the model gives, bit by bit, and a damaged one is named."""

from pathlib import Path

import pytest
import torch
from headpursuit.method.decoder import FAMILIES as KNOWN
from headpursuit.method.models import load_model
from headpursuit.method.weights import HeadWeights, write_weights
from headpursuit.run.files import UserError
from tiny import FAMILIES, HEADS, LAYERS
from torch import Tensor


@pytest.mark.parametrize("family", KNOWN)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_file_has_what_the_model_has(model_path, tmp_path: Path, family: str, dtype: str):
    decoder = load_model(model_path(family), dtype, "cpu", (LAYERS, HEADS))  # it is checked there
    assert decoder.model.dtype == getattr(torch, dtype) and not decoder.model.training
    path = tmp_path / "weights/m.safetensors"
    write_weights(path, decoder, {"name": "m", "commit": None})
    write_weights(tmp_path / "again.safetensors", decoder, {"name": "m", "commit": None})
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    found = HeadWeights(path)
    assert found.shape == (LAYERS, HEADS)
    assert found.model == {"name": "m", "commit": None}
    for layer in range(LAYERS):
        # Head by head, and in the same layout of memory, which decides how sums are rounded.
        width, matrix = decoder.head_dim, decoder.matrix(layer)
        own = [matrix[:, head * width : (head + 1) * width] for head in range(HEADS)]
        expected = torch.stack(own).float()
        if decoder.post_norms:
            expected = expected * decoder.gain(decoder.post_norms[layer])[:, None]
        for columns in (found.layer_columns(layer), decoder.layer_columns(layer)):
            assert torch.equal(columns, expected)
            assert columns.stride() == expected.stride()
    rows = decoder.model.get_output_embeddings().weight
    assert found.rows == len(rows)
    assert torch.equal(found.unembedding([7, 0, 7], False), rows[[7, 0, 7]].float())
    base = decoder.language_model
    stored = (base.ln_f if family == "gpt2" else base.norm).weight.float()
    # Gemma's gain is a stored number plus 1, which bfloat16 would round away.
    gain = stored + 1 if family.startswith("gemma") else stored
    assert torch.equal(found.unembedding([7, 0], True), rows[[7, 0]].float() * gain)


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_rows_give_the_logits_of_the_normalised_stream(model, weights, family: str):
    """The gain that is folded in is the one that the final norm applies."""
    decoder, own = model(family), weights(family)
    base = decoder.model.base_model
    norm = base.ln_f if family == "gpt2" else base.norm
    seen: dict[str, Tensor] = {}
    handle = norm.register_forward_hook(lambda m, args, out: seen.update(x=args[0], y=out))
    with torch.inference_mode():
        decoder.model((torch.arange(12).reshape(2, 6) * 37 + 3) % 400, use_cache=False)
    handle.remove()
    x = seen["x"].double()
    if family == "gpt2":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    bias = norm.bias.double() if family == "gpt2" else 0.0
    rows, folded = (own.unembedding(range(own.rows), fold).double() for fold in (False, True))
    expected = (seen["y"].double() - bias) @ rows.T
    torch.testing.assert_close(x @ folded.T, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_file_is_named(model, tmp_path: Path, damage: str):
    path = tmp_path / "m.safetensors"
    write_weights(path, model("llama"), {})
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes({"cut": content[:-1], "bit": flipped, "empty": b""}[damage])
    with pytest.raises(UserError, match=r"m\.safetensors: not readable weights \(.*Delete it"):
        HeadWeights(path).unembedding([0], True)
