"""Intervals and tests of ratios, against independent reckoning and by simulation."""

from math import comb, gamma, pi, sqrt
from typing import Any

import numpy as np
import pytest
from headpursuit.publish.statistics import Ratio, quantile, ratio, ratio_of_ratios, tail


def of(before: Any, after: Any, draws: str | None = None, confidence: float = 0.95) -> Ratio:
    sides = (np.atleast_2d(np.asarray(own, float)) for own in (before, after))
    return ratio(*sides, confidence, draws)


def limits(found: Ratio) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def bootstrap(before: np.ndarray, after: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give the percentile interval of a paired bootstrap: for many events the same."""
    picked = rng.integers(len(before), size=(4000, len(before)))
    return np.quantile(after[picked].sum(1) / before[picked].sum(1), [0.025, 0.975])


@pytest.mark.parametrize("kept", [0.3, 0.9])
@pytest.mark.parametrize("coupled", [True, False])
def test_for_many_events_it_is_the_bootstraps_interval(kept: float, coupled: bool):
    rng = np.random.default_rng(1)
    before = rng.poisson(rng.gamma(2.0, 1.0, 2000))
    after = rng.binomial(before, kept) if coupled else rng.poisson(kept * before.mean(), 2000)
    found, (low, high) = of(before, after), bootstrap(before, after, rng)
    assert found.value == after.sum() / before.sum()
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=0.12 * (high - low))
    narrow = of(before, after, confidence=0.5)
    assert found.low < narrow.low < found.value < narrow.high < found.high


def wilson(a: int, n: int) -> list[float]:
    """Give the ratios at the ends of the score interval, the roots of its equation."""
    z2, share = 1.959964**2, a / n
    ends = np.roots([1 + z2 / n, -2 * share - z2 / n, share**2])
    return sorted(end / (1 - end) for end in np.clip(ends.real, 0, 1))


@pytest.mark.parametrize(("b", "a"), [(58, 14), (20, 40), (5, 1), (10, 0), (30, 0)])
def test_single_events_have_wilsons_interval(b: int, a: int):
    """Each event in a sample of its own; the sample that is added makes it a little wider."""
    found = of([1] * b + [0] * (a + 1000), [0] * b + [1] * a + [0] * 1000)
    low, high = wilson(a, a + b)
    assert found.low == pytest.approx(low, rel=2 / (a + b)) and found.low <= low + 1e-6
    assert found.high == pytest.approx(high, rel=2 / (a + b)) and found.high >= high - 1e-6
    # The p of a sign test is close, and both say the same.
    n = a + b
    exact = min(1, 2 * sum(comb(n, k) for k in range(min(a, b) + 1)) / 2**n)
    assert (found.p < 0.05) == (not found.low <= 1 <= found.high)
    assert found.p == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ([0, 0, 0], [1, 0, 0], Ratio()),
        ([0, 0, 0], [0, 0, 0], Ratio()),
        ([3], [3], Ratio(1.0, 0.0, np.inf, 1.0, 0.0)),
    ],
)
def test_borders(before: list[int], after: list[int], wanted: Ratio):
    found = of(before, after)
    for own, other in zip(vars(found).values(), vars(wanted).values(), strict=True):
        assert np.isnan(own) == np.isnan(other)
    assert found.value == wanted.value or np.isnan(wanted.value)


def test_what_changes_nothing_is_no_certainty():
    """Four right answers of four, left as they are, are little evidence of that."""
    few, many = (of([1] * n, [1] * n) for n in (4, 400))
    assert few.low < 0.4 and few.high > 2 and few.p == 1
    assert many.low > 0.98 and many.high < 1.02


def test_occurrences_that_come_together_count_less():
    apart = of([1] * 30 + [0] * 70, [0] * 30 + [1] * 15 + [0] * 55)
    clumped = of([3] * 10 + [0] * 90, [0] * 10 + [3] * 5 + [0] * 85)
    assert apart.value == clumped.value
    assert clumped.low < apart.low and clumped.high > apart.high and clumped.p > apart.p


def test_the_scale_of_a_measure_does_not_matter():
    rng = np.random.default_rng(2)
    before, after = rng.gamma(0.5, 1.0, (2, 60))
    for draws in (None, "one"):
        sides = [before, np.stack([after, before])]
        small, large = (vars(of(*(own * x for own in sides), draws)) for x in (1, 1e-3))
        assert list(small.values()) == pytest.approx(list(large.values()))


def test_random_draws_widen_the_interval():
    rng = np.random.default_rng(3)
    before = rng.poisson(3.0, 100)
    alike = np.stack([rng.permutation(before) for _ in range(10)])
    apart = alike * np.linspace(0.5, 1.5, 10)[:, None]
    for after in (alike, apart):
        fixed, mean, one = (of(before, after, draws) for draws in (None, "mean", "one"))
        assert one.low <= mean.low <= fixed.low and fixed.high <= mean.high <= one.high
    # The interval of a further draw is about that of the draws themselves.
    spread = 2.26 * np.log(apart.sum(1)).std(ddof=1) * sqrt(1.1)
    assert np.log(one.high / one.value) == pytest.approx(spread, rel=0.2)
    alone = of(before, alike[:1], "mean")
    assert fixed.of_draws == 0 < mean.of_draws < one.of_draws < 1
    assert alone.value == 1 and np.isnan([alone.low, alone.high, alone.p]).all()


@pytest.mark.parametrize("draws", [None, "mean", "one"])
def test_a_ratio_turned_round_has_its_interval_turned_round(draws: str | None):
    rng = np.random.default_rng(4)
    sides = rng.poisson(2.0, (2, 5, 80))
    found, turned = of(*sides, draws), of(*sides[::-1], draws)
    assert limits(found) == pytest.approx((1 / turned.value, 1 / turned.high, 1 / turned.low))
    assert found.p == pytest.approx(turned.p)


@pytest.mark.parametrize("freedom", [1, 2.5, 9, 200])
def test_students_distribution(freedom: float):
    """Against its density, integrated; and of one degree of freedom, the arctangent."""
    scale = gamma((freedom + 1) / 2) / gamma(freedom / 2) / sqrt(pi * freedom)
    for t in (0.3, 2.0, 4.0):
        x = np.linspace(0, t, 100001)
        inside = np.trapezoid(scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x)
        assert tail(t, freedom) == pytest.approx(0.5 - inside, rel=1e-4)
        assert quantile(1 - tail(t, freedom), freedom) == pytest.approx(t, rel=1e-4)
    assert tail(3, 1) == pytest.approx(0.5 - np.arctan(3) / pi)
    assert quantile(0.975, np.inf) == pytest.approx(1.959964)


def test_a_ratio_over_another_is_paired():
    rng = np.random.default_rng(5)
    before = rng.poisson(3.0, 300)
    one, other = rng.binomial(before, 0.5), rng.binomial(before, 0.8)
    found = ratio_of_ratios((before, one), (before, other), 0.95)
    same = of(other, one)  # the baselines cancel
    assert limits(found) == pytest.approx(limits(same), rel=0.02)
    assert ratio_of_ratios((before, one), (before, one), 0.95) == Ratio(1.0, 1.0, 1.0, 1.0, 0.0)
    doubled = ratio_of_ratios((2 * before, 2 * one), (before, other), 0.95)
    assert limits(doubled) == pytest.approx(limits(found))
    zero = ratio_of_ratios((before, 0 * one), (before, other), 0.95)
    assert zero.value == 0 and np.isnan(zero.low)
    assert np.isnan(ratio_of_ratios((before, one), (before, 0 * one), 0.95).value)


@pytest.mark.parametrize("expected", [5, 10, 30, 100])
@pytest.mark.parametrize("truth", [1, 0.2])
def test_the_interval_holds_the_truth_as_often_as_it_says(expected: int, truth: float):
    """And the bootstrap's percentiles do not, for few occurrences (benchmarks/coverage.py)."""
    rng, held, trials = np.random.default_rng(6), 0, 1000
    for _ in range(trials):
        rate = rng.gamma(0.3, 1 / 0.3, 200) * expected / 200
        found = of(rng.poisson(rate), rng.poisson(rate * truth))
        held += not (found.low > truth or found.high < truth)
    assert held / trials > 0.95 - 4 * sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize("among", [0.0, 0.1, 0.4])
def test_a_random_set_in_sompss_place_is_seldom_a_finding(among: float):
    rng, found, trials = np.random.default_rng(7), 0, 1000
    for _ in range(trials):
        rate = rng.gamma(0.3, 1 / 0.3, 200) * 30 / 200
        sets = rng.poisson(rate * np.exp(rng.normal(0, among, (11, 1))))
        test = of(sets[1:], sets[0], "one")
        found += test.p < 0.05 and test.value < 1 and sets[0].sum() < sets[1:].sum(1).min()
    assert found / trials < 0.025 + 4 * sqrt(0.025 * 0.975 / trials)
