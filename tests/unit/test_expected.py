from contextlib import contextmanager
from pathlib import Path
from runpy import run_path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from headpursuit import expected as module
from headpursuit.expected import covered_words, measure_expected, word_mass
from headpursuit.heads import write_conditions
from headpursuit.models import Decoder
from headpursuit.words import build_dictionary
from tiny import HEADS

ROOT = Path(__file__).parents[2]
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
    return pa.table({"sample_id": ["b", "a", "c"], "token_ids": tokenizer(texts)["input_ids"]})


@pytest.fixture
def responses() -> pa.Table:
    rng = np.random.default_rng(0)
    lengths = [6, 1, 0, 9, 3]
    return pa.table(
        {
            "sample_id": ["b", "b", "a", "c", "a"],
            "repeat": [0, 1, 0, 0, 1],
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
    """Measure, and put the rows in the order in which they are written."""
    options: dict[str, Any] = {
        "words": WORDS, "conditions": CONDITIONS, "alpha": -1.0, "batch_tokens": 60
    } | changed  # fmt: skip
    with TemporaryDirectory() as folder:
        kept = {"journal": Path(folder) / "j", "identity": "tiny"}
        return in_order(measure_expected(decoder, 0, prompts, responses, **kept | options))


def in_order(table: pa.Table) -> pa.Table:
    place = {name: at for at, name in enumerate(["baseline", *CONDITIONS])}
    order = pa.array([place[name] for name in table["condition"].to_pylist()])
    by = [(key, "ascending") for key in ("order", "sample_id", "repeat")]
    return table.append_column("order", order).sort_by(by).drop_columns("order")


def masses(table: pa.Table, condition: str) -> np.ndarray:
    return np.stack([r["mass"] for r in table.to_pylist() if r["condition"] == condition])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [-1.0, 0.0])
def test_it_equals_a_walk_with_hooks(model, prompts, responses, family: str, alpha: float):
    decoder = model(family)
    before = {name: value.clone() for name, value in decoder.model.state_dict().items()}
    table = measure(decoder, prompts, responses, alpha=alpha)
    assert all(torch.equal(v, before[n]) for n, v in decoder.model.state_dict().items())
    of = dict(zip(prompts["sample_id"].to_pylist(), prompts["token_ids"].to_pylist(), strict=True))
    keyed = {(r["sample_id"], r["repeat"]): r["token_ids"] for r in responses.to_pylist()}
    assert [(r["condition"], r["sample_id"], r["repeat"]) for r in table.to_pylist()] == [
        (condition, *key) for condition in ["baseline", *CONDITIONS] for key in sorted(keyed)
    ]
    for row in table.to_pylist():
        response = keyed[row["sample_id"], row["repeat"]]
        heads = CONDITIONS.get(row["condition"], [])
        nll, mass = naive(decoder, of[row["sample_id"]], response, heads, alpha)
        assert row["positions"] == len(response)
        assert row["nll"] == pytest.approx(nll, rel=1e-5, abs=1e-5)
        np.testing.assert_allclose(row["mass"], mass, rtol=1e-5, atol=1e-5)


def test_words_without_a_form_that_it_sees_have_no_mass(model, prompts, responses):
    """As with leading_space: [false]; the likelihood is measured all the same."""
    seen = measure(model("llama"), prompts, responses)
    table = measure(model("llama"), prompts, responses, words={word: [] for word in WORDS})
    assert table["nll"] == seen["nll"]
    assert {tuple(mass) for mass in table["mass"].to_pylist()} == {(0.0,) * len(WORDS)}


def test_conditions_change_something_and_none_changes_another(model, prompts, responses):
    """Scaling by 1 gives the baseline bit by bit."""
    table = measure(model("llama"), prompts, responses)
    same = measure(model("llama"), prompts, responses, alpha=1.0)
    baseline = masses(table, "baseline")
    for condition, heads in CONDITIONS.items():
        own = masses(table, condition)
        alone = measure(model("llama"), prompts, responses, conditions={condition: heads})
        assert np.array_equal(own, masses(alone, condition))
        assert np.array_equal(own, baseline) == (not heads)
        assert np.array_equal(masses(same, condition), baseline)


@pytest.mark.parametrize("batch_tokens", [1, 25, 10_000])
def test_the_size_of_batches_does_not_matter(model, prompts, responses, batch_tokens: int):
    one = measure(model("gemma2"), prompts, responses)
    other = measure(model("gemma2"), prompts, responses, batch_tokens=batch_tokens)
    keys = ["condition", "sample_id", "repeat", "positions"]
    assert one.select(keys) == other.select(keys)
    mass = [np.stack(table["mass"].to_numpy()) for table in (one, other)]
    np.testing.assert_allclose(*mass, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 20])
def test_parts_make_up_the_whole_bit_by_bit(model, prompts, responses, parts: int):
    whole = measure(model("llama"), prompts, responses, batch_tokens=25)
    tables = [
        measure(model("llama"), prompts, responses, batch_tokens=25, part=part, parts=parts)
        for part in range(1, parts + 1)
    ]
    assert in_order(pa.concat_tables(tables)) == whole


def test_the_words_of_the_whole_vocabulary_sum_to_the_positions(model, prompts, responses):
    everything = {"all": list(range(model("llama").model.config.vocab_size))}
    for row in measure(model("llama"), prompts, responses, words=everything).to_pylist():
        assert row["mass"][0] == pytest.approx(row["positions"], abs=1e-4)


def test_long_responses_are_measured_block_by_block(model, tokenizer):
    """More positions in one batch than a block of logits has."""
    ids = np.random.default_rng(1).integers(0, 490, (6, 200)).tolist()
    prompts = pa.table({"sample_id": ["a"], "token_ids": tokenizer(["apple"])["input_ids"]})
    responses = pa.table({"sample_id": ["a"] * 6, "repeat": range(6), "token_ids": ids})
    table = measure(model("llama"), prompts, responses, conditions={}, batch_tokens=10_000)
    prompt = prompts["token_ids"].to_pylist()[0]
    for row in table.to_pylist():
        nll, mass = naive(model("llama"), prompt, ids[row["repeat"]], [], -1.0)
        assert row["nll"] == pytest.approx(nll, rel=1e-5)
        np.testing.assert_allclose(row["mass"], mass, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "cases", "spaces", "covered"),
    [
        ("all", ["lower", "title"], [True, False],
         {"apple": ["Ġapple", "ĠApple"], "wren": [], "river": ["Ġriver", "ĠRiver"]}),
        ("first", ["lower"], [False], {"apple": [], "wren": [], "river": []}),
    ],
)  # fmt: skip
def test_covered_words_are_those_of_one_token_that_starts_a_word(
    tokenizer, rows, cases, spaces, covered
):
    words = pd.DataFrame({"word": list(covered), "split": ["selection", "heldout", "heldout"]})
    found = covered_words(words, build_dictionary(words, tokenizer, rows, cases, spaces))
    expected = {word: tokenizer.convert_tokens_to_ids(own) for word, own in covered.items()}
    assert list(found.items()) == list(expected.items())


class Killed(BaseException):
    """Stands for a kill: nothing of the library catches it."""


@pytest.fixture
def count_passes(monkeypatch):
    """Let that many conditions' batches through, and give a list that grows with each."""

    def let(most: int) -> list[int]:
        passes: list[int] = []

        def counting(*given):
            if len(passes) == most:
                raise Killed
            passes.append(1)
            return word_mass(*given)

        monkeypatch.setattr(module, "word_mass", counting)
        return passes

    return let


@pytest.mark.parametrize(
    "changed", [{}, {"alpha": 0.0}, {"batch_tokens": 30}, {"words": {"pear": [3]}}]
)
def test_a_killed_job_goes_on_and_ends_the_same(
    model, prompts, responses, tmp_path: Path, count_passes, changed: dict
):
    alone, kept = {"batch_tokens": 1}, {"journal": tmp_path / "j"}  # one row a batch
    passes = count_passes(999)
    whole = measure(model("llama"), prompts, responses, **alone | changed)
    total = len(passes)
    count_passes(11)  # two batches under five conditions, and a part of the third
    with pytest.raises(Killed):
        measure(model("llama"), prompts, responses, **alone, **kept)
    passes = count_passes(999)
    assert measure(model("llama"), prompts, responses, **alone | changed, **kept) == whole
    assert len(passes) == total - (0 if changed else 10)


@pytest.fixture
def job(model, tokenizer, prompts, responses, tmp_path: Path, monkeypatch):
    """Run the script that measures `expected`, and give the file that it writes."""
    script = SimpleNamespace(**run_path(str(ROOT / "scripts/measure_expected.py")))
    opened = (model("llama"), tokenizer, {"name": "tiny"})
    monkeypatch.setitem(script.main.__globals__, "open_model", lambda *given: opened)
    baseline = responses.append_column("condition", pa.array(["baseline"] * len(responses)))
    pq.write_table(prompts, tmp_path / "samples.parquet")
    pq.write_table(baseline, tmp_path / "responses.parquet")
    words = pd.DataFrame({"word": ["apple", "river"], "split": ["selection", "heldout"]})
    dictionary = build_dictionary(words, tokenizer, "single", ["lower"], [True])
    words.to_csv(tmp_path / "words.csv", index=False)
    dictionary.to_csv(tmp_path / "dictionary.csv", index=False)

    def run(conditions: dict, name: str, alpha: float = -1.0) -> Path:
        write_conditions(tmp_path / "heads/x.csv", conditions)
        files = {key: [tmp_path / f"{key}.csv"] for key in ("words", "dictionary")}
        files |= {key: [tmp_path / f"{key}.parquet"] for key in ("samples", "responses")}
        params = {"conditions": list(conditions), "alpha": alpha, "model": {"dtype": "float32"}}
        params |= {"device": "cpu", "products": None, "parts": 1, "code": "x", "batch_tokens": 60}
        script.main(
            SimpleNamespace(
                params=SimpleNamespace(**params),
                input=SimpleNamespace(**files, heads=[tmp_path / "heads/x.csv"], model="m"),
                output=[tmp_path / name],
                wildcards=SimpleNamespace(part="1"),
            )
        )
        return tmp_path / name

    return run


@pytest.mark.parametrize(
    ("heads", "alpha", "computed"), [({}, -1.0, 2), ({"b": [(0, 0)]}, -1.0, 3), ({}, 0.0, 4)]
)
def test_conditions_that_a_file_holds_are_kept(job, count_passes, heads, alpha, computed):
    """Those of the same heads and identity; the baseline is measured along with new ones."""
    asked = {"a": [(0, 1)], "b": [(1, 2)], "c": [(2, 3)]}
    job({"b": asked["b"], "a": asked["a"], "old": [(2, 0)]}, "expected")
    passes = count_passes(999)
    path = job(asked | heads, "expected", alpha)
    one, passes = len(passes), count_passes(999)
    anew = job(asked | heads, "anew", alpha)
    assert (one, len(passes)) == (computed * len(passes) // 4, len(passes))
    assert pq.read_table(path) == pq.read_table(anew)
    assert path.read_bytes() == anew.read_bytes()
    assert not list(path.parent.glob(".*"))
