"""Which dictionary rows explain a head: simultaneous orthogonal matching pursuit, and a logit lens.

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
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headpursuit.run.files import UserError

Norm = Literal["l1", "l2"]

TIE = 1e-8  # scores this close, relatively, are a tie: the lowest row wins
STOP = 1e-7  # correlations that are this share of ||H|| ||atom|| are nil: nothing left to explain

_UNIT = {"highest": 2**-24, "high": 2**-11, "medium": 2**-8}  # of torch's float32 products
_ELEMENTS = 2**27  # of the arrays of the heads that are pursued together
_SMALL = 200  # atoms: up to here, all scores are cheaper than the bounds that spare most of them
_FIRST = 32  # atoms screened before all others, so that few others need it
_BLOCK = 2**20  # correlations in memory at once
_CACHED = 2**22  # elements of the dictionary that are read at once
_PARTS, _PART = 8, 256  # parts of the samples, and the fewest samples in one
_ROWS = 256  # atoms scored at once in float64


@dataclass(frozen=True)
class Pursuit:
    """A head's atoms.

    Attributes:
        support: dictionary rows in order of selection.
        explained: explained variance, in [0, 1], of the first atom, the first two, and so on.
    """

    support: list[int]
    explained: list[float]


def pursue(
    z: Tensor,
    w_o: Tensor,
    dictionary: Tensor,
    iterations: int,
    *,
    norm: Norm = "l1",
    center: bool = True,
    normalise_atoms: bool = False,
) -> Pursuit:
    """Run SOMP on one head: :func:`pursue_layer` with z (n, head_dim) and w_o (d, head_dim)."""
    if z.ndim != 2 or w_o.ndim != 2:
        raise ValueError(f"one head has z (n, head_dim), w_o (d, head_dim): {z.shape}, {w_o.shape}")
    options = {"norm": norm, "center": center, "normalise_atoms": normalise_atoms}
    return pursue_layer(z[:, None], w_o[None], dictionary, iterations, **options)[0]


def pursue_layer(
    z: Tensor,
    w_o: Tensor,
    dictionary: Tensor,
    iterations: int,
    *,
    norm: Norm = "l1",
    center: bool = True,
    normalise_atoms: bool = False,
) -> list[Pursuit]:
    """Run SOMP (Tropp et al. 2006; the paper's appendix A) on each head of a layer.

    Explained variance is 1 - ||residual||² / ||H||² (Frobenius), H being centred over the samples.
    With ``center`` false it is the explained share of H's second moment instead.

    A head stops early when nothing is left to explain: all atoms taken, or the largest correlation
    at most ``STOP`` of what Cauchy-Schwarz allows its atom (the rank is exhausted). Scores within
    ``TIE`` of the largest, relatively, are ties, and the lowest row wins. A head that
    writes nothing, or centred always the same, has an empty support.

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

    Returns:
        One pursuit a head, in order.

    Raises:
        UserError: if z has no samples, or z, w_o or the dictionary hold NaN or infinity.
        ValueError: if the shapes do not fit, or norm or iterations are out of range.
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm must be l1 or l2, not {norm!r}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}")
    _check(z, w_o, dictionary)
    small = len(dictionary) <= _SMALL
    double = small or dictionary.dtype == torch.float64
    atoms = _in_range(dictionary.to(torch.float64 if double else torch.float32))
    lengths = torch.linalg.vector_norm(atoms, dim=1)
    if not lengths.isfinite().all():
        raise UserError("The dictionary holds NaN or infinite values: is the model file whole?")
    if small:  # what lies outside the atoms' span, they cannot explain
        span, triangle = torch.linalg.qr(atoms.T)
        atoms = triangle.T.contiguous()
    iterations = min(iterations, len(atoms))
    room = _ELEMENTS // max(len(atoms) * (z.shape[2] + iterations), 3 * len(z) * z.shape[2])
    pursuits = []
    for some in torch.arange(len(w_o)).chunk(-(-len(w_o) // max(1, room))):
        factors = [
            head_factor(z[:, i].to(atoms.device), w_o[i].to(atoms.device), center) for i in some
        ]
        if small:
            samples, factor = (torch.stack(part) for part in zip(*factors, strict=True))
            pursuits += _score_all(
                samples, span.T @ factor, atoms, lengths, iterations, norm, normalise_atoms
            )
            continue
        stacked = torch.cat([factor for _, factor in factors], dim=1).to(atoms.dtype)
        products = (atoms @ stacked).split(factors[0][1].shape[1], dim=1)
        heads = [
            _Head(samples, factor, atoms, product, lengths, iterations, norm, normalise_atoms)
            for (samples, factor), product in zip(factors, products, strict=True)
        ]
        _pursue_together(heads, atoms, iterations)
        pursuits += [Pursuit(head.support, head.explained) for head in heads]
    return pursuits


def _in_range(atoms: Tensor) -> Tensor:
    """Scale a dictionary whose squares would leave the numbers' range; it changes no choice."""
    largest = max(float(atoms.max()), -float(atoms.min()))
    if not 0 < largest < math.inf or 2**-30 < largest < 2**30:
        return atoms
    power = 2.0 ** max(math.frexp(largest)[1], -1022)  # dividing by it rounds nothing
    return (atoms.double() / power).to(atoms.dtype)


def _check(z: Tensor, w_o: Tensor, dictionary: Tensor) -> None:
    """Refuse shapes that do not fit a layer, and values that are not finite."""
    fits = (
        (z.ndim, w_o.ndim, dictionary.ndim) == (3, 3, 2)
        and (z.shape[1], z.shape[2]) == (w_o.shape[0], w_o.shape[2])
        and w_o.shape[1] == dictionary.shape[1]
        and dictionary.shape[0] > 0
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


def head_factor(z: Tensor, w_o: Tensor, center: bool) -> tuple[Tensor, Tensor]:
    """Return S (n x r, orthonormal) and F (d x r) with H = S Fᵀ up to scale, ||F|| = 1 or 0."""
    z, w_o = z.double(), w_o.double()
    if center:
        z = z - z[0]  # first, so that a constant sample leaves exact zeros, not rounding
        z = z - z.mean(0)
    largest = z.abs().max()
    samples, triangle = torch.linalg.qr(z / largest.clamp(min=torch.finfo(z.dtype).tiny))
    factor = w_o @ triangle.T
    length = factor.norm()
    nil = length <= 1e-13 * w_o.norm() * triangle.norm()  # only rounding, if anything
    return samples, torch.zeros_like(factor) if nil else factor / length


def _weights(lengths: Tensor, normalise: bool) -> Tensor:
    """Return what atoms' scores are multiplied by (v), from their lengths."""
    shortest = torch.finfo(lengths.dtype).tiny
    return 1 / lengths.clamp(min=shortest) if normalise else torch.ones_like(lengths)


def _score_all(
    samples: Tensor,
    factor: Tensor,
    atoms: Tensor,
    lengths: Tensor,
    iterations: int,
    norm: Norm,
    normalise: bool,
) -> list[Pursuit]:
    """Pursue several heads at once, scoring every atom in every step.

    Takes samples (heads x n x r), factor (heads x d x r), atoms (v x d) and their lengths (v), all
    float64.
    """
    heads, rows = (torch.arange(len(some), device=atoms.device) for some in (factor, atoms))
    live = factor.flatten(1).any(1)
    left = atoms @ factor  # heads x v x r, of what is left of y
    most = samples.shape[1] ** 0.5 if norm == "l1" else 1.0
    weights = _weights(lengths, normalise)
    reach = most * lengths * weights
    taken = torch.zeros(left.shape[:2], dtype=torch.bool, device=atoms.device)
    basis = factor.new_empty(len(factor), 0, atoms.shape[1])
    found = [Pursuit([], []) for _ in factor]
    share = factor.new_zeros(len(factor))
    for _ in range(iterations):
        scores = (_scores(left, samples, norm) * weights).masked_fill(taken, -torch.inf)
        best = scores.amax(1)
        # The lowest of those that tie.
        index = torch.where(scores >= (1 - TIE) * best[:, None], rows, len(rows)).amin(1)
        live &= scores[heads, index] > STOP * reach[index]
        if not live.any():
            break
        rest = atoms[index]
        for _ in range(2):  # the second pass removes what rounding left of the first
            rest = rest - torch.einsum("hk,hkd->hd", torch.einsum("hd,hkd->hk", rest, basis), basis)
        length = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
        q = torch.where(live[:, None], rest / length, 0.0)
        write = torch.einsum("hd,hdr->hr", q, factor)
        basis = torch.cat([basis, q[:, None]], dim=1)
        left -= (q @ atoms.T)[:, :, None] * write[:, None]
        taken[heads, index] = True
        share = (share + write.square().sum(1)).clamp(max=1)
        for own, goes_on, row, explained in zip(
            found, live.tolist(), index.tolist(), share.tolist(), strict=True
        ):
            if goes_on:
                own.support.append(row)
                own.explained.append(explained)
    return found


def _scores(left: Tensor, samples: Tensor, norm: Norm) -> Tensor:
    """Return the norms over samples of the correlations samples @ left.T, heads x atoms."""
    if norm == "l2":  # samples are orthonormal
        return torch.linalg.vector_norm(left, dim=2)
    size = max(1, _BLOCK // left[..., 0].numel())
    parts = samples.split(size, dim=1)
    return sum((left @ part.mT).abs_().sum(2) for part in parts)


def _pursue_together(heads: list["_Head"], atoms: Tensor, iterations: int) -> None:
    """Step several heads at once, so that each step reads the dictionary once for all of them."""
    live = [head for head in heads if head.factor.any()]
    for step in range(iterations):
        live = [head for head in live if head.take()]
        if not live or step == iterations - 1:
            return
        directions = torch.stack([head.basis[-1] for head in live]).to(atoms.dtype)
        blocks = atoms.split(max(1, _CACHED // atoms.shape[1]))  # BLAS is slow on all at once
        overlaps = torch.cat([directions @ block.T for block in blocks], dim=1)
        for head, overlap in zip(live, overlaps, strict=True):
            head.remove(overlap)


class _Head:
    """One head's pursuit: H = samples @ factor.T, and what its atoms so far explain."""

    def __init__(
        self,
        samples: Tensor,
        factor: Tensor,
        atoms: Tensor,
        products: Tensor,
        lengths: Tensor,
        iterations: int,
        norm: Norm,
        normalise: bool,
    ) -> None:
        """Take samples (n x r), factor (d x r), atoms (v x d), products: atoms @ factor (v x r)."""
        self.samples, self.factor, self.atoms, self.products = samples, factor, atoms, products
        self.norm, self.normalise = norm, normalise
        self.support: list[int] = []
        self.explained: list[float] = []
        self.basis = factor.new_empty(0, len(factor))  # k x d, orthonormal, spans the support
        self.writes = factor.new_empty(0, factor.shape[1])  # k x r, basis @ factor
        self.overlaps = atoms.new_empty(iterations, len(atoms))  # its rows: atoms @ basis[k]

        fast = samples.to(atoms.dtype)
        sizes = ((fast @ (factor.T @ factor).to(atoms.dtype)) * fast).sum(1)  # of samples' writes
        ordered = fast[sizes.argsort(descending=True, stable=True)]
        self.parts = ordered.split(max(_PART, -(-len(samples) // _PARTS)))

        self.weight = _weights(lengths, normalise)
        self.most = len(samples) ** 0.5 if norm == "l1" else 1.0  # of that norm over the l2 norm
        self.reach = self.most * lengths * self.weight  # no score exceeds it, as ||F|| <= 1
        single = atoms.dtype == torch.float32
        unit = _UNIT[torch.get_float32_matmul_precision()] if single else 2**-53
        # More than any rounding: of a score, and of a sum of squares relative to all squares.
        self.slack = 8 * max(factor.shape) ** 0.5 * unit * self.reach
        self.grain = 8 * (factor.shape[1] + 16) * unit
        self.squares = self.products.square().sum(1) * (1 + self.grain)  # v, of what is left of y
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
        if score <= STOP * self.reach[index]:
            return False
        length = rest.norm()
        self.basis = torch.cat([self.basis, rest / length])
        self.writes = torch.cat([self.writes, write / length])
        self.bound[index] = -torch.inf
        self.support.append(int(index))
        before = self.explained[-1] if self.explained else 0.0
        self.explained.append(min(1.0, before + float(self.writes[-1].square().sum())))
        return True

    def remove(self, overlap: Tensor) -> None:
        """Let the bounds follow as the newest q leaves the residual; overlap (v) is atoms @ q."""
        k, write = len(self.support) - 1, self.writes[-1]
        known = (self.writes[:k] @ write).to(overlap.dtype)
        along = self.products @ write.to(overlap.dtype) - known @ self.overlaps[:k]  # y @ write
        self.squares -= overlap * (2 * along - float(write @ write) * overlap)
        self.overlaps[k] = overlap
        most = float(self._norm(self.samples @ write))
        self.bound = torch.minimum(self.bound + most * overlap.abs() * self.weight, self._ceiling())

    def _ceiling(self) -> Tensor:
        """Return Cauchy-Schwarz' bounds on the scores (v)."""
        return self.most * self.squares.clamp(min=0).sqrt() * self.weight + self.slack

    def _norm(self, correlations: Tensor) -> Tensor:
        """Return the norm over samples of each row's correlations (m x n)."""
        return correlations.abs().sum(-1) if self.norm == "l1" else correlations.norm(dim=-1)

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
        k = len(self.support)
        y = self.products[index]
        y = y - self.overlaps[:k].index_select(1, index).T @ self.writes.to(y.dtype)
        left, after = y.square().sum(1) * (1 + self.grain), len(self.samples)
        total = torch.zeros_like(left)
        for part in self.parts if self.norm == "l1" else ():
            correlations = y @ part.T
            after -= len(part)
            if after:
                left -= correlations.norm(dim=1).square_()
            total += correlations.abs_().sum(1)
            if after:
                score = total + (after * left.clamp(min=0)).sqrt()
                self.bound[index] = score * self.weight[index] + self.slack[index]
                alive = self.bound[index] >= least
                index, y, left, total = index[alive], y[alive], left[alive], total[alive]
        score = (total if self.norm == "l1" else y.norm(dim=1)) * self.weight[index]
        self.bound[index] = score + self.slack[index]
        scored[index] = True
        sure = (score - self.slack[index]).max() if len(index) else score.new_zeros(())
        return max(least, float(sure) * (1 - 2 * TIE))

    def _score(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return float64 scores (m), the atoms less the basis (m x d), and that @ F (m x r)."""
        atoms = self.atoms[index].double()
        rest = atoms
        for _ in range(2):  # the second pass removes what rounding left of the first
            rest = rest - (rest @ self.basis.T) @ self.basis
        write = rest @ self.factor
        score = self._norm(write @ self.samples.T)
        if self.normalise:
            score = score / atoms.norm(dim=1).clamp(min=torch.finfo(atoms.dtype).tiny)
        return score, rest, write


def logit_lens_scores(z: Tensor, w_o: Tensor, dictionary: Tensor) -> tuple[float, Tensor]:
    """Return a head's mean logit over samples and dictionary rows, and that of each row (v).

    The logits are H @ dictionary.T of what the head writes, uncentred and without a final norm; as
    they are linear, their mean needs the mean of z only (the paper's comparator, 4.1).

    Args:
        z: (n, head_dim) input of the head's output projection.
        w_o: (d, head_dim) its columns of that projection's weight.
        dictionary: (v, d) rows of the unembedding.

    Raises:
        UserError: if z has no samples, or z or w_o hold NaN or infinity.
        ValueError: if the shapes do not fit.
    """
    _check(z[:, None], w_o[None], dictionary)
    device = dictionary.device
    write = w_o.to(device).double() @ z.to(device).double().mean(0)
    dtype = torch.promote_types(dictionary.dtype, torch.float32)
    rows = (dictionary.to(dtype) @ write.to(dtype)).double()
    return float(rows.mean()), rows


def logit_lens_tokens(
    z: Tensor,
    w_o: Tensor,
    dictionary: Tensor,
    per_sample: int = 5,
    top: int = 5,
    block: int = 256,
) -> list[int]:
    """Return the rows that are most often among a sample's ``per_sample`` highest logits.

    This is the paper's logit lens for heads (footnote of the seed). Of rows equally frequent, the
    one with the higher logits where it was counted, summed, comes first; then the lower row.

    Args:
        z: (n, head_dim) input of the head's output projection, uncentred.
        w_o: (d, head_dim) its columns of that projection's weight.
        dictionary: (v, d) rows of the unembedding.
        per_sample: rows counted for each sample.
        top: rows returned; fewer if fewer were ever counted.
        block: samples whose logits (block x v) are in memory at once.

    Raises:
        UserError: if z has no samples, or z or w_o hold NaN or infinity.
        ValueError: if the shapes do not fit.
    """
    _check(z[:, None], w_o[None], dictionary)
    device, dtype = dictionary.device, torch.promote_types(dictionary.dtype, torch.float32)
    products = dictionary.to(dtype) @ w_o.to(device, dtype)
    counts = torch.zeros(len(dictionary), dtype=torch.float64, device=device)
    sums = torch.zeros_like(counts)
    for samples in z.split(block):
        best = (samples.to(device, dtype) @ products.T).topk(min(per_sample, len(dictionary)))
        rows = best.indices.flatten()
        counts.index_add_(0, rows, torch.ones_like(rows, dtype=counts.dtype))
        sums.index_add_(0, rows, best.values.flatten().double())
    seen = counts.nonzero()[:, 0]
    ranked = sorted(
        zip((-counts[seen]).tolist(), (-sums[seen]).tolist(), seen.tolist(), strict=True)
    )
    return [int(row) for _, _, row in ranked[:top]]
