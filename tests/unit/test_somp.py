"""Pursuit against a direct float64 implementation that forms H and refits by least squares."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from headpursuit.method import somp
from headpursuit.method.somp import STOP, TIE, Pursuit, pursue, pursue_layer
from headpursuit.run.files import UserError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.linalg import lstsq, vector_norm

few = settings(max_examples=40, deadline=None, derandomize=True)
norms = pytest.mark.parametrize("norm", ["l1", "l2"])
# Of a large dictionary, which goes one way only.
large = pytest.mark.parametrize("_small", [somp._SMALL], indirect=True)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(autouse=True, scope="module", params=[somp._SMALL, 0], ids=["all", "screened"])
def _small(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run every test with small dictionaries' own way, and with that of large ones."""
    before, somp._SMALL = somp._SMALL, request.param
    yield
    somp._SMALL = before


def written(z: Tensor, w_o: Tensor, center: bool = True) -> Tensor:
    """H (n x d) in float64."""
    h = z.double().cpu() @ w_o.double().cpu().T
    return h - h.mean(0) if center else h


def refit(h: Tensor, atoms: Tensor) -> tuple[Tensor, float]:
    """The residual of least squares on all atoms, and the explained share of ||H||²."""
    residual = h - (atoms.T @ lstsq(atoms.T, h.T, driver="gelsd").solution).T
    return residual, float(1 - (residual**2).sum() / (h**2).sum())


def direct(
    z: Tensor,
    w_o: Tensor,
    dictionary: Tensor,
    iterations: int,
    *,
    norm: str = "l1",
    center: bool = True,
    normalise_atoms: bool = False,
) -> Pursuit:
    """SOMP as its authors wrote it, with the same rules for ties and for stopping."""
    h, d = written(z, w_o, center), dictionary.double().cpu()
    lengths = vector_norm(d, dim=1)
    weight = 1 / lengths.where(lengths > 0, 1) if normalise_atoms else torch.ones_like(lengths)
    reach = h.norm() * lengths * weight * (len(h) ** 0.5 if norm == "l1" else 1)
    residual, support, explained = h, [], []
    for _ in range(min(iterations, len(d))):
        score = vector_norm(residual @ d.T, ord=int(norm[1]), dim=0) * weight
        score[support] = -1
        best = int((score >= (1 - TIE) * score.max()).nonzero()[0])
        if score[best] <= STOP * reach[best]:
            break
        support.append(best)
        residual, share = refit(h, d[support])
        explained.append(share)
    return Pursuit(support, explained)


def draw(seed: int, n: int = 60, head_dim: int = 8, d: int = 40, v: int = 90) -> list[Tensor]:
    """A head whose features differ in scale and whose samples are heavy-tailed, so l1 is not l2."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.arange(1.0, head_dim + 1) ** -0.5
    heavy = torch.rand(n, 1, generator=g, dtype=torch.float64) ** -0.4
    z = (torch.randn(n, head_dim, generator=g, dtype=torch.float64) + 0.5) * scale * heavy
    w_o = torch.randn(d, head_dim, generator=g, dtype=torch.float64)
    return [z, w_o, torch.randn(v, d, generator=g, dtype=torch.float64)]


def assert_same(found: Pursuit, expected: Pursuit, tolerance: float = 1e-9) -> None:
    assert found.support == expected.support
    assert found.explained == pytest.approx(expected.explained, abs=tolerance)


def assert_rising(found: Pursuit) -> None:
    assert len(set(found.support)) == len(found.support) == len(found.explained)
    assert all(0 <= share <= 1 for share in found.explained)
    assert found.explained == sorted(found.explained)


def assert_direct(arrays: list[Tensor], iterations: int, tolerance=1e-8, **options: Any) -> Pursuit:
    found = pursue(*arrays, iterations, **options)
    assert_same(found, direct(*arrays, iterations, **options), tolerance)
    return found


@norms
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("n", "v"), [(60, 90), (5, 90), (1, 90), (200, 800), (60, 7)])
def test_equals_direct(norm: str, center: bool, normalise: bool, n: int, v: int) -> None:
    z, w_o, dictionary = draw(n + v, n=n, v=v)
    dictionary *= torch.logspace(-2, -1, v, dtype=torch.float64).flip(0)[:, None] ** 0.3
    arrays = [z, w_o, dictionary / 100]  # lengths below 1, as an unembedding's are
    found = assert_direct(arrays, 12, 1e-9, norm=norm, center=center, normalise_atoms=normalise)
    # One sample, centred, is nothing.
    assert len(found.support) == (0 if (n, center) == (1, True) else min(12, v))


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_input_gives_the_float64_support(norm: str, dtype: torch.dtype) -> None:
    for v in (150, 700):
        arrays = [a.to(dtype) for a in draw(5, n=100, head_dim=16, d=64, v=v)]
        assert_direct(arrays, 12, norm=norm)


@large
@norms
def test_contests_closer_than_float32_are_decided_in_float64(norm: str) -> None:
    z, w_o, dictionary = draw(6, d=256, v=300)
    first = direct(z, w_o, dictionary.float(), 1, norm=norm).support[0]
    grain = 1 + 1e-7 * torch.randn(300, 256, dtype=torch.float64, generator=torch.manual_seed(0))
    rivals = (dictionary[first] * grain).float()  # each differs from the best by rounding alone
    assert_direct([z, w_o, rivals], 1, norm=norm)


@large
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_matmul_precision_changes_nothing(precision: str) -> None:
    try:
        torch.set_float32_matmul_precision(precision)
        assert_direct([a.float() for a in draw(7, d=128, v=500)], 8)
    finally:
        torch.set_float32_matmul_precision("highest")


@large
@norms
@pytest.mark.parametrize("normalise", [True, False])
@dtypes
def test_screening_by_parts_of_the_samples_loses_no_atom(
    norm: str, normalise: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples without structure, where Cauchy-Schwarz alone keeps half of the atoms."""
    for name, value in {"_FIRST": 2, "_PART": 7, "_BLOCK": 500, "_CACHED": 999}.items():
        monkeypatch.setattr(somp, name, value)
    for seed in range(2):
        g = torch.Generator().manual_seed(seed)
        shapes = ((80, 16), (50, 16), (400, 50))
        arrays = [torch.randn(shape, generator=g).to(dtype) for shape in shapes]
        assert_direct(arrays, 12, norm=norm, normalise_atoms=normalise)


@large
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@norms
def test_cuda_equals_direct(norm: str) -> None:
    z, w_o, dictionary = (a.float() for a in draw(8, n=150, d=128, v=2000))
    assert_direct([z, w_o, dictionary.cuda()], 12, norm=norm)


@pytest.mark.parametrize("normalise", [True, False])
@dtypes
def test_each_of_few_directions_is_taken_once_and_a_zero_row_never(dtype, normalise: bool) -> None:
    z, w_o, dictionary = (a.to(dtype) for a in draw(22, d=160, v=12))
    rows = torch.cat([dictionary, dictionary[:4], 0 * dictionary[:2]])
    found = assert_direct([z, w_o, rows], 18, 1e-9, normalise_atoms=normalise)
    assert sorted(found.support) == list(range(12))
    assert pursue(z, w_o, 0 * dictionary, 3, normalise_atoms=normalise) == Pursuit([], [])


def test_layer_is_its_heads_even_in_small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [draw(seed)[:2] for seed in range(5)]
    dictionary = draw(0)[2]
    z, w_o = torch.stack([p[0] for p in parts], dim=1), torch.stack([p[1] for p in parts])
    z[:, 3] = 0  # a dead head among live ones
    expected = [direct(z[:, i], w_o[i], dictionary, 6) for i in (0, 1, 2, 4)]
    for elements in (somp._ELEMENTS, 2 * 90 * (8 + 6), 1):
        monkeypatch.setattr(somp, "_ELEMENTS", elements)
        found = pursue_layer(z, w_o, dictionary, 6)
        assert found.pop(3) == Pursuit([], [])
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e5])
def test_constant_samples_have_no_variance(value: float) -> None:
    _, w_o, dictionary = draw(15)
    z = torch.full((50, 8), value, dtype=torch.float64)
    assert pursue(z, w_o, dictionary, 5) == Pursuit([], [])
    assert bool(pursue(z, w_o, dictionary, 5, center=False).support) == (value != 0)
    assert pursue(z + torch.randn(50, 8), 0 * w_o, dictionary, 5) == Pursuit([], [])


def test_bad_input_is_refused() -> None:
    for bad, place in product([float("nan"), float("inf")], range(3)):
        arrays = draw(16)
        arrays[place][3, 2] = bad
        with pytest.raises(UserError, match="NaN"):
            pursue(*arrays, 3)
    z, w_o, dictionary = draw(17)
    with pytest.raises(UserError, match="no samples"):
        pursue(z[:0], w_o, dictionary, 3)
    for first, second, third in (
        (z[:, :5], w_o, dictionary), (z[None], w_o, dictionary),
        (z, w_o[:9], dictionary), (z, w_o, dictionary[:0]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="do not fit"):
            pursue(first, second, third, 3)
    for iterations, norm in ((0, "l1"), (3, "max")):
        with pytest.raises(ValueError, match="norm is l1 or l2, iterations at least 1"):
            pursue(z, w_o, dictionary, iterations, norm=norm)


@few
@given(st.integers(0, 10_000), *[st.integers(1, most) for most in (30, 12, 40)], st.booleans())
def test_small_integers_full_of_exact_ties(seed: int, n: int, h: int, v: int, l1: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    shapes = ((n, h), (9, h), (v, 9))
    arrays = [torch.randint(-1, 2, shape, generator=g).float() for shape in shapes]
    assert_direct(arrays, 20, norm="l1" if l1 else "l2", center=False)


# What real caches and vocabularies may hold: dead and twin rows, rows that nearly lie in a plane,
# scales far from 1.

# Each kind's rank, where the pursuit has to end; None where it is not determined.
ILL = {"duplicate": 24, "opposite": 24, "near_collinear": 40, "low_rank": 5, "lengths": 40}
ILL |= {"near_low_rank": None, "ill_conditioned": None}


def ill_dictionary(kind: str, seed: int) -> Tensor:
    base = draw(seed, v=24)[2]
    noise = draw(seed + 1, v=96)[2]
    plane = torch.randn(96, 5, generator=torch.manual_seed(seed)).double() @ base[:5]
    return {
        "duplicate": base.repeat(4, 1),
        "opposite": torch.cat([base, -base, 3 * base, 1e-3 * base]),
        "near_collinear": base.repeat(4, 1) + 1e-4 * noise,
        "low_rank": plane,
        "near_low_rank": plane + 1e-5 * noise,
        "ill_conditioned": noise * torch.logspace(0, -12, 40, dtype=torch.float64),
        "lengths": noise * torch.logspace(-6, 6, 96, dtype=torch.float64)[:, None],
    }[kind]


@norms
@pytest.mark.parametrize("kind", ILL)
@dtypes
@pytest.mark.parametrize("every", [1, 24])  # 24 leaves four rows, all much alike
def test_ill_dictionaries(kind: str, dtype: torch.dtype, norm: str, every: int) -> None:
    arrays = [a.to(dtype) for a in (*draw(30, n=40)[:2], ill_dictionary(kind, 31)[::every])]
    found = assert_direct(arrays, 60, 1e-9, norm=norm)
    assert_rising(found)
    assert found.support
    if every == 1 and ILL[kind]:
        assert len(found.support) == ILL[kind]


@norms
@pytest.mark.parametrize("place", range(3), ids=["samples", "weights", "dictionary"])
@dtypes
def test_tiny_and_huge_scales(place: int, dtype: torch.dtype, norm: str) -> None:
    arrays = [a.to(dtype) for a in draw(32)]
    expected = pursue(*arrays, 8, norm=norm)
    extreme = [1e-300, 1e150] if (place, dtype) == (0, torch.float64) else []
    for scale in [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30, *extreme]:
        scaled = [a * scale if i == place else a for i, a in enumerate(arrays)]
        assert_same(pursue(*scaled, 8, norm=norm), expected, 1e-7)


def test_denormal_numbers() -> None:
    """float32 has few digits left down there; what is left is decomposed, and nothing overflows."""
    z, w_o, dictionary = (a.float() for a in draw(33))
    for arrays in ([z * 1e-41, w_o, dictionary], [z, w_o * 1e-42, dictionary]):
        assert_direct(arrays, 8)
    for least in (1e-42, 1e-45, 0.0):
        assert_rising(pursue(z, w_o, dictionary * least, 8))
