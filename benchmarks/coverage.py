"""How often intervals of ratios hold the truth, and how often tests call noise a finding.

    python benchmarks/coverage.py    # half an hour on a core; docs/statistics.md has its tables

Counts are made up for 200 prompts whose inclinations differ (a gamma distribution of shape 0.3), so
that most prompts have no occurrence and some have many. Beside the interval of
`headpursuit.publish.statistics` stand the percentiles of a paired bootstrap, over samples, or over
samples and draws.
"""

import sys
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import timing  # noqa: F401, which makes the library importable
from headpursuit.publish.statistics import ratio

SAMPLES, RESAMPLES, TRIALS = 200, 1000, 2000
COUNTS = (5, 10, 30, 100)
Generator = np.random.Generator


def counts(kind: str, expected: float, truth: float, rng: Generator) -> tuple[np.ndarray, ...]:
    """Return each prompt's occurrences before and after, whose expectations have this ratio."""
    rate = rng.gamma(0.3, 1 / 0.3, SAMPLES) * expected / SAMPLES
    if kind == "clumped":
        return clumps(rate, rng), clumps(rate * truth, rng)
    before = rng.poisson(rate)
    if kind == "fresh":
        return before, rng.poisson(rate * truth)
    kept = 0.7 * min(truth, 1)
    return before, rng.binomial(before, kept) + rng.poisson(rate * (truth - kept))


def clumps(rate: np.ndarray, rng: Generator) -> np.ndarray:
    """Return occurrences of this rate that come in clumps."""
    first = rng.poisson(rate * 0.6)
    return first + np.where(first > 0, rng.negative_binomial(np.maximum(first, 1), 0.6), 0)


def bootstrap(before: np.ndarray, after: np.ndarray, rng: Generator, both: bool) -> np.ndarray:
    """Return the 95 % percentile interval over samples, or over samples and draws."""
    n, draws = len(before), len(after)
    weights = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    chosen = np.full((RESAMPLES, draws), 1 / draws)
    if both:
        chosen = rng.multinomial(draws, chosen[0], RESAMPLES) / draws
    sums = weights @ before
    values = ((weights @ after.T) * chosen).sum(1)[sums > 0] / sums[sums > 0]
    return np.quantile(values, [0.025, 0.975])


def cells(trials: Callable[[], Iterator[tuple[bool, ...]]]) -> str:
    """Return shares of trials as cells of a row."""
    return " | ".join(f"{share:.3f}" for share in np.mean(list(trials()), axis=0))


def single(rng: Generator) -> Iterator[str]:
    """One set of heads, over samples."""
    for kind, truth, expected in product(("fresh", "coupled", "clumped"), (1, 0.5, 0.2), COUNTS):

        def trials(kind=kind, truth=truth, expected=expected) -> Iterator[tuple[bool, ...]]:
            for _ in range(TRIALS):
                before, after = counts(kind, expected, truth, rng)
                if before.any():
                    low, high = bootstrap(before, after[None], rng, both=False)
                    own = ratio(before[None], after[None], 0.95)
                    yield low <= truth <= high, own.low <= truth and not own.high < truth

        yield f"| {kind} | {truth} | {expected} | {cells(trials)} |"


def drawn(draws: int, among: float, expected: float, rng: Generator) -> tuple[np.ndarray, ...]:
    """Return a baseline, draws whose ratios are 1 on average, and one more such draw."""
    rate = rng.gamma(0.3, 1 / 0.3, SAMPLES) * expected / SAMPLES
    own = np.exp(rng.normal(-(among**2) / 2, among, (draws + 1, 1)))
    # A draw acts otherwise on each prompt.
    own = own * np.exp(rng.normal(-0.02, 0.2, (draws + 1, SAMPLES)))
    after = rng.poisson(rate * own)
    return rng.poisson(rate), after[1:], after[0]


def random_heads(rng: Generator) -> Iterator[str]:
    """Random draws, over samples and draws; and one more draw, tested as if it were SOMP's."""
    for draws, among, expected in product((2, 10), (0, 0.1, 0.4), COUNTS[1:]):

        def trials(draws=draws, among=among, expected=expected) -> Iterator[tuple[bool, ...]]:
            for _ in range(TRIALS):
                before, after, more = drawn(draws, among, expected, rng)
                if before.any() and after.any():
                    low, high = bootstrap(before, after, rng, both=True)
                    own = ratio(before[None], after, 0.95, "mean")
                    test = ratio(after, more[None], 0.95, "one")
                    first = bool((more.sum() < after.sum(1)).all())
                    below = test.p < 0.05 and test.value < 1
                    yield (
                        *(low <= 1 <= high, own.low <= 1 and not own.high < 1),
                        *(below, first, below and first),
                    )

        yield f"| {draws} | {among} | {expected} | {cells(trials)} |"


def main() -> None:
    """Print both tables."""
    rng = np.random.default_rng(0)
    print("\n| counts | ratio | before | bootstrap | score interval |\n|---|---|---|---|---|")
    for line in single(rng):
        print(line, flush=True)
    print("\n| draws | sd of log | before | bootstrap | score interval | p | rank | both |")
    print("|---|---|---|---|---|---|---|---|")
    for line in random_heads(rng):
        print(line, flush=True)


if __name__ == "__main__":
    TRIALS = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    main()
