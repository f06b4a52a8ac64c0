"""Reading and answering under several conditions: one loop for text and images.

A condition scales heads. Its samples are rows of a batch beside those of other conditions, each row
with the gains of its condition. What lies below a batch's lowest scaled head is the same for all
conditions, and is computed once: a plain pass over the samples gives it, bit for bit.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from headpursuit.method.heads import Head
from headpursuit.method.models import Decoder, ScaledRows, gains, language_model

Conditions = Mapping[str, Sequence[Head]]
# Takes logits (rows x vocabulary), each row's sample and the step; returns each row's token.
Pick = Callable[[Tensor, Tensor, int], Tensor]


def first_edited(decoder: Decoder, conditions: Conditions) -> dict[str, int]:
    """Return the lowest layer that a condition edits, or the number of layers if it edits none."""
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


@dataclass(frozen=True)
class Reading:
    """A batch of samples as the model read them, from which it can go on.

    Attributes:
        arguments: what the language model was called with.
        outputs: of :func:`layer_outputs`.
        cache: keys and values; None if they were not asked for.
        hidden: final hidden states, samples x positions x d, if the pass went through all layers.
    """

    arguments: dict[str, Any]
    outputs: dict[int, Any]
    cache: DynamicCache | None
    hidden: Tensor

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.hidden)


def read(decoder: Decoder, firsts: Collection[int], cached: bool = True, **inputs: Any) -> Reading:
    """Read samples with the model as it is, as far up as any of its readers has use for.

    Args:
        decoder: the model.
        firsts: the layers from which the samples are going to be read again (:func:`read_rows`).
        cached: whether keys and values are kept.
        inputs: what the model is called with.
    """
    cache = _new_cache(decoder) if cached else None
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
            done = decoder.model.base_model(**inputs, past_key_values=cache, use_cache=cached)
    finally:
        handle.remove()
    return Reading(arguments, outputs, cache, done.last_hidden_state)


def read_rows(
    decoder: Decoder, plain: Reading, first: int, times: int = 1
) -> tuple[DynamicCache | None, Tensor]:
    """Read the same samples ``times`` times, from layer ``first`` on; below it all rows are alike.

    Returns:
        Keys and values, which may be added to, and the final hidden states, (times * samples) x
        positions x d: all samples, then all samples again.
    """
    rows = torch.arange(len(plain), device=decoder.device).repeat(times)
    cache, hidden = None if plain.cache is None else _new_cache(decoder), plain.hidden
    if first < len(decoder.layers):
        arguments = {name: _repeated(own, rows) for name, own in plain.arguments.items()}
        arguments |= {"past_key_values": cache, "use_cache": cache is not None}
        below = _repeated(plain.outputs.get(first), rows)  # none below the lowest layer
        with returning(decoder.layers[:first], lambda: below):
            hidden = language_model(decoder)(**arguments).last_hidden_state
    elif times > 1:
        hidden = hidden[rows]
    if cache is not None:
        # Copies, since what follows is going to be added to them.
        cache.layers[:first] = [copy(layer) for layer in plain.cache.layers[:first]]
        for layer in cache.layers[:first] if times > 1 else ():
            layer.batch_select_indices(rows)
    return cache, hidden


def _repeated(value: Any, rows: Tensor) -> Any:
    """Return the rows of whatever a layer or the language model takes for a batch of samples."""
    samples = int(rows[-1]) + 1
    if len(rows) == samples:
        return value
    if isinstance(value, Mapping):
        return {name: _repeated(own, rows) for name, own in value.items()}
    if isinstance(value, tuple):
        return tuple(_repeated(own, rows) for own in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    # Qwen's positions have an axis of their own before that of the samples.
    axis = 1 if value.ndim == 3 and not value.is_floating_point() else 0
    return value.index_select(axis, rows) if value.shape[axis] == samples else value


def _new_cache(decoder: Decoder) -> DynamicCache:
    return DynamicCache(config=decoder.model.config.get_text_config())


def groups(
    decoder: Decoder, conditions: Conditions, size: int
) -> Iterator[tuple[list[str], int, Tensor]]:
    """Yield conditions, ``size`` at a time: their names, the lowest layer that they edit, and that.

    Conditions that begin to differ from the model in about the same layer come together.
    """
    firsts = first_edited(decoder, conditions)
    names = sorted(conditions, key=firsts.__getitem__)
    for start in range(0, len(names), size):
        some = names[start : start + size]
        yield some, min(firsts[name] for name in some), [conditions[name] for name in some]


@torch.inference_mode()
def respond(
    decoder: Decoder,
    encoded: Mapping[str, Tensor],
    conditions: Conditions,
    alpha: float,
    max_new_tokens: int,
    stops: Sequence[int],
    batch_tokens: int,
    pick: Pick,
) -> dict[str, list[tuple[list[int], str]]]:
    """Write one response to each sample under each condition.

    Args:
        decoder: the model.
        encoded: what its forward pass takes for the samples, padded on the left, with
            attention_mask; position_ids, unless the model makes its own.
        conditions: condition to the heads that are scaled; none for the model as it is.
        alpha: what the heads' writes are multiplied by.
        max_new_tokens: longest response.
        stops: ids that end a response.
        batch_tokens: tokens, of samples and responses, up to which conditions share a batch; one
            condition's samples always do.
        pick: what chooses the next token.

    Returns:
        By condition, for each sample its new token ids, without the end token, and why it stopped:
        ``eos`` or ``length``.
    """
    plain = read(decoder, first_edited(decoder, conditions).values(), **encoded)
    mask, positions = encoded["attention_mask"], plain.arguments["position_ids"]
    tokens = len(mask) * (mask.shape[1] + max_new_tokens)
    responses = {}
    for names, first, heads in groups(decoder, conditions, max(1, batch_tokens // tokens)):
        by_row = gains(decoder, heads, alpha).repeat_interleave(len(plain), 0)
        with ScaledRows(decoder, by_row) as scaled:
            cache, hidden = read_rows(decoder, plain, first, len(names))
            state = _State(cache, mask.repeat(len(names), 1), _again(positions, len(names)))
            rows = _go_on(decoder, scaled, state, hidden[:, -1], len(plain), max_new_tokens, stops,
                          pick)  # fmt: skip
        found = [until_stop(row, stops) for row in rows.tolist()]
        for number, name in enumerate(names):
            responses[name] = found[number * len(plain) : (number + 1) * len(plain)]
    return {name: responses[name] for name in conditions}


def _again(positions: Tensor, times: int) -> Tensor:
    """Return the samples' last positions, ``times`` times over; the axis of samples is the last but
    one."""
    return torch.cat([positions[..., -1:]] * times, dim=-2)


@dataclass
class _State:
    """What the next step of a batch's rows reads."""

    cache: DynamicCache
    mask: Tensor
    last: Tensor

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.last = self.mask[rows], self.last.index_select(-2, rows)


def _go_on(
    decoder: Decoder,
    scaled: ScaledRows,
    state: _State,
    hidden: Tensor,
    samples: int,
    max_new_tokens: int,
    stops: Sequence[int],
    pick: Pick,
) -> Tensor:
    """Write on from what was read until every row has stopped; return rows x tokens.

    Rows that have stopped leave the batch as soon as they are half of it: each time all keys and
    values are copied.
    """
    ends = torch.tensor(list(stops), device=decoder.device)
    tokens = ends[:1].repeat(len(hidden), max_new_tokens)
    rows = torch.arange(len(hidden), device=decoder.device)
    stopped = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(max_new_tokens):
        token = pick(decoder.logits(hidden), rows % samples, step)
        tokens[rows, step] = token
        stopped |= torch.isin(token, ends)
        n_stopped = int(stopped.sum())
        if n_stopped == len(rows) or step == max_new_tokens - 1:
            break
        if 2 * n_stopped >= len(rows):
            left = (~stopped).nonzero()[:, 0]
            state.keep(left)
            scaled.keep(left)
            rows, token, stopped = rows[left], token[left], stopped[left]
        state.mask = torch.cat([state.mask, state.mask.new_ones(len(rows), 1)], dim=1)
        hidden = language_model(decoder)(
            input_ids=token[:, None],
            attention_mask=state.mask,
            position_ids=state.last + step + 1,
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    return tokens


def greedy(logits: Tensor, samples: Tensor, step: int) -> Tensor:
    """Take the token of the highest logit."""
    return logits.argmax(-1)


def until_stop(row: list[int], stops: Sequence[int]) -> tuple[list[int], str]:
    """Return a row up to its first end token, and whether there is one: ``eos`` or ``length``."""
    for position, token in enumerate(row):
        if token in stops:
            return row[:position], "eos"
    return row, "length"


def end_tokens(decoder: Decoder, tokenizer) -> list[int]:
    """Return the ids that end a response: the model's own, also for chat, and the tokenizer's."""
    model = decoder.model
    ends = {tokenizer.eos_token_id}
    # A chat model's end of turn often stands in its generation defaults alone.
    of_text = model.config.get_text_config()  # an image-text model has it there
    for declared in (of_text.eos_token_id, model.generation_config.eos_token_id):
        ends |= set(declared) if isinstance(declared, list) else {declared}
    return sorted(ends - {None})
