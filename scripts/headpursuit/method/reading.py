"""Reading samples under several conditions, text and images alike.

A condition scales heads. Its samples are rows of a batch beside those of other conditions, each row
with the gains of its condition. What lies below a batch's lowest scaled head is the same for all
conditions, and is computed once: a plain pass over the samples gives it, bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from headpursuit.method.decoder import Decoder, ScaledRows, collected, gains
from headpursuit.method.heads import Condition
from headpursuit.run.files import UserError

Conditions = Mapping[str, Condition]


@contextmanager
def returning(layers: Sequence[nn.Module], output: Callable[[], Any]) -> Iterator[None]:
    """Let layers return what ``output`` gives, without computing: what the last of them returned
    before, which the model's loop hands on."""
    for layer in layers:
        # An attribute of the instance goes before the class's method and leaves the module,
        # with whatever attributes the model's own loop reads, in its place.
        layer.forward = lambda *args, **kwargs: output()
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@dataclass(frozen=True)
class Reading:
    """A batch of rows as the model read them, from which it can go on."""

    arguments: dict[str, Any]  # what the language model was called with
    cache: DynamicCache | None  # keys and values, if they were asked for
    hidden: Tensor  # final hidden states, rows x positions x d, if the pass went that far
    below: Mapping[int, Any]  # what the layer below each that is going to be read from gave


def read(decoder: Decoder, firsts: set[int], cached: bool, **inputs: Any) -> Reading:
    """Read samples with the model as it is, called with ``inputs``.

    It is read as far up as any of ``firsts``, from which they are going to be read on
    (:func:`read_rows`); keys and values are only kept if ``cached``.
    """
    cache = new_cache(decoder) if cached else None
    deepest = max(1, *firsts)
    ends = {first - 1 for first in {*firsts, deepest} - {0, len(decoder.layers)}}
    arguments: dict[str, Any] = {}
    with (
        decoder.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: arguments.update(kwargs), with_kwargs=True
        ),
        collected(decoder.layers, lambda layer, args, output: output, ends) as outputs,
        returning(decoder.layers[deepest:], lambda: outputs[deepest - 1]),
    ):
        done = decoder.model.base_model(**inputs, past_key_values=cache, use_cache=cached)
    below = {layer + 1: output for layer, output in outputs.items()}
    return Reading(arguments, cache, done.last_hidden_state, below)


def read_rows(decoder: Decoder, plain: Reading, first: int, times: int = 1) -> Reading:
    """Read the same samples ``times`` times, from layer ``first`` on; below it all rows are alike.

    The rows are all samples, then all samples again. Keys and values may be added to.
    """
    rows = torch.arange(len(plain.hidden), device=decoder.device).repeat(times)
    cache = None if plain.cache is None else new_cache(decoder)
    arguments = {name: _repeated(own, rows) for name, own in plain.arguments.items()}
    arguments |= {"past_key_values": cache, "use_cache": cache is not None}
    if first < len(decoder.layers):
        below = _repeated(plain.below.get(first), rows)  # none below the lowest layer
        with returning(decoder.layers[:first], lambda: below):
            hidden = decoder.language_model(**arguments).last_hidden_state
    else:
        hidden = _repeated(plain.hidden, rows)
    if cache is not None:
        # Copies, since what follows is going to be added to them.
        cache.layers[:first] = [copy(layer) for layer in plain.cache.layers[:first]]
        for layer in cache.layers[:first] if times > 1 else ():
            layer.batch_select_indices(rows)
    # The rest of the arguments, such as the repeated embeddings, is let go.
    return Reading({"position_ids": arguments.get("position_ids")}, cache, hidden, {})


def _repeated(value: Any, rows: Tensor) -> Any:
    """Return the rows of whatever a layer or the language model takes for a batch of samples."""
    samples = int(rows[-1]) + 1
    if isinstance(value, Mapping):
        return {name: _repeated(own, rows) for name, own in value.items()}
    if isinstance(value, tuple):
        return tuple(_repeated(own, rows) for own in value)
    if not isinstance(value, Tensor) or value.ndim < 2 or len(rows) == samples:
        return value
    # Qwen's positions have an axis of their own before that of the samples.
    axis = 1 if value.ndim == 3 and not value.is_floating_point() else 0
    return value.index_select(axis, rows) if value.shape[axis] == samples else value


def new_cache(decoder: Decoder) -> DynamicCache:
    """Return an empty cache of keys and values."""
    return DynamicCache(config=decoder.model.config.get_text_config())


class Begun(NamedTuple):
    """A batch of samples that the model as it is has read as far as any condition shares it."""

    plain: Reading
    mask: Tensor | None  # which positions are no padding, if that is known
    conditions: Conditions
    places: Mapping[str, Tensor]  # which positions belong to each place, samples x positions
    firsts: Mapping[str, int]  # the layer from which each condition is read on


def begin(
    decoder: Decoder,
    inputs: Mapping[str, Any],
    conditions: Conditions,
    places: Mapping[str, Tensor],
    cached: bool,
) -> Begun:
    """Read samples with the model as it is, as far as the conditions share it.

    ``inputs`` are what its forward pass takes, ``places`` which positions belong to each place.
    Keys and values are only kept if ``cached``.
    """
    end = len(decoder.layers)
    idle = {place for place, where in places.items() if not where.any()}
    firsts = {
        name: end if own.at in idle else min(end, own.lowest) for name, own in conditions.items()
    }
    plain = read(decoder, set(firsts.values()), cached, **inputs)
    return Begun(plain, inputs.get("attention_mask"), conditions, places, firsts)


def each_condition(
    decoder: Decoder, begun: Begun, names: Iterable[str], size: int
) -> Iterator[tuple[list[str], Reading]]:
    """Read samples on under these of their conditions, ``size`` conditions at a time.

    Conditions that begin to differ from the model in about the same layer come together.

    Yields:
        Conditions, and their rows: all samples under the first, then under the next.
    """
    names = sorted(names, key=begun.firsts.__getitem__)
    for some in (names[start : start + size] for start in range(0, len(names), size)):
        own = [begun.conditions[name] for name in some]
        where = torch.cat([begun.places[condition.at] for condition in own])
        with ScaledRows(decoder, gains_by_row(decoder, own, len(begun.plain.hidden)), where):
            rows = read_rows(decoder, begun.plain, begun.firsts[some[0]], len(some))
        yield some, rows


def gains_by_row(decoder: Decoder, conditions: Sequence[Condition], samples: int) -> Tensor:
    """Return the gains of rows that are all samples under one condition, then under the next."""
    return gains(decoder, conditions).repeat_interleave(samples, 0)


def refuse_broken(decoder: Decoder, condition: str) -> NoReturn:
    """Raise a UserError about a condition whose logits are not finite."""
    dtype = str(decoder.model.dtype).removeprefix("torch.")
    raise UserError(
        f"{condition}: its logits are not finite in {dtype}. Take an alpha nearer to 0, or a "
        "number format of larger range (models.*.dtype: bfloat16 or float32)."
    )
