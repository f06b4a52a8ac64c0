"""What is read once for several conditions gives what whole passes give."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from headpursuit.method.decoder import Decoder, scaled_heads
from headpursuit.method.heads import Condition
from headpursuit.method.reading import read, read_rows
from headpursuit.method.sampling import greedy
from headpursuit.method.writing import Writing, ask, respond
from tiny import FAMILIES, LAYERS

families = pytest.mark.parametrize("family", FAMILIES)
IDS = (torch.arange(12).reshape(2, 6) * 37 + 3) % 400
MASK = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
INPUTS = {"input_ids": IDS, "attention_mask": MASK}


def counted(decoder: Decoder, work: Callable[[], Any]) -> tuple[Any, list[int]]:
    """Return work's result and the layers whose attention ran."""
    ran: list[int] = []
    with ExitStack() as stack:
        for i, attention in enumerate(decoder.attentions):
            hook = attention.register_forward_hook(lambda *_, i=i: ran.append(i))
            stack.enter_context(hook)
        return work(), ran


@families
@pytest.mark.parametrize("firsts", [[0], [1], [0, 2], [1, 2, LAYERS], [LAYERS]])
@torch.inference_mode()
def test_what_is_read_again_is_what_a_whole_pass_gives(model, family: str, firsts: list[int]):
    """Bit by bit, and no layer is computed twice; the model's own passes stay as they were."""
    decoder = model(family)
    before = decoder.model(**INPUTS, use_cache=False).logits
    plain, ran = counted(decoder, lambda: read(decoder, set(firsts), True, **INPUTS))
    # No higher than any of its readers goes on from, but for one layer where none shares any.
    assert ran == list(range(max(1, *firsts)))
    for first in firsts:
        heads = [(first, 1)] if first < LAYERS else []
        with scaled_heads(decoder, heads, -1.0):
            whole = decoder.model.base_model(**INPUTS, use_cache=True)
            again, ran = counted(decoder, lambda first=first: read_rows(decoder, plain, first))
        assert ran == list(range(first, LAYERS))
        assert torch.equal(again.hidden, whole.last_hidden_state)
        for own, other in zip(again.cache.layers, whole.past_key_values.layers, strict=True):
            assert torch.equal(own.keys, other.keys)
            assert torch.equal(own.values, other.values)
    after, ran = counted(decoder, lambda: decoder.model(**INPUTS, use_cache=False).logits)
    assert torch.equal(after, before)
    assert ran == list(range(LAYERS))


@torch.inference_mode()
def test_rows_that_have_stopped_leave_the_batch(model):
    """As soon as they are half of it; the others end as they do alone."""
    decoder = model("llama")
    encoded = {**INPUTS, "position_ids": (MASK.cumsum(1) - 1).clamp_min(0)}
    heads = {"plain": [], "one": [(0, 0)], "other": [(1, 2)], "more": [(0, 1), (2, 3)]}
    conditions = {name: Condition(own) for name, own in heads.items()}

    def answers(some, batch_tokens: int, stops: list[int]):
        return respond(
            decoder, [(ask(decoder, encoded, some), some)], Writing(12, stops, greedy), batch_tokens
        )[0]

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
        name: answers({name: own}, 1, stops)[name] for name, own in conditions.items()
    }
    assert {stop for own in together.values() for _, stop in own} == {"eos", "length"}
    assert widths[1] == 8 and widths[-1] <= 4
