"""Causal language models: loading, their heads, and scaling what a head writes."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headpursuit.files import UserError, read_json
from headpursuit.heads import Head
from headpursuit.sources import source_files, source_root, verify

log = logging.getLogger(__name__)

# Where each family keeps its decoder layers and, in a layer, the attention output projection.
# GPT-2's projection is a Conv1D, whose weight is (in, out) instead of (out, in).
LLAMA_LIKE = ("model.layers", "self_attn.o_proj", False)
IMAGE_TEXT = ("model.language_model.layers", "self_attn.o_proj", False)
FAMILIES: dict[str, tuple[str, str, bool]] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "gemma": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE,
    "gpt2": ("transformer.h", "attn.c_proj", True),
    "llava": IMAGE_TEXT,
    "llava_next": IMAGE_TEXT,
    "qwen2_5_vl": IMAGE_TEXT,
    "gemma3": IMAGE_TEXT,
}

LACKING = (
    "See that the model's source has all its files (sources.*.files and models.*.path in the "
    "config), delete the source's provenance.json and run again."
)


@dataclass(frozen=True)
class Decoder:
    """A causal language model together with where its heads are.

    Attributes:
        model: the Hugging Face model, in evaluation mode.
        layers: the decoder layers.
        attentions: each layer's attention.
        projections: each layer's attention output projection.
        n_heads: query heads a layer. Under grouped-query attention the projection's columns
            belong to query heads, so this is the number of heads everywhere.
        head_dim: width of a head.
        transposed: whether the projection's weight is (in, out), as GPT-2's is.
    """

    model: nn.Module
    layers: Sequence[nn.Module]
    attentions: Sequence[nn.Module]
    projections: Sequence[nn.Module]
    n_heads: int
    head_dim: int
    transposed: bool

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.model.device

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(layers, heads a layer)."""
        return len(self.layers), self.n_heads

    def columns(self, layer: int, head: int) -> Tensor:
        """Return the view of a head's columns of the output projection, d x head_dim."""
        weight = self.projections[layer].weight
        matrix = weight.T if self.transposed else weight
        return matrix[:, head * self.head_dim : (head + 1) * self.head_dim]

    def layer_columns(self, layer: int) -> Tensor:
        """Return all heads' columns of a layer as float32, heads x d x head_dim."""
        return torch.stack([self.columns(layer, head) for head in range(self.n_heads)]).float()


def _check_family(kind: str | None) -> None:
    if kind not in FAMILIES:
        raise UserError(
            f"The architecture '{kind}' is not supported; "
            f"supported are {', '.join(FAMILIES)}. A new one is a line of FAMILIES in models.py."
        )


def decoder_of(model: nn.Module) -> Decoder:
    """Find a model's layers, projections and heads.

    Raises:
        UserError: if its architecture is not among :data:`FAMILIES`.
    """
    config = model.config
    _check_family(config.model_type)
    layers_path, projection_path, transposed = FAMILIES[config.model_type]
    layers = attrgetter(layers_path)(model)
    config = config.get_text_config()  # of an image-text model, its language model's
    n_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    attention_path = projection_path.rpartition(".")[0]
    attentions = [attrgetter(attention_path)(layer) for layer in layers]
    projections = [attrgetter(projection_path)(layer) for layer in layers]
    return Decoder(model, layers, attentions, projections, n_heads, head_dim, transposed)


def pick_device(device: str) -> torch.device:
    """Return the device that the config's ``compute.device`` means on this machine.

    Raises:
        UserError: if a CUDA device is asked for and none is there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device is cuda, but PyTorch sees no CUDA device here.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def load_model(
    folder: str | Path, dtype: str, device: str = "auto", expected: tuple[int, int] | None = None
) -> Decoder:
    """Load a model from a local folder of safetensors and prove that its heads are understood.

    Args:
        folder: holds config.json and safetensors.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu`` or ``cuda``.
        expected: (layers, heads) that the config states.

    Raises:
        UserError: if the folder is incomplete, the shape is not the stated one, or the
            self-check fails.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    target = pick_device(device)
    _check_family(read_config(folder).get("model_type"))
    auto = AutoModelForImageTextToText if reads_images(folder) else AutoModelForCausalLM
    try:
        model, loaded = auto.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            device_map={"": target},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{folder}: the model does not load: {why} {LACKING}") from error
    if lacking := sorted(loaded["missing_keys"]):  # they would be random numbers
        raise UserError(
            f"{folder}: the model does not load: no weights for {', '.join(lacking)}. {LACKING}"
        )
    decoder = decoder_of(model.eval().requires_grad_(False))
    if expected is not None and decoder.shape != tuple(expected):
        raise UserError(
            f"{folder} has {decoder.shape[0]} layers of {decoder.shape[1]} heads, but the config "
            f"says {expected[0]} of {expected[1]}: correct layers and heads under models."
        )
    self_check(decoder)
    log.info(
        "loaded %s: %d layers x %d heads of %d, %s on %s",
        folder, *decoder.shape, decoder.head_dim, dtype, target,
    )  # fmt: skip
    return decoder


def reads_images(folder: str | Path) -> bool:
    """Say whether a folder's model reads images beside text."""
    return FAMILIES.get(read_config(folder).get("model_type")) == IMAGE_TEXT


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return what a model's config.json says.

    Raises:
        UserError: if it is missing or damaged.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"{path} is missing, so this is no model. {LACKING}")
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a model's config.json. {LACKING}")
    return config


def model_folder(provenance: str | Path, model: Mapping[str, Any]) -> Path:
    """Return the folder of a downloaded or converted model, its files checked for their sizes.

    Args:
        provenance: provenance.json of the source, or of the converted folder.
        model: its entry in the config's ``models``.
    """
    source_files(provenance, "**/*")
    # A converted model lies beside its own provenance.json.
    return source_root(provenance) / ("" if model["gguf"] else model["path"])


def open_model(
    provenance: str | Path, model: Mapping[str, Any], device: str
) -> tuple[Decoder, Any, dict[str, Any]]:
    """Load a config's model.

    Args:
        provenance: see :func:`model_folder`.
        model: its entry in the config's ``models``.
        device: the config's ``compute.device``.

    Returns:
        The model, its tokenizer, and what identifies them (name and commit, version or checksum).
    """
    folder = model_folder(provenance, model)
    verify(provenance)  # damaged weights mostly load, as other numbers
    decoder = load_model(folder, model["dtype"], device, (model["layers"], model["heads"]))
    record = read_json(provenance)
    weights = [file["sha256"] for file in record["files"] if file["path"].endswith(".safetensors")]
    identity = {"name": record["name"], "commit": record.get("commit"), "weights_sha256": weights}
    return decoder, load_tokenizer(folder), identity


def longest_input(folder: str | Path) -> int | None:
    """Return how many tokens a model reads at most; None if its config does not say."""
    config = read_config(folder)
    return config.get("max_position_embeddings") or config.get("n_positions")


def load_tokenizer(folder: str | Path):
    """Load a tokenizer from a local folder, padding on the left as batched generation needs.

    Raises:
        UserError: if the folder holds none.
    """
    from transformers import AutoTokenizer

    if not any(Path(folder).glob("tokenizer*")) and not any(Path(folder).glob("vocab*")):
        raise UserError(f"{folder}: no tokenizer is there (tokenizer.json and others). {LACKING}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, padding_side="left"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{folder}: the tokenizer does not load: {why} {LACKING}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def scaled_heads(decoder: Decoder, heads: Sequence[Head], alpha: float) -> Iterator[None]:
    """Scale what ``heads`` write to the residual stream by ``alpha`` while the block runs.

    Scaling a head is scaling its columns of the output projection: exact, free at run time, and
    without effect on the projection's bias. The columns are put back bit by bit.

    Raises:
        UserError: if a head does not exist.
    """
    n_layers, n_heads = decoder.shape
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise UserError(f"L{layer}.H{head} does not exist: {n_layers} layers x {n_heads} heads")
    with torch.no_grad():
        views = [decoder.columns(*head) for head in dict.fromkeys(map(tuple, heads))]
        kept = [view.clone() for view in views]
        try:
            for view in views:
                view.mul_(alpha)
            yield
        finally:
            for view, original in zip(views, kept, strict=True):
                view.copy_(original)


@contextmanager
def projection_inputs(
    decoder: Decoder, layers: Sequence[int], reduce: Callable[[Tensor], Tensor] = lambda z: z
) -> Iterator[dict[int, Tensor]]:
    """Collect the inputs of the layers' output projections during forward passes.

    Args:
        decoder: the model.
        layers: which.
        reduce: what is kept of an input, batch x positions x (heads * head_dim); all, if not said.

    Yields:
        A dict that, after each forward pass, maps a layer to what is kept of its input.
    """
    seen: dict[int, Tensor] = {}

    def keep(layer):
        return lambda module, args: seen.__setitem__(layer, reduce(args[0]))

    handles = [decoder.projections[i].register_forward_pre_hook(keep(i)) for i in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def hook_scaled_logits(decoder: Decoder, heads: Sequence[Head], alpha: float, ids: Tensor):
    """Return logits with the heads scaled by forward hooks: the slow way, to check the edit by."""
    width = decoder.head_dim

    def scale(own):
        def hook(module, args):
            z = args[0].clone()
            for head in own:
                z[..., head * width : (head + 1) * width] *= alpha
            return (z, *args[1:])

        return hook

    by_layer = {layer: [h for at, h in heads if at == layer] for layer, _ in heads}
    handles = [
        decoder.projections[layer].register_forward_pre_hook(scale(own))
        for layer, own in by_layer.items()
    ]
    try:
        return decoder.model(ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def self_check(decoder: Decoder) -> None:
    """Prove on a short input that heads are where the code believes them to be.

    Three things must hold: scaling by 1 leaves the logits bit-identical; a layer's heads' writes
    (and the projection's bias) sum to the attention's output; scaling columns gives the logits
    that a forward hook on the heads gives.

    Raises:
        UserError: naming what does not hold.
    """
    model = decoder.model
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ids = (torch.arange(8, device=decoder.device)[None] * 97 + 5) % vocabulary
    n_layers, n_heads = decoder.shape
    probed = sorted({0, n_layers // 2, n_layers - 1})
    heads = [(layer, n_heads - 1) for layer in probed]

    outputs: dict[int, Tensor] = {}
    handles = [
        # What the attention returns, and not the projection, lest it be another projection.
        decoder.attentions[i].register_forward_hook(
            lambda module, args, out, i=i: outputs.__setitem__(
                i, out[0] if isinstance(out, tuple) else out
            )
        )
        for i in probed
    ]
    try:
        with projection_inputs(decoder, probed) as inputs:
            plain = model(ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    with scaled_heads(decoder, heads, 1.0):
        same = model(ids, use_cache=False).logits
    with scaled_heads(decoder, heads, -1.0):
        edited = model(ids, use_cache=False).logits

    eps = torch.finfo(plain.dtype).eps
    failures = []
    if not torch.equal(plain, same):
        failures.append("scaling heads by 1 changes the logits")
    for layer in probed:
        if inputs[layer].shape[-1] != n_heads * decoder.head_dim:
            failures.append(f"layer {layer}'s projection reads {inputs[layer].shape[-1]} values")
            continue
        if outputs[layer].shape != (*ids.shape, decoder.columns(layer, 0).shape[0]):
            failures.append(f"layer {layer}'s projection does not make the attention's output")
            continue
        z = inputs[layer].float().unflatten(-1, (n_heads, decoder.head_dim))
        written = torch.einsum("bphk,hdk->bpd", z, decoder.layer_columns(layer))
        bias = getattr(decoder.projections[layer], "bias", None)
        written = written if bias is None else written + bias.float()
        if not _close(written, outputs[layer].float(), 64 * eps):
            failures.append(f"the heads of layer {layer} do not sum to its attention output")
    if not failures:
        hooked = hook_scaled_logits(decoder, heads, -1.0, ids)
        # Both take different roundings through all later layers, so the bound is looser.
        if not _close(edited, hooked, 1024 * eps):
            failures.append("editing the weights differs from a forward hook")
    if failures:
        raise UserError(
            f"The self-check of this {model.config.model_type} model failed: {'; '.join(failures)}."
        )


def _close(a: Tensor, b: Tensor, relative: float) -> bool:
    """Whether a and b differ by at most ``relative`` of b's largest value, and hold no NaN."""
    return bool((a - b).abs().max() <= relative * b.abs().max().clamp_min(1e-6))


@contextmanager
def fast_products(decoder: Decoder, dtype: str | None) -> Iterator[str]:
    """Let matrix products run in ``dtype`` while the block runs, where the device is fast in it.

    What lies between the products stays as it is (PyTorch's autocast). Heads that are scaled inside
    the block are scaled for the block alone.

    Args:
        decoder: the model.
        dtype: ``bfloat16``, or None to leave products in the model's own format.

    Yields:
        The format in which products run.
    """
    device = decoder.device.type
    fast = device == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    if dtype is None or not fast:
        yield str(decoder.model.dtype).removeprefix("torch.")
        return
    # Autocast would round the weights again in every pass, which takes a fifth of a step's time.
    linear = [module for module in decoder.model.modules() if isinstance(module, nn.Linear)]
    kept = [module.weight for module in linear]
    try:
        for module in linear:
            module.weight = nn.Parameter(module.weight.bfloat16(), requires_grad=False)
        with torch.autocast(device, torch.bfloat16):
            yield dtype
    finally:
        for module, weight in zip(linear, kept, strict=True):
            module.weight = weight


def unembedding(decoder: Decoder, token_ids: Sequence[int] | None, fold_norm_gain: bool) -> Tensor:
    """Return rows of the unembedding matrix as float32, v x d.

    Args:
        decoder: the model.
        token_ids: which rows; None takes all.
        fold_norm_gain: multiply the rows by the final norm's gain, so that they are the
            directions of the residual stream that raise the logits.
    """
    rows = decoder.model.get_output_embeddings().weight
    if token_ids is not None:
        rows = rows[torch.as_tensor(token_ids, device=rows.device)]
    rows = rows.float()
    return rows * final_norm_gain(decoder).float() if fold_norm_gain else rows


def language_model(decoder: Decoder) -> nn.Module:
    """Return the part of a model that its layers are in, without the unembedding."""
    base = decoder.model.base_model
    return getattr(base, "language_model", base)


def final_norm_gain(decoder: Decoder) -> Tensor:
    """Return the gain of the norm before the unembedding, d."""
    base = language_model(decoder)
    norm = base.ln_f if decoder.model.config.model_type == "gpt2" else base.norm
    # Gemma's norms store the gain less one.
    return norm.weight + 1 if decoder.model.config.model_type.startswith("gemma") else norm.weight
