import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from headpursuit.data.download import download
from headpursuit.method import models
from headpursuit.method.activations import averaged_inputs
from headpursuit.method.models import (
    Decoder,
    ScaledRows,
    decoder_of,
    fast_products,
    gains,
    load_model,
    load_tokenizer,
    longest_input,
    model_folder,
    open_model,
    projection_inputs,
    scaled_heads,
    self_check,
)
from headpursuit.run.files import UserError, sha256
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import HEADS, LAYERS, LONGEST, WINDOW
from tiny_vision import FAMILIES as IMAGE_TEXT
from tiny_vision import make_vlm
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

FAMILIES = ["llama", "mistral", "qwen2", "gemma", "gemma2", "gpt2"]
families = pytest.mark.parametrize("family", FAMILIES)
every_family = pytest.mark.parametrize("family", [*FAMILIES, *IMAGE_TEXT])
DTYPES = ["float32", "bfloat16", "float16"]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
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


@pytest.fixture(scope="module")
def folder(model_path, tmp_path_factory) -> Callable[[str], Path]:
    """Give the folder of a tiny model of any family."""
    images = cache(lambda family: make_vlm(tmp_path_factory.mktemp(family), family))
    return lambda family: (images if family in IMAGE_TEXT else model_path)(family)


@every_family
@dtypes
def test_each_family_loads_and_passes_its_self_check(folder, family: str, dtype: str):
    decoder = load_model(folder(family), dtype, "cpu", (LAYERS, HEADS))
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


@contextmanager
def stream(decoder: Decoder, layer: int) -> Iterator[dict[str, Tensor]]:
    """Keep the residual stream before a layer's attention and behind it."""
    kind, own = decoder.model.config.model_type, decoder.layers[layer]
    norms = {"gpt2": "ln_2", "gemma2": "pre_feedforward_layernorm"}
    behind = norms.get("gemma2" if kind == "gemma3" else kind, "post_attention_layernorm")
    seen: dict[str, Tensor] = {}
    handles = [
        own.register_forward_pre_hook(lambda m, args: seen.update(before=args[0])),
        getattr(own, behind).register_forward_pre_hook(lambda m, args: seen.update(after=args[0])),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("family", "seen"), [("mistral", WINDOW), ("gemma2", WINDOW), ("llama", 12)]
)
@torch.inference_mode()
def test_the_families_with_a_window_have_one_here(model, family: str, seen: int):
    """So the tests on them, most of whose texts are longer, are tests of the window."""
    decoder, ids = model(family), IDS.reshape(1, 12)
    found = []
    for first in (5, 6):
        ids[0, 0] = first
        with stream(decoder, 0) as passed:
            logits(decoder, ids)
        found.append(passed["after"][0])
    assert (found[0] != found[1]).any(1).tolist() == [True] * seen + [False] * (12 - seen)


@every_family
@pytest.mark.parametrize(("dtype", "apart"), zip(DTYPES, [1e-5, 2e-2, 2e-3], strict=True))
@torch.inference_mode()
def test_cached_heads_and_bias_add_up_to_what_the_stream_gains(
    folder, family: str, dtype: str, apart: float
):
    """Averaged over positions, as the cache holds them."""
    decoder = load_model(folder(family), dtype, "cpu")
    weights = torch.tensor([[0.0, 0.5, 0.5, 0, 0, 0], [0, 0, 0.25, 0.25, 0.25, 0.25]])
    for layer in range(LAYERS):
        with stream(decoder, layer) as seen:
            cached = averaged_inputs(decoder, weights, input_ids=IDS)[layer]
        z = cached.unflatten(-1, (HEADS, -1))
        total = torch.einsum("bhk,hdk->bd", z, decoder.layer_columns(layer))
        bias = decoder.projections[layer].bias
        total = total if bias is None else total + bias.float()
        gained = torch.einsum("bp,bpd->bd", weights, seen["after"].float() - seen["before"].float())
        assert (total - gained).norm() < apart * gained.norm()


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
@pytest.mark.parametrize("alpha", [-1.0, 0.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_each_row_has_its_own_gains(model_path, family: str, alpha: float, dtype: str):
    """Bit by bit those of edited weights; the same heads named twice are scaled once."""
    decoder = load_model(model_path(family), dtype, "cpu")
    conditions = [[], CHOSEN, [(1, 2), (1, 2)], [(0, 0)]]
    ids = IDS[:1].repeat(len(conditions), 1)
    with ScaledRows(decoder, gains(decoder, conditions, alpha)) as scaled:
        rows = decoder.model(ids).logits
        scaled.keep(torch.tensor([3, 1]))
        kept = decoder.model(ids[:2]).logits
    for row, heads in enumerate(conditions):
        columns = [decoder.columns(*head) for head in dict.fromkeys(heads)]
        before = [own.clone() for own in columns]
        for own in columns:
            own.mul_(alpha)
        edited = decoder.model(ids).logits[row]
        for own, old in zip(columns, before, strict=True):
            own.copy_(old)
        assert torch.equal(rows[row], edited)
    two = decoder.model(ids[:2]).logits  # products of fewer rows may round otherwise
    with scaled_heads(decoder, CHOSEN, alpha):
        assert torch.equal(kept[1], decoder.model(ids[:2]).logits[1])
    assert torch.equal(decoder.model(ids[:2]).logits, two)


def test_an_error_leaves_the_model_as_it_was(model):
    decoder = model("llama")
    plain = logits(decoder)
    with pytest.raises(ZeroDivisionError), scaled_heads(decoder, CHOSEN, 0.0):
        raise ZeroDivisionError
    assert torch.equal(logits(decoder), plain)


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
        ("llama", {"projection": "self_attn.q_proj"}, "do not sum to what it adds"),
        ("llama", {"projection": "mlp.down_proj"}, "projection reads 48 values"),
        ("llama", {"projection": "self_attn.v_proj"}, "does not make what its attention adds"),
        ("llama", {"next_norm": "input_layernorm"}, "gives something else than is added"),
        ("gpt2", {"transposed": False}, "do not sum to what it adds"),
        ("gemma", {"projection": "self_attn.q_proj"}, "reads 32 values"),
        ("gemma2", {"post_norm": None}, "gives something else than is added"),
        ("gemma2", {"post_norm": "pre_feedforward_layernorm"}, "something else than is added"),
    ],
)
def test_a_wrong_place_is_refused(model_path, monkeypatch, family: str, wrong: dict, said: str):
    monkeypatch.setitem(models.FAMILIES, family, models.FAMILIES[family]._replace(**wrong))
    with pytest.raises(UserError, match=f"self-check of this {family} model failed: .*{said}"):
        load_model(model_path(family), "float32", "cpu")


class Permuted(Decoder):
    def layer_columns(self, layer: int) -> Tensor:
        return super().layer_columns(layer).roll(1, 0)


def test_permuted_heads_are_refused(model):
    decoder = model("llama")
    own = {name: getattr(decoder, name) for name in Decoder.__dataclass_fields__}
    with pytest.raises(UserError, match="do not sum to what it adds"):
        self_check(Permuted(**own))


def test_a_norm_without_its_gain_is_refused(model):
    class Plain(Decoder):
        def gain(self, norm):
            return torch.ones_like(norm.weight)

    decoder = model("gemma2")
    own = {name: getattr(decoder, name) for name in Decoder.__dataclass_fields__}
    with pytest.raises(UserError, match="do not sum to what it adds"):
        self_check(Plain(**own))


@contextmanager
def in_a_copy(decoder: Decoder, heads: list, alpha: float) -> Iterator[None]:
    """Scale columns that the model does not read."""
    for layer, head in heads:
        decoder.columns(layer, head).clone().mul_(alpha)
    yield


WRONG_EDITS = {
    "no effect": lambda decoder, heads, alpha: nullcontext(),
    "no effect, in a copy": in_a_copy,
    "a neighbouring head": lambda decoder, heads, alpha: scaled_heads(
        decoder, [(layer, (head + 1) % HEADS) for layer, head in heads], alpha
    ),
    "the wrong sign": lambda decoder, heads, alpha: scaled_heads(
        decoder, heads, alpha if alpha == 1 else -alpha
    ),
    "half of the head": lambda decoder, heads, alpha: scaled_heads(
        decoder, heads, 1 + (alpha - 1) / 2
    ),
    "the next layer's": lambda decoder, heads, alpha: scaled_heads(
        decoder, [((layer + 1) % LAYERS, head) for layer, head in heads], alpha
    ),
}


@every_family
@dtypes
@pytest.mark.parametrize("wrong", WRONG_EDITS)
def test_a_wrong_edit_is_refused(folder, monkeypatch, family: str, dtype: str, wrong: str):
    monkeypatch.setattr(models, "scaled_heads", WRONG_EDITS[wrong])
    with pytest.raises(UserError, match=r"failed: scaling L0\.H\d does not scale what it writes"):
        load_model(folder(family), dtype, "cpu")


@dtypes
@pytest.mark.parametrize("size", [1.0, 1e-3, 0.0])
def test_a_head_that_writes_little_is_checked_all_the_same(
    model_path, monkeypatch, dtype: str, size: float
):
    """Beside a bias that is all that a layer adds, an edit would be lost in rounding."""
    decoder = load_model(model_path("gpt2"), dtype, "cpu")
    with torch.no_grad():
        decoder.projections[1].weight.mul_(size)
        decoder.projections[1].bias.mul_(10)
    self_check(decoder)

    def all_but_one(decoder: Decoder, heads: list, alpha: float):
        return scaled_heads(decoder, [own for own in heads if own[0] != 1], alpha)

    monkeypatch.setattr(models, "scaled_heads", all_but_one)
    if size == 0:  # nothing is what there is to scale
        return self_check(decoder)
    with pytest.raises(UserError, match=r"failed: scaling L1\.H\d does not scale .* writes\.$"):
        self_check(decoder)


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    """Give a random model of the paper's depth and heads, narrow."""
    folder = tmp_path_factory.mktemp("deep")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=256, intermediate_size=512, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@dtypes
@pytest.mark.parametrize("peak", [0, 3000])
def test_a_deep_model_passes(deep, monkeypatch, dtype: str, peak: float):
    """Also where the first position has the very large activations that many models have."""
    decoder = load_model(deep, dtype, "cpu", (32, 32))
    with torch.no_grad():
        decoder.model.get_input_embeddings().weight[5, :3] = peak  # the first token of the check
    self_check(decoder)
    monkeypatch.setattr(models, "scaled_heads", WRONG_EDITS["no effect"])
    with pytest.raises(UserError, match=r"L0.* L1.* L2.*; and others"):
        self_check(decoder)


def test_a_wrong_width_of_heads_is_refused(model):
    with pytest.raises(UserError, match="projection reads 32 values"):
        self_check(replace(model("llama"), n_heads=HEADS - 1))


def test_a_model_that_gives_nan_is_refused(model_path):
    decoder = load_model(model_path("llama"), "float32", "cpu")
    with torch.no_grad():
        decoder.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(
        UserError, match="layer 2's attention gives values that are not finite in float32"
    ):
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


RAISED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total"),
    MemoryError("Cannot allocate memory (os error 12)"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 234881024 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("unable to mmap 99 bytes from file <m.safetensors>: Cannot allocate memory (12)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
FILES = [OSError("m does not appear to have a file named x"), SafetensorError("header too large")]
OTHER = [KeyError("mistral9"), ImportError("needs kernels"), AttributeError("no attribute 'y'")]


@pytest.mark.parametrize("error", [*RAISED, *FILES, *OTHER], ids=lambda error: str(error)[:30])
@pytest.mark.parametrize("where", ["AutoModelForCausalLM", "AutoTokenizer"])
def test_whatever_goes_wrong_is_named(model_path, monkeypatch, error: Exception, where: str):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(getattr(transformers, where), "from_pretrained", fail)
    with pytest.raises(UserError) as caught:
        if where == "AutoTokenizer":
            load_tokenizer(model_path("llama"))
        else:
            load_model(model_path("llama"), "float32", "cpu")
    said = str(caught.value)
    assert str(model_path("llama")) in said and "\n" not in said
    assert ("provenance.json" in said) == (error in FILES)
    assert ("memory does not suffice" in said and "bfloat16" in said) == (error in RAISED)
    assert ("another version of transformers" in said) == (error in OTHER)


STARVED = """
import resource, sys
from pathlib import Path
import psutil
from headpursuit.run.files import UserError
from headpursuit.method.models import load_model

small, large, dtype = sys.argv[1:4]
load_model(small, dtype, "cpu")  # so that what is imported on the way is there
held = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[4]) * 2**20,) * 2)
try:
    load_model(large, dtype, "cpu")
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spare", [20, 300])  # MB; the weights are 269
def test_memory_that_does_not_suffice_is_said_as_such(
    model_path, tmp_path_factory, dtype: str, spare: int
):
    folder = tmp_path_factory.getbasetemp() / "large"
    if not folder.exists():
        config = LlamaConfig(
            vocab_size=600, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4,
            num_attention_heads=8,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    done = subprocess.run(
        [sys.executable, "-c", STARVED, model_path("llama"), folder, dtype, str(spare)],
        env={"PYTHONPATH": str(Path(models.__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"{folder}: memory does not suffice to load the model: " in done.stdout
    assert "provenance.json" not in done.stdout


@pytest.mark.parametrize("place", [None, "text_config"])
@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors", "bitsandbytes"])
def test_quantised_weights_are_refused_by_name(
    model_path, tmp_path: Path, monkeypatch, method: str, place: str | None
):
    folder = shutil.copytree(model_path("llama"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    inner = config.setdefault(place, {}) if place else config
    inner["quantization_config"] = {"bits": 4} | (
        {} if method == "bitsandbytes" else {"quant_method": method}
    )
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.delattr(transformers.AutoModelForCausalLM, "from_pretrained")  # nothing is loaded
    with pytest.raises(UserError, match=rf"weights are quantised \({method}.*unquantised model"):
        load_model(folder, "float32", "cpu")


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


@pytest.mark.parametrize(
    ("tied", "stored", "expected"),
    [(True, False, "embedding"), (False, True, "own"), (False, False, None)],
)
def test_the_unembedding_is_tied_only_where_the_config_says_so(
    model_path, tmp_path: Path, tied: bool, stored: bool, expected: str | None
):
    folder = shutil.copytree(model_path("llama"), tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    rows = {"embedding": weights["model.embed_tokens.weight"], "own": weights["lm_head.weight"]}
    assert not torch.equal(rows["embedding"], rows["own"])
    if not stored:
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    if expected is None:
        with pytest.raises(UserError, match=r"no weights for lm_head\.weight"):
            load_model(folder, "float32", "cpu")
    else:
        found = load_model(folder, "float32", "cpu").model.get_output_embeddings().weight
        assert torch.equal(found, rows[expected])


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
