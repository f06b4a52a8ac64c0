"""Which dictionary rows explain a head: simultaneous orthogonal matching pursuit (SOMP).

A head writes H = z w_oᵀ to the residual stream (n samples x d). Pursuit explains it by a few atoms,
rows of the unembedding: again and again it takes the atom whose correlations with the residual are
largest over the samples, then refits all atoms taken (Tropp, Gilbert & Strauss 2006; the paper's
appendix A). Neither H nor the n x v correlations are ever formed:

* With z = S R (QR: S n x r orthonormal, r = min(n, head_dim)), H = S Fᵀ where F = w_o Rᵀ is d x r.
  Refitting on atoms whose orthonormal basis is Q leaves the residual S Fᵀ(I - QQᵀ), so that the
  correlations with an atom a are S y, y = Fᵀ(I - QQᵀ)a, and ||Fᵀq||² is what a further q adds to
  the explained sum of squares. Only dictionary @ F, once, and dictionary @ q, each step, are long.
* The largest score is found lazily. Two bounds hold an atom's score: Cauchy-Schwarz'
  (||S y||₁ <= √n ||y||₂, which is cheap to keep for every atom), and the bound that it was last
  screened to, grown by ||S Fᵀq|| |a·q| as each q left the residual. Only atoms whose bounds could
  still win are screened: scored on a part of the samples at a time, those with the largest
  writes first, and dropped once Cauchy-Schwarz on the samples to come cannot make them win.
* Long products run in the dictionary's precision (at least float32). The atoms that their rounding
  cannot tell from the best are scored anew in float64, so the support is that of float64.
* A small dictionary is first rotated into its own span. There everything is float64, and every
  atom of every head of a layer is scored in each step, at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headpursuit.run.files import UserError

TIE = 1e-8  # scores this close, relatively, are a tie: the lowest row wins
STOP = 1e-7  # correlations that are this share of ||H|| ||atom|| are nil: nothing left to explain

_UNIT = {"highest": 2**-24, "high": 2**-11, "medium": 2**-8}  # of torch's float32 products
_ELEMENTS = 2**27  # of the arrays of the heads that are pursued together
_SMALL = 500  # atoms: up to here, all scores are cheaper than the bounds that spare most of them
_FIRST = 32  # atoms screened before all others, so that few others need it
_BLOCK = 2**20  # correlations in memory at once
_CACHED = 2**22  # elements of the dictionary that are read at once
_PARTS, _PART = 8, 256  # parts of the samples, and the fewest samples in one
_ROWS = 256  # atoms scored at once in float64


@dataclass(frozen=True)
class Pursuit:
    """A head's atoms: dictionary rows in order of selection, and the explained variance, in [0, 1],
    of the first atom, the first two, and so on."""

    support: list[int]
    explained: list[float]


@dataclass(frozen=True)
class _Atoms:
    """A dictionary (v x d), and how its atoms are scored."""

    rows: Tensor
    weight: Tensor  # v, what scores are multiplied by
    reach: Tensor  # v, which no score exceeds, as ||F|| <= 1
    most: float  # of the norm over the samples, where the l2 norm is 1
    norm: str
    normalise: bool

    def measure(self, correlations: Tensor) -> Tensor:
        """Return the norm over samples, which are the last dimension."""
        return correlations.abs().sum(-1) if self.norm == "l1" else correlations.norm(dim=-1)


def pursue(z: Tensor, w_o: Tensor, dictionary: Tensor, iterations: int, **options) -> Pursuit:
    """Run SOMP on one head: :func:`pursue_layer` with z (n, head_dim) and w_o (d, head_dim)."""
    return pursue_layer(z[:, None], w_o[None], dictionary, iterations, **options)[0]


def pursue_layer(
    z: Tensor,
    w_o: Tensor,
    dictionary: Tensor,
    iterations: int,
    *,
    norm: str = "l1",
    center: bool = True,
    normalise_atoms: bool = False,
) -> list[Pursuit]:
    """Run SOMP (Tropp et al. 2006; the paper's appendix A) on each head of a layer.

    Explained variance is 1 - ||residual||² / ||H||² (Frobenius), H being centred over the samples;
    with ``center`` false the explained share of H's second moment. A head stops early when nothing
    is left to explain: all atoms taken, or the largest correlation at most ``STOP`` of what
    Cauchy-Schwarz allows its atom (the rank is exhausted). Of scores within ``TIE`` of the largest,
    relatively, the lowest row wins. A head that writes nothing, or centred always the same, has an
    empty support.

    Args:
        z: (n, heads, head_dim) input of the attention output projection, one row a sample.
        w_o: (heads, d, head_dim) each head's columns of that projection's weight.
        dictionary: (v, d) atoms, rows of the unembedding. Float64 is computed in float64, all else
            in float32 with float64 where it decides. Work is done on the dictionary's device.
        iterations: largest number of atoms.
        norm: of an atom's correlations over samples, l1 (the paper's) or l2.
        center: subtract each feature's mean over samples.
        normalise_atoms: divide atoms by their length before they are compared (a row of zeros is
            never taken). The refit does not depend on it.

    Raises:
        UserError: if z has no samples, or z, w_o or the dictionary hold NaN or infinity.
        ValueError: if the shapes do not fit, or norm or iterations are out of range.
    """
    if norm not in ("l1", "l2") or iterations < 1:
        raise ValueError(f"norm is l1 or l2, iterations at least 1; not {norm!r}, {iterations}")
    check_layer(z, w_o, dictionary)
    small = len(dictionary) <= _SMALL
    double = small or dictionary.dtype == torch.float64
    rows = _in_range(dictionary.to(torch.float64 if double else torch.float32))
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if not lengths.isfinite().all():
        raise UserError("The dictionary holds NaN or infinite values: is the model file whole?")
    if small:  # what lies outside the atoms' span, they cannot explain
        span, triangle = torch.linalg.qr(rows.T)
        rows = triangle.T.contiguous()
    weight = 1 / _positive(lengths) if normalise_atoms else torch.ones_like(lengths)
    most = len(z) ** 0.5 if norm == "l1" else 1.0
    atoms = _Atoms(rows, weight, most * lengths * weight, most, norm, normalise_atoms)
    iterations = min(iterations, len(rows))
    room = _ELEMENTS // max(len(rows) * (z.shape[2] + iterations), 3 * len(z) * z.shape[2])
    found = []
    for heads in torch.arange(len(w_o)).chunk(-(-len(w_o) // max(1, room))):
        parts = [
            head_factor(z[:, i].to(rows.device), w_o[i].to(rows.device), center) for i in heads
        ]
        samples, factors = zip(*parts, strict=True)
        if small:
            factor = span.T @ torch.stack(factors)
            found += _score_all(atoms, torch.stack(samples), factor, iterations)
        else:
            found += _screen_all(atoms, samples, factors, iterations)
    return found


def _in_range(atoms: Tensor) -> Tensor:
    """Scale a dictionary whose squares would leave the numbers' range; it changes no choice."""
    largest = max(float(atoms.max()), -float(atoms.min()))
    if not 0 < largest < math.inf or 2**-30 < largest < 2**30:
        return atoms
    power = 2.0 ** max(math.frexp(largest)[1], -1022)  # dividing by it rounds nothing
    return (atoms.double() / power).to(atoms.dtype)


def check_layer(z: Tensor, w_o: Tensor, dictionary: Tensor) -> None:
    """Refuse shapes that do not fit a layer, and values that are not finite."""
    fits = (
        (z.ndim, w_o.ndim, dictionary.ndim) == (3, 3, 2)
        and (*z.shape[1:], dictionary.shape[1]) == (len(w_o), w_o.shape[2], w_o.shape[1])
        and len(dictionary) > 0
    )
    if not fits:
        raise ValueError(
            "z (n, heads, head_dim), w_o (heads, d, head_dim) and dictionary (v, d) do not fit: "
            f"{tuple(z.shape)}, {tuple(w_o.shape)}, {tuple(dictionary.shape)}"
        )
    if len(z) == 0:
        raise UserError("There are no samples: the activations are empty.")
    for values, name in ((z, "activations"), (w_o, "output projection's weights")):
        if not values.isfinite().all():
            raise UserError(
                f"The {name} hold NaN or infinite values: compute them again, in bfloat16 or "
                "float32 if float16 overflowed."
            )


def _positive(lengths: Tensor) -> Tensor:
    return lengths.clamp(min=torch.finfo(lengths.dtype).tiny)


def head_factor(z: Tensor, w_o: Tensor, center: bool) -> tuple[Tensor, Tensor]:
    """Return S (n x r, orthonormal) and F (d x r) with H = S Fᵀ up to scale, ||F|| = 1 or 0."""
    z, w_o = z.double(), w_o.double()
    if center:
        z = z - z[0]  # first, so that a constant sample leaves exact zeros, not rounding
        z = z - z.mean(0)
    largest = z.abs().max()
    samples, triangle = torch.linalg.qr(z / _positive(largest))
    factor = w_o @ triangle.T
    length = factor.norm()
    nil = length <= 1e-13 * w_o.norm() * triangle.norm()  # only rounding, if anything
    return samples, torch.zeros_like(factor) if nil else factor / length


def without(rows: Tensor, basis: Tensor) -> Tensor:
    """Return rows (..., m, d) less their projection on an orthonormal basis (..., k, d)."""
    for _ in range(2):  # the second pass removes what rounding left of the first
        rows = rows - (rows @ basis.mT) @ basis
    return rows


def _score_all(atoms: _Atoms, samples: Tensor, factor: Tensor, iterations: int) -> list[Pursuit]:
    """Pursue heads at once, scoring every atom in every step, in float64.

    Takes samples (heads x n x r) and factor (heads x d x r).
    """
    found = [Pursuit([], []) for _ in factor]
    heads, rows = (torch.arange(len(some), device=factor.device) for some in (factor, atoms.rows))
    live = factor.flatten(1).any(1)
    left = atoms.rows @ factor  # heads x v x r, of what is left of y
    size = max(1, _BLOCK // left[..., 0].numel())
    parts = samples.mT.split(size, dim=2)
    taken = torch.zeros(left.shape[:2], dtype=torch.bool, device=factor.device)
    basis = factor.new_empty(len(factor), 0, factor.shape[1])
    share = factor.new_zeros(len(factor))
    for _ in range(iterations):
        if atoms.norm == "l2":  # samples are orthonormal
            scores = left.norm(dim=2)
        else:
            scores = sum((left @ part).abs_().sum(2) for part in parts)
        scores = (scores * atoms.weight).masked_fill(taken, -torch.inf)
        # The lowest of those that tie.
        ties = scores >= (1 - TIE) * scores.amax(1, keepdim=True)
        index = torch.where(ties, rows, len(rows)).amin(1)
        live &= scores[heads, index] > STOP * atoms.reach[index]
        if not live.any():
            break
        rest = without(atoms.rows[index][:, None], basis)
        q = torch.where(live[:, None, None], rest / rest.norm(dim=2, keepdim=True), 0.0)
        write = q @ factor
        basis = torch.cat([basis, q], dim=1)
        left -= (q[:, 0] @ atoms.rows.T)[:, :, None] * write
        taken[heads, index] = True
        share = (share + write.square().sum((1, 2))).clamp(max=1)
        for head in live.nonzero()[:, 0].tolist():
            found[head].support.append(int(index[head]))
            found[head].explained.append(float(share[head]))
    return found


def _screen_all(
    atoms: _Atoms, samples: Sequence[Tensor], factors: Sequence[Tensor], iterations: int
) -> list[Pursuit]:
    """Pursue heads in step, so that each step reads the dictionary once for all of them."""
    dtype, width = atoms.rows.dtype, factors[0].shape[1]
    products = (atoms.rows @ torch.cat(factors, dim=1).to(dtype)).split(width, dim=1)
    heads = [_Head(atoms, *own, iterations) for own in zip(samples, factors, products, strict=True)]
    blocks = atoms.rows.split(max(1, _CACHED // atoms.rows.shape[1]))  # BLAS is slow on all at once
    live = [head for head in heads if head.factor.any()]
    for step in range(iterations):
        live = [head for head in live if head.take()]
        if not live or step == iterations - 1:
            break
        directions = torch.stack([head.basis[-1] for head in live]).to(dtype)
        overlaps = torch.cat([directions @ block.T for block in blocks], dim=1)
        for head, overlap in zip(live, overlaps, strict=True):
            head.remove(overlap)
    return [head.found for head in heads]


class _Head:
    """One head's pursuit: H = samples @ factor.T, and what its atoms so far explain."""

    def __init__(
        self, atoms: _Atoms, samples: Tensor, factor: Tensor, products: Tensor, iterations: int
    ) -> None:
        """Take samples (n x r), factor (d x r), and products: atoms @ factor (v x r)."""
        self.atoms, self.samples, self.factor, self.products = atoms, samples, factor, products
        self.found = Pursuit([], [])
        self.basis = factor.new_empty(0, len(factor))  # k x d, orthonormal, spans the support
        self.writes = factor.new_empty(0, factor.shape[1])  # k x r, basis @ factor
        self.overlaps = products.new_empty(iterations, len(products))  # its rows: atoms @ basis[k]

        fast = samples.to(products.dtype)
        sizes = ((fast @ (factor.T @ factor).to(fast.dtype)) * fast).sum(1)  # of samples' writes
        ordered = fast[sizes.argsort(descending=True, stable=True)]
        self.parts = ordered.split(max(_PART, -(-len(samples) // _PARTS)))

        single = fast.dtype == torch.float32
        unit = _UNIT[torch.get_float32_matmul_precision()] if single else 2**-53
        # More than any rounding: of a score, and of a sum of squares relative to all squares.
        self.slack = 8 * max(factor.shape) ** 0.5 * unit * atoms.reach
        self.grain = 8 * (factor.shape[1] + 16) * unit
        self.squares = products.square().sum(1) * (1 + self.grain)  # v, of what is left of y
        self.bound = self._ceiling()

    def take(self) -> bool:
        """Add the best atom to the support; False if no atom explains anything more."""
        index = self._contenders()
        if len(index) > 1:
            scores = torch.cat([self._score(part)[0] for part in index.split(_ROWS)])
            index = index[(scores >= (1 - TIE) * scores.max()).nonzero()[0]]  # the lowest row
        if not len(index):
            return False
        score, rest, write = self._score(index)
        if score <= STOP * self.atoms.reach[index]:
            return False
        length = rest.norm()
        self.basis = torch.cat([self.basis, rest / length])
        self.writes = torch.cat([self.writes, write / length])
        self.bound[index] = -torch.inf
        before = self.found.explained[-1] if self.found.support else 0.0
        self.found.support.append(int(index))
        self.found.explained.append(min(1.0, before + float(self.writes[-1].square().sum())))
        return True

    def remove(self, overlap: Tensor) -> None:
        """Let the bounds follow as the newest q leaves the residual; overlap (v) is atoms @ q."""
        k, write = len(self.writes) - 1, self.writes[-1]
        known = (self.writes[:k] @ write).to(overlap.dtype)
        along = self.products @ write.to(overlap.dtype) - known @ self.overlaps[:k]  # y @ write
        self.squares -= overlap * (2 * along - float(write @ write) * overlap)
        self.overlaps[k] = overlap
        most = float(self.atoms.measure(self.samples @ write))
        grown = self.bound + most * overlap.abs() * self.atoms.weight
        self.bound = torch.minimum(grown, self._ceiling())

    def _ceiling(self) -> Tensor:
        """Return Cauchy-Schwarz' bounds on the scores (v)."""
        lengths = self.squares.clamp(min=0).sqrt()
        return self.atoms.most * lengths * self.atoms.weight + self.slack

    def _contenders(self) -> Tensor:
        """Return, ascending, the atoms whose score the rounding cannot tell from the largest."""
        scored = torch.zeros_like(self.bound, dtype=torch.bool)
        top = self.bound.topk(min(_FIRST, len(self.bound)))
        least = self._screen(top.indices[top.values >= 0], 0.0, scored)
        rest = ((self.bound >= least) & ~scored).nonzero()[:, 0]
        rest = rest[self.bound[rest].argsort(descending=True)]
        for some in rest.split(max(_FIRST, _BLOCK // len(self.parts[0]))):
            some = some[self.bound[some] >= least]
            if not len(some):
                break
            least = self._screen(some, least, scored)
        return (scored & (self.bound >= least)).nonzero()[:, 0]

    def _screen(self, index: Tensor, least: float, scored: Tensor) -> float:
        """Lower the atoms' bounds, to their scores unless they fall below ``least`` before that.

        Marks in ``scored`` those that did not. Returns the new ``least``, which the largest score
        is sure to reach, ties included.
        """
        k, l1, weight = len(self.writes), self.atoms.norm == "l1", self.atoms.weight
        y = self.products[index]
        y = y - self.overlaps[:k].index_select(1, index).T @ self.writes.to(y.dtype)
        left, after = y.square().sum(1) * (1 + self.grain), len(self.samples)
        total = torch.zeros_like(left)
        for part in self.parts if l1 else ():
            correlations = y @ part.T
            after -= len(part)
            if after:
                left -= correlations.norm(dim=1).square_()
            total += correlations.abs_().sum(1)
            if after:
                score = total + (after * left.clamp(min=0)).sqrt()
                self.bound[index] = score * weight[index] + self.slack[index]
                alive = self.bound[index] >= least
                index, y, left, total = index[alive], y[alive], left[alive], total[alive]
        score = (total if l1 else y.norm(dim=1)) * weight[index]
        self.bound[index] = score + self.slack[index]
        scored[index] = True
        sure = (score - self.slack[index]).max() if len(index) else score.new_zeros(())
        return max(least, float(sure) * (1 - 2 * TIE))

    def _score(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return float64 scores (m), the atoms less the basis (m x d), and that @ F (m x r)."""
        rows = self.atoms.rows[index].double()
        rest = without(rows, self.basis)
        write = rest @ self.factor
        score = self.atoms.measure(write @ self.samples.T)
        if self.atoms.normalise:
            score = score / _positive(rows.norm(dim=1))
        return score, rest, write
