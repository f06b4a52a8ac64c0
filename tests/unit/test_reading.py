from collections.abc import Callable
from typing import Any

import pytest
import torch
from headpursuit.models import Decoder, scaled_heads
from headpursuit.reading import first_edited, layer_outputs, read, read_again, replayed
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
        with replayed(decoder, outputs, first):
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
    with pytest.raises(ZeroDivisionError), replayed(decoder, outputs, 2):
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
                decoder, lambda first=first: read_again(decoder, plain, first)
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
        cache, _ = read_again(decoder, plain, first)
        decoder.model(IDS[:, :1], past_key_values=cache)
        assert cache.get_seq_length() == IDS.shape[1] + 1
    assert all(
        torch.equal(a, layer.keys) for a, layer in zip(kept, plain.cache.layers, strict=True)
    )
