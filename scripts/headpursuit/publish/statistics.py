"""Intervals and tests of ratios; docs/statistics.md says what they cover, and how often.

The ratio of two sums is read as a share: what came after, of all that came before and after. Its
interval is Wilson's, which is symmetric in the ratio's logarithm and holds for few events and for
none. On how many events a share stands is not their number, since those of one sample hang together
and before and after are paired: it is the number whose variance would be the one found between
samples (linearised, as for surveys of households). What random draws of heads differ by is added
to the logarithm's variance.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import asinh, exp, hypot, inf, log, nan, sqrt
from statistics import NormalDist

import numpy as np

# With as many degrees of freedom, Student's distribution is the normal one.
MANY = 1000


@dataclass(frozen=True)
class Ratio:
    """A ratio and its interval; nan where undefined.

    p is two-sided, of so extreme a value if it were 1; ``of_draws`` the share of the logarithm's
    variance that more samples would leave, since it is between draws of heads.
    """

    value: float = nan
    low: float = nan
    high: float = nan
    p: float = nan
    of_draws: float = nan


def ratio(
    before: np.ndarray, after: np.ndarray, confidence: float, draws: str | None = None
) -> Ratio:
    """Return the ratio of two sums over samples, each the mean of one or more draws of heads.

    Args:
        before: the measure of each sample, draws x samples.
        after: the same of other heads, draws x samples.
        confidence: of the interval, 0 to 1.
        draws: what the interval covers beside the chance of samples: None, these draws as they
            are; ``mean``, the mean of all draws there might be; ``one``, a further single draw.
            Without two draws on one side there is no such interval.
    """
    b, a = before.mean(0), after.mean(0)
    if b.sum() == 0:
        return Ratio()
    value = float(a.sum() / b.sum())
    if draws and max(len(before), len(after)) < 2:
        return Ratio(value)
    events = _events(b, a)
    among, parts, stays = 0.0, 0.0, 0.0  # variance of the logarithm, by draws
    for own in (before, after) if draws else ():
        if len(own) > 1 and own.any():
            found, by_samples = _between(own)
            covered = 1 / len(own) + (draws == "one")
            among, parts = among + found * covered, parts + (found * covered) ** 2 / (len(own) - 1)
            stays += max(found - by_samples, 0.0) * covered
    odds = value / (1 + value) ** 2
    of_samples = 1 / (events * odds) if value else 1.0
    freedom = (of_samples + among) ** 2 / parts if parts else inf  # Satterthwaite's

    def far(z: float) -> float:
        """Return how far from the ratio, in its logarithm, an end lies; of a ratio of 0, from 1."""
        if value == 0:
            return log(z**2 / events) + z * sqrt(among)
        return hypot(2 * asinh(z / 2 / sqrt(events * odds)), z * sqrt(among))

    end = min(far(quantile((1 + confidence) / 2, freedom)), 500.0)  # its exponent is a number
    low, high = (value * exp(-end), value * exp(end)) if value else (0.0, exp(end))
    # The z at which an end is 1.
    p = 2 * tail(_root(far, abs(log(value)) if value else 0.0), freedom)
    return Ratio(value, low, high, p, stays / (of_samples + among))


def ratio_of_ratios(
    own: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
    confidence: float,
) -> Ratio:
    """Return a ratio over another's, of the same samples: before and after, each by sample.

    The baselines may differ. The interval is the delta method's, of the logarithm.
    """
    sums = [part.sum() for part in (*own, *other)]
    if not sums[0] or not sums[2] or not sums[3]:
        return Ratio()
    value = float(sums[1] / sums[0] / (sums[3] / sums[2]))
    if not value:
        return Ratio(value)
    parts = [part / total for part, total in zip((*own, *other), sums, strict=True)]
    moves = parts[1] - parts[0] - parts[3] + parts[2]
    error = sqrt(moves @ moves * len(moves) / (len(moves) - 1)) if len(moves) > 1 else 0.0
    end = NormalDist().inv_cdf((1 + confidence) / 2) * error
    p = 2 * NormalDist().cdf(-abs(log(value)) / error) if error else float(value == 1)
    return Ratio(value, value * exp(-end), value * exp(end), p, 0.0)


def _between(draws: np.ndarray) -> tuple[float, float]:
    """Return the relative variance of draws' sums, and what of it is by the chance of samples."""
    sums, n = draws.sum(1), len(draws)
    apart = draws - draws.mean(0) * (sums / sums.mean())[:, None]
    by_samples = (apart**2).sum(1).mean() * n / (n - 1) / sums.mean() ** 2
    return float((sums / sums.mean()).var(ddof=1)), float(by_samples)


def _events(before: np.ndarray, after: np.ndarray) -> float:
    """Return on how many independent events the ratio of the sums stands."""
    both, n = before + after, len(before)
    total = both.sum()
    share = after.sum() / total
    # The size of a sample's part, as met by an event.
    size = both @ both / total
    spread = share * (1 - share)
    if spread == 0:
        return total / size  # no residual says anything
    residuals = after - share * both
    found = residuals @ residuals * n / (n - 1) if n > 1 else 0
    # One more sample, so that samples which happen to agree are not taken for certainty.
    return float(spread * total**2 / (found + spread * size**2))


def _root(rising, wanted: float) -> float:
    """Return where a rising function of positive numbers takes a value; at most 40."""
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) >= wanted else (middle, high)
    return low


@lru_cache(64)  # a row has 0.3 MB
def _student(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Return values of Student's t from 0 on, and the probability beyond each."""
    angle = np.linspace(0, np.pi / 2, 20001)
    density = np.cos(angle) ** (freedom - 1)  # t = sqrt(freedom) * tan(angle)
    steps = (density[1:] + density[:-1]) / 2
    beyond = np.cumsum(steps[::-1])[::-1]
    return np.sqrt(freedom) * np.tan(angle[:-1]), beyond / beyond[0] / 2


def quantile(probability: float, freedom: float) -> float:
    """Return the quantile, above the median, of Student's t; of the normal one if inf."""
    if freedom >= MANY:
        return NormalDist().inv_cdf(probability)
    t, beyond = _student(round(freedom, 2))
    return float(np.interp(1 - probability, beyond[::-1], t[::-1]))


def tail(t: float, freedom: float) -> float:
    """Return the probability of Student's t beyond a value from 0 on."""
    if freedom >= MANY:
        return NormalDist().cdf(-t)
    values, beyond = _student(round(freedom, 2))
    return float(np.interp(t, values, beyond))
