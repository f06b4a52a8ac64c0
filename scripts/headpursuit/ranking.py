"""Rankings of heads over a dictionary of tokens, by SOMP or by the logit lens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from headpursuit.activations import read_layer
from headpursuit.files import UserError
from headpursuit.heads import rank
from headpursuit.models import Decoder, unembedding
from headpursuit.somp import logit_lens_scores, pursue_layer


def rank_heads(
    decoder: Decoder,
    tokenizer,
    layers: Sequence[str | Path],
    token_ids: Sequence[int],
    method: str,
    pursuit: Mapping[str, Any],
) -> pd.DataFrame:
    """Rank every head by what a dictionary of tokens says of its writes.

    ``somp``: the share of the head's variance that the chosen atoms explain, with the atoms in
    the order chosen. ``logit_lens``: the mean logit of the dictionary's tokens (v2, section 4.1),
    with all tokens in falling order of their mean logit, as many as there are iterations.
    Two controls: ``unrelated`` is ``somp`` (over a dictionary that has nothing to do with the
    subject), and ``size`` the root mean square of what the head writes, whatever it says.

    Args:
        decoder: the model.
        tokenizer: to print the atoms.
        layers: the activation cache, a file a layer in their order.
        token_ids: rows of the unembedding that make the dictionary.
        method: ``somp``, ``logit_lens``, ``unrelated`` or ``size``.
        pursuit: the config's ``pursuit``.

    Returns:
        Table with layer, head, score, rank and atoms (tokens with a space between).
    """
    dictionary = unembedding(decoder, token_ids, pursuit["fold_norm_gain"])
    records = []
    for layer, path in enumerate(tqdm(layers, desc=method, unit="layer")):
        _, z, _ = read_layer(path)
        z = torch.from_numpy(z).to(decoder.device)
        columns = decoder.layer_columns(layer)
        for head, (score, rows) in enumerate(_scores(z, columns, dictionary, method, pursuit)):
            atoms = tokenizer.convert_ids_to_tokens([token_ids[row] for row in rows])
            records.append((layer, head, score, " ".join(atoms)))
    ranking = rank(pd.DataFrame(records, columns=["layer", "head", "score", "atoms"]))
    if not ranking["score"].any():
        raise UserError(
            "No head's write varies over the samples, so there is nothing to rank heads by: use "
            "more than one prompt, or pursuit.center: false."
        )
    return ranking


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
