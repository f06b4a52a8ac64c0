"""Causal language models: loading, their heads, and scaling what a head writes."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from headpursuit.data.sources import source_files, source_root, verify
from headpursuit.method.batches import is_out_of_memory, lacking
from headpursuit.method.heads import Head
from headpursuit.run.files import UserError, read_json

log = logging.getLogger(__name__)


class Family(NamedTuple):
    """Where the models of a family keep their parts.

    Attributes:
        layers: the decoder layers, from the model; what follows is named from a layer.
        projection: the attention output projection.
        next_norm: the norm that reads the residual stream once the attention's output is in it.
        post_norm: the norm that the attention's output passes before it is added, if there is one.
        transposed: whether the projection's weight is (in, out), as that of GPT-2's Conv1D is.
    """

    layers: str = "model.layers"
    projection: str = "self_attn.o_proj"
    next_norm: str = "post_attention_layernorm"
    post_norm: str | None = None
    transposed: bool = False


OF_IMAGE_TEXT = "model.language_model.layers"
LLAMA_LIKE = Family()
IMAGE_TEXT = Family(OF_IMAGE_TEXT)
GEMMA_2 = Family(next_norm="pre_feedforward_layernorm", post_norm="post_attention_layernorm")
FAMILIES: dict[str, Family] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "gemma": LLAMA_LIKE,
    "gemma2": GEMMA_2,
    "gpt2": Family("transformer.h", "attn.c_proj", "ln_2", transposed=True),
    "llava": IMAGE_TEXT,
    "llava_next": IMAGE_TEXT,
    "qwen2_5_vl": IMAGE_TEXT,
    "gemma3": GEMMA_2._replace(layers=OF_IMAGE_TEXT),
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
        next_norms: each layer's norm behind the attention, which reads the residual stream.
        post_norms: each layer's norm of the attention's output (Gemma 2 and 3), or an empty list.
        n_heads: query heads a layer. Under grouped-query attention the projection's columns
            belong to query heads, so this is the number of heads everywhere.
        head_dim: width of a head.
        transposed: whether the projection's weight is (in, out), as GPT-2's is.
    """

    model: nn.Module
    layers: Sequence[nn.Module]
    attentions: Sequence[nn.Module]
    projections: Sequence[nn.Module]
    next_norms: Sequence[nn.Module]
    post_norms: Sequence[nn.Module]
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

    def matrix(self, layer: int) -> Tensor:
        """Return the view of a layer's output projection, d x (heads * head_dim)."""
        weight = self.projections[layer].weight
        return weight.T if self.transposed else weight

    def columns(self, layer: int, head: int) -> Tensor:
        """Return the view of a head's columns of the output projection, d x head_dim."""
        return self.matrix(layer)[:, head * self.head_dim : (head + 1) * self.head_dim]

    def layer_columns(self, layer: int) -> Tensor:
        """Return what takes a layer's projection inputs to the stream, heads x d x head_dim."""
        return by_head(self.matrix(layer), self.n_heads, self.post_gain(layer))

    def post_gain(self, layer: int) -> Tensor | None:
        """Return the gain of the norm behind a layer's projection, d; None where there is none."""
        return self.gain(self.post_norms[layer]) if self.post_norms else None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of final hidden states, (..., d) to (..., vocabulary)."""
        logits = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap  # Gemma 2's

    def gain(self, norm: nn.Module) -> Tensor:
        """Return the gain of one of the model's norms as float32, d."""
        # Gemma's norms store the gain less one.
        less = self.model.config.model_type.startswith("gemma")
        return norm.weight.float() + 1 if less else norm.weight.float()

    def frozen_scale(self, layer: int, output: Tensor) -> Tensor | None:
        """Return what the norm behind a layer's projection multiplies each position by.

        Args:
            layer: which.
            output: of the projection, batch x positions x d.

        Returns:
            batch x positions as float32; None where no norm follows.
        """
        if not self.post_norms:
            return None
        mean_square = output.float().square().mean(-1)
        return (mean_square + self.post_norms[layer].eps).rsqrt()


def by_head(matrix: Tensor, n_heads: int, gain: Tensor | None) -> Tensor:
    """Return an output projection's columns by head as float32, heads x d x head_dim.

    Args:
        matrix: d x (heads * head_dim).
        n_heads: heads.
        gain: of the norm behind the projection, d, which is folded in; None where there is none.
    """
    columns = matrix.unflatten(1, (n_heads, -1)).transpose(0, 1).float().contiguous()
    return columns if gain is None else columns * gain[:, None]


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
    family = FAMILIES[config.model_type]
    layers = attrgetter(family.layers)(model)

    def parts(path: str) -> list[nn.Module]:
        return [attrgetter(path)(layer) for layer in layers]

    config = config.get_text_config()  # of an image-text model, its language model's
    n_heads = config.num_attention_heads
    return Decoder(
        model,
        layers,
        attentions=parts(family.projection.rpartition(".")[0]),
        projections=parts(family.projection),
        next_norms=parts(family.next_norm),
        post_norms=parts(family.post_norm) if family.post_norm else [],
        n_heads=n_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        transposed=family.transposed,
    )


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
        UserError: if the folder is incomplete, its weights are quantised, memory does not
            suffice, the shape is not the stated one, or the self-check fails.
    """
    target = pick_device(device)
    config = read_config(folder)
    _check_family(config.get("model_type"))
    _check_plain(folder, config)
    auto = (
        transformers.AutoModelForImageTextToText
        if reads_images(folder)
        else transformers.AutoModelForCausalLM
    )
    with loading(folder, "model"):
        model, loaded = auto.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            device_map={"": target},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    if missing := sorted(loaded["missing_keys"]):  # they would be random numbers
        raise UserError(
            f"{folder}: the model does not load: no weights for {', '.join(missing)}. {LACKING}"
        )
    decoder = decoder_of(model.eval().requires_grad_(False))
    if expected is not None and decoder.shape != tuple(expected):
        raise UserError(
            f"{folder} has {decoder.shape[0]} layers of {decoder.shape[1]} heads, but the config "
            f"says {expected[0]} of {expected[1]}: correct layers and heads under models."
        )
    with loading(folder, "model"):
        self_check(decoder)
    log.info(
        "loaded %s: %d layers x %d heads of %d, %s on %s",
        folder, *decoder.shape, decoder.head_dim, dtype, target,
    )  # fmt: skip
    return decoder


@contextmanager
def loading(path: str | Path, what: str) -> Iterator[None]:
    """Say what went wrong while a block loads a file or folder, and what helps.

    Raises:
        UserError: in the place of whatever transformers, safetensors or PyTorch raise.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        if is_out_of_memory(error):
            raise UserError(
                f"{path}: memory does not suffice to load the {what}: {lacking(error)}. Its files "
                "are not at fault. Free memory, take a device with more of it or a smaller model, "
                "or set models.*.dtype: bfloat16 (half of float32)."
            ) from error
        helps = (
            LACKING
            if isinstance(error, (OSError, SafetensorError))
            else "Either its files do not belong together, or they need another version of "
            f"transformers than {transformers.__version__}."
        )
        raise UserError(f"{path}: the {what} does not load: {why} {helps}") from error


def _check_plain(folder: str | Path, config: Mapping[str, Any]) -> None:
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and (found := part.get("quantization_config")):
            method = found.get("quant_method", "bitsandbytes") if isinstance(found, dict) else found
            raise UserError(
                f"{folder}: its weights are quantised ({method}, says its config.json), and "
                "scaling a head's columns needs plain ones. Name the unquantised model in "
                "models.*.source, in bfloat16 or float16."
            )


def reads_images(folder: str | Path) -> bool:
    """Say whether a folder's model reads images beside text."""
    family = FAMILIES.get(read_config(folder).get("model_type"))
    return family is not None and family.layers == OF_IMAGE_TEXT


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
    if not any(Path(folder).glob("tokenizer*")) and not any(Path(folder).glob("vocab*")):
        raise UserError(f"{folder}: no tokenizer is there (tokenizer.json and others). {LACKING}")
    with loading(folder, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, padding_side="left"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    log.info("chat template: %s", ", ".join(template_files(folder)) or "none")
    return tokenizer


def template_files(folder: str | Path) -> list[str]:
    """Return which of a model's files hold a chat template: uploads have it in one of four."""
    found = [path.name for path in sorted(Path(folder).glob("chat_template.*"))]
    for name in ("tokenizer_config.json", "processor_config.json"):
        path = Path(folder) / name
        if path.exists() and "chat_template" in read_json(path):
            found.append(name)
    return found


def gains(decoder: Decoder, conditions: Sequence[Sequence[Head]], alpha: float) -> Tensor:
    """Return what each condition multiplies each head's write by.

    Args:
        decoder: the model.
        conditions: the heads that each of them scales.
        alpha: what those heads' writes are multiplied by.

    Returns:
        Conditions x layers x heads, in the model's number format; 1 but for the scaled heads.

    Raises:
        UserError: if a head does not exist.
    """
    n_layers, n_heads = decoder.shape
    made = torch.ones(
        len(conditions), n_layers, n_heads, dtype=decoder.model.dtype, device=decoder.device
    )
    for own, heads in zip(made, conditions, strict=True):
        for layer, head in heads:
            if not (0 <= layer < n_layers and 0 <= head < n_heads):
                raise UserError(
                    f"L{layer}.H{head} does not exist: {n_layers} layers x {n_heads} heads"
                )
            own[layer, head] = alpha
    return made


class ScaledRows:
    """Multiplies what heads write, in each row of a batch by gains of its own, while entered.

    The gain multiplies the head's slice of what the output projection reads, and so its write; the
    projection's bias stays as it is. No weight is edited. With gains of -1, 0 and 1 nothing is
    rounded: the result is bit by bit that of a model whose columns are multiplied.
    """

    def __init__(self, decoder: Decoder, by_row: Tensor):
        """Take the gains, rows x layers x heads (or 1 x layers x heads for all rows)."""
        self.projections = decoder.projections
        edited = (by_row != 1).any(2).any(0).nonzero()[:, 0].tolist()
        self.factors = {
            layer: by_row[:, layer].repeat_interleave(decoder.head_dim, 1)[:, None]
            for layer in edited
        }

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows, in the order of their numbers in ``rows``."""
        self.factors = {layer: factor[rows] for layer, factor in self.factors.items()}

    def __enter__(self) -> "ScaledRows":
        """Begin to multiply."""

        def multiply(layer: int) -> Callable:
            return lambda module, args: (args[0] * self.factors[layer].to(args[0].dtype),)

        self.handles = [
            self.projections[layer].register_forward_pre_hook(multiply(layer))
            for layer in self.factors
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        """Leave the model as it was."""
        for handle in self.handles:
            handle.remove()


def scaled_heads(decoder: Decoder, heads: Sequence[Head], alpha: float) -> ScaledRows:
    """Return what scales ``heads`` by ``alpha`` in all rows.

    Raises:
        UserError: if a head does not exist.
    """
    return ScaledRows(decoder, gains(decoder, [heads], alpha))


def _scaled(z: Tensor, scale: Tensor | None) -> Tensor:
    return z if scale is None else z * scale[..., None]


@contextmanager
def projection_inputs(
    decoder: Decoder,
    layers: Sequence[int],
    reduce: Callable[[Tensor, Tensor | None], Any] = _scaled,
) -> Iterator[dict[int, Any]]:
    """Collect the inputs of the layers' output projections during forward passes.

    Args:
        decoder: the model.
        layers: which.
        reduce: what is kept of an input, batch x positions x (heads * head_dim), given the frozen
            scale of the norm behind the projection (:meth:`Decoder.frozen_scale`); their product,
            if not said, which :meth:`Decoder.layer_columns` take to the residual stream.

    Yields:
        A dict that, after each forward pass, maps a layer to what is kept of its input.
    """
    seen: dict[int, Any] = {}

    def keep(layer):
        return lambda module, args, output: seen.__setitem__(
            layer, reduce(args[0], decoder.frozen_scale(layer, output))
        )

    handles = [decoder.projections[i].register_forward_hook(keep(i)) for i in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _watch(
    decoder: Decoder, ids: Tensor, given: Sequence[Tensor] | None = None
) -> tuple[Tensor, list[SimpleNamespace]]:
    """Run the model and watch each layer's attention.

    Args:
        decoder: the model.
        ids: token ids, batch x positions.
        given: what each layer reads in the place of the residual stream, so that no layer sees
            what is edited below it.

    Returns:
        The logits, and for each layer the residual stream ``before``, what the projection reads
        (``z``), the frozen ``scale`` behind it, what is ``added`` to the stream, and the stream
        ``after`` that, as the next norm reads it.
    """

    def hook(i: int, own: SimpleNamespace) -> list:
        def begin(module, args):
            own.before = args[0] if given is None else given[i]
            return (own.before, *args[1:])

        def project(module, args, output):
            own.z, own.scale = args[0], decoder.frozen_scale(i, output)

        def add(module, args, output):
            own.added = output[0] if isinstance(output, tuple) else output

        def end(module, args):
            own.after = args[0]

        return [
            decoder.layers[i].register_forward_pre_hook(begin),
            decoder.projections[i].register_forward_hook(project),
            (decoder.post_norms or decoder.attentions)[i].register_forward_hook(add),
            decoder.next_norms[i].register_forward_pre_hook(end),
        ]

    passed = [SimpleNamespace() for _ in decoder.layers]
    handles = [handle for i, own in enumerate(passed) for handle in hook(i, own)]
    try:
        return decoder.model(ids, use_cache=False).logits, passed
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def self_check(decoder: Decoder) -> None:
    """Prove on a short input that heads are where the code believes them to be.

    In every layer, what the attention adds must turn the residual stream before it into the
    stream behind it, bit by bit, and the heads' writes and the bias must sum to it. The logits
    must be what the code makes of the final hidden states. Scaling the head that writes most in a
    layer must change what that layer adds by (alpha - 1) times its write. Alpha is chosen so that
    this change is as large as all that the layer adds: an edit that has no effect, or is of another
    head or sign, is then far outside of rounding in any number format, however little the head
    writes.

    Raises:
        UserError: naming what does not hold.
    """
    model = decoder.model
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ids = (torch.arange(8, device=decoder.device)[None] * 97 + 5) % vocabulary
    logits, plain = _watch(decoder, ids)
    failures = [
        lack for layer, own in enumerate(plain) if (lack := _check_layer(decoder, layer, own))
    ]
    if not failures:
        heads = [(layer, own.head) for layer, own in enumerate(plain)]
        final = model.base_model(ids, use_cache=False).last_hidden_state
        if not torch.equal(decoder.logits(final), logits):
            failures.append("the logits are not the final hidden states' by the unembedding")
        with ExitStack() as stack:
            for head, own in zip(heads, plain, strict=True):
                stack.enter_context(scaled_heads(decoder, [head], own.alpha))
            _, edited = _watch(decoder, ids, [own.before for own in plain])
        for (layer, head), own, changed in zip(heads, plain, edited, strict=True):
            change = _scaled((own.alpha - 1) * own.write, changed.scale)
            if not _close(_scaled(own.total, changed.scale) + change, changed.added, change):
                failures.append(f"scaling L{layer}.H{head} does not scale what it writes")
    if failures:
        listed = "; ".join(failures[:3]) + ("; and others" if len(failures) > 3 else "")
        raise UserError(f"The self-check of this {model.config.model_type} model failed: {listed}.")


def _check_layer(decoder: Decoder, layer: int, own: SimpleNamespace) -> str | None:
    """Return what does not hold of a layer's heads, if anything.

    If all holds, ``own``, of :func:`_watch`, gains the ``total`` of the heads' writes and the bias,
    the ``head`` that writes most and its ``write``, before the frozen scale, and the ``alpha``
    that this head is to be scaled by.
    """
    wide = own.z.shape[-1]
    if wide != decoder.n_heads * decoder.head_dim:
        return f"layer {layer}'s projection reads {wide} values"
    if decoder.columns(layer, 0).shape[0] != own.added.shape[-1]:
        return f"layer {layer}'s projection does not make what its attention adds"
    if not own.added.isfinite().all():
        dtype = str(own.added.dtype).removeprefix("torch.")
        return f"layer {layer}'s attention gives values that are not finite in {dtype}"
    if not torch.equal(own.before + own.added, own.after):
        return f"layer {layer}'s attention gives something else than is added"
    z = own.z.float().unflatten(-1, (decoder.n_heads, decoder.head_dim))
    writes = torch.einsum("bphk,hdk->hbpd", z, decoder.layer_columns(layer))
    own.total = writes.sum(0)
    if (bias := getattr(decoder.projections[layer], "bias", None)) is not None:
        gain = decoder.post_gain(layer)
        own.total += bias.float() * (1 if gain is None else gain)
    if not _close(_scaled(own.total, own.scale), own.added, own.added):
        return f"the heads of layer {layer} do not sum to what it adds"
    sizes = writes.flatten(1).norm(dim=1)
    own.head = int(sizes.argmax())
    own.write = writes[own.head].clone()  # the other heads' are let go
    own.alpha = _telling(own.z, own.total.norm() / sizes[own.head])
    return None


def _telling(z: Tensor, ratio: Tensor) -> float:
    """Return a negative power of two that makes a head write as much as its layer.

    Args:
        z: what the projection reads; times the power, it stays in its number format's range.
        ratio: how many times the layer's write is larger than the head's.
    """
    most = math.frexp(torch.finfo(z.dtype).max / float(z.abs().max().clamp_min(1)))[1]
    ratio = float(ratio)  # not finite where no head of the layer writes anything
    return -(2.0 ** min(math.frexp(max(ratio, 1))[1], most - 2)) if math.isfinite(ratio) else -1.0


def _close(found: Tensor, expected: Tensor, size: Tensor) -> bool:
    """Whether two tensors differ by little more than rounding does to one of ``size``."""
    # A product has been rounded to expected's format; sums of thousands of terms, to float32's.
    relative = max(4 * torch.finfo(expected.dtype).eps, 1e-4)
    expected = expected.float()
    apart = (found - expected).norm()
    return bool(apart <= relative * torch.maximum(expected.norm(), size.float().norm()))


@contextmanager
def fast_products(decoder: Decoder, dtype: str | None) -> Iterator[str]:
    """Let matrix products run in ``dtype`` while the block runs, where the device is fast in it.

    What lies between the products stays as it is (PyTorch's autocast).

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


def language_model(decoder: Decoder) -> nn.Module:
    """Return the part of a model that its layers are in, without the unembedding."""
    base = decoder.model.base_model
    return getattr(base, "language_model", base)
