"""Reading the same tokens under several conditions: what an edit does not reach is computed once.

A condition scales heads, and the layers below its first scaled head see nothing of that: what they
gave in the plain pass over the same batch still holds, bit for bit.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache

from headpursuit.heads import Head
from headpursuit.models import Decoder, language_model


def first_edited(decoder: Decoder, conditions: Mapping[str, Sequence[Head]]) -> dict[str, int]:
    """Return the lowest layer that a condition edits, or the number of layers if it edits none.

    Args:
        decoder: the model.
        conditions: condition to the heads that are scaled.
    """
    end = len(decoder.layers)
    return {name: min([end, *(layer for layer, _ in heads)]) for name, heads in conditions.items()}


@contextmanager
def returning(layers: Sequence[nn.Module], output: Callable[[], Any]) -> Iterator[None]:
    """Let layers return what ``output`` gives, without computing.

    Below an edit that is what the last of them returned before: the model's loop hands it on.
    """
    for layer in layers:
        # An attribute of the instance goes before the class's method and leaves the module,
        # with whatever attributes the model's own loop reads, in its place.
        layer.forward = lambda *args, **kwargs: output()
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def layer_outputs(decoder: Decoder, firsts: Collection[int]) -> Iterator[dict[int, Any]]:
    """Collect, in a forward pass, what goes into each layer of ``firsts`` but the lowest.

    Yields:
        A dict that, after the pass, maps such a layer to the output of the one below it.
    """
    collected: dict[int, Any] = {}

    def keep(first: int):
        return lambda module, args, output: collected.__setitem__(first, output)

    handles = [
        decoder.layers[first - 1].register_forward_hook(keep(first))
        for first in set(firsts) - {0, len(decoder.layers)}
    ]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replayed(decoder: Decoder, outputs: dict[int, Any], first: int) -> Iterator[None]:
    """Compute the layers from ``first`` on alone; ``outputs`` is of :func:`layer_outputs`."""
    with returning(decoder.layers[:first], lambda: outputs[first]):
        yield


@dataclass(frozen=True)
class Reading:
    """A batch of tokens as the model read them, from which it can go on.

    Attributes:
        arguments: what the language model was called with.
        outputs: of :func:`layer_outputs`.
        cache: keys and values.
        hidden: the last position's final hidden state, batch x d.
    """

    arguments: dict[str, Any]
    outputs: dict[int, Any]
    cache: DynamicCache
    hidden: Tensor


def read(decoder: Decoder, firsts: Collection[int], **inputs: Any) -> Reading:
    """Read a batch with the model as it is, as far up as any of its readers has use for.

    Args:
        decoder: the model.
        firsts: the layers from which it is going to be read again (:func:`read_again`).
        inputs: what the model is called with.
    """
    cache = _new_cache(decoder)
    deepest = max(1, *firsts)
    arguments: dict[str, Any] = {}
    handle = language_model(decoder).register_forward_pre_hook(
        lambda module, args, kwargs: arguments.update(kwargs), with_kwargs=True
    )
    try:
        with (
            layer_outputs(decoder, {*firsts, deepest}) as outputs,
            returning(decoder.layers[deepest:], lambda: outputs[deepest]),
        ):
            done = decoder.model.base_model(**inputs, past_key_values=cache, use_cache=True)
    finally:
        handle.remove()
    return Reading(arguments, outputs, cache, done.last_hidden_state[:, -1])


def read_again(decoder: Decoder, plain: Reading, first: int) -> tuple[DynamicCache, Tensor]:
    """Read the same batch from layer ``first`` on; below it, what was read before holds.

    Returns:
        Keys and values, which may be added to, and the last position's final hidden state.
    """
    cache, hidden = _new_cache(decoder), plain.hidden
    if first < len(decoder.layers):
        arguments = {**plain.arguments, "past_key_values": cache, "use_cache": True}
        with replayed(decoder, plain.outputs, first):
            hidden = language_model(decoder)(**arguments).last_hidden_state[:, -1]
    # Copies, since what follows is going to be added to them.
    cache.layers[:first] = [copy(layer) for layer in plain.cache.layers[:first]]
    return cache, hidden


def _new_cache(decoder: Decoder) -> DynamicCache:
    return DynamicCache(config=decoder.model.config.get_text_config())
