"""The probability of words, teacher-forced: beside a walk with hooks, and what a file keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from headpursuit.method import expected as module
from headpursuit.method.batches import PartFile
from headpursuit.method.decoder import Decoder
from headpursuit.method.expected import covered_words, measure_expected
from headpursuit.method.heads import Condition
from headpursuit.method.models import load_model
from headpursuit.method.words import build_dictionary
from headpursuit.run.files import UserError, parquet_metadata, read_parquet
from naive import acting, multiplied
from tiny import FAMILIES

CONDITIONS = {
    "baseline": [],
    "somp-k2": [(0, 1), (2, 3)],
    "logit_lens-k2": [(1, 0), (1, 1)],
    "random-k2-d00": [(2, 0), (2, 2)],
    "random-k2-d01": [],
}
WORDS = {"apple": [259, 3], "river": [263], "wren": [], "pear": [3, 44, 45]}


@pytest.fixture
def prompts(tokenizer) -> pa.Table:
    texts = ["apple", "the window of a garden", "silver " * 7]
    return pa.table({"sample_id": ["b", "a", "c"], "token_ids": tokenizer(texts)["input_ids"]})


@pytest.fixture
def responses() -> pa.Table:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 490, n).tolist() for n in (6, 1, 0, 9, 3)]
    return pa.table({"sample_id": [*"bbaca"], "repeat": [0, 1, 0, 0, 1], "token_ids": ids})


@torch.inference_mode()
def naive(
    decoder: Decoder, prompt: list[int], response: list[int], heads: list, alpha: float, at: str
) -> tuple[float, list[float]]:
    """Walk through one response with full logits, scaling what projections read by hooks."""
    where = acting(at, [False] * len(prompt), len(response))
    with multiplied(decoder.layers, heads, decoder.head_dim, alpha, where):
        logits = decoder.model(torch.tensor([prompt + response])).logits[0].double()
    nll, mass = 0.0, [0.0] * len(WORDS)
    for position, token in enumerate(response):
        p = logits[len(prompt) - 1 + position].softmax(-1)
        nll -= float(p[token].log())
        for number, ids in enumerate(WORDS.values()):
            mass[number] += sum(float(p[i]) for i in ids)
    return nll, mass


@pytest.fixture
def measure(model, prompts, responses, tmp_path: Path):
    """Give what measures, into a file of its own unless it is named, and reads the file."""
    files = (f"{number}.parquet" for number in range(999))

    def measure(
        decoder: Decoder | None = None,
        alpha: float = -1.0,
        batch_tokens: int = 60,
        part: tuple[int, int] = (1, 1),
        file: str | None = None,
        **changed: Any,
    ) -> pa.Table:
        given = {"prompts": prompts, "responses": responses, "words": WORDS}
        given |= {"conditions": CONDITIONS} | changed
        asked = given["conditions"].items()
        given["conditions"] = {
            name: own if isinstance(own, Condition) else Condition(own, alpha)
            for name, own in asked
        }
        settings = {"model": "tiny", "words": given["words"]}
        own = PartFile(tmp_path / (file or next(files)), settings, batch_tokens, part)
        measure_expected(own, decoder or model("llama"), **given)
        return read_parquet(own.path, None).replace_schema_metadata(None)

    return measure


def masses(table: pa.Table, condition: str) -> np.ndarray:
    return np.stack([r["mass"] for r in table.to_pylist() if r["condition"] == condition])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_a_walk_with_hooks(model, prompts, responses, measure, family: str):
    """Conditions of all places and several alphas in one file."""
    decoder = model(family)
    conditions = {
        f"{name}{alpha}{at}": Condition(heads, alpha, at)
        for name, heads in CONDITIONS.items()
        for alpha in (-1.0, 0.0, 5.0)
        for at in ("all", "prompt", "response")
    }
    before = {name: value.clone() for name, value in decoder.model.state_dict().items()}
    table = measure(decoder, conditions=conditions)
    assert all(torch.equal(v, before[n]) for n, v in decoder.model.state_dict().items())
    of = dict(zip(*(prompts[key].to_pylist() for key in prompts.column_names), strict=True))
    keyed = {(r["sample_id"], r["repeat"]): r["token_ids"] for r in responses.to_pylist()}
    found = [(r["condition"], r["sample_id"], r["repeat"]) for r in table.to_pylist()]
    assert sorted(found) == sorted((condition, *key) for condition in conditions for key in keyed)
    for row in table.to_pylist():
        response = keyed[row["sample_id"], row["repeat"]]
        scaling = conditions[row["condition"]]
        nll, mass = naive(decoder, of[row["sample_id"]], response, *scaling[:3])
        assert row["positions"] == len(response)
        assert row["nll"] == pytest.approx(nll, rel=1e-5, abs=1e-5)
        np.testing.assert_allclose(row["mass"], mass, rtol=1e-5, atol=1e-5)


def test_words_without_a_form_that_it_sees_have_no_mass(measure):
    """As with leading_space: [false]; the likelihood is measured all the same."""
    table = measure(words={word: [] for word in WORDS})
    assert table["nll"] == measure()["nll"]
    assert {tuple(mass) for mass in table["mass"].to_pylist()} == {(0.0,) * len(WORDS)}


def test_the_first_token_stands_on_the_prompt_alone(measure):
    """So `at: response` leaves its probability, bit by bit; of longer responses it does not."""
    heads = CONDITIONS["somp-k2"]
    table = measure(conditions={"baseline": [], "there": Condition(heads, 5.0, "response")})
    short = np.array([n <= 1 for n in table["positions"].to_pylist()[: len(table) // 2]])
    same = (masses(table, "there") == masses(table, "baseline")).all(axis=1)
    assert (same == short).all() and short.any()


def test_logits_that_are_not_finite_are_refused_by_name(model_path, measure):
    decoder = load_model(model_path("gemma"), "float16", "cpu")
    decoder.projections[2].weight.mul_(1000)
    with pytest.raises(UserError, match=r"^somp-k2: its logits are not finite in float16"):
        measure(decoder, alpha=1000.0)


@pytest.mark.parametrize("alpha", [-1.0, 1.0])
def test_conditions_change_something_and_none_changes_another(measure, alpha: float):
    """Without heads, or scaled by 1, the baseline's values are there bit by bit."""
    table = measure(alpha=alpha)
    for condition, heads in CONDITIONS.items():
        own, alone = masses(table, condition), measure(conditions={condition: heads}, alpha=alpha)
        assert np.array_equal(own, masses(alone, condition))
        assert np.array_equal(own, masses(table, "baseline")) == (not heads or alpha == 1)


@pytest.mark.parametrize("batch_tokens", [1, 25, 10_000])
def test_the_size_of_batches_does_not_matter(model, measure, batch_tokens: int):
    order = [(key, "ascending") for key in ("condition", "sample_id", "repeat")]
    one, other = (
        measure(model("gemma2"), batch_tokens=n).sort_by(order) for n in (60, batch_tokens)
    )
    drop = ["nll", "mass"]
    assert one.drop_columns(drop) == other.drop_columns(drop)
    mass = [np.stack(own["mass"].to_numpy()) for own in (one, other)]
    np.testing.assert_allclose(*mass, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 20])
def test_parts_make_up_the_whole_bit_by_bit(measure, parts: int):
    tables = [measure(batch_tokens=25, part=(n, parts)) for n in range(1, parts + 1)]
    order = [(key, "ascending") for key in ("condition", "sample_id", "repeat")]
    assert pa.concat_tables(tables).sort_by(order) == measure(batch_tokens=25).sort_by(order)


def test_the_words_of_the_whole_vocabulary_sum_to_the_positions(model, measure):
    table = measure(words={"all": [*range(model("llama").model.config.vocab_size)]})
    found = [own[0] for own in table["mass"].to_pylist()]
    assert found == pytest.approx(table["positions"].to_pylist(), abs=1e-4)


def test_long_responses_are_measured_block_by_block(model, prompts, measure):
    """More positions in one batch than a block of logits has."""
    ids = np.random.default_rng(1).integers(0, 490, (6, 200)).tolist()
    long = pa.table({"sample_id": ["a"] * 6, "repeat": range(6), "token_ids": ids})
    table = measure(responses=long, conditions={"baseline": []}, batch_tokens=10_000)
    for row in table.to_pylist():
        prompt = prompts["token_ids"].to_pylist()[1]
        nll, mass = naive(model("llama"), prompt, ids[row["repeat"]], [], -1.0, "all")
        assert row["nll"] == pytest.approx(nll, rel=1e-5)
        np.testing.assert_allclose(row["mass"], mass, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "leading_space", "covered"),
    [
        ("all", [True, False], {"apple": ["Ġapple", "ĠApple"], "wren": [],
                                "river": ["Ġriver", "ĠRiver"]}),
        ("first", [False], {"apple": [], "wren": [], "river": []}),
    ],
)  # fmt: skip
def test_covered_words_have_one_token_that_starts_a_word(tokenizer, rows, leading_space, covered):
    words = pd.DataFrame({"word": list(covered), "split": ["selection", "heldout", "heldout"]})
    table = build_dictionary(
        words, tokenizer, rows, ["lower", "title"], leading_space, "concepts.x"
    )
    assert covered_words(words, table) == {
        word: tokenizer.convert_tokens_to_ids(tokens) for word, tokens in covered.items()
    }


# What is there already


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Give a list that grows with each condition of a batch."""
    passes, scored = [], module.word_mass

    def counting(*given):
        passes.append(1)
        return scored(*given)

    monkeypatch.setattr(module, "word_mass", counting)
    return passes


SOME = {name: CONDITIONS[name] for name in ("somp-k2", "logit_lens-k2")}


@pytest.mark.parametrize(
    ("changed", "computed"),
    [
        ({"conditions": {"random-k2-d00": [(2, 0), (2, 2)], **SOME}}, 1),
        ({"words": {"river": [263]}}, 2),
    ],
)
def test_only_what_a_file_lacks_is_measured(measure, passes, tmp_path, changed, computed):
    """The file is as if made at once; test_responses.py has all that decides what is kept."""
    asked = {"conditions": SOME, "batch_tokens": 10_000}
    measure(**asked, file="kept")
    passes.clear()
    found, n = measure(**asked | changed, file="kept"), len(passes)
    assert found == measure(**asked | changed, file="whole")
    assert n == computed
    facts = parquet_metadata(tmp_path / "kept")
    assert facts == parquet_metadata(tmp_path / "whole")
    assert facts["tokens"] == list(changed.get("words", WORDS).values())
    assert not list(tmp_path.glob(".*"))
