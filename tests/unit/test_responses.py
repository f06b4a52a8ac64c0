from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from headpursuit import generate as module
from headpursuit.files import UserError
from headpursuit.generate import (
    SCHEMA,
    GumbelMax,
    Noise,
    end_tokens,
    generate,
    generate_batch,
    stream,
)
from headpursuit.models import Decoder, load_model, scaled_heads
from hypothesis import given
from hypothesis import strategies as st

GREEDY = {"max_new_tokens": 8, "samples": 1, "temperature": 0.0, "top_p": 1.0, "batch_tokens": 200}
SAMPLED = GREEDY | {"temperature": 0.7, "top_p": 0.9, "samples": 2}
FAMILIES = ["llama", "mistral", "qwen2", "gemma", "gemma2", "gpt2"]
BASELINE = {"baseline": []}
CONDITIONS = BASELINE | {"a": [(1, 0), (2, 1)], "b": [(0, 1)], "c": [(2, 2)], "d": [(1, 3)]}
TEXTS = ["apple", "river stone cloud", "the window of a garden\nis open", "x", "silver " * 9]


@pytest.fixture
def prompts(tokenizer) -> pa.Table:
    names = [f"p{i}" for i in range(len(TEXTS))]
    return pa.table({"prompt_id": names, "token_ids": tokenizer(TEXTS)["input_ids"]})


def run(
    decoder: Decoder,
    tokenizer: Any,
    prompts: pa.Table,
    settings: dict,
    journal: Path,
    conditions: dict[str, list] = BASELINE,
    alpha: float = -1.0,
    **share: int,
) -> pa.Table:
    named = {"name": "tiny"}
    return generate(
        decoder, tokenizer, prompts, conditions, alpha, settings, 0, journal, named, **share
    )


def of(table: pa.Table, condition: str) -> pa.Table:
    return table.filter(pc.equal(table["condition"], condition)).drop_columns("condition")


@torch.inference_mode()
def one_by_one(
    decoder: Decoder,
    ids: list[int],
    numbers: np.random.Generator,
    settings: dict,
    stops: set[int],
) -> tuple[list[int], str]:
    """Generate without batch, padding, cache or library: a full pass for each token."""
    new: list[int] = []
    for _ in range(settings["max_new_tokens"]):
        logits = decoder.model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].double()
        if settings["temperature"] == 0:
            token = int(logits.argmax())
        else:
            p = (logits / settings["temperature"]).softmax(-1).numpy()
            order = np.argsort(-p, kind="stable")
            # The smallest set of most probable tokens that holds top_p.
            kept = order[: int(np.searchsorted(p[order].cumsum(), settings["top_p"])) + 1]
            gumbel = -np.log(numbers.standard_exponential(len(p), np.float32).astype(float))
            token = int(kept[(np.log(p) + gumbel)[kept].argmax()])
        if token in stops:
            return new, "eos"
        new.append(token)
    return new, "length"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_batch_gives_what_each_prompt_gives_alone(
    model, tokenizer, prompts, tmp_path: Path, family: str, settings: dict
):
    decoder = model(family)
    table = run(decoder, tokenizer, prompts, settings, tmp_path / "j")
    assert table.schema == SCHEMA
    stops = set(end_tokens(decoder, tokenizer))
    expected = []
    for name, ids in zip(
        *(prompts[c].to_pylist() for c in ("prompt_id", "token_ids")), strict=True
    ):
        for sample in range(settings["samples"]):
            new, stop = one_by_one(decoder, ids, stream(0, name, sample), settings, stops)
            response = tokenizer.decode(new, skip_special_tokens=True)
            expected.append(("baseline", name, sample, response, len(new), stop, new))
    assert [tuple(row.values()) for row in table.to_pylist()] == expected


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_size_of_batches_does_not_matter(
    model, tokenizer, prompts, tmp_path: Path, settings: dict
):
    tables = [
        run(model("llama"), tokenizer, prompts, settings | {"batch_tokens": size}, tmp_path / "j")
        for size in (1, 40, 10_000)
    ]
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize("parts", [2, 3, 20])
def test_parts_make_up_the_whole(model, tokenizer, prompts, tmp_path: Path, parts: int):
    whole = run(model("llama"), tokenizer, prompts, SMALL, tmp_path / "whole")
    tables = [
        run(model("llama"), tokenizer, prompts, SMALL, tmp_path / f"{part}", part=part, parts=parts)
        for part in range(1, parts + 1)
    ]
    assert all(table.schema == SCHEMA for table in tables)
    order = [("prompt_id", "ascending"), ("sample", "ascending")]
    assert pa.concat_tables(tables).sort_by(order) == whole


def test_samples_and_prompts_have_numbers_of_their_own(model, tokenizer, tmp_path: Path):
    ids = tokenizer(["river"] * 2)["input_ids"]
    prompts = pa.table({"prompt_id": ["a", "b"], "token_ids": ids})
    settings = SAMPLED | {"temperature": 2.0, "top_p": 1.0}
    table = run(model("llama"), tokenizer, prompts, settings, tmp_path / "j")
    assert len({tuple(own) for own in table["token_ids"].to_pylist()}) == 4
    assert len({stream(seed, "a", 0).random() for seed in (0, 1)}) == 2


def test_a_shorter_limit_cuts_and_changes_nothing(model, tokenizer, prompts, tmp_path: Path):
    long = run(model("llama"), tokenizer, prompts, SAMPLED, tmp_path / "a")
    short = run(model("llama"), tokenizer, prompts, SAMPLED | {"max_new_tokens": 3}, tmp_path / "b")
    for whole, cut in zip(
        long["token_ids"].to_pylist(), short["token_ids"].to_pylist(), strict=True
    ):
        assert cut == whole[:3]


def test_an_intervention_is_compared_on_the_same_numbers(model, tokenizer, prompts, tmp_path: Path):
    """Scaling by 1 changes nothing, so neither do the sampled responses."""
    conditions = BASELINE | {"scaled": [(0, 0), (1, 1)]}
    for alpha in (1.0, -1.0):
        table = run(model("llama"), tokenizer, prompts, SAMPLED, tmp_path / "a", conditions, alpha)
        assert (of(table, "scaled") == of(table, "baseline")) == (alpha == 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_conditions_together_give_what_each_gives_alone(
    model, tokenizer, prompts, tmp_path: Path, family: str, settings: dict
):
    """And greedily, what the library gives with edited weights and its own reading of prompts."""
    decoder = model(family)
    table = run(decoder, tokenizer, prompts, settings, tmp_path / "together", CONDITIONS)
    assert table["condition"].unique().to_pylist() == list(CONDITIONS)
    responses = {condition: of(table, condition) for condition in CONDITIONS}
    assert len({str(own["token_ids"]) for own in responses.values()}) > 1
    for condition, heads in CONDITIONS.items():
        alone = run(decoder, tokenizer, prompts, settings, tmp_path / condition, {condition: heads})
        assert responses[condition] == of(alone, condition)
        if settings is GREEDY:
            with scaled_heads(decoder, heads, -1.0):
                whole = [
                    decoder.model.generate(
                        input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=8
                    )[0, len(ids) :].tolist()
                    for ids in prompts["token_ids"].to_pylist()
                ]
            found = alone["token_ids"].to_pylist()
            assert [own[: len(new)] for own, new in zip(whole, found, strict=True)] == found


@pytest.mark.parametrize("head", [(99, 0), (-1, 0), (0, 99)])
def test_a_head_that_does_not_exist_is_named(model, tokenizer, prompts, tmp_path: Path, head):
    with pytest.raises(UserError, match=rf"L{head[0]}\.H{head[1]} does not exist"):
        run(model("llama"), tokenizer, prompts, GREEDY, tmp_path / "j", {"mine": [head]})


@pytest.mark.parametrize("kept", [0, 3 * 5 * 512])
def test_responses_do_not_depend_on_how_much_noise_is_kept(
    model, tokenizer, prompts, tmp_path: Path, monkeypatch, kept: int
):
    whole = run(model("llama"), tokenizer, prompts, SAMPLED, tmp_path / "whole", CONDITIONS)
    monkeypatch.setattr(module, "_KEPT", kept)
    table = run(model("llama"), tokenizer, prompts, SAMPLED, tmp_path / "kept", CONDITIONS)
    assert table == whole


# Where a response ends


@pytest.mark.parametrize("place", ["config", "generation_config", "tokenizer"])
def test_a_response_stops_at_every_declared_end(
    model_path, tokenizer, prompts, tmp_path: Path, place: str
):
    decoder = load_model(model_path("llama"), "float32", "cpu")
    whole = run(decoder, tokenizer, prompts, GREEDY, tmp_path / "a")["token_ids"].to_pylist()
    end = whole[0][4]

    decoder = load_model(model_path("llama"), "float32", "cpu")
    own = type(tokenizer).from_pretrained(model_path("llama"), padding_side="left")
    own.pad_token_id = own.eos_token_id
    if place == "tokenizer":
        own.eos_token = own.convert_ids_to_tokens(end)
    else:
        getattr(decoder.model, place).eos_token_id = [end, tokenizer.eos_token_id]
    table = run(decoder, own, prompts, GREEDY, tmp_path / "b")
    for ids, stop, n, expected in zip(
        *(table[c].to_pylist() for c in ("token_ids", "stop_reason", "n_tokens")),
        whole,
        strict=True,
    ):
        stops = [i for i, token in enumerate(expected) if token in (end, tokenizer.eos_token_id)]
        assert ids == expected[: stops[0] if stops else None]
        assert stop == ("eos" if stops else "length")
        assert n == len(ids)
    assert "eos" in table["stop_reason"].to_pylist()


def test_a_model_s_generation_defaults_do_not_slip_in(model_path, tokenizer, prompts, tmp_path):
    plain = run(
        load_model(model_path("llama"), "float32", "cpu"),
        tokenizer,
        prompts,
        GREEDY,
        tmp_path / "a",
    )
    decoder = load_model(model_path("llama"), "float32", "cpu")
    decoder.model.generation_config.update(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, num_beams=3, max_length=3, top_k=1
    )
    assert run(decoder, tokenizer, prompts, GREEDY, tmp_path / "b") == plain


# Sampling


def sample(noise: Noise, scores: torch.Tensor, top_p: float = 1.0) -> torch.Tensor:
    return GumbelMax(noise, 1.0, top_p)(scores, torch.arange(len(scores)), 0)


def frequencies(scores: torch.Tensor, n: int, top_p: float = 1.0) -> np.ndarray:
    noise = Noise([np.random.default_rng(0)] * n, scores.shape[-1])
    picked = sample(noise, scores.expand(n, -1), top_p)
    return np.bincount(picked.numpy(), minlength=scores.shape[-1])


def test_samples_follow_the_distribution():
    scores = torch.tensor([[0.3, -1.0, 2.0, -torch.inf, 0.0, 1.0, -3.0]])
    p, n = scores.softmax(-1)[0].numpy(), 50_000
    counts = frequencies(scores, n)
    assert counts[3] == 0
    seen = p > 0
    # The 0.999 quantile of chi square with 5 degrees of freedom.
    assert (((counts - n * p) ** 2)[seen] / (n * p)[seen]).sum() < 20.5


def test_top_p_cuts_the_tail():
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    counts = frequencies(scores, 20_000, top_p=0.75)
    assert counts[2:].sum() == 0
    assert abs(counts[0] / 20_000 - 0.625) < 0.015


class Nothing:
    """Draws zeros, the least that a stream of exponential numbers can give."""

    def standard_exponential(self, dtype, out):
        out[:] = 0


@given(st.integers(0, 2**32 - 1))
def test_only_tokens_with_a_probability_are_taken(seed: int):
    rng = np.random.default_rng(seed)
    scores = torch.full((2, 40), -torch.inf)
    alive = rng.choice(40, 3, replace=False)
    scores[:, alive] = torch.from_numpy(rng.normal(0, 5, 3)).float()
    picked = sample(Noise([rng, Nothing()], 40), scores)
    assert set(picked.tolist()) <= set(alive.tolist())


def test_a_small_change_of_the_probabilities_changes_few_samples():
    """Else a condition would be compared with its baseline on other noise after a token or two."""
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(0, 3, (2000, 5000))).float()
    moved = scores + 0.01 * torch.from_numpy(rng.normal(0, 1, scores.shape)).float()
    noise = Noise([np.random.default_rng(i) for i in range(2000)], 5000)
    one, other = (sample(noise, own) for own in (scores, moved))
    assert (one == other).float().mean() > 0.98


@pytest.mark.parametrize("kept", [0, 1, 2, 9])
def test_every_reader_has_the_same_noise_however_much_is_kept(kept: int):
    def steps(reader) -> list[list]:
        return [next(reader).tolist() for _ in range(4)]

    def streams() -> list[np.random.Generator]:
        return [stream(0, name, 0) for name in "ab"]

    expected = [-np.log(own.standard_exponential((4, 5), np.float32)) for own in streams()]
    noise = Noise(streams(), 5, keep=kept * 2 * 5 + 9)
    first = noise.steps()
    next(first)  # a reader that stops early
    assert [len(noise.kept), noise.kept[:1] != []] == [min(kept, 1), kept > 0]
    found = [steps(noise.steps()) for _ in range(3)]
    assert len(noise.kept) == min(kept, 4)
    assert found[0] == found[1] == found[2]
    np.testing.assert_allclose(found[0], np.stack(expected, axis=1), rtol=1e-5)


# The journal


class Killed(BaseException):
    """Stands for a kill: nothing of the library catches it."""


def kill_after(monkeypatch, batches: int) -> list[int]:
    """Let that many batches through, and return a list that grows by one with each."""
    done: list[int] = []

    def counting(*args):
        if len(done) == batches:
            raise Killed
        done.append(1)
        return generate_batch(*args)

    monkeypatch.setattr(module, "generate_batch", counting)
    return done


SMALL = SAMPLED | {"batch_tokens": 40}  # several batches


def test_a_killed_job_goes_on_and_ends_the_same(
    model, tokenizer, prompts, tmp_path: Path, monkeypatch
):
    whole = run(model("llama"), tokenizer, prompts, SMALL, tmp_path / "whole")
    total = len((tmp_path / "whole").read_text().splitlines()) - 1
    assert total > 3
    kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        run(model("llama"), tokenizer, prompts, SMALL, tmp_path / "j")
    rest = kill_after(monkeypatch, 99)
    assert run(model("llama"), tokenizer, prompts, SMALL, tmp_path / "j") == whole
    assert len(rest) == total - 2
    again = kill_after(monkeypatch, 0)
    assert run(model("llama"), tokenizer, prompts, SMALL, tmp_path / "j") == whole
    assert not again


def test_a_torn_journal_is_mended(model, tokenizer, prompts, tmp_path: Path, monkeypatch):
    journal = tmp_path / "j"
    whole = run(model("llama"), tokenizer, prompts, SMALL, journal)
    content = journal.read_bytes()
    lines = content.splitlines(True)
    for size in (0, 5, len(lines[0]), len(lines[0] + lines[1]) + 7, len(content) - 1):
        journal.write_bytes(content[:size])
        done = kill_after(monkeypatch, 99)
        assert run(model("llama"), tokenizer, prompts, SMALL, journal) == whole
        kept = max(content[:size].count(b"\n") - 1, 0)
        assert len(done) == len(lines) - 1 - kept
        assert sorted(journal.read_bytes().splitlines()) == sorted(content.splitlines())


@pytest.mark.parametrize(
    "changed", [{"temperature": 0.8}, {"max_new_tokens": 9}, {"samples": 1}, {"batch_tokens": 60}]
)
def test_another_setting_starts_anew(model, tokenizer, prompts, tmp_path, monkeypatch, changed):
    run(model("llama"), tokenizer, prompts, SMALL, tmp_path / "j")
    done = kill_after(monkeypatch, 99)
    mixed = run(model("llama"), tokenizer, prompts, SMALL | changed, tmp_path / "j")
    assert len(done) == len((tmp_path / "j").read_text().splitlines()) - 1
    assert mixed == run(model("llama"), tokenizer, prompts, SMALL | changed, tmp_path / "new")
