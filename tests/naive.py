"""The plain, slow way: heads scaled by a mask of positions, and a token out of logits."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache

import numpy as np
from torch import Tensor, nn

PLACES = ("all", "prompt", "image", "response")


def acting(at: str, image: Sequence[bool], new: int) -> list[bool]:
    """Say where a place is: at which of the positions read (``image`` names those) and written."""
    read = {"all": [True] * len(image), "prompt": [True] * len(image), "image": list(image)}
    return read.get(at, [False] * len(image)) + [at in ("all", "response")] * new


@contextmanager
def multiplied(
    layers: nn.ModuleList, heads: Sequence, width: int, alpha: float, where: Sequence[bool]
) -> Iterator[None]:
    """Multiply what heads of ``width`` write by alpha at the positions of a single row."""
    with ExitStack() as stack:
        for layer, head in heads:

            def scale(module: nn.Module, args: tuple, head: int = head) -> tuple[Tensor]:
                z = args[0].clone()
                for position in np.flatnonzero(where):
                    z[0, position, head * width : (head + 1) * width] *= alpha
                return (z,)

            block = layers[layer]
            projection = block.attn.c_proj if hasattr(block, "attn") else block.self_attn.o_proj
            stack.enter_context(projection.register_forward_pre_hook(scale))
        yield


def next_token(logits: Tensor, numbers: np.ndarray | None, top_p: float = 1.0) -> int:
    """Take the likeliest of a row of logits, or by exponential numbers a sample of the top."""
    if numbers is None:
        return int(logits.argmax())
    p = logits.softmax(-1).numpy()
    order = np.argsort(-p, kind="stable")
    # The smallest set of most probable tokens that holds top_p.
    kept = order[: int(np.searchsorted(p[order].cumsum(), top_p)) + 1]
    return int(kept[(np.log(p) - np.log(numbers))[kept].argmax()])


@cache
def exponential(stream: int, step: int, width: int) -> np.ndarray:
    """Return a step's random numbers, a token at a time, by whole numbers."""

    def mixed(bits: int, size: int, *rounds: tuple[int, int]) -> int:
        for shift, factor in rounds:
            bits = (bits ^ (bits >> shift)) * factor % 2**size
        return bits

    key = (stream + (step + 1) * 0x9E3779B97F4A7C15) % 2**64
    key = mixed(key, 64, (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
    found = []
    for token in range(width):
        bits = mixed(token ^ key % 2**32, 32, (17, 0xED5AD4BB)) ^ key // 2**32
        bits = mixed(bits, 32, (11, 0xAC4C1B51), (15, 0x31848BAB), (14, 1)) % 2**31
        found.append(-np.log1p(-np.clip(bits, 1, 2**31 - 128) / 2**31))
    return np.array(found)
