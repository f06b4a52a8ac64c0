"""A model in 8 bits: rows work on it, and rankings read what its output projections stand for."""

from collections.abc import Callable
from pathlib import Path

import headpursuit as hp
import pytest
import torch
from headpursuit.method.decoder import Decoder, fast_products, parameter_of
from headpursuit.method.models import load_model, load_tokenizer
from headpursuit.method.weights import HeadWeights, write_weights
from headpursuit.run.files import UserError
from tiny import HEADS, LAYERS, said
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig


@pytest.fixture(scope="module")
def quantised(model_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a tiny model in 8 bits, in safetensors, with its tokenizer."""
    folder, plain = tmp_path_factory.mktemp("quantised") / "int8", model_path("llama")
    config = TorchAoConfig(Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, quantization_config=config
    )
    model.save_pretrained(folder)
    load_tokenizer(plain).save_pretrained(folder)
    return folder


def test_rows_and_rankings_of_a_quantised_model(quantised: Path, tmp_path: Path) -> None:
    decoder = load_model(quantised, "float32", "cpu", (LAYERS, HEADS))  # checks each head
    write_weights(tmp_path / "weights", decoder, {"name": "tiny"})
    weights = HeadWeights(tmp_path / "weights")
    for layer, projection in enumerate(decoder.projections):
        assert parameter_of(projection) is None
        plain = projection.weight.dequantize()
        assert torch.equal(decoder.matrix(layer), plain)
        by_head = plain.unflatten(1, (HEADS, -1)).transpose(0, 1)
        assert torch.equal(weights.layer_columns(layer), by_head)
    ranked, before, after = said(decoder, quantised)
    assert before != after and ranked.count("\n") == 1 + LAYERS * HEADS


def test_a_quantised_models_edit_is_that_of_its_columns(quantised: Path) -> None:
    """Inverting a head in 8 bits is inverting the columns of what the 8 bits stand for."""
    decoder = load_model(quantised, "float32", "cpu")
    plain = AutoModelForCausalLM.from_pretrained(quantised, dtype=torch.float32)
    for module in plain.modules():
        if isinstance(module, torch.nn.Linear) and parameter_of(module) is None:
            module.weight = torch.nn.Parameter(module.weight.dequantize(), requires_grad=False)
    edited, ids = Decoder(plain.eval()), torch.arange(12)[None] + 3
    edited.matrix(1)[:, : edited.head_dim] *= -1
    model = hp.load(decoder.model, load_tokenizer(quantised))
    with torch.no_grad():
        with hp.scaled(model, "L1.H0", alpha=-1):
            found = decoder.model(ids).logits
        wanted, unedited = plain(ids).logits, decoder.model(ids).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, unedited, atol=1e-3)


def test_what_a_quantised_model_cannot_do_is_said(quantised: Path, tmp_path: Path) -> None:
    decoder = load_model(quantised, "float32", "cpu")
    if torch.cpu.get_capabilities().get("avx512_bf16", False):
        with (
            pytest.raises(UserError, match="products needs plain weights"),
            fast_products(decoder, "bfloat16"),
        ):
            pass
    decoder.model.lm_head.weight = decoder.projections[0].weight
    with pytest.raises(UserError, match="unembedding is quantised"):
        write_weights(tmp_path / "weights", decoder, {})
