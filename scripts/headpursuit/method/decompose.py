"""What single heads write: their atoms out of the whole vocabulary, and what chance would give."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from headpursuit.method.activations import Inputs, read_layer
from headpursuit.method.somp import check_layer, head_factor, pursue_layer, without
from headpursuit.method.special import special_tokens
from headpursuit.method.weights import HeadWeights
from headpursuit.run.files import UserError, seed_for

Numbers = np.ndarray
Vocabulary = tuple[Numbers, Tensor]

SPECIALIST = [
    *("layer", "head", "score", "rank", "explained", "explained_null", "explained_high"),
    *("coherence", "coherence_null", "coherence_high", "coherence_p"),
]
_BLOCK = 256  # samples whose logits are in memory at once


def vocabulary(weights: HeadWeights, tokenizer, fold_norm_gain: bool) -> Vocabulary:
    """Return the tokens that stand for text, (v,), and their rows of the unembedding, v x d."""
    ids = text_tokens(weights, tokenizer)
    return ids, weights.unembedding(ids, fold_norm_gain)


def text_tokens(weights: HeadWeights, tokenizer) -> Numbers:
    """Return the ids of the tokens that stand for text, ascending.

    Special tokens are left out, and so are rows that belong to no token (padding behind the last).
    """
    text = set(tokenizer.get_vocab().values()) - special_tokens(tokenizer)
    return np.array(sorted(number for number in text if number < weights.rows))


def each_layer(
    weights: HeadWeights, activations: str | Path | Inputs, what: str
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each layer's number, z (n x heads x head_dim) and columns (heads x d x head_dim)."""
    for layer in tqdm(range(weights.shape[0]), desc=what, unit="layer"):
        z = torch.from_numpy(read_layer(activations, layer)[1])
        yield layer, z, weights.layer_columns(layer)


def decompose_heads(
    weights: HeadWeights, vocabulary: Vocabulary, path: str | Path, pursuit: Mapping[str, Any]
) -> pd.DataFrame:
    """Run SOMP on every head over the vocabulary (the paper's section 3 and appendix A).

    Takes an activation cache and the experiment's ``pursuit``. Returns layer, head, step (from 1),
    token_id and explained (variance, in [0, 1], by this step's atoms and those before it).

    Raises:
        UserError: if no head has anything to explain.
    """
    options = {key: pursuit[key] for key in ("iterations", "norm", "center", "normalise_atoms")}
    ids, dictionary = vocabulary
    records = [
        (layer, head, step, int(ids[row]), explained)
        for layer, z, columns in each_layer(weights, path, "SOMP")
        for head, found in enumerate(pursue_layer(z, columns, dictionary, **options))
        for step, (row, explained) in enumerate(zip(found.support, found.explained, strict=True), 1)
    ]
    if not records:
        raise UserError(
            "No head's write varies over the samples, so there is nothing to explain: use more "
            "than one prompt, or pursuit.center: false."
        )
    return pd.DataFrame(records, columns=["layer", "head", "step", "token_id", "explained"])


def read_lens(
    weights: HeadWeights, vocabulary: Vocabulary, path: str | Path, per_sample: int, top: int
) -> pd.DataFrame:
    """Return every head's :func:`logit_lens_tokens`: layer, head, place (from 1) and token_id."""
    ids, dictionary = vocabulary
    records = [
        (layer, head, place, int(ids[row]))
        for layer, z, columns in each_layer(weights, path, "logit lens")
        for head, own in enumerate(columns)
        for place, row in enumerate(
            logit_lens_tokens(z[:, head], own, dictionary, per_sample, top), 1
        )
    ]
    return pd.DataFrame(records, columns=["layer", "head", "place", "token_id"])


def logit_lens_tokens(
    z: Tensor, w_o: Tensor, dictionary: Tensor, per_sample: int, top: int
) -> list[int]:
    """Return the ``top`` rows that are most often among a sample's ``per_sample`` highest logits.

    This is the paper's logit lens for heads (footnote of the seed). Of rows equally frequent, the
    one with the higher logits where it was counted, summed, comes first; then the lower row. Takes
    z (n, head_dim), uncentred, w_o (d, head_dim) and dictionary (v, d); raises as
    :func:`headpursuit.method.somp.pursue_layer`.
    """
    check_layer(z[:, None], w_o[None], dictionary)
    products = dictionary @ w_o
    counts = torch.zeros(len(dictionary), dtype=torch.float64)
    sums = torch.zeros_like(counts)
    for samples in z.split(_BLOCK):
        best = (samples @ products.T).topk(min(per_sample, len(dictionary)))
        rows = best.indices.flatten()
        counts.index_add_(0, rows, torch.ones_like(rows, dtype=counts.dtype))
        sums.index_add_(0, rows, best.values.flatten().double())
    seen = counts.nonzero()[:, 0].tolist()
    counts, sums = counts.tolist(), sums.tolist()
    return sorted(seen, key=lambda row: (-counts[row], -sums[row]))[:top]


def rank_specialists(
    weights: HeadWeights,
    vocabulary: Vocabulary,
    path: str | Path,
    atoms: pd.DataFrame,
    spec: Mapping[str, int],
    center: bool,
    seed: int,
    dataset: str,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank heads by how well few tokens explain them and how much those have to do with each other.

    Both are set against random sets of as many tokens, each of which has about the norm of the
    token it stands for. The score is the geometric mean of the two excesses over the random sets'
    mean (0 where one is not positive): a head that one frequent direction explains, or whose
    tokens are alike but explain nothing, is no specialist. Equal scores (most are 0) go by the
    excess of the explained variance, then by layer and head.

    Takes the activation cache, the table of :func:`decompose_heads` and the experiment's
    ``vocabulary`` (how many of a head's first tokens count, draws and neighbours of the random
    sets) and ``pursuit.center``; seed, dataset, layer and head decide the draws.

    Returns:
        The ranking (:data:`SPECIALIST`; ``_null`` is the mean over draws, ``_high`` the 95th
        percentile), and what random sets explain (layer, head, step, mean, low, high: the central
        95 % of the draws).
    """
    ids, dictionary = vocabulary
    by_norm = np.argsort(dictionary.norm(dim=1).numpy(), kind="stable")
    mean = dictionary.double().mean(0)
    chosen = dict(list(atoms.groupby(["layer", "head"])))
    ranked, nulls = [], []
    for layer, z, columns in each_layer(weights, path, "random sets"):
        for head in range(len(columns)):
            place = {"layer": layer, "head": head}
            if (layer, head) not in chosen:  # it writes nothing
                ranked.append(place)
                continue
            own = chosen[layer, head]
            support = np.searchsorted(ids, own["token_id"])
            rng = np.random.default_rng(seed_for(seed, dataset, "random sets", layer, head))
            sets = norm_matched_sets(support, by_norm, spec["draws"], spec["neighbours"], rng)
            rows, top = (dictionary[torch.tensor(some)].double() for some in (sets, support))
            _, factor = head_factor(z[:, head], columns[head], center)
            by_chance = explained_by_sets(rows, factor).numpy()
            few = min(spec["tokens"], len(support))
            alike = [coherence(some[..., :few, :] - mean).numpy() for some in (top, rows)]
            explained = own["explained"].iloc[few - 1]
            ranked.append(
                place
                | _compared("explained", explained, by_chance[:, few - 1])
                | _compared("coherence", *alike)
            )
            low, high = np.quantile(by_chance, [0.025, 0.975], axis=0)
            null = {"step": own["step"], "mean": by_chance.mean(axis=0), "low": low, "high": high}
            nulls.append(pd.DataFrame(place | null))
    table = pd.DataFrame(ranked)
    excess = {name: table[name] - table[f"{name}_null"] for name in ("explained", "coherence")}
    product = excess["explained"].clip(lower=0) * excess["coherence"].clip(lower=0)
    table = table.assign(score=np.sqrt(product).fillna(0.0), excess=excess["explained"])
    order = ["score", "excess", "layer", "head"]
    table = table.sort_values(order, ascending=[False, False, True, True], ignore_index=True)
    table["rank"] = range(1, len(table) + 1)
    return table[SPECIALIST], pd.concat(nulls, ignore_index=True)


def _compared(name: str, value: float | Numbers, by_chance: Numbers) -> dict[str, float]:
    return {
        name: float(value),
        f"{name}_null": by_chance.mean(),
        f"{name}_high": np.quantile(by_chance, 0.95),
        f"{name}_p": (1 + (by_chance >= value).sum()) / (1 + len(by_chance)),
    }


def norm_matched_sets(
    support: Numbers, by_norm: Numbers, draws: int, neighbours: int, rng: np.random.Generator
) -> Numbers:
    """Draw random sets of tokens whose rows have about the norms of a head's atoms.

    Each token is drawn from the ``neighbours`` whose norms are nearest in rank to the atom's; none
    is twice in a set. Takes the atoms' rows (k,) and all rows in order of their norms (v,); returns
    (draws, k) rows.
    """
    width = min(neighbours, len(by_norm))
    place = np.argsort(by_norm)
    first = np.clip(place[support] - width // 2, 0, len(by_norm) - width)
    sets = np.full((draws, len(support)), -1)
    for step, start in enumerate(first):
        waiting = np.arange(draws)
        while len(waiting):
            drawn = by_norm[start + rng.integers(width, size=len(waiting))]
            repeated = (sets[waiting] == drawn[:, None]).any(axis=1)
            sets[waiting[~repeated], step] = drawn[~repeated]
            waiting = waiting[repeated]
    return sets


def explained_by_sets(atoms: Tensor, factor: Tensor) -> Tensor:
    """Return the shares of a head's variance that a set's first atom explains, two, and so on.

    Takes sets of atoms (draws, k, d), float64, and the factor (d, r) of
    :func:`headpursuit.method.somp.head_factor`; returns (draws, k).
    """
    basis = torch.zeros_like(atoms)
    for step in range(atoms.shape[1]):
        atom = atoms[:, step : step + 1]
        rest = without(atom, basis[:, :step])
        length = rest.norm(dim=2, keepdim=True)
        new = length > 1e-9 * atom.norm(dim=2, keepdim=True)
        basis[:, step : step + 1] = torch.where(new, rest / length, 0.0)
    return (basis @ factor).square().sum(2).cumsum(1)


def coherence(rows: Tensor) -> Tensor:
    """Return the mean cosine between the rows of each set, (...); NaN for fewer than two.

    Takes unembedding rows less the vocabulary's mean row (..., k, d).
    """
    k = rows.shape[-2]
    units = torch.nn.functional.normalize(rows, dim=-1)
    total = units.sum(-2).square().sum(-1) - units.square().sum((-1, -2))
    return total / (k * (k - 1)) if k > 1 else torch.full_like(total, torch.nan)
