import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from headpursuit.activations import pooled_inputs, pooled_positions, write_cache
from headpursuit.files import UserError
from headpursuit.heads import read_ranking
from headpursuit.ranking import rank_heads
from headpursuit.tables import write_csv
from tiny import HEADS, LAYERS, WORDS

PURSUIT: dict[str, Any] = {
    "iterations": 4, "norm": "l1", "center": True, "normalise_atoms": False, "fold_norm_gain": False
}  # fmt: skip
FAMILIES = ["llama", "gemma", "gpt2"]


@pytest.fixture(scope="module")
def token_ids(tokenizer) -> list[int]:
    return sorted(tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in WORDS[:12]]))


@pytest.fixture
def cache(model, tokenizer, tmp_path: Path):
    def make(family: str) -> list[Path]:
        texts = [f"{a} {b}" for a in WORDS[:6] for b in WORDS[20:24]]
        prompts = pa.table({"prompt_id": texts, "token_ids": tokenizer(texts)["input_ids"]})
        names, rows, where = pooled_positions(prompts, None, "prompt")
        paths = [tmp_path / f"layer-{i:02d}.parquet" for i in range(LAYERS)]
        pooled = pooled_inputs(model(family), rows, where, 0, 500)
        write_cache(paths, pooled, names, "float32", {"heads": json.dumps(HEADS)})
        return paths

    return make


def writes(decoder, path: Path, layer: int, head: int) -> np.ndarray:
    """Return what a head writes, samples x d, straight from the file and the model's weight."""
    import pyarrow.parquet as pq

    z = np.stack(pq.read_table(path)["z"].to_numpy()).astype(np.float64)
    attention = decoder.layers[layer]
    if decoder.model.config.model_type == "gpt2":
        weight = attention.attn.c_proj.weight.T
    else:
        weight = attention.self_attn.o_proj.weight
    width = weight.shape[1] // HEADS
    own = slice(head * width, (head + 1) * width)
    return z[:, own] @ weight[:, own].double().numpy().T


def direct_somp(h: np.ndarray, atoms: np.ndarray, options: dict) -> tuple[list[int], float]:
    """Pursue by the definition: correlate the residual with each atom, then least squares."""
    if options["center"]:
        h = h - h.mean(0)
    if options["normalise_atoms"]:
        atoms = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    residual, support = h, []
    for _ in range(options["iterations"]):
        scores = np.linalg.norm(residual @ atoms.T, 1 if options["norm"] == "l1" else 2, axis=0)
        scores[support] = -1
        support.append(int(scores.argmax()))
        chosen = atoms[support].T
        residual = h - (chosen @ np.linalg.lstsq(chosen, h.T, rcond=None)[0]).T
    return support, 1 - np.square(residual).sum() / np.square(h).sum()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changed",
    [{}, {"norm": "l2"}, {"center": False}, {"normalise_atoms": True}, {"fold_norm_gain": True}],
    ids=["paper", "l2", "uncentred", "normalised", "folded"],
)
def test_somp_ranks_as_the_direct_algorithm(
    model, weights, tokenizer, cache, token_ids, family, changed
):
    decoder, paths, options = model(family), cache(family), PURSUIT | changed
    ranking = rank_heads(weights(family), tokenizer, paths, {"somp": token_ids}, options)
    atoms = decoder.model.get_output_embeddings().weight[token_ids].double().numpy()
    if options["fold_norm_gain"]:
        base = decoder.model.base_model
        gain = (base.ln_f if family == "gpt2" else base.norm).weight.double().numpy()
        atoms = atoms * (gain + (family == "gemma"))
    assert len(ranking) == LAYERS * HEADS
    tokens = tokenizer.convert_ids_to_tokens(token_ids)
    for row in ranking.itertuples():
        h = writes(decoder, paths[row.layer], row.layer, row.head)
        support, explained = direct_somp(h, atoms, options)
        assert row.atoms.split(" ") == [tokens[i] for i in support]
        assert row.score == pytest.approx(explained, abs=1e-5)
    assert list(ranking["rank"]) == list(range(1, 13))
    assert ranking["score"].is_monotonic_decreasing


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logit_lens_ranks_by_the_mean_logit(
    model, weights, tokenizer, cache, token_ids, family
):
    decoder, paths = model(family), cache(family)
    ranking = rank_heads(weights(family), tokenizer, paths, {"logit_lens": token_ids}, PURSUIT)
    atoms = decoder.model.get_output_embeddings().weight[token_ids].double().numpy()
    tokens = tokenizer.convert_ids_to_tokens(token_ids)
    for row in ranking.itertuples():
        logits = writes(decoder, paths[row.layer], row.layer, row.head) @ atoms.T
        assert row.score == pytest.approx(logits.mean(), abs=1e-5)
        best = np.argsort(-logits.mean(0))[: PURSUIT["iterations"]]
        assert row.atoms.split(" ") == [tokens[i] for i in best]
    assert ranking["score"].is_monotonic_decreasing


def test_a_head_that_never_changes_explains_nothing(weights, tokenizer, tmp_path, token_ids):
    constant = torch.ones(5, HEADS * weights("llama").head_dim)
    varied = torch.randn(constant.shape, generator=torch.Generator().manual_seed(0))
    paths = [tmp_path / f"{i}.parquet" for i in range(LAYERS)]
    pooled = [
        (list(range(5)), layer, varied if layer == 1 else constant) for layer in range(LAYERS)
    ]
    write_cache(paths, pooled, list("abcde"), "float32", {"heads": "4"})
    ranking = rank_heads(weights("llama"), tokenizer, paths, {"somp": token_ids}, PURSUIT)
    silent = ranking[ranking["layer"] != 1]
    assert (ranking["score"] > 0).sum() == HEADS
    assert (silent["score"] == 0).all() and (silent["atoms"] == "").all()
    assert list(zip(silent["layer"], silent["head"], strict=True)) == [
        (layer, head) for layer in range(LAYERS) for head in range(HEADS) if layer != 1
    ]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_heads_that_all_never_change_are_refused(weights, tokenizer, tmp_path, token_ids, value):
    values = torch.full((5, HEADS * weights("llama").head_dim), value)
    paths = [tmp_path / f"{i}.parquet" for i in range(LAYERS)]
    pooled = [(list(range(5)), layer, values) for layer in range(LAYERS)]
    write_cache(paths, pooled, list("abcde"), "float32", {"heads": "4"})
    with pytest.raises(UserError, match="No head's write varies over the samples"):
        rank_heads(weights("llama"), tokenizer, paths, {"somp": token_ids}, PURSUIT)


def test_more_iterations_than_atoms(weights, tokenizer, cache, token_ids):
    options, dictionaries = PURSUIT | {"iterations": 50}, {"somp": token_ids}
    ranking = rank_heads(weights("llama"), tokenizer, cache("llama"), dictionaries, options)
    assert (ranking["atoms"].str.split(" ").str.len() <= len(token_ids)).all()
    assert (ranking["score"] <= 1).all()


def test_a_method_ranks_beside_others_as_alone(weights, tokenizer, cache, token_ids, tmp_path):
    paths = cache("llama")
    dictionaries = {"size": token_ids, "somp": token_ids, "unrelated": token_ids[:3]}
    together = tmp_path / "rankings/x.csv"
    write_csv(together, rank_heads(weights("llama"), tokenizer, paths, dictionaries, PURSUIT))
    assert list(pd.read_csv(together)["method"].unique()) == list(dictionaries)
    for method, ids in dictionaries.items():
        alone = tmp_path / f"rankings/{method}.csv"
        write_csv(alone, rank_heads(weights("llama"), tokenizer, paths, {method: ids}, PURSUIT))
        own, other = (read_ranking(path, method) for path in (together, alone))
        pd.testing.assert_frame_equal(own.reset_index(drop=True), other)
        assert own["rank"].tolist() == list(range(1, LAYERS * HEADS + 1))
