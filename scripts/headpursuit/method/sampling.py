"""Choosing tokens: the likeliest, or one drawn so that a response depends on its sample alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from headpursuit.run.files import seed_for

# Numbers that are worked on together: they fit into a processor's cache, and fill a GPU.
AT_ONCE = {"cpu": 2**19, "cuda": 2**24}
TOP = 2**31
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def greedy(logits: Tensor, samples: Tensor, step: int) -> Tensor:
    """Take the token of the highest logit; see :data:`headpursuit.method.writing.Pick`."""
    return _highest(logits)


class GumbelMax:
    """Samples each row: the token of the largest sum of log-probability and Gumbel noise has the
    model's distribution.

    A response then depends on its prompt and sample number alone, and not on its batch. The noise
    is the same under each condition, token by token, so that a response changes where an
    intervention moves the probabilities, and not with every small change of any of them.
    """

    def __init__(self, streams: Sequence[int], temperature: float, top_p: float):
        """Take a number for each sample (:func:`stream`), and what reshapes the distribution."""
        self.streams = np.array(streams, dtype=np.uint64)
        self.warpers: list[LogitsProcessor] = []
        if temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_p < 1:
            self.warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, logits: Tensor, samples: Tensor, step: int) -> Tensor:
        """Return each row's token; see :data:`headpursuit.method.writing.Pick`."""
        there, rows = samples.unique(return_inverse=True)
        own = log_exponential(
            self.streams[there.cpu().numpy()], step, logits.shape[-1], rows.device
        )
        size = _at_once(logits)
        some = zip(logits.split(size), rows.split(size), strict=True)
        # The negative logarithm of an exponential number is a Gumbel number.
        return torch.cat([_highest(self._warped(each) - own[its]) for each, its in some])

    def _warped(self, logits: Tensor) -> Tensor:
        scores = logits.float()
        for warp in self.warpers:
            scores = warp(None, scores)
        return scores


def stream(seed: int, prompt_id: str, sample: int, other: int = 0) -> int:
    """Return what gives the random numbers of one response, from its identity and ``other``."""
    identity = (prompt_id, sample, other) if other else (prompt_id, sample)
    return seed_for(seed, *identity)


def log_exponential(streams: np.ndarray, step: int, width: int, device: torch.device) -> Tensor:
    """Return logarithms of exponential random numbers: float32, streams x tokens.

    Each is a function of its stream, the step and the token alone: a hash of them, made where the
    model is. All devices have the same 31 bits of it; their logarithms may differ in the last.
    """
    keys = _splitmix(streams + GOLDEN * np.full(1, step, np.uint64))
    low, high = (
        torch.from_numpy(own.astype(np.uint32).view(np.int32)).to(device)[:, None]
        for own in (keys, keys >> np.uint64(32))
    )
    tokens = torch.arange(width, dtype=torch.int32, device=device)
    made = torch.empty(len(streams), width, device=device)
    some = (each.split(_at_once(made)) for each in (made, low, high))
    for own, one, other in zip(*some, strict=True):
        own.copy_(_uniform(tokens, one, other)).mul_(-1 / TOP).log1p_().neg_().log_()
    return made


def _highest(scores: Tensor) -> Tensor:
    """Return where each row is highest. On a processor numpy takes a quarter of torch's time."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(-1)


def _at_once(numbers: Tensor) -> int:
    """Return how many of the rows are worked on together."""
    return max(1, AT_ONCE[numbers.device.type] // numbers.shape[-1])


def _splitmix(state: np.ndarray) -> np.ndarray:
    """Return 64 bits for each number: SplitMix64 (Steele, Lea and Flood 2014)."""
    state = state + GOLDEN
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state ^ (state >> np.uint64(31))


def _uniform(tokens: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return 31 bits of each token and both halves of a key: triple32 (Wellons 2018) of them.

    Those that are 0 or 1 in float32, as a share of :data:`TOP`, are left out.
    """
    bits = _mixed(tokens ^ one, 17, 0xED5AD4BB)
    bits = _mixed(_mixed(bits.bitwise_xor_(other), 11, 0xAC4C1B51), 15, 0x31848BAB)
    return _mixed(bits, 14, 1).bitwise_and_(TOP - 1).clamp_(1, TOP - 128)


def _mixed(bits: Tensor, shift: int, factor: int) -> Tensor:
    """Mix 32 bits in place. The shift is one of unsigned numbers, which torch lacks."""
    bits ^= (bits >> shift).bitwise_and_(2 ** (32 - shift) - 1)
    return bits.mul_(factor - 2**32 if factor >= TOP else factor) if factor != 1 else bits
