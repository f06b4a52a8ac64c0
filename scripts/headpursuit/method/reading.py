"""Reading and answering under several conditions: one loop for text and images.

A condition scales heads. Its samples are rows of a batch beside those of other conditions, each row
with the gains of its condition. What lies below a batch's lowest scaled head is the same for all
conditions, and is computed once: a plain pass over the samples gives it, bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
# Takes logits (rows x vocabulary), each row's sample and the step; returns each row's token.
Pick = Callable[[Tensor, Tensor, int], Tensor]


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


class Writing(NamedTuple):
    """How responses are written: how long at most, ids that end them, what chooses a token."""

    max_new_tokens: int
    stops: Sequence[int]
    pick: Pick


def read(decoder: Decoder, firsts: set[int], cached: bool, **inputs: Any) -> Reading:
    """Read samples with the model as it is, called with ``inputs``.

    It is read as far up as any of ``firsts``, from which they are going to be read on
    (:func:`read_rows`); keys and values are only kept if ``cached``.
    """
    cache = _new_cache(decoder) if cached else None
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
    cache = None if plain.cache is None else _new_cache(decoder)
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


def _new_cache(decoder: Decoder) -> DynamicCache:
    return DynamicCache(config=decoder.model.config.get_text_config())


def each_condition(
    decoder: Decoder,
    inputs: Mapping[str, Any],
    conditions: Conditions,
    places: Mapping[str, Tensor],
    size: int,
    cached: bool,
) -> Iterator[tuple[list[str], Reading]]:
    """Read samples under every condition, ``size`` conditions at a time.

    Conditions that begin to differ from the model in about the same layer come together.
    ``places`` says of each place which of the positions belong to it, samples x positions.

    Yields:
        Conditions, and their rows: all samples under the first, then under the next.
    """
    end = len(decoder.layers)
    idle = {place for place, where in places.items() if not where.any()}
    firsts = {
        name: min([end, *(layer for layer, _ in own.heads if own.at not in idle)])
        for name, own in conditions.items()
    }
    plain = read(decoder, set(firsts.values()), cached, **inputs)
    names = sorted(conditions, key=firsts.__getitem__)
    for some in (names[start : start + size] for start in range(0, len(names), size)):
        own = [conditions[name] for name in some]
        where = torch.cat([places[condition.at] for condition in own])
        with ScaledRows(decoder, gains_by_row(decoder, own, len(plain.hidden)), where):
            rows = read_rows(decoder, plain, firsts[some[0]], len(some))
        yield some, rows


def gains_by_row(decoder: Decoder, conditions: Sequence[Condition], samples: int) -> Tensor:
    """Return the gains of rows that are all samples under one condition, then under the next."""
    return gains(decoder, conditions).repeat_interleave(samples, 0)


@torch.inference_mode()
def respond(
    decoder: Decoder,
    encoded: Mapping[str, Tensor],
    conditions: Conditions,
    writing: Writing,
    batch_tokens: int,
) -> dict[str, list[tuple[list[int], str]]]:
    """Write one response to each sample under each condition.

    Args:
        decoder: the model.
        encoded: what its forward pass takes for the samples, padded on the left, with
            attention_mask; position_ids, unless the model makes its own.
        conditions: what is scaled, by the condition's name.
        writing: how.
        batch_tokens: of samples and responses, up to which conditions share a batch; one
            condition's samples always do.

    Returns:
        By condition, for each sample its new token ids, without the end token, and why it stopped:
        ``eos`` or ``length``.

    Raises:
        UserError: if a condition's logits are not finite.
    """
    mask, responses = encoded["attention_mask"], {}
    samples = len(mask)
    size = max(1, batch_tokens // (samples * (mask.shape[1] + writing.max_new_tokens)))
    read = torch.ones_like(mask, dtype=torch.bool)
    places = {"all": read, "prompt": read, "response": ~read}
    places["image"] = decoder.image_positions(encoded["input_ids"])
    for names, rows in each_condition(decoder, encoded, conditions, places, size, True):
        own = {name: conditions[name] for name in names}
        written = _go_on(decoder, own, rows, mask.repeat(len(names), 1), writing)
        for name, tokens in zip(names, written.split(samples), strict=True):
            responses[name] = [until_stop(row, writing.stops) for row in tokens.tolist()]
    return {name: responses[name] for name in conditions}


def _go_on(
    decoder: Decoder, conditions: Conditions, start: Reading, mask: Tensor, writing: Writing
) -> Tensor:
    """Write on from what was read until every row has stopped; return rows x tokens.

    Rows that have stopped leave the batch as soon as they are half of it: each time all keys and
    values are copied.
    """
    samples = len(mask) // len(conditions)
    acting = [own if own.at in ("all", "response") else Condition() for own in conditions.values()]
    scaled = ScaledRows(decoder, gains_by_row(decoder, acting, samples))
    hidden, last = start.hidden[:, -1], start.arguments["position_ids"][..., -1:]
    ends = torch.tensor(list(writing.stops), device=decoder.device)
    tokens = ends[:1].repeat(len(hidden), writing.max_new_tokens)
    rows = torch.arange(len(hidden), device=decoder.device)
    stopped = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(writing.max_new_tokens):
        logits = decoder.logits(hidden)
        if (broken := ~logits.amax(-1).isfinite()).any():
            refuse_broken(decoder, list(conditions)[int(rows[broken][0]) // samples])
        token = writing.pick(logits, rows % samples, step)
        tokens[rows, step] = token
        stopped |= torch.isin(token, ends)
        n_stopped = int(stopped.sum())
        if n_stopped == len(rows) or step == writing.max_new_tokens - 1:
            break
        if 2 * n_stopped >= len(rows):
            left = (~stopped).nonzero()[:, 0]
            start.cache.batch_select_indices(left)
            scaled.keep(left)
            # The axis of samples is the last but one.
            mask, last = mask[left], last.index_select(-2, left)
            rows, token, stopped = rows[left], token[left], stopped[left]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        with scaled:
            hidden = decoder.language_model(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=last + step + 1,
                past_key_values=start.cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
    return tokens


def refuse_broken(decoder: Decoder, condition: str) -> NoReturn:
    """Raise a UserError about a condition whose logits are not finite."""
    dtype = str(decoder.model.dtype).removeprefix("torch.")
    raise UserError(
        f"{condition}: its logits are not finite in {dtype}. Take an alpha nearer to 0, or a "
        "number format of larger range (models.*.dtype: bfloat16 or float32)."
    )


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
