from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from headpursuit.method.activations import pooled_inputs, pooled_positions, write_cache
from headpursuit.method.heads import read_ranking
from headpursuit.method.ranking import rank_heads
from headpursuit.method.special import special_tokens
from headpursuit.run.files import UserError
from headpursuit.run.tables import write_csv
from test_somp import direct
from tiny import HEADS, LAYERS, WORDS

PURSUIT: dict[str, Any] = {
    "iterations": 4, "norm": "l1", "center": True, "normalise_atoms": False, "fold_norm_gain": False
}  # fmt: skip
families = pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])


@pytest.fixture(scope="module")
def token_ids(tokenizer) -> list[int]:
    return sorted(tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in WORDS[:12]]))


@pytest.fixture
def cache(model, tokenizer, tmp_path: Path):
    def make(family: str) -> Path:
        texts = [f"{a} {b}" for a in WORDS[:6] for b in WORDS[20:24]]
        prompts = pa.table({"sample_id": texts, "token_ids": tokenizer(texts)["input_ids"]})
        names, rows, where = pooled_positions(prompts, None, "prompt")
        path = tmp_path / "cache.parquet"
        pooled = pooled_inputs(model(family), rows, where, 0, 500)
        write_cache(path, pooled, names, "float32", {"heads": HEADS})
        return path

    return make


def writes(decoder, path: Path, layer: int, head: int) -> np.ndarray:
    """Return what a head writes, samples x d, straight from the file and the model's weight."""
    z = np.stack(pq.read_table(path, filters=[("layer", "=", layer)])["z"].to_numpy())
    attention = decoder.layers[layer]
    if decoder.model.config.model_type == "gpt2":
        weight = attention.attn.c_proj.weight.T
    else:
        weight = attention.self_attn.o_proj.weight
    width = weight.shape[1] // HEADS
    own = slice(head * width, (head + 1) * width)
    return z.astype(np.float64)[:, own] @ weight[:, own].double().numpy().T


Direct = tuple[list[int], list[float]]  # atoms, and the scores that the first, first two ... give


def direct_somp(h: np.ndarray, atoms: np.ndarray, options: dict) -> Direct:
    options = {key: own for key, own in options.items() if key != "fold_norm_gain"}
    found = direct(torch.from_numpy(h), torch.eye(h.shape[1]), torch.from_numpy(atoms), **options)
    return found.support, found.explained


def direct_size(h: np.ndarray, atoms: np.ndarray, options: dict) -> Direct:
    h = h - h.mean(0) if options["center"] else h
    return [], [np.sqrt((h**2).sum(1).mean())]


def direct_lens(h: np.ndarray, atoms: np.ndarray, options: dict) -> Direct:
    logits = h @ atoms.T
    return np.argsort(-logits.mean(0))[: options["iterations"]].tolist(), [logits.mean()]


@families
@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("somp", {}),
        ("somp", {"norm": "l2"}),
        ("somp", {"center": False}),
        ("somp", {"normalise_atoms": True}),
        ("somp", {"fold_norm_gain": True}),
        ("somp", {"iterations": 50}),  # more than there are atoms
        ("logit_lens", {}),
        ("size", {}),
        ("size", {"center": False}),
    ],
)
def test_heads_are_ranked_as_by_the_definition(
    model, weights, tokenizer, cache, token_ids, family, method, changed
):
    decoder, path, options = model(family), cache(family), PURSUIT | changed
    ranking = rank_heads(weights(family), tokenizer, path, {method: token_ids}, options)
    unembedding = decoder.model.get_output_embeddings().weight.double().numpy()
    base = decoder.model.base_model
    gain = (base.ln_f if family == "gpt2" else base.norm).weight.double().numpy()
    gain = gain + (family == "gemma")
    atoms = unembedding[token_ids] * (gain if options["fold_norm_gain"] else 1)
    text = sorted(set(tokenizer.get_vocab().values()) - special_tokens(tokenizer))
    concept = (unembedding[token_ids].mean(0) - unembedding[text].mean(0)) * gain
    direct = {"somp": direct_somp, "logit_lens": direct_lens, "size": direct_size}[method]
    tokens = tokenizer.convert_ids_to_tokens(token_ids)
    for row in ranking.itertuples():
        own = writes(decoder, path, row.layer, row.head)
        support, scores = direct(own, atoms, options)
        assert row.atoms == " ".join(tokens[i] for i in support)
        assert row.score == pytest.approx(scores[-1], abs=1e-5)
        fewer = [np.nan] * 3
        if method == "somp":
            fewer = [scores[min(n, len(scores)) - 1] for n in (5, 10, 20)]
        found = [row.score_5, row.score_10, row.score_20]
        assert found == pytest.approx(fewer, abs=1e-5, nan_ok=True)
        assert row.direction == pytest.approx((own @ concept).mean(), abs=1e-5)
        assert row.positive == pytest.approx(((own @ concept) > 0).mean())
        assert row.rows == len(token_ids)
    assert list(ranking["rank"]) == list(range(1, LAYERS * HEADS + 1))
    assert ranking["score"].is_monotonic_decreasing


@pytest.mark.parametrize(("iterations", "said"), [(11, False), (12, True)])
def test_a_dictionary_that_somp_takes_whole_is_told(
    weights, tokenizer, cache, token_ids, caplog, iterations, said
):
    options = PURSUIT | {"iterations": iterations}
    rank_heads(weights("llama"), tokenizer, cache("llama"), {"somp": token_ids}, options)
    assert ("12 rows" in caplog.text and "plain projection" in caplog.text) == said


def still(path: Path, weights, moving: list[int], value: float = 1.0) -> Path:
    """Write a cache in which only the layers of ``moving`` change from sample to sample."""
    constant = torch.full((5, weights.layer_columns(0)[:, 0].numel()), value)
    varied = torch.randn(constant.shape, generator=torch.Generator().manual_seed(0))
    pooled = [(list(range(5)), i, varied if i in moving else constant) for i in range(LAYERS)]
    write_cache(path, pooled, list("abcde"), "float32", {"heads": HEADS})
    return path


def test_a_head_that_never_changes_explains_nothing(weights, tokenizer, tmp_path, token_ids):
    own = weights("llama")
    path = still(tmp_path / "c.parquet", own, [1])
    ranking = rank_heads(own, tokenizer, path, {"somp": token_ids}, PURSUIT)
    silent = ranking[ranking["layer"] != 1]
    assert (ranking["score"] > 0).sum() == HEADS
    assert (silent["score"] == 0).all() and (silent["atoms"] == "").all()
    order = [(layer, head) for layer in (0, 2) for head in range(HEADS)]
    assert list(zip(silent["layer"], silent["head"], strict=True)) == order
    for value in (0.0, 1.0):
        still(path, own, [], value)
        with pytest.raises(UserError, match="No head's write varies over the samples"):
            rank_heads(own, tokenizer, path, {"somp": token_ids}, PURSUIT)


def test_a_method_ranks_beside_others_as_alone(weights, tokenizer, cache, token_ids, tmp_path):
    path = cache("llama")
    dictionaries = {"size": token_ids, "somp": token_ids, "unrelated": token_ids[:3]}
    together = tmp_path / "rankings/x.csv"
    write_csv(together, rank_heads(weights("llama"), tokenizer, path, dictionaries, PURSUIT))
    assert list(pd.read_csv(together)["method"].unique()) == list(dictionaries)
    for method, ids in dictionaries.items():
        alone = tmp_path / f"rankings/{method}.csv"
        write_csv(alone, rank_heads(weights("llama"), tokenizer, path, {method: ids}, PURSUIT))
        own, other = (read_ranking(file, method) for file in (together, alone))
        pd.testing.assert_frame_equal(own.reset_index(drop=True), other)
        assert own["rank"].tolist() == list(range(1, LAYERS * HEADS + 1))
