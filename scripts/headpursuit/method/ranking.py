"""Rankings of heads over a dictionary of tokens, by SOMP or by the logit lens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from headpursuit.method.activations import read_layer
from headpursuit.method.heads import rank
from headpursuit.method.somp import logit_lens_scores, pursue_layer
from headpursuit.method.weights import HeadWeights
from headpursuit.run.files import UserError


def rank_heads(
    weights: HeadWeights,
    tokenizer,
    activations: str | Path,
    dictionaries: Mapping[str, Sequence[int]],
    pursuit: Mapping[str, Any],
) -> pd.DataFrame:
    """Rank every head by what a dictionary of tokens says of its writes, by each method.

    ``somp``: the share of the head's variance that the chosen atoms explain, with the atoms in
    the order chosen. ``logit_lens``: the mean logit of the dictionary's tokens (v2, section 4.1),
    with all tokens in falling order of their mean logit, as many as there are iterations.
    Two controls: ``unrelated`` is ``somp`` (over a dictionary that has nothing to do with the
    subject), and ``size`` the root mean square of what the head writes, whatever it says.

    Args:
        weights: of the model.
        tokenizer: to print the atoms.
        activations: the activation cache.
        dictionaries: method to the rows of the unembedding that make its dictionary.
        pursuit: the config's ``pursuit``.

    Returns:
        Table with method, layer, head, score, rank (within the method) and atoms (tokens with a
        space between).

    Raises:
        UserError: if a method finds nothing to rank heads by.
    """
    fold = pursuit["fold_norm_gain"]
    rows = {method: weights.unembedding(ids, fold) for method, ids in dictionaries.items()}
    records = []
    for layer in tqdm(range(weights.shape[0]), desc="ranking", unit="layer"):
        _, z = read_layer(activations, layer)
        z, columns = torch.from_numpy(z), weights.layer_columns(layer)
        for method, ids in dictionaries.items():
            found = _scores(z, columns, rows[method], method, pursuit)
            for head, (score, support) in enumerate(found):
                atoms = tokenizer.convert_ids_to_tokens([ids[row] for row in support])
                records.append((method, layer, head, score, " ".join(atoms)))
    table = pd.DataFrame(records, columns=["method", "layer", "head", "score", "atoms"])
    rankings = [rank(own) for _, own in table.groupby("method", sort=False)]
    if not all(ranking["score"].any() for ranking in rankings):
        raise UserError(
            "No head's write varies over the samples, so there is nothing to rank heads by: use "
            "more than one prompt, or pursuit.center: false."
        )
    return pd.concat(rankings, ignore_index=True)


def _scores(z, columns, dictionary, method, pursuit) -> list[tuple[float, list[int]]]:
    if method == "size":
        return [(size, []) for size in write_sizes(z, columns, pursuit["center"])]
    if method in ("somp", "unrelated"):
        found = pursue_layer(
            z,
            columns,
            dictionary,
            pursuit["iterations"],
            norm=pursuit["norm"],
            center=pursuit["center"],
            normalise_atoms=pursuit["normalise_atoms"],
        )
        return [(own.explained[-1] if own.explained else 0.0, own.support) for own in found]
    scores = []
    for head in range(len(columns)):
        score, by_row = logit_lens_scores(z[:, head], columns[head], dictionary)
        order = by_row.argsort(descending=True, stable=True)[: pursuit["iterations"]]
        scores.append((float(score), order.tolist()))
    return scores


def write_sizes(z: torch.Tensor, columns: torch.Tensor, center: bool) -> list[float]:
    """Return the root mean square length of what each head of a layer writes.

    Args:
        z: samples x heads x head_dim.
        columns: heads x d x head_dim.
        center: whether the mean write is subtracted first.
    """
    z = (z - z.mean(0) if center else z).double()
    second = torch.einsum("nhi,nhj->hij", z, z) / len(z)
    gram = columns.double().mT @ columns.double()
    return (second * gram).sum((1, 2)).clamp_min(0).sqrt().tolist()
