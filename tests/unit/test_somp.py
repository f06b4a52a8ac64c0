"""Pursuit against a direct float64 implementation that forms H and refits by least squares."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from headpursuit.method import somp
from headpursuit.method.somp import (
    STOP,
    TIE,
    Pursuit,
    logit_lens_scores,
    logit_lens_tokens,
    pursue,
    pursue_layer,
)
from headpursuit.run.files import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
few = settings(max_examples=40, deadline=None, derandomize=True)
norms = pytest.mark.parametrize("norm", ["l1", "l2"])
seeds = st.integers(0, 10_000)


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module", params=[somp._SMALL, 0], ids=["all", "screened"])
def _small(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run every test with small dictionaries' own way, and with that of large ones."""
    before, somp._SMALL = somp._SMALL, request.param
    yield
    somp._SMALL = before


def written(z: torch.Tensor, w_o: torch.Tensor, center: bool) -> np.ndarray:
    """H (n x d) in float64."""
    h = z.double().cpu().numpy() @ w_o.double().cpu().numpy().T
    return h - h.mean(0) if center else h


def refit(h: np.ndarray, atoms: np.ndarray) -> tuple[np.ndarray, float]:
    """The residual of least squares on all atoms, and the explained share of ||H||²."""
    residual = h - (atoms.T @ np.linalg.lstsq(atoms.T, h.T, rcond=None)[0]).T
    return residual, 1 - (residual**2).sum() / (h**2).sum()


def direct(
    z: torch.Tensor,
    w_o: torch.Tensor,
    dictionary: torch.Tensor,
    iterations: int,
    *,
    norm: str = "l1",
    center: bool = True,
    normalise_atoms: bool = False,
) -> Pursuit:
    """SOMP as its authors wrote it, with the same rules for ties and for stopping."""
    h, d = written(z, w_o, center), dictionary.double().cpu().numpy()
    lengths = np.linalg.norm(d, axis=1)
    weight = 1 / np.where(lengths > 0, lengths, 1) if normalise_atoms else np.ones_like(lengths)
    reach = np.linalg.norm(h) * lengths * weight * (len(h) ** 0.5 if norm == "l1" else 1)
    residual, support, explained = h, [], []
    for _ in range(min(iterations, len(d))):
        score = np.linalg.norm(residual @ d.T, ord=int(norm[1]), axis=0) * weight
        score[support] = -1
        best = int(np.nonzero(score >= (1 - TIE) * score.max())[0][0])
        if score[best] <= STOP * reach[best]:
            break
        support.append(best)
        residual, share = refit(h, d[support])
        explained.append(share)
    return Pursuit(support, explained)


def draw(
    seed: int, n: int = 60, head_dim: int = 8, d: int = 40, v: int = 90, decay: float = 0.5
) -> Arrays:
    """A head whose features differ in scale and whose samples are heavy-tailed, so l1 is not l2."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.arange(1.0, head_dim + 1) ** -decay
    heavy = torch.rand(n, 1, generator=g, dtype=torch.float64) ** -0.4
    z = (torch.randn(n, head_dim, generator=g, dtype=torch.float64) + 0.5) * scale * heavy
    w_o = torch.randn(d, head_dim, generator=g, dtype=torch.float64)
    return z, w_o, torch.randn(v, d, generator=g, dtype=torch.float64)


def assert_same(found: Pursuit, expected: Pursuit, tolerance: float = 1e-9) -> None:
    assert found.support == expected.support
    assert found.explained == pytest.approx(expected.explained, abs=tolerance)


@norms
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("n", "v"), [(60, 90), (5, 90), (1, 90), (200, 1500), (60, 7)])
def test_equals_direct(norm: str, center: bool, normalise: bool, n: int, v: int) -> None:
    z, w_o, dictionary = draw(n + v, n=n, v=v)
    dictionary *= torch.logspace(-2, -1, v, dtype=torch.float64).flip(0)[:, None] ** 0.3
    dictionary /= 100  # lengths below 1, as an unembedding's are
    options = {"norm": norm, "center": center, "normalise_atoms": normalise}
    expected = direct(z, w_o, dictionary, 12, **options)
    assert_same(pursue(z, w_o, dictionary, 12, **options), expected)
    if (n, center) != (1, True):  # one sample, centred, is nothing
        assert len(expected.support) == min(12, v)


def test_norm_centring_and_lengths_matter() -> None:
    """The parity above would say little if the options made no difference."""
    z, w_o, dictionary = draw(3, v=1500)
    dictionary *= torch.linspace(0.1, 3, 1500, dtype=torch.float64)[:, None]
    plain = pursue(z, w_o, dictionary, 6)
    for option in ({"norm": "l2"}, {"center": False}, {"normalise_atoms": True}):
        assert pursue(z, w_o, dictionary, 6, **option).support != plain.support


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_gives_the_float64_support(norm: str, dtype: torch.dtype) -> None:
    arrays = [a.to(dtype) for a in draw(5, n=150, head_dim=16, d=128, v=2000)]
    assert_same(pursue(*arrays, 20, norm=norm), direct(*arrays, 20, norm=norm), 1e-8)


@norms
def test_contests_closer_than_float32_are_decided_in_float64(norm: str) -> None:
    z, w_o, dictionary = draw(6, d=256, v=300)
    first = direct(z, w_o, dictionary.float(), 1, norm=norm).support[0]
    grain = 1 + 1e-7 * torch.randn(300, 256, dtype=torch.float64, generator=torch.manual_seed(0))
    rivals = (dictionary[first] * grain).float()  # each differs from the best by rounding alone
    expected = direct(z, w_o, rivals, 1, norm=norm)
    assert pursue(z, w_o, rivals, 1, norm=norm).support == expected.support


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_matmul_precision_changes_nothing(precision: str) -> None:
    arrays = [a.float() for a in draw(7, d=128, v=800)]
    expected = direct(*arrays, 8)
    try:
        torch.set_float32_matmul_precision(precision)
        found = pursue(*arrays, 8)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert_same(found, expected, 1e-8)


@norms
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_screening_by_parts_of_the_samples_loses_no_atom(
    norm: str, normalise: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples without structure, where Cauchy-Schwarz alone keeps half of the atoms."""
    for name, value in {"_FIRST": 2, "_PART": 7, "_BLOCK": 500, "_CACHED": 999}.items():
        monkeypatch.setattr(somp, name, value)
    options = {"norm": norm, "normalise_atoms": normalise}
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        z, w_o = torch.randn(80, 16, generator=g), torch.randn(50, 16, generator=g)
        arrays = [a.to(dtype) for a in (z, w_o, torch.randn(700, 50, generator=g))]
        assert_same(pursue(*arrays, 15, **options), direct(*arrays, 15, **options), 1e-8)


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_small_dictionary_is_rotated_without_loss(
    norm: str, dtype: torch.dtype, normalise: bool
) -> None:
    z, w_o, dictionary = (a.to(dtype) for a in draw(22, d=160, v=12))
    dictionary = torch.cat([dictionary, dictionary[:4], 0 * dictionary[:2]])  # twins and zeros
    assert len(dictionary) < dictionary.shape[1] / 8
    options = {"norm": norm, "normalise_atoms": normalise}
    found = pursue(z, w_o, dictionary, 18, **options)
    assert_same(found, direct(z, w_o, dictionary, 18, **options), 1e-9)
    assert sorted(found.support) == list(range(12))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@norms
def test_cuda_equals_direct(norm: str) -> None:
    z, w_o, dictionary = (a.float() for a in draw(8, n=150, d=128, v=2000))
    expected = direct(z, w_o, dictionary, 12, norm=norm)
    assert_same(pursue(z, w_o, dictionary.cuda(), 12, norm=norm), expected, 1e-8)


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicate_rows_yield_the_lowest_and_only_once(norm: str, dtype: torch.dtype) -> None:
    arrays = [a.to(dtype) for a in draw(9, v=30)]
    arrays[2] = arrays[2].repeat(4, 1)
    found = pursue(*arrays, 100, norm=norm)
    assert_same(found, direct(*arrays, 100, norm=norm), 1e-8)
    assert sorted(found.support) == list(range(30))  # the rank, each direction once


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_deficient_dictionary_stops_at_its_rank(norm: str, dtype: torch.dtype) -> None:
    z, w_o, dictionary = draw(10)
    g = torch.Generator().manual_seed(0)
    mix = torch.randint(-3, 4, (50, 6), generator=g).double()  # exact in float32 too
    dictionary = (mix @ dictionary[:6].mul(256).round().div(256)).to(dtype)
    found = pursue(z, w_o, dictionary, 50, norm=norm)
    assert_same(found, direct(z, w_o, dictionary, 50, norm=norm))
    assert len(found.support) == 6


def test_full_dictionary_explains_everything() -> None:
    found = pursue(*draw(11, d=20, v=60), 60)
    assert len(found.support) == 20
    assert found.explained[-1] == pytest.approx(1, abs=1e-12)


@norms
@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-5])
def test_near_collinear_atoms(norm: str, gap: float) -> None:
    z, w_o, dictionary = draw(12, v=10)
    noise = draw(13, v=60)[2]
    dictionary = dictionary.repeat(6, 1) + gap * noise
    found = pursue(z, w_o, dictionary, 25, norm=norm)
    assert_same(found, direct(z, w_o, dictionary, 25, norm=norm), 1e-6)


def test_a_zero_row_is_never_taken() -> None:
    z, w_o, dictionary = draw(14, v=12)
    dictionary[[0, 5]] = 0
    for normalise in (True, False):
        found = pursue(z, w_o, dictionary, 12, normalise_atoms=normalise)
        assert sorted(found.support) == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert pursue(z, w_o, torch.zeros_like(dictionary), 3) == Pursuit([], [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planted_head_is_recovered_in_order(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    d, head_dim, n = 256, 32, 400
    dictionary = torch.nn.functional.normalize(torch.randn(3000, d, generator=g))
    w_o = 0.01 * torch.randn(d, head_dim, generator=g)
    planted = [2718, 31, 1414]
    w_o[:, :3] = dictionary[planted].T
    z = torch.randn(n, head_dim, generator=g)
    z[:, :3] *= torch.tensor([4.0, 2.0, 1.0])
    found = pursue(z.to(dtype), w_o.to(dtype), dictionary.to(dtype), 3)
    assert found.support == planted
    assert found.explained[-1] > 0.95


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_values_that_are_not_finite_are_refused(bad: float, place: int) -> None:
    arrays = draw(16)
    arrays[place][3, 2] = bad
    with pytest.raises(UserError, match="NaN"):
        pursue(*arrays, 3)


def test_what_does_not_fit_is_refused() -> None:
    z, w_o, dictionary = draw(17)
    for arrays in ((z[:, :5], w_o, dictionary), (z, w_o[:9], dictionary), (z, w_o, dictionary[:0])):
        with pytest.raises(ValueError, match="do not fit"):
            pursue(*arrays, 3)
    with pytest.raises(ValueError, match="one head"):
        pursue(z[None], w_o, dictionary, 3)
    with pytest.raises(ValueError, match="iterations"):
        pursue(z, w_o, dictionary, 0)
    with pytest.raises(ValueError, match="norm"):
        pursue(z, w_o, dictionary, 3, norm="max")
    with pytest.raises(UserError, match="no samples"):
        pursue(z[:0], w_o, dictionary, 3)


@few
@given(seeds, st.integers(1, 30), st.integers(1, 12), st.integers(1, 40), st.booleans())
def test_small_integers_full_of_exact_ties(seed: int, n: int, h: int, v: int, l1: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    z, w_o, dictionary = (
        torch.randint(-1, 2, shape, generator=g).float() for shape in ((n, h), (9, h), (v, 9))
    )
    options = {"norm": "l1" if l1 else "l2", "center": False}
    assert_same(
        pursue(z, w_o, dictionary, 20, **options), direct(z, w_o, dictionary, 20, **options), 1e-8
    )


@few
@given(seeds, st.integers(2, 50), st.integers(1, 12), st.integers(1, 70), st.booleans())
def test_explained_variance_is_that_of_the_projection(
    seed: int, n: int, head_dim: int, v: int, center: bool
) -> None:
    z, w_o, dictionary = draw(seed, n=n, head_dim=head_dim, d=30, v=v)
    found = pursue(z, w_o, dictionary, 35, center=center)
    assert len(set(found.support)) == len(found.support) == len(found.explained) == min(v, 30)
    assert all(0 <= share <= 1 for share in found.explained)
    assert found.explained == sorted(found.explained)
    h, atoms = written(z, w_o, center), dictionary[found.support].numpy()
    for k, share in enumerate(found.explained, start=1):
        residual, expected = refit(h, atoms[:k])
        assert share == pytest.approx(expected, abs=1e-9)
        assert np.abs(residual @ atoms[:k].T).max() <= 1e-9 * np.linalg.norm(h)


@few
@given(seeds, st.floats(-6, 6), st.sampled_from([torch.float32, torch.float64]))
def test_scale_and_order_of_samples_do_not_matter(
    seed: int, exponent: float, dtype: torch.dtype
) -> None:
    z, w_o, dictionary = draw(seed)
    expected = pursue(z, w_o, dictionary.to(dtype), 8)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    assert_same(pursue(z * 10**exponent, w_o, dictionary.to(dtype), 8), expected)
    assert_same(pursue(z[order], w_o, dictionary.to(dtype), 8), expected)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e150])
def test_extreme_scales_of_samples(scale: float) -> None:
    z, w_o, dictionary = draw(18)
    assert_same(pursue(z * scale, w_o, dictionary, 8), pursue(z, w_o, dictionary, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logit_lens_scores(dtype: torch.dtype) -> None:
    z, w_o, dictionary = (a.to(dtype) for a in draw(19))
    logits = written(z, w_o, center=False) @ dictionary.double().numpy().T
    score, rows = logit_lens_scores(z, w_o, dictionary)
    assert score == pytest.approx(logits.mean(), rel=1e-4)
    assert rows.numpy() == pytest.approx(logits.mean(0), abs=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize(("per_sample", "top", "block"), [(5, 5, 256), (5, 5, 7), (1, 3, 1)])
def test_logit_lens_tokens(per_sample: int, top: int, block: int) -> None:
    z, w_o, dictionary = draw(20, n=50, v=25)
    logits = written(z, w_o, center=False) @ dictionary.numpy().T
    counts, sums = Counter(), Counter()
    for sample in logits:
        for row in np.argsort(-sample)[:per_sample]:
            counts[row] += 1
            sums[row] += sample[row]
    expected = sorted(counts, key=lambda row: (-counts[row], -sums[row]))[:top]
    found = logit_lens_tokens(z, w_o, dictionary, per_sample, top, block=block)
    assert found == expected


def test_logit_lens_edges() -> None:
    z, w_o, dictionary = draw(21, v=3)
    assert sorted(logit_lens_tokens(z, w_o, dictionary)) == [0, 1, 2]  # fewer rows than asked
    one, two = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [0.0]])
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])  # 0 and 2 have the same logits
    assert logit_lens_tokens(one, two, rows, per_sample=2, top=3) == [0, 2]
    z[0, 0] = float("nan")
    for lens in (logit_lens_scores, logit_lens_tokens):
        with pytest.raises(UserError, match="NaN"):
            lens(z, w_o, dictionary)


# What real caches and vocabularies may hold: dead and twin rows, rows that nearly lie in a plane,
# float16 caches, scales far from 1. How exactly the residual has to be orthogonal to the support,
# relative to the residual's and the atoms' lengths, is stated for each kind.

ORTHOGONAL = 1e-9


def residual_cosines(z: torch.Tensor, w_o: torch.Tensor, atoms: torch.Tensor) -> float:
    """Return the largest |cosine| between an atom and what a float64 fit on all leaves of H."""
    h = written(z, w_o, center=True)
    rows = atoms.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    basis = vt[s > s[0] * 1e-14]
    rest = h - (h @ basis.T) @ basis
    return float(np.abs(rest @ rows.T).max() / np.linalg.norm(h))


def ill_dictionary(kind: str, seed: int, dtype: torch.dtype) -> torch.Tensor:
    base = draw(seed, v=24)[2]
    noise = draw(seed + 1, v=96)[2]
    rows = {
        "duplicate": base.repeat(4, 1),
        "opposite": torch.cat([base, -base, 3 * base, 1e-3 * base]),
        "near_collinear": base.repeat(4, 1) + 1e-4 * noise,
        "low_rank": torch.randn(96, 5, generator=torch.manual_seed(seed)).double() @ base[:5],
        "near_low_rank": torch.randn(96, 5, generator=torch.manual_seed(seed)).double() @ base[:5]
        + 1e-5 * noise,
        "ill_conditioned": noise * torch.logspace(0, -12, 40, dtype=torch.float64),
        "lengths": noise * torch.logspace(-6, 6, 96, dtype=torch.float64)[:, None],
    }[kind]
    return rows.to(dtype)


ILL = ["duplicate", "opposite", "near_collinear", "low_rank", "near_low_rank", "ill_conditioned"]
ILL.append("lengths")


@norms
@pytest.mark.parametrize("kind", ILL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("every", [1, 24])  # 24 leaves four rows, all much alike
def test_ill_dictionaries(kind: str, dtype: torch.dtype, norm: str, every: int) -> None:
    z, w_o, _ = draw(30, n=40)
    dictionary = ill_dictionary(kind, 31, dtype)[::every]
    found = pursue(z.to(dtype), w_o.to(dtype), dictionary, 60, norm=norm)
    assert found.support and len(set(found.support)) == len(found.support)
    assert all(0 <= share <= 1 for share in found.explained)
    assert found.explained == sorted(found.explained)
    for k in range(1, len(found.support) + 1):
        cosines = residual_cosines(z.to(dtype), w_o.to(dtype), dictionary[found.support[:k]])
        assert cosines <= ORTHOGONAL, (k, cosines)
    # As far as the choice is determined, it is the direct algorithm's.
    expected = direct(z.to(dtype), w_o.to(dtype), dictionary, 60, norm=norm)
    assert found.support == expected.support
    assert found.explained == pytest.approx(expected.explained, abs=1e-6)


@norms
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30])
@pytest.mark.parametrize("place", ["samples", "weights", "dictionary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_and_huge_scales(place: str, scale: float, dtype: torch.dtype, norm: str) -> None:
    z, w_o, dictionary = (a.to(dtype) for a in draw(32))
    expected = pursue(z, w_o, dictionary, 8, norm=norm)
    factors = dict(zip(["samples", "weights", "dictionary"], [1.0] * 3, strict=True)) | {
        place: scale
    }
    arrays = (a * f for a, f in zip((z, w_o, dictionary), factors.values(), strict=True))
    found = pursue(*arrays, 8, norm=norm)
    assert found.support == expected.support
    assert found.explained == pytest.approx(expected.explained, rel=1e-6)


def test_denormal_numbers() -> None:
    """float32 has few digits left down there; what is left is decomposed, and nothing overflows."""
    z, w_o, dictionary = (a.float() for a in draw(33))
    for arrays in ((z * 1e-41, w_o, dictionary), (z, w_o * 1e-42, dictionary)):
        found = pursue(*arrays, 8)
        assert_same(found, direct(*arrays, 8), 1e-8)
    for least in (1e-42, 1e-45, 0.0):
        found = pursue(z, w_o, dictionary * least, 8)
        assert all(0 <= share <= 1 for share in found.explained)
        assert found.explained == sorted(found.explained)


@norms
@pytest.mark.parametrize("center", [True, False])
def test_a_float16_cache(norm: str, center: bool) -> None:
    """The cache is rounded once; from there on all is as exact as from float32."""
    z, w_o, dictionary = draw(34, n=120, head_dim=16, d=64, v=400)
    for scale in (1e-4, 1.0, 1e4):
        cached = (z * scale).clamp(-6e4, 6e4).half()
        options = {"norm": norm, "center": center}
        found = pursue(cached.float(), w_o.float(), dictionary.float(), 12, **options)
        expected = direct(cached.double(), w_o.float(), dictionary.float(), 12, **options)
        assert_same(found, expected, 1e-8)


@given(
    st.integers(0, 10**6),
    st.sampled_from(ILL),
    st.floats(-25, 25),
    st.floats(-8, 8),
    st.integers(1, 30),
    st.sampled_from(["l1", "l2"]),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.booleans(),
)
def test_explained_variance_rises_within_0_and_1(
    seed, kind, exponent, other, n, norm, dtype, center, normalise
) -> None:
    z, w_o, _ = draw(seed, n=n, head_dim=6)
    z, w_o = (z * 10**exponent).to(dtype), w_o.to(dtype)
    dictionary = ill_dictionary(kind, seed, torch.float64) * 10**other
    found = pursue(
        z, w_o, dictionary.to(dtype), 30, norm=norm, center=center, normalise_atoms=normalise
    )
    assert all(0 <= share <= 1 for share in found.explained)
    assert found.explained == sorted(found.explained)
    assert len(set(found.support)) == len(found.support) == len(found.explained)
