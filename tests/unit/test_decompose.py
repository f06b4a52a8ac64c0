"""A head built by hand, and what random sets of tokens explain."""

import copy
import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from headpursuit.method.activations import write_cache
from headpursuit.method.decoder import Decoder
from headpursuit.method.decompose import (
    coherence,
    decompose_heads,
    explained_by_sets,
    logit_lens_tokens,
    norm_matched_sets,
    rank_specialists,
    read_lens,
    vocabulary,
)
from headpursuit.method.weights import HeadWeights, write_weights
from headpursuit.run.files import UserError
from tiny import TEMPLATES, make_asking

PURSUIT = {"norm": "l1", "center": True, "normalise_atoms": False, "iterations": 4}
SETS = {"tokens": 3, "draws": 40, "neighbours": 60}
PLANTED = [100, 271, 182]  # rows of the unembedding that the head at L1.H2 writes
SPREAD = [4.0, 2.0, 1.0]  # standard deviations of their coefficients
NOISE = 0.5  # and of one further direction, orthogonal to those


@pytest.fixture(scope="module")
def planted(model, tmp_path_factory):
    """A model whose head L1.H2 writes three unembedding directions plus noise, and its cache.

    The directions are orthonormal and the coefficients exactly uncorrelated, so that the explained
    variances are those of SPREAD and NOISE alone. The unembedding has 7 rows behind the last token.
    """
    decoder = Decoder(copy.deepcopy(model("llama").model))
    decoder.model.resize_token_embeddings(decoder.model.config.vocab_size + 7, mean_resizing=False)
    g = torch.Generator().manual_seed(0)
    n, width, (_, heads) = 60, decoder.head_dim, decoder.shape
    rows = decoder.model.get_output_embeddings().weight
    basis = torch.linalg.qr(torch.randn(rows.shape[1], 4, generator=g)).Q.T
    rows *= 0.3 / rows.norm(dim=1, keepdim=True)
    rows[PLANTED] = basis[:3]
    columns = decoder.matrix(1)[:, 2 * width : 3 * width]
    columns.zero_()
    columns[:, :4] = basis.T
    z = torch.randn(n, heads, width, generator=g)
    coefficients = torch.randn(n, 4, generator=g)
    coefficients = torch.linalg.qr(coefficients - coefficients.mean(0)).Q * n**0.5
    z[:, 2, :4] = coefficients * torch.tensor([*SPREAD, NOISE])
    z[:, 3] = 0.25  # L?.H3 writes always the same
    folder = tmp_path_factory.mktemp("planted")
    pooled = [(list(range(n)), layer, z.flatten(1)) for layer in range(decoder.shape[0])]
    names = [f"p-{i}/0" for i in range(n)]
    path = folder / "activations.parquet"
    write_cache(path, pooled, names, "float32", {"heads": heads})
    write_weights(folder / "weights.safetensors", decoder, {})
    return HeadWeights(folder / "weights.safetensors"), path


@pytest.fixture(scope="module")
def atoms(planted, tokenizer) -> pd.DataFrame:
    weights, path = planted
    return decompose_heads(weights, vocabulary(weights, tokenizer, False), path, PURSUIT)


def of(table: pd.DataFrame, layer: int, head: int) -> pd.DataFrame:
    return table[(table["layer"] == layer) & (table["head"] == head)]


def ranked(planted, words, atoms: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return rank_specialists(planted[0], words, planted[1], atoms, SETS, True, 0, "x")


def test_a_planted_head_is_recovered(atoms):
    found = of(atoms, 1, 2)
    assert found["token_id"].tolist()[:3] == PLANTED
    power = np.square([*SPREAD, NOISE])
    assert found["explained"].to_numpy()[:3] == pytest.approx(power[:3].cumsum() / power.sum())
    assert found["step"].tolist() == [1, 2, 3, 4]
    assert len(of(atoms, 0, 0)) == 4 and not len(of(atoms, 1, 3))  # which never varies


def test_nothing_to_explain_is_refused(planted, tokenizer, tmp_path):
    weights, _ = planted
    path = tmp_path / "one.parquet"
    heads, _, width = weights.layer_columns(0).shape
    pooled = [([0], layer, torch.ones(1, heads * width)) for layer in range(weights.shape[0])]
    write_cache(path, pooled, ["p"], "float32", {"heads": heads})
    with pytest.raises(UserError, match="more than one prompt"):
        decompose_heads(weights, vocabulary(weights, tokenizer, False), path, PURSUIT)


@pytest.mark.parametrize("family", ["plain", *TEMPLATES])
def test_no_special_token_is_an_atom(planted, tokenizer, family):
    """Nor padding; and ids are those of the vocabulary, though rows before them are left out."""
    weights, path = planted
    if family != "plain":
        tokenizer = make_asking(family)
    special = tokenizer.convert_tokens_to_ids(
        {"plain": ["<|begin|>", "<|end|>", "<|start|>"],
         "qwen": ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>"],
         "gemma": ["<unk>", "<s>", "</s>", "<start_of_turn>"]}.get(family, ["<unk>", "<s>", "</s>"])
    )  # fmt: skip
    ids, rows = words = vocabulary(weights, tokenizer, False)
    weight = weights.unembedding(range(weights.rows), False)
    assert not set(special) & set(ids.tolist())
    assert ids.max() < len(tokenizer) < weights.rows or family != "plain"
    assert torch.equal(rows, weight[torch.tensor(ids)])
    if family not in ("plain", "qwen"):
        assert tokenizer.convert_tokens_to_ids("<0x0A>") in ids.tolist()
    found = decompose_heads(weights, words, path, PURSUIT)
    lens = read_lens(weights, words, path, per_sample=3, top=5)
    assert set(found["token_id"]) | set(lens["token_id"]) <= set(ids.tolist())
    best = of(found, 1, 2)
    own = of(ranked(planted, words, found)[0], 1, 2).iloc[0]
    assert own["explained"] == best["explained"].iloc[2]
    chosen = torch.tensor(best["token_id"].to_numpy()[:3])
    alike = float(coherence(weight[chosen] - rows.mean(0)))
    assert own["coherence"] == pytest.approx(alike, abs=1e-5)


def test_the_planted_head_is_the_most_specialised(planted, atoms, tokenizer):
    ids, rows = vocabulary(planted[0], tokenizer, False)
    rows[PLANTED] += 2 * rows[PLANTED].mean(0)  # make the three alike
    ranking, null = ranked(planted, (ids, rows), atoms)
    best = ranking.iloc[0]
    assert (best["layer"], best["head"], best["rank"]) == (1, 2, 1)
    assert best["explained"] == of(atoms, 1, 2)["explained"].iloc[2]
    assert best["coherence"] > best["coherence_high"] > best["coherence_null"]
    assert best["coherence_p"] == pytest.approx(1 / 41)
    excess = best["explained"] - best["explained_null"], best["coherence"] - best["coherence_null"]
    assert best["score"] == pytest.approx((excess[0] * excess[1]) ** 0.5)
    assert sorted(ranking["rank"]) == list(range(1, 13))
    assert (of(ranking, 0, 3)["score"] == 0).all() and of(ranking, 0, 3)["explained"].isna().all()
    assert (null["low"] <= null["mean"]).all() and (null["mean"] <= null["high"]).all()
    assert len(null) == len(atoms)
    pd.testing.assert_frame_equal(ranking, ranked(planted, (ids, rows), atoms)[0])
    # A head's draws are its own: without the other heads they are the same.
    alone = ranked(planted, (ids, rows), of(atoms, 1, 2))[1]
    pd.testing.assert_frame_equal(alone, of(null, 1, 2).reset_index(drop=True))


def test_equal_scores_go_by_explained_variance(planted, atoms, tokenizer):
    ranking, _ = ranked(planted, vocabulary(planted[0], tokenizer, False), atoms)
    zeros = ranking[(ranking["score"] == 0) & ranking["explained"].notna()]
    excess = zeros["explained"] - zeros["explained_null"]
    assert len(zeros) > 1 and excess.is_monotonic_decreasing


def test_random_sets_keep_the_norm_and_hold_no_token_twice():
    by_norm = np.random.default_rng(0).permutation(400)
    place = np.argsort(by_norm)
    support = by_norm[[0, 200, 201, 399]]
    sets = norm_matched_sets(support, by_norm, 300, 20, np.random.default_rng(1))
    assert sets.shape == (300, 4)
    assert all(len(set(own)) == 4 for own in sets.tolist())
    assert (np.abs(place[sets] - place[support]) <= 20).all()
    assert len(np.unique(sets[:, 1])) == 20  # all of the window
    small = norm_matched_sets(np.arange(6), np.arange(6), 30, 500, np.random.default_rng(1))
    assert (np.sort(small, axis=1) == np.arange(6)).all()


def test_explained_by_sets_is_that_of_least_squares():
    g = torch.Generator().manual_seed(2)
    atoms = torch.randn(5, 4, 20, generator=g, dtype=torch.float64)
    atoms[2, 3] = atoms[2, 1]  # a repeated row adds nothing
    atoms[3, 0] = 0
    factor = torch.randn(20, 3, generator=g, dtype=torch.float64)
    factor /= factor.norm()
    found = explained_by_sets(atoms, factor)
    for one, steps in itertools.product(range(5), range(1, 5)):
        a = atoms[one, :steps].numpy()
        rest = factor - torch.from_numpy(a.T @ np.linalg.lstsq(a.T, factor.numpy(), rcond=None)[0])
        assert float(found[one, steps - 1]) == pytest.approx(1 - float(rest.square().sum()))


def test_coherence_is_the_mean_cosine():
    rows = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(3))
    units = torch.nn.functional.normalize(rows, dim=-1)
    cosines = units @ units.mT
    expected = [np.mean([c[i, j] for i, j in itertools.combinations(range(5), 2)]) for c in cosines]
    assert coherence(rows).tolist() == pytest.approx(expected, abs=1e-6)
    assert float(coherence(torch.ones(4, 3))) == pytest.approx(1)
    assert coherence(torch.ones(2, 1, 3)).isnan().all()


@pytest.mark.parametrize(("n", "per_sample", "top"), [(50, 5, 5), (600, 5, 5), (50, 1, 3)])
def test_the_lens_counts_what_stands_highest(n: int, per_sample: int, top: int):
    g = torch.Generator().manual_seed(20)
    shapes = ((n, 8), (40, 8), (25, 40))
    z, w_o, dictionary = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    counts, sums = Counter(), Counter()
    for sample in (z @ w_o.T @ dictionary.T).numpy():
        for row in np.argsort(-sample)[:per_sample]:
            counts[row] += 1
            sums[row] += sample[row]
    expected = sorted(counts, key=lambda row: (-counts[row], -sums[row]))[:top]
    assert logit_lens_tokens(z, w_o, dictionary, per_sample, top) == expected


def test_the_lens_at_its_borders(planted, tokenizer):
    one, two = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [0.0]])
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])  # 0 and 2 have the same logits
    assert logit_lens_tokens(one, two, rows, per_sample=2, top=3) == [0, 2]
    assert sorted(logit_lens_tokens(one, two, rows, 5, 5)) == [0, 1, 2]  # fewer rows than asked
    one[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        logit_lens_tokens(one, two, rows, 5, 5)
    weights, path = planted
    words = vocabulary(weights, tokenizer, False)
    found = of(read_lens(weights, words, path, per_sample=1, top=2), 1, 2)
    # The largest coefficient stands first wherever it is positive.
    assert found["token_id"].tolist()[0] == PLANTED[0]
    assert found["place"].tolist() == [1, 2]
