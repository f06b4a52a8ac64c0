"""A causal language model's heads: where they are, what they write, and scaling that."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from headpursuit.method.heads import Condition, Head, refuse_absent
from headpursuit.run.files import UserError


class Family(NamedTuple):
    """Where the models of a family keep their parts: the layers, and the others from a layer."""

    layers: str = "model.layers"
    projection: str = "self_attn.o_proj"  # of the attention's output
    next_norm: str = "post_attention_layernorm"  # reads the stream that the attention has added to
    post_norm: str | None = None  # what the attention's output passes before it is added
    transposed: bool = False  # the projection's weight is (in, out), as GPT-2's Conv1D has it

    @property
    def reads_images(self) -> bool:
        """Say whether its models read images beside text."""
        return self.layers == OF_IMAGE_TEXT


OF_IMAGE_TEXT = "model.language_model.layers"
GEMMA_2 = Family(next_norm="pre_feedforward_layernorm", post_norm="post_attention_layernorm")
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "gemma": Family(),
    "gemma2": GEMMA_2,
    "gpt2": Family("transformer.h", "attn.c_proj", "ln_2", transposed=True),
    "llava": Family(OF_IMAGE_TEXT),
    "llava_next": Family(OF_IMAGE_TEXT),
    "qwen2_5_vl": Family(OF_IMAGE_TEXT),
    "gemma3": GEMMA_2._replace(layers=OF_IMAGE_TEXT),
}


def family_of(kind: str | None) -> Family:
    """Return the family of a config's ``model_type``; UserError if it is none of FAMILIES."""
    if kind not in FAMILIES:
        raise UserError(
            f"The architecture '{kind}' is not supported; supported are {', '.join(FAMILIES)}. "
            "A new one is a line of FAMILIES in decoder.py."
        )
    return FAMILIES[kind]


class Decoder:
    """A causal language model together with where its heads are.

    Attributes:
        model: the Hugging Face model, and ``device``, where it is.
        language_model: the part of it that its layers are in, without the unembedding.
        layers, attentions, projections, next_norms: one of each layer; see :class:`Family`.
        post_norms: each layer's (Gemma 2 and 3), or an empty list.
        n_heads, head_dim: query heads a layer, and their width. Under grouped-query attention the
            projection's columns belong to query heads, so these are the heads everywhere.
        shape: (layers, heads a layer).
    """

    def __init__(self, model: nn.Module):
        """Find a model's parts; UserError if its architecture is none of :data:`FAMILIES`."""
        family = family_of(model.config.model_type)
        self.model = model
        # Of weights that accelerate keeps elsewhere until they are needed, torch knows no device.
        devices = (own.device for own in model.parameters() if own.device.type != "meta")
        self.device = next(devices, torch.device("cpu"))
        self.language_model = getattr(model.base_model, "language_model", model.base_model)
        self.layers = attrgetter(family.layers)(model)
        self.attentions = self._parts(family.projection.rpartition(".")[0])
        self.projections = self._parts(family.projection)
        self.next_norms = self._parts(family.next_norm)
        self.post_norms = self._parts(family.post_norm) if family.post_norm else []
        self.transposed = family.transposed
        config = model.config.get_text_config()  # of an image-text model, its language model's
        self.n_heads = config.num_attention_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.n_heads
        self.shape = len(self.layers), self.n_heads

    def _parts(self, path: str) -> list[nn.Module]:
        return [attrgetter(path)(layer) for layer in self.layers]

    def matrix(self, layer: int) -> Tensor:
        """Return a layer's output projection, d x (heads * head_dim).

        Of a quantised one it is what the projection makes of the unit matrix.
        """
        projection = self.projections[layer]
        weight = parameter_of(projection)
        if weight is None:
            size = self.n_heads * self.head_dim
            unit = torch.eye(size, dtype=self.model.dtype, device=self.device)
            with torch.no_grad():
                return (projection(unit) - projection(torch.zeros_like(unit[:1]))).T
        return weight.T if self.transposed else weight

    def layer_columns(self, layer: int) -> Tensor:
        """Return what takes a layer's projection inputs to the stream, heads x d x head_dim."""
        return by_head(self.matrix(layer), self.n_heads, self.post_gain(layer))

    def post_gain(self, layer: int) -> Tensor | None:
        """Return the gain of the norm behind a layer's projection, d; None where there is none."""
        return self.gain(self.post_norms[layer]) if self.post_norms else None

    def gain(self, norm: nn.Module) -> Tensor:
        """Return the gain of one of the model's norms as float32, d."""
        # Gemma's norms store the gain less one.
        less = self.model.config.model_type.startswith("gemma")
        weight = parameter_of(norm).float()
        return weight + 1 if less else weight

    def frozen_scale(self, layer: int, output: Tensor) -> Tensor | None:
        """Return what the norm behind a layer's projection multiplies each position by.

        The projection's ``output`` is batch x positions x d, the result batch x positions as
        float32, and None where no norm follows.
        """
        if not self.post_norms:
            return None
        mean_square = output.float().square().mean(-1)
        return (mean_square + self.post_norms[layer].eps).rsqrt()

    def image_positions(self, ids: Tensor) -> Tensor:
        """Return which tokens are an image's, as the processor expanded them; of text none."""
        return ids == getattr(self.model.config, "image_token_id", -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of final hidden states, (..., d) to (..., vocabulary)."""
        logits = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        # Gemma 2's; in place, as what is planned for a loop has each row's logits once.
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


PLAIN = (torch.float32, torch.bfloat16, torch.float16)


def parameter_of(module: nn.Module, name: str = "weight") -> Tensor | None:
    """Return a module's parameter, wherever accelerate keeps it; None of one that is quantised."""
    with align_module_device(module):
        own = getattr(module, name, None)
    plain = type(own) in (Tensor, nn.Parameter) and own.dtype in PLAIN
    return own if plain else None


def by_head(matrix: Tensor, n_heads: int, gain: Tensor | None) -> Tensor:
    """Return an output projection's columns by head as float32, heads x d x head_dim.

    The ``gain`` of the norm behind the projection, d, is folded in; it is None without a norm.
    """
    columns = matrix.unflatten(1, (n_heads, -1)).transpose(0, 1).float().contiguous()
    return columns if gain is None else columns * gain[:, None]


@contextmanager
def collected(
    modules: Sequence[nn.Module],
    keep: Callable[[int, tuple, Any], Any],
    layers: Iterable[int] | None = None,
) -> Iterator[dict[int, Any]]:
    """Yield a dict that maps layers, after a forward pass, to what is kept of their ``modules``.

    That is what ``keep`` returns for the layer's number, the module's inputs and its output.
    """
    found: dict[int, Any] = {}

    def hook(layer: int, module: nn.Module, args: tuple, output: Any) -> None:
        found[layer] = keep(layer, args, output)

    with ExitStack() as stack:
        for layer in range(len(modules)) if layers is None else layers:
            stack.enter_context(modules[layer].register_forward_hook(partial(hook, layer)))
        yield found


def gains(decoder: Decoder, conditions: Sequence[Condition]) -> Tensor:
    """Return what each condition multiplies each head's write by, conditions x layers x heads.

    It is alpha for the condition's heads, 2 - alpha for those of them that write against the
    concept, and 1 for all others, in the model's number format.

    Raises:
        UserError: if a head does not exist.
    """
    n_layers, n_heads = decoder.shape
    made = torch.ones(
        len(conditions), n_layers, n_heads, dtype=decoder.model.dtype, device=decoder.device
    )
    for own, condition in zip(made, conditions, strict=True):
        refuse_absent(condition.heads, n_layers, n_heads)
        for layer, head in condition.heads:
            mirrored = (layer, head) in condition.against
            own[layer, head] = 2 - condition.alpha if mirrored else condition.alpha
    return made


class ScaledRows:
    """Multiplies what heads write, in each row of a batch by gains of its own, while entered.

    The gain multiplies the head's slice of what the output projection reads, and so its write; the
    projection's bias stays as it is. No weight is edited. With gains of -1, 0 and 1 nothing is
    rounded: the result is bit by bit that of a model whose columns are multiplied.
    """

    def __init__(self, decoder: Decoder, by_row: Tensor, where: Tensor | None = None):
        """Take the gains, rows x layers x heads (or 1 x layers x heads for all rows).

        ``where`` says at which positions they act, rows x positions; None is all.
        """
        self.projections = decoder.projections
        self.where = None if where is None or where.all() else where[..., None]
        edited = (by_row != 1).any(2).any(0).nonzero()[:, 0].tolist()
        self.factors = {
            layer: by_row[:, layer].repeat_interleave(decoder.head_dim, 1)[:, None]
            for layer in edited
        }

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows, in the order of their numbers in ``rows``."""
        self.factors = {layer: factor[rows] for layer, factor in self.factors.items()}

    def _multiply(self, layer: int, module: nn.Module, args: tuple) -> tuple:
        scaled = args[0] * self.factors[layer].to(args[0])
        return (scaled if self.where is None else scaled.where(self.where, args[0]),)

    def __enter__(self) -> "ScaledRows":
        """Begin to multiply."""
        self.hooks = ExitStack()
        for layer in self.factors:
            hook = partial(self._multiply, layer)
            self.hooks.enter_context(self.projections[layer].register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_: Any) -> None:
        """Leave the model as it was."""
        self.hooks.close()


def scaled_heads(decoder: Decoder, heads: Sequence[Head], alpha: float) -> ScaledRows:
    """Return what scales ``heads`` by ``alpha`` in all rows; UserError if one does not exist."""
    return ScaledRows(decoder, gains(decoder, [Condition(heads, alpha)]))


@contextmanager
def fast_products(decoder: Decoder, dtype: str | None) -> Iterator[str]:
    """Let matrix products run in ``dtype`` while the block runs, where the device is fast in it.

    The dtype is ``bfloat16``, or None for the model's own. What lies between the products stays as
    it is (PyTorch's autocast). Yields the format in which products run.
    """
    device = decoder.device.type
    fast = device == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    if dtype is None or not fast:
        yield str(decoder.model.dtype).removeprefix("torch.")
        return
    # Autocast would round the weights again in every pass, which takes a fifth of a step's time.
    linear = [module for module in decoder.model.modules() if isinstance(module, nn.Linear)]
    if any(parameter_of(own) is None or own.weight.is_meta for own in linear):
        raise UserError(
            "compute.products needs plain weights, all of them on the device, and this model's are "
            "quantised, or kept elsewhere (models.*.device_map). Set it to null."
        )
    kept = [module.weight for module in linear]
    try:
        for module in linear:
            module.weight = nn.Parameter(module.weight.bfloat16(), requires_grad=False)
        with torch.autocast(device, torch.bfloat16):
            yield dtype
    finally:
        for module, weight in zip(linear, kept, strict=True):
            module.weight = weight
