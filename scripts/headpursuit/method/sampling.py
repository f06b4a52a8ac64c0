"""Sampling: tokens drawn so that a response depends on its sample, and on no other of its batch."""

from collections.abc import Iterator, Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from headpursuit.run.files import seed_for

TINY = np.finfo(np.float32).tiny  # an exponential number may be 0, whose logarithm is -inf
KEPT = 2**27  # numbers of noise that a batch keeps for its other conditions, 512 MiB


class Noise:
    """Gumbel noise for the rows of a batch, the same for each of its readers."""

    def __init__(self, streams: Sequence[np.random.Generator], width: int, keep: int = KEPT):
        """Take a stream for each row, the tokens there are, and how many numbers may be kept."""
        self.streams, self.width = list(streams), width
        self.kept: list[Tensor] = []
        self.most = keep // (len(self.streams) * width)  # steps

    def steps(self) -> Iterator[Tensor]:
        """Yield noise for each row's first new token, for its second, ...: rows x tokens.

        The first steps' is drawn once and kept; what follows, each reader draws anew.
        """
        yield from self.kept
        while len(self.kept) < self.most:
            self.kept.append(_gumbel(self.streams, self.width))
            yield self.kept[-1]
        own = deepcopy(self.streams)
        while True:
            yield _gumbel(own, self.width)


def _gumbel(streams: Sequence[np.random.Generator], width: int) -> Tensor:
    drawn = np.empty((len(streams), width), dtype=np.float32)
    for stream, own in zip(streams, drawn, strict=True):
        stream.standard_exponential(dtype=np.float32, out=own)
    # The negative logarithm of an exponential number is a Gumbel number.
    return torch.from_numpy(drawn).clamp_min_(TINY).log_().neg_()


class GumbelMax:
    """Samples each row: the token of the largest sum of log-probability and Gumbel noise has the
    model's distribution.

    A response then depends on its prompt and sample number alone, and not on its batch. The noise
    is the same under each condition, token by token, so that a response changes where an
    intervention moves the probabilities, and not with every small change of any of them.
    """

    def __init__(self, noise: Noise, temperature: float, top_p: float):
        """Take the noise of a batch's rows and what reshapes the distribution before it."""
        self.noise = noise
        self.warpers: list[LogitsProcessor] = []
        if temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_p < 1:
            self.warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, logits: Tensor, samples: Tensor, step: int) -> Tensor:
        """Return each row's token; see :data:`headpursuit.method.writing.Pick`."""
        if step == 0:  # of the next conditions
            self.steps = self.noise.steps()
        scores = logits.float()
        for warp in self.warpers:
            scores = warp(None, scores)
        return (scores + next(self.steps).to(scores.device)[samples]).argmax(-1)


def stream(seed: int, prompt_id: str, sample: int, other: int = 0) -> np.random.Generator:
    """Return the random numbers of one response, from its identity and ``other`` alone."""
    identity = (prompt_id, sample, other) if other else (prompt_id, sample)
    return np.random.default_rng(seed_for(seed, *identity))
