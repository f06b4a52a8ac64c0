"""The plain, slow way: heads scaled by a mask of positions, and a token out of logits."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

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


def next_token(logits: Tensor, numbers: np.random.Generator | None, top_p: float = 1.0) -> int:
    """Take the likeliest of a row of logits, or by random numbers a sample of the top."""
    if numbers is None:
        return int(logits.argmax())
    p = logits.softmax(-1).numpy()
    order = np.argsort(-p, kind="stable")
    # The smallest set of most probable tokens that holds top_p.
    kept = order[: int(np.searchsorted(p[order].cumsum(), top_p)) + 1]
    gumbel = -np.log(numbers.standard_exponential(len(p), np.float32).astype(float))
    return int(kept[(np.log(p) + gumbel)[kept].argmax()])
