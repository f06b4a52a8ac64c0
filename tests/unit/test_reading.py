from collections.abc import Callable
from typing import Any

import pytest
import torch
from headpursuit.method.models import Decoder, ScaledRows, gains, scaled_heads
from headpursuit.method.reading import (
    first_edited,
    greedy,
    layer_outputs,
    read,
    read_rows,
    respond,
    returning,
)
from tiny import LAYERS
from torch import Tensor

FAMILIES = ["llama", "mistral", "qwen2", "gemma", "gemma2", "gpt2"]
families = pytest.mark.parametrize("family", FAMILIES)
IDS = (torch.arange(12).reshape(2, 6) * 37 + 3) % 400
MASK = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
INPUTS = {"input_ids": IDS, "attention_mask": MASK}


def logits(decoder: Decoder) -> Tensor:
    return decoder.model(**INPUTS, use_cache=False).logits


def counted(decoder: Decoder, work: Callable[[], Any]) -> tuple[Any, list[int]]:
    """Return work's result and the layers whose attention ran."""
    ran: list[int] = []
    handles = [
        attention.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, attention in enumerate(decoder.attentions)
    ]
    try:
        return work(), ran
    finally:
        for handle in handles:
            handle.remove()


@families
@pytest.mark.parametrize("first", [0, 1, 2])
@torch.inference_mode()
def test_replayed_layers_give_the_same_bits_and_are_not_computed(model, family: str, first: int):
    decoder = model(family)
    with layer_outputs(decoder, [first, 2]) as outputs:
        plain = logits(decoder)
    assert outputs.keys() == {first, 2} - {0}
    with scaled_heads(decoder, [(first, 1), (2, 0)], -1.0):
        full = logits(decoder)
        with returning(decoder.layers[:first], lambda: outputs[first]):
            short, ran = counted(decoder, lambda: logits(decoder))
    assert torch.equal(short, full)
    assert not torch.equal(full, plain)
    assert ran == list(range(first, LAYERS))
    assert torch.equal(logits(decoder), plain)


@torch.inference_mode()
def test_a_replay_ends_with_its_block(model):
    decoder = model("llama")
    with layer_outputs(decoder, [2]) as outputs:
        plain = logits(decoder)
    with (
        pytest.raises(ZeroDivisionError),
        returning(decoder.layers[:2], lambda: outputs[2]),
    ):
        raise ZeroDivisionError
    result, ran = counted(decoder, lambda: logits(decoder))
    assert torch.equal(result, plain)
    assert ran == [0, 1, 2]


@families
@pytest.mark.parametrize("firsts", [[0], [1], [0, 2], [1, 2, LAYERS], [LAYERS]])
@torch.inference_mode()
def test_what_is_read_again_is_what_a_whole_pass_gives(model, family: str, firsts: list[int]):
    decoder = model(family)
    plain, ran = counted(decoder, lambda: read(decoder, firsts, **INPUTS))
    # No higher than any of its readers goes on from, but for one layer where none shares any.
    assert ran == list(range(max(1, *firsts)))
    for first in firsts:
        heads = [(first, 1)] if first < LAYERS else []
        assert first_edited(decoder, {"own": heads}) == {"own": first}
        with scaled_heads(decoder, heads, -1.0):
            whole = read(decoder, [LAYERS], **INPUTS)
            (cache, hidden), ran = counted(
                decoder, lambda first=first: read_rows(decoder, plain, first)
            )
        assert ran == list(range(first, LAYERS))
        assert torch.equal(hidden, whole.hidden)
        for own, other in zip(cache.layers, whole.cache.layers, strict=True):
            assert torch.equal(own.keys, other.keys)
            assert torch.equal(own.values, other.values)


@torch.inference_mode()
def test_what_is_added_to_one_reader_s_cache_is_not_in_the_others(model):
    decoder = model("llama")
    plain = read(decoder, [1, LAYERS], **INPUTS)
    kept = [layer.keys.clone() for layer in plain.cache.layers]
    for first in (1, LAYERS):
        cache, _ = read_rows(decoder, plain, first)
        decoder.model(IDS[:, :1], past_key_values=cache)
        assert cache.get_seq_length() == IDS.shape[1] + 1
    assert all(
        torch.equal(a, layer.keys) for a, layer in zip(kept, plain.cache.layers, strict=True)
    )


@families
@pytest.mark.parametrize("first", [0, 1, LAYERS])
@torch.inference_mode()
def test_rows_of_several_conditions(model, family: str, first: int):
    """Every sample is read once for each condition, with that condition's gains."""
    decoder = model(family)
    conditions = [[], [(first, 1)] if first < LAYERS else []]
    plain = read(decoder, [first, LAYERS], **INPUTS)
    by_row = gains(decoder, conditions, -1.0).repeat_interleave(len(IDS), 0)
    with ScaledRows(decoder, by_row):
        cache, hidden = read_rows(decoder, plain, first, 2)
    assert cache.get_seq_length() == IDS.shape[1]
    for number, heads in enumerate(conditions):
        with scaled_heads(decoder, heads, -1.0):
            alone, own = read_rows(decoder, plain, first)
        rows = slice(number * len(IDS), (number + 1) * len(IDS))
        assert torch.allclose(hidden[rows], own, atol=1e-5)
        for layer, other in zip(cache.layers, alone.layers, strict=True):
            assert torch.allclose(layer.keys[rows], other.keys, atol=1e-5)
            assert torch.allclose(layer.values[rows], other.values, atol=1e-5)


@torch.inference_mode()
def test_rows_that_have_stopped_leave_the_batch(model):
    """As soon as they are half of it; the others end as they do alone."""
    decoder = model("llama")
    positions = (MASK.cumsum(1) - 1).clamp_min(0)
    encoded = {**INPUTS, "position_ids": positions}
    conditions = {"plain": [], "one": [(0, 0)], "other": [(1, 2)], "more": [(0, 1), (2, 3)]}

    def answers(some, batch_tokens: int, stops: list[int]):
        return respond(decoder, encoded, some, -1.0, 12, stops, batch_tokens, greedy)

    unstopped = answers(conditions, 1, [10**6])
    # An end for half of the rows, each at a step of its own.
    rows = [tokens for own in unstopped.values() for tokens, _ in own]
    stops = sorted({row[2 + i] for i, row in enumerate(rows[::2])})
    widths: list[int] = []
    handle = decoder.layers[-1].register_forward_hook(
        lambda module, args, output: widths.append(len(args[0]))
    )
    together = answers(conditions, 10**6, stops)
    handle.remove()
    assert together == {
        name: answers({name: heads}, 1, stops)[name] for name, heads in conditions.items()
    }
    assert {stop for own in together.values() for _, stop in own} == {"eos", "length"}
    assert widths[1] == 8 and widths[-1] <= 4
