from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from headpursuit import expected as module
from headpursuit.expected import covered_words, measure_expected
from headpursuit.models import Decoder
from headpursuit.words import build_dictionary
from tiny import HEADS

FAMILIES = ["llama", "mistral", "qwen2", "gemma", "gemma2", "gpt2"]
CONDITIONS = {
    "somp-k2": [(0, 1), (2, 3)],
    "logit_lens-k2": [(1, 0), (1, 1)],
    "random-k2-d00": [(2, 0), (2, 2)],
    "random-k2-d01": [],
}
WORDS = {"apple": [259, 3], "river": [263], "wren": [], "pear": [3, 44, 45]}


@pytest.fixture
def prompts(tokenizer) -> pa.Table:
    texts = ["apple", "the window of a garden", "silver " * 7]
    return pa.table({"prompt_id": ["b", "a", "c"], "token_ids": tokenizer(texts)["input_ids"]})


@pytest.fixture
def responses() -> pa.Table:
    rng = np.random.default_rng(0)
    lengths = [6, 1, 0, 9, 3]
    return pa.table(
        {
            "prompt_id": ["b", "b", "a", "c", "a"],
            "sample": [0, 1, 0, 0, 1],
            "token_ids": [rng.integers(0, 490, n).tolist() for n in lengths],
        }
    )


@contextmanager
def hooked(decoder: Decoder, heads: list, alpha: float):
    """Scale the heads' slices of what the projections read."""
    handles = []
    for layer in {layer for layer, _ in heads}:
        own = [head for at, head in heads if at == layer]

        def scale(module, args, own=own):
            z = args[0].unflatten(-1, (HEADS, -1)).clone()
            z[..., own, :] *= alpha
            return (z.flatten(-2),)

        block = decoder.layers[layer]
        projection = block.attn.c_proj if hasattr(block, "attn") else block.self_attn.o_proj
        handles.append(projection.register_forward_pre_hook(scale))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def naive(
    decoder: Decoder, prompt: list[int], response: list[int], heads: list, alpha: float
) -> tuple[float, list[float]]:
    """Walk through one response with full logits."""
    with hooked(decoder, heads, alpha):
        logits = decoder.model(torch.tensor([prompt + response])).logits[0].double()
    nll, mass = 0.0, [0.0] * len(WORDS)
    for position, token in enumerate(response):
        p = logits[len(prompt) - 1 + position].softmax(-1)
        nll -= float(p[token].log())
        for number, ids in enumerate(WORDS.values()):
            mass[number] += sum(float(p[i]) for i in ids)
    return nll, mass


def measure(decoder: Decoder, prompts: pa.Table, responses: pa.Table, **changed: Any) -> pa.Table:
    options: dict[str, Any] = {
        "words": WORDS, "conditions": CONDITIONS, "alpha": -1.0, "batch_tokens": 60
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        kept = {"journal": Path(folder) / "j", "identity": "tiny"}
        return measure_expected(decoder, 0, prompts, responses, **options | kept | changed)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [-1.0, 0.0])
def test_it_equals_a_walk_with_hooks(model, prompts, responses, family: str, alpha: float):
    decoder = model(family)
    before = {name: value.clone() for name, value in decoder.model.state_dict().items()}
    table = measure(decoder, prompts, responses, alpha=alpha)
    assert all(torch.equal(v, before[n]) for n, v in decoder.model.state_dict().items())
    of = dict(zip(prompts["prompt_id"].to_pylist(), prompts["token_ids"].to_pylist(), strict=True))
    keyed = {(r["prompt_id"], r["sample"]): r["token_ids"] for r in responses.to_pylist()}
    # In the order of conditions, then prompts, then samples.
    assert [(r["condition"], r["prompt_id"], r["sample"]) for r in table.to_pylist()] == [
        (condition, *key) for condition in ["baseline", *CONDITIONS] for key in sorted(keyed)
    ]
    for row in table.to_pylist():
        response = keyed[row["prompt_id"], row["sample"]]
        heads = CONDITIONS.get(row["condition"], [])
        nll, mass = naive(decoder, of[row["prompt_id"]], response, heads, alpha)
        assert row["positions"] == len(response)
        assert row["nll"] == pytest.approx(nll, rel=1e-5, abs=1e-5)
        np.testing.assert_allclose(row["mass"], mass, rtol=1e-5, atol=1e-5)


def test_words_without_a_form_that_it_sees_have_no_mass(model, prompts, responses):
    """As with dictionary.leading_space: [false]; the likelihood is measured all the same."""
    decoder = model("llama")
    seen = measure(decoder, prompts, responses)
    table = measure(decoder, prompts, responses, words={word: [] for word in WORDS})
    assert table["nll"] == seen["nll"]
    assert {tuple(mass) for mass in table["mass"].to_pylist()} == {(0.0,) * len(WORDS)}


def masses(table: pa.Table, condition: str) -> np.ndarray:
    return np.stack([r["mass"] for r in table.to_pylist() if r["condition"] == condition])


def test_conditions_change_something_and_none_changes_another(model, prompts, responses):
    table = measure(model("llama"), prompts, responses)
    baseline = masses(table, "baseline")
    for condition, heads in CONDITIONS.items():
        own = masses(table, condition)
        alone = measure(model("llama"), prompts, responses, conditions={condition: heads})
        assert np.array_equal(own, masses(alone, condition))
        assert np.array_equal(own, baseline) == (not heads)


def test_scaling_by_one_gives_the_baseline_bit_by_bit(model, prompts, responses):
    table = measure(model("llama"), prompts, responses, alpha=1.0)
    for condition in CONDITIONS:
        assert np.array_equal(masses(table, condition), masses(table, "baseline"))


@pytest.mark.parametrize("batch_tokens", [1, 25, 10_000])
def test_the_size_of_batches_does_not_matter(model, prompts, responses, batch_tokens: int):
    one = measure(model("gemma2"), prompts, responses)
    other = measure(model("gemma2"), prompts, responses, batch_tokens=batch_tokens)
    keys = ["condition", "prompt_id", "sample", "positions"]
    assert one.select(keys) == other.select(keys)
    np.testing.assert_allclose(
        np.stack(one["mass"].to_numpy()), np.stack(other["mass"].to_numpy()), atol=1e-5
    )


@pytest.mark.parametrize("parts", [2, 20])
def test_parts_make_up_the_whole_bit_by_bit(model, prompts, responses, parts: int):
    whole = measure(model("llama"), prompts, responses, batch_tokens=25)
    tables = [
        measure(model("llama"), prompts, responses, batch_tokens=25, part=part, parts=parts)
        for part in range(1, parts + 1)
    ]
    order = [(key, "ascending") for key in ("condition", "prompt_id", "sample")]
    assert pa.concat_tables(tables).sort_by(order) == whole.sort_by(order)


def test_the_words_of_the_whole_vocabulary_sum_to_the_positions(model, prompts, responses):
    everything = {"all": list(range(model("llama").model.config.vocab_size))}
    table = measure(model("llama"), prompts, responses, words=everything)
    for row in table.to_pylist():
        assert row["mass"][0] == pytest.approx(row["positions"], abs=1e-4)


def test_long_responses_are_measured_block_by_block(model, tokenizer):
    """More positions in one batch than a block of logits has."""
    ids = np.random.default_rng(1).integers(0, 490, (6, 200)).tolist()
    prompts = pa.table({"prompt_id": ["a"], "token_ids": tokenizer(["apple"])["input_ids"]})
    responses = pa.table({"prompt_id": ["a"] * 6, "sample": range(6), "token_ids": ids})
    table = measure(model("llama"), prompts, responses, conditions={}, batch_tokens=10_000)
    prompt = prompts["token_ids"].to_pylist()[0]
    for row in table.to_pylist():
        nll, mass = naive(model("llama"), prompt, ids[row["sample"]], [], -1.0)
        assert row["nll"] == pytest.approx(nll, rel=1e-5)
        np.testing.assert_allclose(row["mass"], mass, rtol=1e-4, atol=1e-5)


def test_covered_words_are_those_of_one_token_that_starts_a_word(tokenizer):
    words = pd.DataFrame(
        {"word": ["apple", "wren", "river"], "split": ["selection", "heldout", "heldout"]}
    )
    dictionary = build_dictionary(words, tokenizer, "all", ["lower", "title"], [True, False])
    covered = covered_words(words, dictionary)
    assert list(covered) == ["apple", "wren", "river"]
    assert covered["apple"] == tokenizer.convert_tokens_to_ids(["Ġapple", "ĠApple"])
    assert covered["wren"] == []
    assert covered["river"] == tokenizer.convert_tokens_to_ids(["Ġriver", "ĠRiver"])


def test_no_word_is_covered_where_no_form_starts_one(tokenizer):
    words = pd.DataFrame({"word": ["apple", "river"], "split": ["selection", "heldout"]})
    dictionary = build_dictionary(words, tokenizer, "single", ["lower"], [False])
    assert covered_words(words, dictionary) == {"apple": [], "river": []}


class Killed(BaseException):
    """Stands for a kill: nothing of the library catches it."""


@pytest.mark.parametrize(
    "changed", [{}, {"alpha": 0.0}, {"batch_tokens": 30}, {"words": {"pear": [3]}}]
)
def test_a_killed_job_goes_on_and_ends_the_same(
    model, prompts, responses, tmp_path: Path, monkeypatch, changed: dict
):
    passes, scored = [], module.word_mass

    def counting(*given):
        if len(passes) == most:
            raise Killed
        passes.append(1)
        return scored(*given)

    monkeypatch.setattr(module, "word_mass", counting)
    most, alone = 999, {"batch_tokens": 1}  # one row a batch
    whole = measure(model("llama"), prompts, responses, **alone | changed)
    total = len(passes)
    kept = {"journal": tmp_path / "j", "identity": "tiny"}
    passes.clear()
    most = 11  # two batches under five conditions, and a part of the third
    with pytest.raises(Killed):
        measure(model("llama"), prompts, responses, **alone, **kept)
    passes.clear()
    most = 999
    assert measure(model("llama"), prompts, responses, **alone | changed, **kept) == whole
    assert len(passes) == total - (0 if changed else 10)
