"""Rankings of heads over a dictionary of tokens: by SOMP, the logit lens and two controls."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from headpursuit.method.activations import Inputs
from headpursuit.method.decompose import each_layer, text_tokens
from headpursuit.method.heads import FEWER_ATOMS, rank
from headpursuit.method.somp import check_layer, pursue_layer
from headpursuit.method.weights import HeadWeights
from headpursuit.run.files import UserError

log = logging.getLogger(__name__)


def rank_heads(
    weights: HeadWeights,
    tokenizer,
    activations: str | Path | Inputs,
    dictionaries: Mapping[str, Sequence[int]],
    pursuit: Mapping[str, Any],
) -> pd.DataFrame:
    """Rank every head by what a dictionary of tokens says of its writes, by each method.

    ``somp``: the share of the head's variance that the chosen atoms explain, with the atoms in
    the order chosen. ``logit_lens``: the mean logit of the dictionary's tokens (v2, section 4.1),
    with all tokens in falling order of their mean logit, as many as there are iterations.
    Two controls: ``unrelated`` is ``somp`` (over a dictionary that has nothing to do with the
    subject), and ``size`` the root mean square of what the head writes, whatever it says.

    Takes an activation cache, each method's dictionary (rows of the unembedding) and the config's
    ``pursuit``. Returns method, layer, head, score, rank (within the method), direction and
    positive (:func:`directions`), the score that the first 5, 10 and 20 atoms give (missing where a
    method has none), the number of the dictionary's rows, and atoms (tokens with a space between).

    Raises:
        UserError: if a method finds nothing to rank heads by.
    """
    fold = pursuit["fold_norm_gain"]
    rows = {method: weights.unembedding(ids, fold) for method, ids in dictionaries.items()}
    everything = weights.mean_row(text_tokens(weights, tokenizer))
    concepts = {method: weights.mean_row(ids) - everything for method, ids in dictionaries.items()}
    if "somp" in rows and len(rows["somp"]) <= pursuit["iterations"]:
        log.warning(
            "The dictionary has %d rows and pursuit.iterations is %d: SOMP takes every row, its "
            "score is a plain projection, and neither norm nor order decides anything. The columns "
            "score_5, score_10 and score_20 are of fewer atoms, where they do.",
            len(rows["somp"]), pursuit["iterations"],
        )  # fmt: skip
    records = []
    for layer, z, columns in each_layer(weights, activations, "ranking"):
        for method, ids in dictionaries.items():
            found = METHODS[method](z, columns, rows[method], pursuit)
            along = directions(z, columns, concepts[method])
            for head, (score, support, path) in enumerate(found):
                atoms = " ".join(tokenizer.convert_ids_to_tokens([ids[row] for row in support]))
                fewer = [path[min(n, len(path)) - 1] if path else nan for n in FEWER_ATOMS.values()]
                own = [method, layer, head, score, *along[head], *fewer, len(ids), atoms]
                records.append(own)
    names = ["method", "layer", "head", "score", "direction", "positive", *FEWER_ATOMS]
    table = pd.DataFrame(records, columns=[*names, "rows", "atoms"])
    rankings = [rank(own) for _, own in table.groupby("method", sort=False)]
    if not all(ranking["score"].any() for ranking in rankings):
        raise UserError(
            "No head's write varies over the samples, so there is nothing to rank heads by: use "
            "more than one prompt, or pursuit.center: false."
        )
    return pd.concat(rankings, ignore_index=True)


# Each head's score, rows of the dictionary, and the shares that the first, first two ... explain.
Scored = Iterable[tuple[float, list[int], list[float]]]


def _somp(z: Tensor, columns: Tensor, dictionary: Tensor, pursuit: Mapping[str, Any]) -> Scored:
    options = {key: pursuit[key] for key in ("iterations", "norm", "center", "normalise_atoms")}
    for found in pursue_layer(z, columns, dictionary, **options):
        explained = found.explained or [0.0]
        yield explained[-1], found.support, explained


def _logit_lens(z: Tensor, columns: Tensor, dictionary: Tensor, pursuit) -> Scored:
    """Score by the paper's comparator (v2, 4.1): of the write, uncentred and without a final norm.

    Logits are linear, so that their mean over samples needs the mean of z only.
    """
    check_layer(z, columns, dictionary)
    for head, own in enumerate(columns):
        write = own.double() @ z[:, head].double().mean(0)
        logits = (dictionary @ write.float()).double()
        order = logits.argsort(descending=True, stable=True)[: pursuit["iterations"]]
        yield float(logits.mean()), order.tolist(), []


def _size(z: Tensor, columns: Tensor, dictionary: Tensor, pursuit) -> Scored:
    return ((size, [], []) for size in write_sizes(z, columns, pursuit["center"]))


METHODS = {"somp": _somp, "logit_lens": _logit_lens, "unrelated": _somp, "size": _size}


def directions(z: Tensor, columns: Tensor, concept: Tensor) -> list[tuple[float, float]]:
    """Return which way each head of a layer writes along a concept's direction, and how steadily.

    Explained variance is blind to it: heads that write h and -h have the same. With d the concept's
    direction, the mean of its tokens' rows of the unembedding less the mean row of the whole
    vocabulary (the final norm's gain folded into both), a head's projection on a sample is h · d:
    what it adds to the concept's mean logit above the mean of all logits, up to the final norm's
    positive scale. Without the mean row, what all tokens have in common would decide the sign, and
    that moves no probability: on the demo's model it turns the sign of two thirds of the heads.

    The write is not centred, since it is scaled as a whole: multiplying it by alpha moves that
    logit by (alpha - 1) h · d, so that alpha -1 lowers the concept where h · d is positive, and
    raises it where it is negative, as far as the head's own write goes.

    Takes z (n x heads x head_dim), columns (heads x d x head_dim) and the direction (d). Returns of
    each head the mean over samples of h · d, and the share of samples in which it is positive.
    """
    along = columns.double().mT @ concept.double()  # heads x head_dim
    projections = (z.double() * along).sum(2)
    positive = (projections > 0).double().mean(0)
    return list(zip(projections.mean(0).tolist(), positive.tolist(), strict=True))


def write_sizes(z: Tensor, columns: Tensor, center: bool) -> list[float]:
    """Return the root mean square length of what each head of a layer writes.

    Takes z (samples x heads x head_dim) and columns (heads x d x head_dim); ``center`` subtracts
    the mean write first.
    """
    z = (z - z.mean(0) if center else z).double()
    second = torch.einsum("nhi,nhj->hij", z, z) / len(z)
    gram = columns.double().mT @ columns.double()
    return (second * gram).sum((1, 2)).clamp_min(0).sqrt().tolist()
