"""What single heads write: their atoms out of the whole vocabulary, and what chance would give."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from headpursuit.method.activations import read_layer
from headpursuit.method.somp import head_factor, logit_lens_tokens, pursue_layer
from headpursuit.method.special import text_tokens
from headpursuit.method.weights import HeadWeights
from headpursuit.run.files import UserError, seed_for

Numbers = np.ndarray
Vocabulary = tuple[Numbers, Tensor]


def vocabulary(weights: HeadWeights, tokenizer, fold_norm_gain: bool) -> Vocabulary:
    """Return the tokens that stand for text: their ids, (v,), and rows of the unembedding, v x d.

    Special tokens are left out, and so are rows that belong to no token (padding behind the last).
    """
    ids = np.array([number for number in text_tokens(tokenizer) if number < weights.rows])
    return ids, weights.unembedding(ids, fold_norm_gain)


def _layers(weights: HeadWeights, path: str | Path, what: str) -> Iterator:
    """Yield each layer's number, z (n x heads x head_dim) and columns (heads x d x head_dim)."""
    for layer in tqdm(range(weights.shape[0]), desc=what, unit="layer"):
        _, z = read_layer(path, layer)
        yield layer, torch.from_numpy(z), weights.layer_columns(layer)


def decompose_heads(
    weights: HeadWeights,
    vocabulary: Vocabulary,
    path: str | Path,
    pursuit: Mapping[str, Any],
) -> pd.DataFrame:
    """Run SOMP on every head, a layer at a time (the paper's section 3 and appendix A).

    Args:
        weights: of the model.
        vocabulary: of :func:`vocabulary`.
        path: the activation cache.
        pursuit: the experiment's ``pursuit``.

    Returns:
        Table with layer, head, step (from 1), token_id and explained (variance, in [0, 1], by
        this step's atoms and those before it).

    Raises:
        UserError: if no head has anything to explain.
    """
    options = {key: pursuit[key] for key in ("iterations", "norm", "center", "normalise_atoms")}
    ids, dictionary = vocabulary
    records = [
        (layer, head, step, int(ids[row]), explained)
        for layer, z, columns in _layers(weights, path, "SOMP")
        for head, found in enumerate(pursue_layer(z, columns, dictionary, **options))
        for step, (row, explained) in enumerate(
            zip(found.support, found.explained, strict=True), start=1
        )
    ]
    if not records:
        raise UserError(
            "No head's write varies over the samples, so there is nothing to explain: use more "
            "than one prompt, or pursuit.center: false."
        )
    return pd.DataFrame(records, columns=["layer", "head", "step", "token_id", "explained"])


def read_lens(
    weights: HeadWeights,
    vocabulary: Vocabulary,
    path: str | Path,
    per_sample: int,
    top: int,
) -> pd.DataFrame:
    """Apply the aggregated logit lens to every head (the seed's footnote to table 1).

    Args:
        weights: of the model.
        vocabulary: of :func:`vocabulary`.
        path: the activation cache.
        per_sample: tokens of highest logit counted for each sample.
        top: most frequent tokens that are kept.

    Returns:
        Table with layer, head, place (from 1) and token_id.
    """
    ids, dictionary = vocabulary
    records = [
        (layer, head, place, int(ids[row]))
        for layer, z, columns in _layers(weights, path, "logit lens")
        for head in range(len(columns))
        for place, row in enumerate(
            logit_lens_tokens(z[:, head], columns[head], dictionary, per_sample, top), start=1
        )
    ]
    return pd.DataFrame(records, columns=["layer", "head", "place", "token_id"])


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

    Args:
        weights: of the model.
        vocabulary: of :func:`vocabulary`.
        path: the activation cache.
        atoms: of :func:`decompose_heads`.
        spec: the experiment's ``vocabulary``: how many of a head's first tokens count, and draws
            and neighbours of the random sets.
        center: the experiment's ``pursuit.center``.
        seed: the config's seed; with dataset, layer and head it decides the draws.
        dataset: see seed.

    Returns:
        The ranking (layer, head, score, rank, explained, explained_null, explained_high,
        coherence, coherence_null, coherence_high, coherence_p), and what random sets explain
        (layer, head, step, mean, low, high: the central 95 % of the draws). ``_null`` is the mean
        over draws and ``_high`` the 95th percentile.
    """
    ids, dictionary = vocabulary
    norms = dictionary.norm(dim=1).numpy()
    by_norm = np.argsort(norms, kind="stable")
    mean = dictionary.double().mean(0)
    chosen = {
        head: own.sort_values("step") for head, own in atoms.groupby(["layer", "head"], sort=True)
    }
    ranked, nulls = [], []
    for layer, z, columns in _layers(weights, path, "random sets"):
        for head in range(len(columns)):
            own = chosen.get((layer, head))
            if own is None:  # it writes nothing
                ranked.append({"layer": layer, "head": head})
                continue
            support = np.searchsorted(ids, own["token_id"])
            rng = np.random.default_rng(seed_for(seed, dataset, "random sets", layer, head))
            sets = norm_matched_sets(support, by_norm, spec["draws"], spec["neighbours"], rng)
            rows = dictionary[torch.tensor(sets)].double()
            _, factor = head_factor(z[:, head], columns[head], center)
            by_chance = explained_by_sets(rows, factor).numpy()
            few = min(spec["tokens"], len(support))
            top = dictionary[torch.tensor(support[:few])].double()
            alike = coherence(rows[:, :few] - mean)
            ranked.append(
                {"layer": layer, "head": head}
                | _compared("explained", own["explained"].iloc[few - 1], by_chance[:, few - 1])
                | _compared("coherence", float(coherence(top - mean)), alike.numpy())
            )
            nulls.append(_band(layer, head, by_chance))
    table = pd.DataFrame(ranked)
    excess = {name: table[name] - table[f"{name}_null"] for name in ("explained", "coherence")}
    product = excess["explained"].clip(lower=0) * excess["coherence"].clip(lower=0)
    table["score"] = np.sqrt(product).fillna(0.0)
    table = (
        table.assign(excess=excess["explained"])
        .sort_values(["score", "excess", "layer", "head"], ascending=[False, False, True, True])
        .reset_index(drop=True)[SPECIALIST]
    )
    table.insert(3, "rank", range(1, len(table) + 1))
    return table, pd.concat(nulls, ignore_index=True)


SPECIALIST = [
    *("layer", "head", "score", "explained", "explained_null", "explained_high"),
    *("coherence", "coherence_null", "coherence_high", "coherence_p"),
]


def _compared(name: str, value: float, by_chance: Numbers) -> dict[str, float]:
    return {
        name: value,
        f"{name}_null": by_chance.mean(),
        f"{name}_high": np.quantile(by_chance, 0.95),
        f"{name}_p": (1 + (by_chance >= value).sum()) / (1 + len(by_chance)),
    }


def _band(layer: int, head: int, by_chance: Numbers) -> pd.DataFrame:
    low, high = np.quantile(by_chance, [0.025, 0.975], axis=0)
    steps = range(1, by_chance.shape[1] + 1)
    columns = {"step": steps, "mean": by_chance.mean(axis=0), "low": low, "high": high}
    return pd.DataFrame({"layer": layer, "head": head, **columns})


def norm_matched_sets(
    support: Numbers, by_norm: Numbers, draws: int, neighbours: int, rng: np.random.Generator
) -> Numbers:
    """Draw random sets of tokens whose rows have about the norms of a head's atoms.

    Args:
        support: (k,) rows of the atoms.
        by_norm: (v,) all rows in order of their norms.
        draws: number of sets.
        neighbours: each token is one of the so many whose norms are nearest in rank to the atom's.
        rng: what draws.

    Returns:
        (draws, k) rows; none twice in a set.
    """
    width = min(neighbours, len(by_norm))
    place = np.empty_like(by_norm)
    place[by_norm] = np.arange(len(by_norm))
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
    """Return what growing sets of atoms explain of a head.

    Args:
        atoms: (draws, k, d) float64.
        factor: (d, r) of :func:`headpursuit.method.somp.head_factor`.

    Returns:
        (draws, k) shares of the head's variance explained by a set's first atom, two, and so on.
    """
    basis = torch.zeros_like(atoms)
    for step in range(atoms.shape[1]):
        rest, before = atoms[:, step : step + 1], basis[:, :step]
        for _ in range(2):  # the second pass removes what rounding left of the first
            rest = rest - (rest @ before.mT) @ before
        length = rest.norm(dim=2, keepdim=True)
        new = length > 1e-9 * atoms[:, step : step + 1].norm(dim=2, keepdim=True)
        basis[:, step : step + 1] = torch.where(new, rest / length, 0.0)
    return (basis @ factor).square().sum(2).cumsum(1)


def coherence(rows: Tensor) -> Tensor:
    """Return the mean cosine between the rows of each set, (...); NaN for fewer than two.

    Args:
        rows: (..., k, d) unembedding rows less the vocabulary's mean row.
    """
    k = rows.shape[-2]
    units = torch.nn.functional.normalize(rows, dim=-1)
    total = units.sum(-2).square().sum(-1) - units.square().sum((-1, -2))
    return total / (k * (k - 1)) if k > 1 else torch.full_like(total, torch.nan)
