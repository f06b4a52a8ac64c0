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
    "baseline": Condition(),
    "somp-k2": Condition([(0, 1), (2, 3)]),
    "logit_lens-k2": Condition([(1, 0), (1, 1)]),
}
WORDS = {"apple": [259, 3], "river": [263], "wren": [], "pear": [3, 44, 45]}


@pytest.fixture
def prompts(tokenizer) -> pa.Table:
    texts = ["apple", "the window of a garden", "silver " * 7]
    return pa.table({"sample_id": ["b", "a", "c"], "token_ids": tokenizer(texts)["input_ids"]})


@pytest.fixture
def responses() -> pa.Table:
    rng = np.random.default_rng(0)
    # One is longer than the block of logits that is taken at once.
    ids = [rng.integers(0, 490, n).tolist() for n in (6, 1, 0, 90, 3)]
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
        batch_tokens: int = 60,
        file: str | None = None,
        **changed: Any,
    ) -> pa.Table:
        given = {"prompts": prompts, "responses": responses, "words": WORDS}
        given |= {"conditions": CONDITIONS} | changed
        settings = {"model": "tiny", "words": given["words"]}
        own = PartFile(tmp_path / (file or next(files)), settings, batch_tokens)
        measure_expected(own, decoder or model("llama"), **given)
        return read_parquet(own.path, None).replace_schema_metadata(None)

    return measure


def masses(table: pa.Table, condition: str) -> np.ndarray:
    return np.stack([r["mass"] for r in table.to_pylist() if r["condition"] == condition])


@pytest.mark.parametrize(
    ("family", "batch_tokens"), zip(FAMILIES, [1, 60, 10_000, 60, 10_000, 1], strict=True)
)
def test_it_equals_a_walk_with_hooks(model, prompts, responses, measure, family, batch_tokens):
    """Conditions of all places and several alphas in one file, whatever the size of batches."""
    decoder = model(family)
    conditions = {
        f"{name}{alpha}{at}": CONDITIONS[name]._replace(alpha=alpha, at=at)
        for name, alpha in (("baseline", -1.0), ("somp-k2", 5.0), ("logit_lens-k2", -1.0))
        for at in ("all", "prompt", "response")
    }
    before = {name: value.clone() for name, value in decoder.model.state_dict().items()}
    table = measure(decoder, conditions=conditions, batch_tokens=batch_tokens)
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
    there = CONDITIONS["somp-k2"]._replace(alpha=5.0, at="response")
    table = measure(conditions={"baseline": Condition(), "there": there})
    short = np.array([n <= 1 for n in table["positions"].to_pylist()[: len(table) // 2]])
    same = (masses(table, "there") == masses(table, "baseline")).all(axis=1)
    assert (same == short).all() and short.any()


def test_logits_that_are_not_finite_are_refused_by_name(model_path, measure):
    decoder = load_model(model_path("gemma"), "float16", "cpu")
    decoder.projections[2].weight.mul_(1000)
    with pytest.raises(UserError, match=r"^somp-k2: its logits are not finite in float16"):
        measure(decoder, conditions={"somp-k2": Condition([(0, 1), (2, 3)], 1000.0)})


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


def test_only_what_a_file_lacks_is_measured(measure, tmp_path, monkeypatch):
    """The file is as if made at once; test_responses.py has all that decides what is kept."""
    asked = {"conditions": {"b": Condition([(1, 0)]), **CONDITIONS}, "batch_tokens": 10_000}
    whole = measure(**asked, file="whole")
    measure(batch_tokens=10_000, file="kept")
    measured, scored = [], module.word_mass
    monkeypatch.setattr(module, "word_mass", lambda *own: measured.append(1) or scored(*own))
    assert measure(**asked, file="kept") == whole
    assert len(measured) == 1
    facts = parquet_metadata(tmp_path / "kept")
    assert facts == parquet_metadata(tmp_path / "whole")
    assert facts["tokens"] == list(WORDS.values())
