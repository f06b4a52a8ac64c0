"""Models of every family: where their heads are, scaling them, the self-check, and loading."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from headpursuit.data.download import download
from headpursuit.method import check, decoder, models
from headpursuit.method.check import self_check
from headpursuit.method.decoder import Decoder, ScaledRows, fast_products, gains, scaled_heads
from headpursuit.method.heads import Condition
from headpursuit.method.models import (
    load_model,
    load_tokenizer,
    longest_input,
    model_folder,
    open_model,
)
from headpursuit.run.files import UserError, sha256
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_batches import LACKS, limited
from tiny import FAMILIES, HEADS, LAYERS, LONGEST
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

families = pytest.mark.parametrize("family", FAMILIES)
every_family = pytest.mark.parametrize("family", decoder.FAMILIES)
DTYPES = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}  # and how sums are rounded
CHOSEN = [(0, 3), (1, 0), (1, 2), (2, 1)]
IDS = (torch.arange(12).reshape(2, 6) * 37 + 3) % 400


def logits(decoder: Decoder, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        return decoder.model(ids, use_cache=False).logits


@pytest.fixture
def changed(model_path, tmp_path: Path) -> Path:
    """Give a tiny model's folder that may be changed."""
    return shutil.copytree(model_path("llama"), tmp_path / "m")


def configure(folder: Path, **change) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@families
@torch.inference_mode()
def test_a_head_is_what_a_query_head_reads(model_path, family: str):
    """Silencing a query head changes its own slice of the projection's input and no other."""
    decoder = load_model(model_path(family), "float32", "cpu")
    attention, width = decoder.attentions[0], decoder.head_dim
    # GPT-2 keeps queries, keys and values side by side.
    queries = attention.c_attn.weight.T if family == "gpt2" else attention.q_proj.weight
    reads: list[Tensor] = []
    with decoder.projections[0].register_forward_pre_hook(lambda m, args: reads.append(args[0])):
        logits(decoder)
        for head in range(HEADS):
            own = queries[head * width : (head + 1) * width]
            kept = own.clone()
            own.zero_()
            logits(decoder)
            own.copy_(kept)
    for head, z in enumerate(reads[1:]):
        moved = (z - reads[0]).unflatten(-1, (HEADS, -1)).abs().amax((0, 1, 3))
        assert (moved > 1e-6).tolist() == [other == head for other in range(HEADS)]


# Scaling


@families
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_each_row_has_its_own_gains(model_path, family: str, dtype: str):
    """At -1 and 0 bit by bit those of edited weights; the same heads named twice scale once."""
    decoder = load_model(model_path(family), dtype, "cpu")
    twice = [(1, 2), (1, 2)]
    conditions = [Condition([], 2.5), Condition(CHOSEN, -1.0), Condition(CHOSEN, 2.5)]
    conditions += [Condition(twice, -1.0), Condition([(0, 0)], 0.0)]
    ids = IDS[:1].repeat(len(conditions), 1)
    plain = logits(decoder, ids)
    with ScaledRows(decoder, gains(decoder, conditions)) as scaled:
        rows = logits(decoder, ids)
        scaled.keep(torch.tensor([4, 1]))
        kept = logits(decoder, ids[:2])
    for row, (heads, alpha, *_) in enumerate(conditions):
        apart = 0 if alpha in (-1, 0) else 30 * DTYPES[dtype]
        before = [decoder.matrix(layer).clone() for layer in range(LAYERS)]
        for layer, head in set(heads):
            own = slice(head * decoder.head_dim, (head + 1) * decoder.head_dim)
            decoder.matrix(layer)[:, own].mul_(alpha)
        torch.testing.assert_close(rows[row], logits(decoder, ids)[row], rtol=0, atol=apart)
        for layer, old in enumerate(before):
            decoder.matrix(layer).copy_(old)
        assert torch.equal(rows[row], plain[row]) == (not heads)
    with scaled_heads(decoder, CHOSEN, -1.0):  # products of fewer rows may round otherwise
        assert torch.equal(kept[1], logits(decoder, ids[:2])[1])
    assert torch.equal(logits(decoder, ids), plain)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0, 2.5, 5.0])
def test_signed_heads_all_move_the_concept_one_way_and_by_as_much(model, alpha: float):
    heads, direction = [(0, 1), (1, 2), (2, 0)], np.array([0.5, -2.0, 3.0])
    against = [heads[1]]
    plain, signed = gains(
        model("llama"), [Condition(heads, alpha), Condition(heads, alpha, "all", against)]
    )
    changes = [[float(own[head]) - 1 for head in heads] for own in (plain, signed)]
    assert np.abs(changes[0]).tolist() == np.abs(changes[1]).tolist()
    assert (changes[1] * direction).tolist() == ((alpha - 1) * np.abs(direction)).tolist()
    assert int((signed != 1).sum()) == (0 if alpha == 1 else 3)


def test_nested_blocks_undo_themselves_in_turn_and_after_an_error(model):
    decoder = model("llama")
    plain = logits(decoder)
    with scaled_heads(decoder, [(0, 0)], -1.0):
        outer = logits(decoder)
        with pytest.raises(ZeroDivisionError), scaled_heads(decoder, [(0, 0), (0, 1)], -1.0):
            assert not torch.equal(logits(decoder), outer)
            raise ZeroDivisionError
        assert torch.equal(logits(decoder), outer)
    assert torch.equal(logits(decoder), plain)


@torch.inference_mode()
def test_capped_logits_are_there_once(model):
    """As a loop's memory is planned; that they are the model's own is checked on loading."""
    decoder, made = model("gemma2"), []
    head = decoder.model.get_output_embeddings()
    with head.register_forward_hook(lambda module, args, output: made.append(output)):
        found = decoder.logits(torch.ones(2, decoder.model.config.hidden_size))
    assert decoder.model.config.final_logit_softcapping
    assert found.data_ptr() == made[0].data_ptr()


@pytest.mark.parametrize("has_it", [True, False])
def test_products_run_in_bfloat16_where_the_processor_has_it(model, monkeypatch, has_it: bool):
    decoder = model("llama")
    plain = logits(decoder)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_it})
    with fast_products(decoder, "bfloat16") as format_of_products:
        fast = logits(decoder)
    assert format_of_products == ("bfloat16" if has_it else "float32")
    assert torch.equal(fast, plain) == (not has_it)
    torch.testing.assert_close(fast.float(), plain, atol=0.1, rtol=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=has_it):
        assert torch.equal(logits(decoder), fast)
    with fast_products(decoder, None) as format_of_products:
        assert torch.equal(logits(decoder), plain)
    assert format_of_products == "float32"


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with biases
def test_products_of_16_bits_are_the_same_where_the_processor_lacks_them(
    model_path, monkeypatch, family: str
):
    """Up to the order of their sums."""
    found = []
    for there in (True, False):
        monkeypatch.setitem(models.SUPPORTED, "bfloat16", lambda there=there: there)
        decoder = load_model(model_path(family), "bfloat16", "cpu")
        changed = [own for own in decoder.model.modules() if isinstance(own, nn.Linear)]
        assert all(("forward" in vars(own)) == (not there) for own in changed) and changed
        found.append(logits(decoder, torch.arange(60).reshape(2, 30)))
    torch.testing.assert_close(*found, atol=0.1, rtol=0.1)
    assert found[0].dtype == torch.bfloat16


# The self-check


@pytest.mark.parametrize(
    ("family", "wrong", "said"),
    [
        ("llama", {"projection": "self_attn.q_proj"}, "do not sum to what it adds"),
        ("llama", {"projection": "mlp.down_proj"}, r"is \(32, 48\) instead of \(32, 32\)"),
        ("llama", {"projection": "self_attn.v_proj"}, r"is \(16, 32\) instead of \(32, 32\)"),
        ("llama", {"next_norm": "input_layernorm"}, "gives something else than is added"),
        ("gpt2", {"transposed": False}, "do not sum to what it adds"),
        ("gemma", {"projection": "self_attn.q_proj"}, r"is \(64, 32\) instead of \(32, 64\)"),
        ("gemma2", {"post_norm": None}, "gives something else than is added"),
        ("gemma2", {"post_norm": "pre_feedforward_layernorm"}, "something else than is added"),
    ],
)
def test_a_wrong_place_is_refused(model_path, monkeypatch, family: str, wrong: dict, said: str):
    monkeypatch.setitem(decoder.FAMILIES, family, decoder.FAMILIES[family]._replace(**wrong))
    with pytest.raises(UserError, match=f"self-check of this {family} model failed: .*{said}"):
        load_model(model_path(family), "float32", "cpu")


@pytest.mark.parametrize(
    ("family", "method", "wrong", "said"),
    [
        ("llama", "layer_columns", lambda of, *own: of(*own).roll(1, 0), "do not sum to what"),
        ("gemma2", "gain", lambda of, self, norm: torch.ones_like(norm.weight), "do not sum"),
        ("gemma2", "logits", lambda of, *own: 2 * of(*own), "the logits are not the final hidden"),
    ],
)
def test_wrong_arithmetic_is_refused(model, monkeypatch, family: str, method: str, wrong, said):
    right = getattr(Decoder, method)
    monkeypatch.setattr(Decoder, method, lambda *own: wrong(right, *own))
    with pytest.raises(UserError, match=said):
        self_check(model(family))


# What is scaled in the place of a head, and by what in the place of -1.
WRONG_EDITS = {
    "no effect": lambda layer, head: ([(layer, head)], 1.0),
    "half of it": lambda layer, head: ([(layer, head)], 0.0),
    "its neighbour": lambda layer, head: ([(layer, (head + 1) % HEADS)], -1.0),
    "both": lambda layer, head: ([(layer, head), (layer, (head + 1) % HEADS)], -1.0),
    "the next layer's": lambda layer, head: ([((layer + 1) % LAYERS, head)], -1.0),
}


@pytest.fixture
def edit_wrongly(monkeypatch) -> Callable[[str], None]:
    def edit(wrong: str) -> None:
        def scaled(decoder: Decoder, heads: list, alpha: float) -> ScaledRows:
            return scaled_heads(decoder, *WRONG_EDITS[wrong](*heads[0]))

        monkeypatch.setattr(check, "scaled_heads", scaled)

    return edit


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "llava_next"])
def test_a_wrong_edit_is_refused(model_path, edit_wrongly, family: str):
    """Also beside a bias that is all that a layer adds, in which it would be lost in rounding."""
    decoder = load_model(model_path(family), "bfloat16", "cpu")
    if family == "gpt2":
        decoder.projections[0].weight.mul_(1e-3)
        decoder.projections[0].bias.mul_(10)
    self_check(decoder)
    for wrong in WRONG_EDITS:
        edit_wrongly(wrong)
        said = r"failed: scaling L0\.H\d does not scale what it writes"
        with pytest.raises(UserError, match=said):
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_deep_model_passes(deep, edit_wrongly, dtype: str):
    """Also where the first position has the very large activations that many models have."""
    decoder = load_model(deep, dtype, "cpu", (32, 32))
    decoder.model.get_input_embeddings().weight[5, :3] = 3000  # the first token of the check
    self_check(decoder)
    edit_wrongly("no effect")
    with pytest.raises(UserError, match=r"L0.* L1.* L2.*; and others"):
        self_check(decoder)


def test_a_model_that_gives_nan_is_refused(model_path):
    decoder = load_model(model_path("llama"), "float32", "cpu")
    decoder.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    said = "layer 2's attention gives values that are not finite in float32"
    with pytest.raises(UserError, match=said):
        self_check(decoder)


# Loading


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bert"}, "'bert' is not supported; supported are llama, mistral"),
        ({"model_type": None}, "'None' is not supported"),
        ({"num_hidden_layers": "three"}, "does not load: Validation error"),
        ({"num_hidden_layers": 2}, "has 2 layers of 4 heads, but the config says 3 of 4"),
        ({"quantization_config": {"quant_method": "awq"}}, "weights are quantised.*unquantised"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, "weights are quantised"),
    ],
)
def test_a_folder_of_another_kind_of_model(changed: Path, change: dict, said: str):
    configure(changed, **change)
    with pytest.raises(UserError, match=said):
        load_model(changed, "float32", "cpu", (LAYERS, HEADS))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_an_incomplete_folder_is_refused(changed: Path, name: str, content: bytes | None):
    (changed / name).unlink()
    if content is not None:
        (changed / name).write_bytes(content)
    said = r"/m(/config\.json)?(: the model does not load|: not readable| is missing)"
    with pytest.raises(UserError, match=said):
        load_model(changed, "float32", "cpu")


def test_a_folder_with_a_gguf_file_alone_says_how_to_name_it(tmp_path: Path):
    (tmp_path / "q4.gguf").touch()
    with pytest.raises(
        UserError, match=r"so this is no model\. Name it in models\.\*\.gguf: q4\.gguf\."
    ):
        load_model(tmp_path, "float32", "cpu")


def test_weights_that_would_be_unpickled_are_refused(changed: Path):
    torch.save(load_file(changed / "model.safetensors"), changed / "pytorch_model.bin")
    (changed / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights are in \.bin files alone\. .* refs/pr/N"):
        load_model(changed, "float32", "cpu")


@pytest.mark.parametrize(
    ("left_out", "tied", "said"),
    [
        ("model.layers.1.self_attn.o_proj.weight", False, r"no weights for model\.layers\.1\.self"),
        ("lm_head.weight", False, r"no weights for lm_head\.weight"),
        ("lm_head.weight", True, None),
        (None, False, None),
    ],
)
def test_weights_that_are_missing_are_not_made_up(changed: Path, left_out, tied: bool, said):
    """And the unembedding is the embedding only where the config says so."""
    weights = load_file(changed / "model.safetensors")
    rows = weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
    weights.pop(left_out, None)
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    configure(changed, tie_word_embeddings=tied)
    if said:
        with pytest.raises(UserError, match=said):
            load_model(changed, "float32", "cpu")
    else:
        found = load_model(changed, "float32", "cpu").model.get_output_embeddings().weight
        assert torch.equal(found, rows)


LACKS_MEMORY = [*LACKS.values(), OSError(errno.ENOMEM, "Cannot allocate memory")]
OTHER = [OSError("no file named x"), SafetensorError("header too large"), KeyError("mistral9")]


@pytest.mark.parametrize("error", [*LACKS_MEMORY, *OTHER], ids=lambda error: str(error)[:30])
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
    assert ("Memory does not suffice" in said and "bfloat16" in said) == (error in LACKS_MEMORY)
    assert ("provenance.json" in said and "version of transformers" in said) == (error in OTHER)


STARVED = """
import sys
from headpursuit.run.files import UserError
from headpursuit.method.models import load_model

small, large, dtype, room = sys.argv[1:]
load_model(small, dtype, "cpu")  # so that what is imported on the way is there
limit(int(room))
try:
    load_model(large, dtype, "cpu")
except UserError as error:
    print(error)
"""


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "spare"), [("float32", 20), ("bfloat16", 300)])  # MB, of 269
def test_memory_that_does_not_suffice_is_said_as_such(model_path, tmp_path, dtype: str, spare: int):
    folder = tmp_path / "large"
    config = LlamaConfig(
        vocab_size=600, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4,
        num_attention_heads=8,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    [said] = limited(STARVED, model_path("llama"), folder, dtype, spare)
    assert f"{folder}: the model does not load: " in said
    assert "Memory does not suffice" in said and "provenance.json" not in said


def test_a_folder_without_tokenizer(changed: Path):
    for path in changed.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="no tokenizer is there"):
        load_tokenizer(changed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_here():
    with pytest.raises(UserError, match=r"compute\.device is cuda"):
        models.pick_device("cuda")
    assert models.pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_longest_input(model_path, family: str):
    assert longest_input(model_path(family)) == LONGEST


def test_a_model_opens_by_its_provenance(model_path, tmp_path: Path):
    source, record = tmp_path / "models/llama", tmp_path / "mine" / "provenance.json"
    for family in ("llama", "gpt2"):
        shutil.copytree(model_path(family), source.with_name(family))
    download("mine", {"kind": "local", "path": str(source.parent)}, record.parent)
    spec = {"path": source.name, "gguf": None, "dtype": "float32", "layers": 3, "heads": 4}
    assert model_folder(record, spec) == source
    decoder, tokenizer, identity = open_model(record, spec, "cpu")
    assert decoder.shape == (3, 4)
    assert tokenizer.chat_template
    assert identity["name"] == "mine"
    assert identity["weights_sha256"] == [sha256(source / "model.safetensors")]
    assert {"config.json", "tokenizer.json"} <= identity["read_sha256"].keys()
    (source / "generation_config.json").write_text('{"eos_token_id": 5}')
    download("mine", {"kind": "local", "path": str(source.parent)}, record.parent)
    assert open_model(record, spec, "cpu")[2] != identity  # other ends of responses
