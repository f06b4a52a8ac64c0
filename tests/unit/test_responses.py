"""Responses: batches, conditions, sampling, and what a killed job and a finished file keep."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from headpursuit.method import responses as module
from headpursuit.method import sampling
from headpursuit.method.batches import PartFile, Room
from headpursuit.method.heads import Condition
from headpursuit.method.models import load_model
from headpursuit.method.responses import SCHEMA, Prompts, write_responses
from headpursuit.method.sampling import GumbelMax, log_exponential, stream
from headpursuit.method.writing import end_tokens, respond
from headpursuit.run.files import UserError, parquet_metadata, read_responses
from naive import acting, exponential, multiplied, next_token
from tiny import FAMILIES, LAYERS

GREEDY = {"max_new_tokens": 8, "samples": 1, "temperature": 0.0, "top_p": 1.0, "seed": 0}
SAMPLED = GREEDY | {"temperature": 0.7, "top_p": 0.9, "samples": 2}
# How tokens are sampled has nothing to do with the family.
every_way = pytest.mark.parametrize(
    ("family", "generation"),
    [*((family, GREEDY) for family in FAMILIES), ("llama", SAMPLED)],
    ids=[*FAMILIES, "sampled"],
)
BASELINE = {"baseline": []}
CONDITIONS = BASELINE | {"a": [(1, 0), (2, 1)], "b": [(0, 1)], "c": [(2, 2)], "d": [(1, 3)]}
TEXTS = ["apple", "river stone cloud", "the window of a garden\nis open", "x", "silver " * 9]


@pytest.fixture
def run(tokenizer, tmp_path: Path):
    """Write responses of a model and read them."""

    def write(
        decoder: Any,
        generation: dict = GREEDY,
        conditions: dict[str, list] = BASELINE,
        file: str = "responses/x.parquet",
        tokenizer: Any = tokenizer,
        texts: list[str] = TEXTS,
        batch_tokens: int = 200,
        part: tuple[int, int] = (1, 1),
        room: Room | None = None,
        scaling: tuple[float, str] = (-1.0, "all"),
        others: tuple[str, ...] = (),
        **changed: Any,
    ) -> pa.Table:
        ids, tokens = [f"p{i}" for i in range(len(texts))], tokenizer(texts)["input_ids"]
        prompts = pa.table({"sample_id": ids, "token_ids": tokens})
        reader = Prompts(decoder, tokenizer, prompts, generation, batch_tokens)
        settings = {"model": "tiny", "seed": 0, "generation": generation} | changed
        there = [tmp_path / other for other in others]
        own = PartFile(tmp_path / file, settings, batch_tokens, part, room, there)
        scaled = {
            name: own if isinstance(own, Condition) else Condition(own, *scaling)
            for name, own in conditions.items()
        }
        write_responses(own, decoder, reader, scaled)
        return read_responses([tmp_path / file], SCHEMA.names).select(SCHEMA.names)

    return write


def of(table: pa.Table, condition: str) -> pa.Table:
    return table.filter(pc.equal(table["condition"], condition)).drop_columns("condition")


@torch.inference_mode()
def one_by_one(decoder, ids: list[int], numbers, settings: dict, stops: set[int], *scaling):
    """Generate without batch, padding, cache or library: a full pass for each token.

    ``scaling`` is heads, alpha and place.
    """
    heads, alpha, at = scaling or ([], 1.0, "all")
    new: list[int] = []
    for _ in range(settings["max_new_tokens"]):
        where = acting(at, [False] * len(ids), len(new))
        with multiplied(decoder.layers, heads, decoder.head_dim, alpha, where):
            logits = decoder.model(torch.tensor([ids + new]), use_cache=False).logits[0, -1]
        if settings["temperature"] == 0:
            token = next_token(logits, None)
        else:
            warmed = logits.double() / settings["temperature"]
            drawn = exponential(numbers, len(new), len(logits))
            token = next_token(warmed, drawn, settings["top_p"])
        if token in stops:
            return new, "eos"
        new.append(token)
    return new, "length"


@every_way
def test_heads_are_scaled_at_their_places_alone(model, tokenizer, run, family, generation):
    """Batches and conditions that share them give what each prompt and condition gives alone."""
    decoder, stops = model(family), set(end_tokens(model(family), tokenizer))
    conditions = BASELINE | {
        f"{heads}{alpha}{at}": Condition(CONDITIONS[heads], alpha, at)
        for heads, alpha in (("a", -1.0), ("b", 5.0), ("c", 0.0))
        for at in ("all", "prompt", "response")
    }
    conditions["same"] = Condition(CONDITIONS["a"], 1.0)
    table = run(decoder, generation, conditions)
    assert table.schema.remove_metadata() == SCHEMA
    for name, scaling in conditions.items():
        expected = []
        for n, ids in enumerate(tokenizer(TEXTS)["input_ids"]):
            for repeat in range(generation["samples"]):
                numbers = stream(0, f"p{n}", repeat)
                own = one_by_one(decoder, ids, numbers, generation, stops, *scaling[:3])
                text = tokenizer.decode(own[0], skip_special_tokens=True)
                expected.append((f"p{n}", repeat, text, len(own[0]), own[1], own[0]))
        assert [tuple(row.values()) for row in of(table, name).to_pylist()] == expected
    # On the same random numbers: what is scaled by 1 is as it was.
    assert of(table, "same") == of(table, "baseline")
    for heads in ("a-1.0", "b5.0"):
        written = {str(of(table, f"{heads}{at}")) for at in ("all", "prompt", "response")}
        assert len(written | {str(of(table, "baseline"))}) == 4
    plain = of(table, "baseline")["token_ids"].to_pylist()
    scaled = {at: Condition([(0, 0), (2, 1)], 9.0, at) for at in ("response", "image")}
    table = run(decoder, generation, scaled, "other")
    assert of(table, "image")["token_ids"].to_pylist() == plain  # text has no image
    # The first token stands on the prompt alone.
    firsts = [own[:1] for own in of(table, "response")["token_ids"].to_pylist()]
    assert firsts == [own[:1] for own in plain]


@pytest.mark.parametrize("at", ["all", "response"])
def test_logits_that_are_not_finite_are_refused_by_name(model_path, run, at: str):
    """In float16 alpha 50 breaks the tiny model, and no NaN becomes a token."""
    decoder = load_model(model_path("gemma"), "float16", "cpu")
    broken = Condition([(layer, head) for layer in range(3) for head in range(4)], 1000.0, at)
    decoder.projections[1].weight.mul_(1000)
    with pytest.raises(UserError, match=r"^broken: its logits are not finite in float16\. Take an"):
        run(decoder, GREEDY, BASELINE | {"broken": broken})
    decoder.projections[1].weight.mul_(1e-3)
    assert len(run(decoder, GREEDY, BASELINE | {"fine": broken._replace(alpha=50.0)})) == 10


def test_batches_do_not_matter(model, run, monkeypatch):
    whole = run(model("llama"), SAMPLED, CONDITIONS, "a")
    # Of 50 tokens, conditions are read two at a time, and the last alone.
    for size, room in ((1, None), (50, Room(10**3, 0, 1)), (10_000, None)):
        monkeypatch.setattr(sampling, "AT_ONCE", {"cpu": size})
        how = {"batch_tokens": size, "room": room}
        assert run(model("llama"), SAMPLED, CONDITIONS, f"{size}", **how) == whole


@every_way
def test_what_is_read_apart_is_written_together(model, run, kill_after, family, generation):
    """Batches of other lengths, and their conditions, share a loop where there is room."""
    decoder, loops = model(family), kill_after(99)
    apart = run(decoder, generation, CONDITIONS, "apart", batch_tokens=1)
    rows = len(TEXTS) * generation["samples"]
    assert loops == [[name] for _ in range(rows) for name in in_order(CONDITIONS)]
    for most in (7, 10**3):
        loops.clear()
        room = Room(most, 0, 1)
        together = run(decoder, generation, CONDITIONS, f"{most}", batch_tokens=1, room=room)
        assert together == apart
        sizes = [len(names) for names in loops]
        assert sizes == ([7] * (5 * rows // 7) + [5 * rows % 7] if most == 7 else [5 * rows])


def in_order(conditions: dict[str, list]) -> list[str]:
    """Return conditions as they are read: by the lowest layer that is scaled."""
    return sorted(conditions, key=lambda name: min([LAYERS, *(i for i, _ in conditions[name])]))


@pytest.mark.parametrize("parts", [2, 9])
def test_parts_make_up_the_whole(model, run, tmp_path: Path, parts: int):
    whole = run(model("llama"), SAMPLED, file="whole", batch_tokens=40)
    for part in range(1, parts + 1):
        run(model("llama"), SAMPLED, file=f"{part}", batch_tokens=40, part=(part, parts))
    paths = [tmp_path / f"{part}" for part in range(1, parts + 1)]
    assert read_responses(paths, SCHEMA.names).select(SCHEMA.names) == whole


def test_repeats_and_prompts_have_numbers_of_their_own(model, run):
    settings = SAMPLED | {"temperature": 2.0, "top_p": 1.0}
    table = run(model("llama"), settings, texts=["river"] * 2)
    others = run(model("llama"), settings | {"seed": 1}, texts=["river"] * 2, file="other")
    found = [tuple(own) for each in (table, others) for own in each["token_ids"].to_pylist()]
    assert len(set(found)) == 8
    assert stream(0, "a", 0) != stream(1, "a", 0)


# Where a response ends


@pytest.mark.parametrize("place", ["config", "generation_config", "tokenizer"])
def test_a_response_stops_at_every_declared_end(model, model_path, tokenizer, run, place: str):
    whole = run(model("llama"))["token_ids"].to_pylist()
    end = whole[0][4]
    decoder = load_model(model_path("llama"), "float32", "cpu")
    own = type(tokenizer).from_pretrained(model_path("llama"), padding_side="left")
    own.pad_token_id = own.eos_token_id
    if place == "tokenizer":
        own.eos_token = own.convert_ids_to_tokens(end)
    else:
        getattr(decoder.model, place).eos_token_id = [end, tokenizer.eos_token_id]
    table = run(decoder, file="other", tokenizer=own)
    for row, expected in zip(table.to_pylist(), whole, strict=True):
        stops = [i for i, token in enumerate(expected) if token in (end, tokenizer.eos_token_id)]
        assert row["token_ids"] == expected[: stops[0] if stops else None]
        assert row["stop_reason"] == ("eos" if stops else "length")
        assert row["n_tokens"] == len(row["token_ids"])
    assert "eos" in table["stop_reason"].to_pylist()


# Sampling, beside naive.py, to which responses are compared above


def test_samples_follow_the_distribution():
    scores = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 0.0, 1.0, -3.0])
    p, n = scores.softmax(-1).numpy(), 50_000
    drawn = GumbelMax(range(n), 1.0, 1.0)(scores.expand(n, -1), torch.arange(n), 0)
    counts = np.bincount(drawn.numpy(), minlength=len(p))
    assert counts[3] == 0
    seen = p > 0
    # The 0.999 quantile of chi square with 5 degrees of freedom.
    assert (((counts - n * p) ** 2)[seen] / (n * p)[seen]).sum() < 20.5


def drawn(streams: Any, steps: Any, width: int) -> np.ndarray:
    """Return random numbers, streams x steps x tokens."""
    own = np.array(streams, dtype=np.uint64)
    each = [log_exponential(own, step, width, torch.device("cpu")).exp().numpy() for step in steps]
    return np.stack(each, axis=1).astype(float)


@pytest.mark.parametrize(
    "streams", [range(30), [2**64 - 1, *(stream(0, "a", i) for i in range(9))]]
)
def test_random_numbers_are_exponential_and_independent(streams):
    """Of neighbouring streams, steps and tokens, too."""
    found = drawn(streams, range(40), 1000)
    np.testing.assert_allclose(found[:3, :2, :99], [
        [exponential(own, step, 99) for step in (0, 1)] for own in list(streams)[:3]
    ], rtol=1e-5)  # fmt: skip
    share = -np.expm1(-found)  # uniform
    counts = np.histogram(share, 64, (0, 1))[0]
    assert ((counts - found.size / 64) ** 2 / (found.size / 64)).sum() < 103.4  # 63 degrees, 0.999
    for axis in range(3):
        one, other = (np.moveaxis(found, axis, 0)[own] for own in (slice(1, None), slice(-1)))
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 3.3 / one.size**0.5


def test_the_ends_of_random_numbers_have_logarithms(monkeypatch):
    """Else a token could be taken, or lost, whatever its probability."""
    for bits in (0, -1, 2**31 - 1):
        monkeypatch.setattr(sampling, "_mixed", lambda own, *_, bits=bits: own.fill_(bits))
        assert np.isfinite(np.log(drawn([1], [0], 5))).all()


# The journal, and what a file holds already


class Killed(BaseException):
    """Stands for a kill: nothing of the library catches it."""


@pytest.fixture
def kill_after(monkeypatch):
    """Let that many loops through, and give a list of the conditions of each."""

    def let(batches: int) -> list[list[str]]:
        done: list[list[str]] = []

        def counting(decoder, asked, *rest):
            if len(done) == batches:
                raise Killed
            asked = list(asked)
            done.append([name for _, names in asked for name in names])
            return respond(decoder, asked, *rest)

        monkeypatch.setattr(module, "respond", counting)
        return done

    return let


@pytest.mark.parametrize(
    ("changed", "torn"),
    [({}, None), ({}, -1), ({"temperature": 0.8}, None), ({"batch_tokens": 60}, None),
     ({"scaling": (0.0, "all")}, None), ({"part": (1, 2)}, None)],
)  # fmt: skip
def test_a_killed_job_goes_on_and_ends_the_same(model, run, tmp_path, kill_after, changed, torn):
    """From its journal, up to where it is torn; with other settings it is begun anew."""
    generation = SAMPLED | {key: changed[key] for key in changed if key in SAMPLED}
    settings = {"batch_tokens": 40} | {key: changed[key] for key in changed if key not in SAMPLED}
    every = kill_after(99)
    whole = run(model("llama"), generation, file="whole", **settings)
    total = len(every)
    kill_after(2)
    with pytest.raises(Killed):
        run(model("llama"), SAMPLED, file="killed", batch_tokens=40)
    assert not (tmp_path / "killed").exists()
    journal = tmp_path / ".killed.journal"
    journal.write_bytes(journal.read_bytes()[:torn])
    kept = 0 if changed else max(journal.read_bytes().count(b"\n") - 1, 0)
    rest = kill_after(99)
    assert run(model("llama"), generation, file="killed", **settings) == whole
    assert len(rest) == total - kept
    assert not list(tmp_path.glob(".*"))


FURTHER = {
    "a-a5": Condition(CONDITIONS["a"], 5.0),
    "a-image": Condition(CONDITIONS["a"], at="image"),
}


@pytest.mark.parametrize(
    ("changed", "computed"),
    [
        ({}, ["c", "d"]),
        ({"heads": {"a": [(1, 1)]}}, ["a", "c", "d"]),
        ({"heads": FURTHER}, ["c", "d", *FURTHER]),
        ({"model": "other"}, list(CONDITIONS)),
        ({"seed": 1}, list(CONDITIONS)),
        ({"scaling": (0.0, "all")}, list(CONDITIONS)),
        ({"scaling": (-1.0, "response")}, list(CONDITIONS)),
        ({"part": (1, 2), "batch_tokens": 40}, list(CONDITIONS)),
        ({"damaged": b"PAR1"}, list(CONDITIONS)),
    ],
    ids=lambda own: "".join(own),
)
def test_conditions_that_a_file_holds_are_kept(model, run, tmp_path, kill_after, changed, computed):
    """Those of the same heads and settings; and one that is no longer asked for goes."""
    before = {name: CONDITIONS[name] for name in ("b", "a", "baseline")} | {"old": [(0, 3)]}
    run(model("llama"), GREEDY, before)
    path = tmp_path / "responses/x.parquet"
    path.write_bytes(changed.get("damaged", path.read_bytes()))
    asked = CONDITIONS | changed.get("heads", {})
    changed = {key: own for key, own in changed.items() if key not in ("heads", "damaged")}
    done = kill_after(99)
    table = run(model("llama"), GREEDY, asked, **changed)
    assert {name for own in done for name in own} == set(computed)
    assert table == run(model("llama"), GREEDY, asked, "anew", **changed)
    assert parquet_metadata(path) == parquet_metadata(tmp_path / "anew")
    assert path.read_bytes() == (tmp_path / "anew").read_bytes()
    done.clear()
    assert run(model("llama"), GREEDY, asked, **changed) == table
    assert not done


@pytest.mark.parametrize(
    ("theirs", "computed"),
    [
        ({}, ["c", "d"]),
        ({"model": "other"}, list(CONDITIONS)),
        ({"scaling": (0.0, "all")}, list(CONDITIONS)),
        ({"damaged": True}, ["a", "b", "c", "d"]),
    ],
    ids=lambda own: "".join(own),
)
def test_conditions_that_other_files_hold_are_taken(
    model, run, tmp_path, kill_after, theirs, computed
):
    """Those of the same heads and settings, whatever their order and name there."""
    damaged = theirs.pop("damaged", False)
    run(model("llama"), GREEDY, BASELINE, "baseline", **theirs)
    other = {"c": CONDITIONS["a"][::-1], "x": CONDITIONS["b"], "y": [(0, 3)]}
    run(model("llama"), GREEDY, other, "other", **theirs)
    if damaged:
        held = (tmp_path / "other").read_bytes()
        (tmp_path / "other").write_bytes(held[:200] + bytes(99) + held[299:])
    done = kill_after(99)
    there = ("absent", "other", "baseline")
    table = run(model("llama"), GREEDY, CONDITIONS, "own", others=there)
    assert {name for own in done for name in own} == set(computed)
    assert table == run(model("llama"), GREEDY, CONDITIONS, "anew")
    assert (tmp_path / "own").read_bytes() == (tmp_path / "anew").read_bytes()


def test_a_killed_job_keeps_its_batches_whatever_others_hold_by_then(model, run, kill_after):
    asked = {"conditions": CONDITIONS, "batch_tokens": 40, "others": ("other",)}
    loops = kill_after(99)
    whole = run(model("llama"), SAMPLED, CONDITIONS, "whole", batch_tokens=40)
    total = len(loops)
    kill_after(2)
    with pytest.raises(Killed):
        run(model("llama"), SAMPLED, file="own", **asked)
    kill_after(99)
    run(model("llama"), SAMPLED, {"x": CONDITIONS["a"]}, "other", batch_tokens=40)
    rest = kill_after(99)
    assert run(model("llama"), SAMPLED, file="own", **asked) == whole
    assert len(rest) == total - 2


def test_parts_of_another_size_of_batches_are_made_anew(model, run, kill_after):
    """It decides which samples are in a part; of a file for all samples it decides nothing."""
    for part, again in (((1, 1), 0), ((1, 2), 1)):
        name = f"{part}"
        run(model("llama"), GREEDY, file=name, part=part, batch_tokens=20)
        done = kill_after(99)
        run(model("llama"), GREEDY, file=name, part=part, batch_tokens=10_000)
        assert len(done) == again
