import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from headpursuit import models
from headpursuit.files import UserError, sha256
from headpursuit.models import (
    Decoder,
    decoder_of,
    fast_products,
    load_model,
    load_tokenizer,
    longest_input,
    model_folder,
    open_model,
    projection_inputs,
    scaled_heads,
    self_check,
    unembedding,
)
from headpursuit.sources import download
from safetensors.torch import load_file, save_file
from tiny import HEADS, LAYERS, LONGEST
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig

FAMILIES = ["llama", "mistral", "qwen2", "gemma", "gemma2", "gpt2"]
families = pytest.mark.parametrize("family", FAMILIES)
CHOSEN = [(0, 3), (1, 0), (1, 2), (2, 1)]
IDS = (torch.arange(12).reshape(2, 6) * 37 + 3) % 400


def logits(decoder: Decoder, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        return decoder.model(ids, use_cache=False).logits


def attention_of(decoder: Decoder, layer: int) -> torch.nn.Module:
    own = decoder.layers[layer]
    return own.attn if decoder.model.config.model_type == "gpt2" else own.self_attn


def projection_of(decoder: Decoder, layer: int) -> tuple[Tensor, Tensor | None]:
    """Return weight (out x in) and bias of the attention output projection."""
    attention = attention_of(decoder, layer)
    if decoder.model.config.model_type == "gpt2":
        return attention.c_proj.weight.T, attention.c_proj.bias
    return attention.o_proj.weight, attention.o_proj.bias


@contextmanager
def observed(decoder: Decoder, layer: int) -> Iterator[dict[str, Tensor]]:
    """Keep what the projection of a layer reads and what its attention returns."""
    seen: dict[str, Tensor] = {}
    attention = attention_of(decoder, layer)
    projection = attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj
    handles = [
        projection.register_forward_pre_hook(lambda m, args: seen.update(z=args[0])),
        attention.register_forward_hook(lambda m, args, out: seen.update(out=out[0])),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def rescaled_by_hooks(decoder: Decoder, heads: list, alpha: float) -> Iterator[None]:
    """Add (alpha - 1) times each head's write to what its attention returns."""
    handles, reads = [], {}
    for layer in {layer for layer, _ in heads}:
        attention = attention_of(decoder, layer)
        projection = attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj

        def change(module, args, out, layer=layer):
            weight, _ = projection_of(decoder, layer)
            width = weight.shape[1] // HEADS
            added = torch.zeros_like(out[0])
            for head in [h for at, h in heads if at == layer]:
                own = slice(head * width, (head + 1) * width)
                added += reads[layer][..., own] @ weight[:, own].T
            return (out[0] + (alpha - 1) * added, *out[1:])

        def keep(module, args, layer=layer):
            reads[layer] = args[0]

        handles.append(projection.register_forward_pre_hook(keep))
        handles.append(attention.register_forward_hook(change))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@families
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_each_family_loads_and_passes_its_self_check(model_path, family: str, dtype: str):
    decoder = load_model(model_path(family), dtype, "cpu", (LAYERS, HEADS))
    assert decoder.shape == (LAYERS, HEADS)
    assert next(decoder.model.parameters()).dtype == getattr(torch, dtype)
    assert not decoder.model.training


@families
def test_scaling_by_one_leaves_every_bit(model, family: str):
    decoder = model(family)
    plain = logits(decoder)
    with scaled_heads(decoder, CHOSEN, 1.0):
        assert torch.equal(logits(decoder), plain)


@families
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 2.5])
def test_scaling_the_weights_is_scaling_what_heads_write(model, family: str, alpha: float):
    decoder = model(family)
    plain = logits(decoder)
    with scaled_heads(decoder, CHOSEN, alpha):
        edited = logits(decoder)
    with rescaled_by_hooks(decoder, CHOSEN, alpha):
        hooked = logits(decoder)
    torch.testing.assert_close(edited, hooked, rtol=1e-4, atol=1e-4)
    assert (edited - plain).abs().max() > 0.01  # and it does something


@families
def test_heads_and_bias_add_up_to_the_attention_s_output(model, family: str):
    decoder = model(family)
    for layer in range(LAYERS):
        with observed(decoder, layer) as seen, torch.inference_mode():
            decoder.model(IDS, use_cache=False)
        z = seen["z"].unflatten(-1, (HEADS, -1))
        _, bias = projection_of(decoder, layer)
        total = torch.einsum("bphk,hdk->bpd", z, decoder.layer_columns(layer))
        total = total if bias is None else total + bias
        torch.testing.assert_close(total, seen["out"], rtol=1e-5, atol=1e-5)


@families
def test_a_head_is_what_a_query_head_reads(model_path, family: str):
    """Silencing a query head changes its own slice of the projection's input and no other."""
    decoder = load_model(model_path(family), "float32", "cpu")
    attention, width = attention_of(decoder, 0), decoder.head_dim
    query = (
        attention.c_attn.weight.T[:32] if family == "gpt2" else attention.q_proj.weight
    )  # GPT-2 keeps queries, keys and values side by side
    for head in range(HEADS):
        with observed(decoder, 0) as seen, torch.inference_mode():
            decoder.model(IDS, use_cache=False)
            before = seen["z"].unflatten(-1, (HEADS, -1))
            own = query[head * width : (head + 1) * width]
            kept = own.clone()
            own.zero_()
            decoder.model(IDS, use_cache=False)
            own.copy_(kept)
        changed = (seen["z"].unflatten(-1, (HEADS, -1)) - before).abs().amax((0, 1, 3))
        assert (changed > 1e-6).tolist() == [other == head for other in range(HEADS)]


@families
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_come_back_bit_by_bit(model_path, family: str, dtype: str):
    decoder = load_model(model_path(family), dtype, "cpu")
    before = {name: value.clone() for name, value in decoder.model.state_dict().items()}

    def assert_untouched():
        for name, value in decoder.model.state_dict().items():
            assert torch.equal(value, before[name]), name

    for alpha in (0.0, 0.3, float("inf")):
        with scaled_heads(decoder, CHOSEN, alpha):
            pass
        assert_untouched()
    with pytest.raises(ZeroDivisionError), scaled_heads(decoder, CHOSEN, 0.0):
        raise ZeroDivisionError
    assert_untouched()


def test_only_the_heads_columns_change(model):
    decoder = model("llama")
    before = decoder.layer_columns(1).clone()
    with scaled_heads(decoder, [(1, 2), (1, 2)], -1.0):  # named twice, scaled once
        after = decoder.layer_columns(1)
    assert torch.equal(after[2], -before[2])
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])


def test_nested_blocks_undo_themselves_in_turn(model):
    decoder = model("llama")
    plain = logits(decoder)
    with scaled_heads(decoder, [(0, 0)], -1.0):
        outer = logits(decoder)
        with scaled_heads(decoder, [(0, 0), (0, 1)], -1.0):
            assert not torch.equal(logits(decoder), outer)
        assert torch.equal(logits(decoder), outer)
    assert torch.equal(logits(decoder), plain)


@pytest.mark.parametrize("head", [(LAYERS, 0), (0, HEADS), (-1, 0), (0, -1)])
def test_a_head_that_is_not_there(model, head: tuple[int, int]):
    decoder = model("llama")
    plain = logits(decoder)
    with (
        pytest.raises(UserError, match=f"L{head[0]}.H{head[1]} does not exist"),
        scaled_heads(decoder, [(0, 0), head], 0.0),
    ):
        pass
    assert torch.equal(logits(decoder), plain)


# The self-check


@pytest.mark.parametrize(
    ("family", "wrong", "said"),
    [
        ("llama", ("model.layers", "self_attn.q_proj", False), "do not sum to its attention"),
        ("llama", ("model.layers", "mlp.down_proj", False), "projection reads 48 values"),
        ("llama", ("model.layers", "self_attn.v_proj", False), "does not make the attention's"),
        ("gpt2", ("transformer.h", "attn.c_proj", False), "do not sum to its attention output"),
        ("gemma", ("model.layers", "self_attn.q_proj", False), "reads 32 values"),
    ],
)
def test_a_wrong_projection_is_refused(model_path, monkeypatch, family: str, wrong, said: str):
    monkeypatch.setitem(models.FAMILIES, family, wrong)
    with pytest.raises(UserError, match=f"self-check of this {family} model failed: .*{said}"):
        load_model(model_path(family), "float32", "cpu")


class Permuted(Decoder):
    def columns(self, layer: int, head: int) -> Tensor:
        return super().columns(layer, (head + 1) % self.n_heads)


def test_permuted_heads_are_refused(model):
    decoder = model("llama")
    own = {name: getattr(decoder, name) for name in Decoder.__dataclass_fields__}
    with pytest.raises(UserError, match="do not sum to its attention output"):
        self_check(Permuted(**own))


def test_a_wrong_width_of_heads_is_refused(model):
    with pytest.raises(UserError, match="projection reads 32 values"):
        self_check(replace(model("llama"), n_heads=HEADS - 1))


def test_a_model_that_gives_nan_is_refused(model_path):
    decoder = load_model(model_path("llama"), "float32", "cpu")
    with torch.no_grad():
        decoder.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="scaling heads by 1 changes the logits"):
        self_check(decoder)


def test_a_check_leaves_no_hook_and_no_change(model):
    decoder = model("gpt2")
    before = {name: value.clone() for name, value in decoder.model.state_dict().items()}
    self_check(decoder)
    assert all(torch.equal(v, before[n]) for n, v in decoder.model.state_dict().items())
    for module in decoder.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


# Loading


def test_an_unknown_architecture_is_refused_with_those_known():
    config = GPTNeoXConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with pytest.raises(UserError, match="'gpt_neox' is not supported; supported are llama, mist"):
        decoder_of(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bert"}, "'bert' is not supported; supported are llama"),
        ({"model_type": None}, "'None' is not supported"),
        ({"num_hidden_layers": "three"}, "does not load: Validation error"),
    ],
)
def test_a_folder_of_another_kind_of_model(model_path, tmp_path, change, said):
    folder = shutil.copytree(model_path("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        load_model(folder, "float32", "cpu")


def test_a_shape_that_the_config_does_not_state(model_path):
    with pytest.raises(UserError, match="has 3 layers of 4 heads, but the config says 32 of 32"):
        load_model(model_path("llama"), "float32", "cpu", (32, 32))


def test_weights_that_would_be_unpickled_are_refused(model_path, tmp_path: Path):
    shutil.copytree(model_path("llama"), tmp_path / "m")
    weights = load_model(model_path("llama"), "float32", "cpu").model.state_dict()
    torch.save(weights, tmp_path / "m" / "pytorch_model.bin")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="does not load"):
        load_model(tmp_path / "m", "float32", "cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_an_incomplete_folder_is_refused(model_path, tmp_path: Path, name: str, content):
    shutil.copytree(model_path("llama"), tmp_path / "m")
    (tmp_path / "m" / name).unlink()
    if content is not None:
        (tmp_path / "m" / name).write_bytes(content)
    said = r"/m(/config\.json)?(: the model does not load|: not readable| is missing)"
    with pytest.raises(UserError, match=said):
        load_model(tmp_path / "m", "float32", "cpu")


def test_weights_that_are_missing_are_not_made_up(model_path, tmp_path: Path):
    shutil.copytree(model_path("llama"), tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["model.layers.1.self_attn.o_proj.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no weights for model\.layers\.1\.self_attn\.o_proj"):
        load_model(tmp_path / "m", "float32", "cpu")


def test_a_folder_without_tokenizer(model_path, tmp_path: Path):
    shutil.copytree(model_path("llama"), tmp_path / "m")
    for path in (tmp_path / "m").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="no tokenizer is there"):
        load_tokenizer(tmp_path / "m")


def test_a_tokenizer_pads_on_the_left(tokenizer):
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_no_cuda_here():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UserError, match=r"compute\.device is cuda"):
        models.pick_device("cuda")
    assert models.pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_longest_input(model_path, family: str):
    assert longest_input(model_path(family)) == LONGEST


def test_a_model_opens_by_its_provenance(model_path, tmp_path: Path):
    source = model_path("llama")
    download("mine", {"kind": "local", "path": str(source.parent)}, tmp_path / "mine")
    record = tmp_path / "mine" / "provenance.json"
    spec = {"path": source.name, "gguf": None, "dtype": "float32", "layers": 3, "heads": 4}
    assert model_folder(record, spec) == source
    decoder, tokenizer, identity = open_model(record, spec, "cpu")
    assert decoder.shape == (3, 4)
    assert tokenizer.chat_template
    assert identity["name"] == "mine"
    assert sha256(source / "model.safetensors") in identity["weights_sha256"]


def test_projection_inputs_are_those_of_the_last_pass(model):
    decoder = model("llama")
    with projection_inputs(decoder, [0, 2]) as seen:
        logits(decoder)
        assert sorted(seen) == [0, 2]
        first = seen[0].clone()
        logits(decoder, IDS[:1])
    assert torch.allclose(seen[0], first[:1], atol=1e-6)


# The unembedding


@families
def test_folded_rows_give_the_logits_of_the_normalised_stream(model, family: str):
    """The gain that is folded in is the one that the final norm applies."""
    decoder = model(family)
    base = decoder.model.base_model
    norm = base.ln_f if family == "gpt2" else base.norm
    seen: dict[str, Tensor] = {}
    handle = norm.register_forward_hook(lambda m, args, out: seen.update(x=args[0], y=out))
    logits(decoder)
    handle.remove()
    x = seen["x"].double()
    if family == "gpt2":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    bias = norm.bias.double() if family == "gpt2" else 0.0
    rows = unembedding(decoder, None, False).double()
    expected = (seen["y"].double() - bias) @ rows.T
    folded = x @ unembedding(decoder, None, True).double().T
    torch.testing.assert_close(folded, expected, rtol=1e-3, atol=1e-3)


def test_rows_of_the_unembedding(model):
    decoder = model("gemma")
    every = unembedding(decoder, None, False)
    assert every.dtype == torch.float32
    assert torch.equal(every, decoder.model.lm_head.weight)
    assert torch.equal(unembedding(decoder, [7, 0, 7], False), every[[7, 0, 7]])


@pytest.mark.parametrize("has_it", [True, False])
def test_products_run_in_bfloat16_where_the_processor_has_it(model, monkeypatch, has_it: bool):
    decoder, ids = model("llama"), torch.arange(12)[None]
    plain = decoder.model(ids).logits
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_it})
    with fast_products(decoder, "bfloat16") as format_of_products:
        logits = decoder.model(ids).logits
    assert format_of_products == ("bfloat16" if has_it else "float32")
    assert torch.equal(logits, plain) == (not has_it)
    torch.testing.assert_close(logits.float(), plain, atol=0.1, rtol=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=has_it):
        assert torch.equal(decoder.model(ids).logits, logits)
    with fast_products(decoder, None) as format_of_products:
        assert torch.equal(decoder.model(ids).logits, plain)
    assert format_of_products == "float32"
