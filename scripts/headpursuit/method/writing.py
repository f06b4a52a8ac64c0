"""Writing responses: what was read under several conditions is written on in one loop.

Reading is a few large passes, writing many small ones, whose time hardly grows with their rows: so
keys and values of many samples and conditions, read in passes of their own, are gathered first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from headpursuit.method.batches import Room
from headpursuit.method.decoder import Decoder, ScaledRows
from headpursuit.method.heads import Condition
from headpursuit.method.reading import (
    Begun,
    Conditions,
    begin,
    each_condition,
    gains_by_row,
    new_cache,
    refuse_broken,
)

# Takes logits (rows x vocabulary), each row's sample and the step; returns each row's token.
Pick = Callable[[Tensor, Tensor, int], Tensor]
Response = tuple[list[int], str]  # token ids, without the end token, and why it stopped
GIB = 2**30
SPARED = 0.1  # of a device's memory, for what is not planned
SIDES = ("keys", "values")


class Writing(NamedTuple):
    """How responses are written: how long at most, ids that end them, what chooses a token."""

    max_new_tokens: int
    stops: Sequence[int]
    pick: Pick


def room_of(decoder: Decoder, batch_tokens: int, memory_gb: float | None) -> Room:
    """Return what a loop may take, of the model's own numbers.

    That is what the weights and a pass over ``batch_tokens`` leave of ``memory_gb`` (GiB), or of a
    GPU's memory where this is None, and at least ``batch_tokens``: all of it on a processor then.
    """
    if memory_gb is None:
        if decoder.device.type != "cuda":
            return Room(batch_tokens)
        memory_gb = torch.cuda.get_device_properties(decoder.device).total_memory / GIB
    config, size = decoder.model.config.get_text_config(), decoder.model.dtype.itemsize
    shared = getattr(config, "num_key_value_heads", None) or decoder.n_heads
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width  # GPT-2's
    # One layer's keys and values are there twice when they are gathered, and once more for each
    # query head in its attention.
    kept = 2 * decoder.head_dim * size
    token = kept * (len(decoder.layers) * shared + shared + decoder.n_heads)
    # Logits and random numbers.
    row = config.vocab_size * (size + torch.float32.itemsize)
    weights = sum(own.nbytes for own in decoder.model.parameters())
    reading = batch_tokens * size * (8 * width + 3 * inner)
    whole = (1 - SPARED) * memory_gb * GIB - weights - reading
    return Room(max(whole, batch_tokens * token), token, row)


class Rows(NamedTuple):
    """Rows as they were read, from which a loop goes on."""

    cache: DynamicCache
    hidden: Tensor  # the last position's final hidden states, rows x d
    last: Tensor  # the last position's number, rows x 1, or Qwen's, axes x rows x 1
    mask: Tensor  # rows x positions


class Roomy(DynamicLayer):
    """A layer's keys and values with room for new ones, so that adding some copies none of them."""

    def __init__(self, parts: Sequence[DynamicLayer], new: int):
        """Gather several parts' rows, padded on the left, with room for ``new`` positions."""
        super().__init__()
        self.length = max(own.keys.shape[-2] for own in parts)
        self.lazy_initialization(parts[0].keys, parts[0].values)
        self.held = [_gathered(parts, name, new) for name in SIDES]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (own[:, :, : self.length] for own in self.held)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Add keys and values behind those that are there; return all."""
        start, self.length = self.length, self.length + key_states.shape[-2]
        for own, added in zip(self.held, (key_states, value_states), strict=True):
            own[:, :, start : self.length] = added
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with some of the rows."""
        self.held = [own[indices.to(own.device)] for own in self.held]
        self._show()


def _gathered(layers: Sequence[Any], name: str, new: int) -> Tensor:
    """Return all rows' keys or values (rows x heads x positions x d), padded on the left.

    There is room for ``new`` positions behind them.
    """
    parts = [getattr(own, name) for own in layers]
    _, heads, _, width = parts[0].shape
    length = max(own.shape[-2] for own in parts)
    whole = parts[0].new_zeros(sum(map(len, parts)), heads, length + new, width)
    for into, own in zip(whole.split([*map(len, parts)]), parts, strict=True):
        into[:, :, length - own.shape[-2] : length] = own
    return whole


def gather(decoder: Decoder, parts: Sequence[Rows], new: int) -> Rows:
    """Gather rows that were read apart, with room for ``new`` positions; the parts' caches go."""
    longest = max(own.mask.shape[1] for own in parts)
    cache = new_cache(decoder)
    for number, layer in enumerate(cache.layers):
        own = [part.cache.layers[number] for part in parts]
        if layer.is_sliding:  # which keeps its last positions alone
            layer.lazy_initialization(own[0].keys, own[0].values)
            layer.keys, layer.values = (_gathered(own, name, 0) for name in SIDES)
            layer.cumulative_length = max(part.cumulative_length for part in own)
        else:
            cache.layers[number] = Roomy(own, new)
        for part in parts:  # layer by layer, or all would be there twice
            part.cache.layers[number] = None
    return Rows(
        cache,
        torch.cat([own.hidden for own in parts]),
        torch.cat([own.last for own in parts], dim=-2),
        torch.cat([pad(own.mask, (longest - own.mask.shape[1], 0)) for own in parts]),
    )


@torch.inference_mode()
def ask(decoder: Decoder, encoded: Mapping[str, Tensor], conditions: Conditions) -> Begun:
    """Begin to read samples, to be responded to under any of the conditions.

    ``encoded`` is what the model's forward pass takes for them, padded on the left, with
    attention_mask, and position_ids, unless the model makes its own.
    """
    read = torch.ones_like(encoded["attention_mask"], dtype=torch.bool)
    image = decoder.image_positions(encoded["input_ids"])
    places = {"all": read, "prompt": read, "response": ~read, "image": image}
    return begin(decoder, encoded, conditions, places, cached=True)


@torch.inference_mode()
def respond(
    decoder: Decoder,
    asked: Iterable[tuple[Begun, Sequence[str]]],
    writing: Writing,
    batch_tokens: int,
) -> list[dict[str, list[Response]]]:
    """Read samples under conditions, then write one response to each on, all in one loop.

    Args:
        decoder: the model.
        asked: batches of samples, of :func:`ask`, and names of conditions. Samples are numbered
            on from batch to batch.
        writing: how.
        batch_tokens: of samples, up to which conditions are read together; one condition's samples
            always are.

    Returns:
        For each batch, by condition, for each sample its new token ids, without the end token, and
        why it stopped: ``eos`` or ``length``.

    Raises:
        UserError: if a condition's logits are not finite.
    """
    parts, factors, owners = _read(decoder, asked, batch_tokens)
    scaled = ScaledRows(decoder, torch.cat(factors))
    start = gather(decoder, parts, writing.max_new_tokens)
    written = _go_on(decoder, start, scaled, owners, writing)
    found: list[dict[str, list[Response]]] = []
    for owner, tokens in zip(owners, written.tolist(), strict=True):
        found += [{} for _ in range(len(found), owner.batch + 1)]
        response = until_stop(tokens, writing.stops)
        found[owner.batch].setdefault(owner.condition, []).append(response)
    return found


class Owner(NamedTuple):
    """Whose a row is; samples are numbered on from batch to batch."""

    batch: int
    condition: str
    sample: int


def _read(
    decoder: Decoder, asked: Iterable[tuple[Begun, Sequence[str]]], batch_tokens: int
) -> tuple[list[Rows], list[Tensor], list[Owner]]:
    """Read batches of samples on, each under its conditions.

    Returns rows in parts, the gains of what each row is going to write, and whose each row is.
    """
    parts, factors, owners = [], [], []
    numbers = range(0)
    for batch, (begun, names) in enumerate(asked):
        mask = begun.mask
        numbers = range(numbers.stop, numbers.stop + len(mask))
        size = max(1, batch_tokens // mask.numel())
        for some, rows in each_condition(decoder, begun, names, size):
            last = rows.arguments["position_ids"][..., -1:]
            many = mask.repeat(len(some), 1)
            # Copies: views would keep all positions in memory.
            parts.append(Rows(rows.cache, rows.hidden[:, -1].clone(), last.clone(), many))
            own = [begun.conditions[name] for name in some]
            acting = [each if each.at in ("all", "response") else Condition() for each in own]
            factors.append(gains_by_row(decoder, acting, len(mask)))
            owners += [Owner(batch, name, number) for name in some for number in numbers]
    return parts, factors, owners


def _go_on(
    decoder: Decoder,
    start: Rows,
    scaled: ScaledRows,
    owners: Sequence[Owner],
    writing: Writing,
) -> Tensor:
    """Write on from what was read until every row has stopped; return rows x tokens.

    Rows that have stopped leave the loop as soon as they are half of it: each time all keys and
    values are copied.
    """
    cache, hidden, last, mask = start
    samples = torch.tensor([owner.sample for owner in owners], device=decoder.device)
    ends = torch.tensor(list(writing.stops), device=decoder.device)
    tokens = ends[:1].repeat(len(hidden), writing.max_new_tokens)
    rows = torch.arange(len(hidden), device=decoder.device)
    stopped = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(writing.max_new_tokens):
        logits = decoder.logits(hidden)
        token = writing.pick(logits, samples[rows], step)
        # NaN and infinity are taken before any number.
        if (broken := ~logits.gather(-1, token[:, None])[:, 0].isfinite()).any():
            refuse_broken(decoder, owners[int(rows[broken][0])].condition)
        del logits  # or they would be there beside the next step's
        tokens[rows, step] = token
        stopped |= torch.isin(token, ends)
        n_stopped = int(stopped.sum())
        if n_stopped == len(rows) or step == writing.max_new_tokens - 1:
            break
        if 2 * n_stopped >= len(rows):
            left = (~stopped).nonzero()[:, 0]
            cache.batch_select_indices(left)
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
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
    return tokens


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
