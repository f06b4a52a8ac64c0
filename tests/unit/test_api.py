"""`import headpursuit`: against the library's own files and the Hugging Face model."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import headpursuit as hp
import numpy as np
import pandas as pd
import pytest
import torch
from checkout import code_blocks
from headpursuit.method.checkpoint import save_scaled
from headpursuit.method.decompose import vocabulary
from headpursuit.method.somp import pursue
from tiny import HEADS, LAYERS, WIDTH, make_sentencepiece, make_tokenizer
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
FAMILIES = ["llama", "gemma2", "gpt2"]
TEXTS = [
    "apple river stone",
    "cloud maple candle ladder",
    "basket pebble",
    "meadow, lantern. copper",
]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, model_path) -> hp.load:
    return hp.load(model_path(request.param))


@pytest.fixture(scope="module")
def llama(model_path):
    return hp.load(model_path("llama"))


@pytest.fixture(scope="module")
def writes(llama):
    return hp.cache(llama, TEXTS)


def test_importing_it_imports_no_large_library():
    code = "import sys, headpursuit; dir(headpursuit); print(*sys.modules)"
    env = {"PYTHONPATH": str(ROOT / "scripts")}
    said = subprocess.check_output([sys.executable, "-c", code], env=env, text=True)
    assert not {"torch", "pandas", "transformers", "headpursuit.api"} & set(said.split())
    from headpursuit import api

    assert {*hp.__all__, "Model", "Writes"} == set(api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        hp.lode  # noqa: B018


def test_the_heads_writes_sum_to_what_the_attention_adds(loaded):
    """A head's write is what reaches the stream, averaged over the text's own tokens."""
    [text] = texts = ["apple river stone, cloud"]
    found = hp.cache(loaded, texts, special_tokens=True)
    total = sum(found[1, head][0] for head in range(HEADS))
    decoder, ids = loaded.decoder, torch.tensor([loaded.tokenizer(text).input_ids])
    after = (decoder.post_norms or decoder.attentions)[1]
    added = []
    hook = after.register_forward_hook(lambda module, args, output: added.append(output))
    with torch.inference_mode():
        loaded.hf(ids)
    hook.remove()
    [output] = added
    output = (output[0] if isinstance(output, tuple) else output)[0].mean(0)
    bias = getattr(decoder.projections[1], "bias", None)
    assert torch.allclose(total, output - (0 if bias is None else bias), atol=1e-5)


def test_positions_pick_what_is_averaged(llama):
    by_hand = {}
    for text in TEXTS:
        z = []
        hook = llama.decoder.projections[2].register_forward_pre_hook(
            lambda module, args, z=z: z.append(args[0][0].clone())
        )
        with torch.inference_mode():
            llama.hf(torch.tensor([llama.tokenizer(text).input_ids]))
        hook.remove()
        by_hand[text] = z[0].unflatten(-1, (HEADS, -1))
    for positions, expected in {
        "prompt": [by_hand[text][1:].mean(0) for text in TEXTS],  # BOS does not count
        "last": [by_hand[text][-1] for text in TEXTS],
    }.items():
        found = hp.cache(llama, TEXTS, positions)
        for head in range(HEADS):
            own = torch.stack([z[head] for z in expected])
            assert torch.allclose(found.z(2, head), own, atol=1e-5), positions


def test_a_head_s_atoms_are_those_of_its_writes_as_a_matrix(loaded):
    found = hp.cache(loaded, TEXTS)
    atoms = hp.pursue(found, "L1.H2", iterations=3)
    ids, rows = vocabulary(loaded.weights, loaded.tokenizer, False)
    direct = pursue(found["L1.H2"], torch.eye(WIDTH), rows, 3)  # the write is its own input
    assert atoms["token_id"].tolist() == [int(ids[row]) for row in direct.support]
    assert np.allclose(atoms["explained"], direct.explained)
    assert atoms["step"].tolist() == [1, 2, 3]


def test_words_and_their_token_ids_are_the_same(llama, writes):
    ids = [llama.tokenizer.convert_tokens_to_ids(own) for own in ("apple", "Ġapple")]
    one, other = (hp.pursue(writes, "L0.H3", words) for words in (["apple"], ids))
    assert set(one["token_id"]) == set(ids) and one.equals(other)
    more = hp.pursue(writes, "L0.H3", ["apple"], cases=["lower", "title", "upper"])
    assert len(more) == 6


@pytest.mark.parametrize("method", ["somp", "logit_lens", "size"])
def test_a_ranking_orders_all_heads(writes, method):
    table = hp.rank(writes, ["apple", "river", "stone"], method)
    assert table["rank"].tolist() == list(range(1, LAYERS * HEADS + 1))
    assert table["score"].is_monotonic_decreasing
    assert len(set(table["name"])) == LAYERS * HEADS
    if method == "somp":
        best = table.iloc[0]
        own = hp.pursue(writes, best["name"], ["apple", "river", "stone"], iterations=50)
        assert own["explained"].iloc[-1] == pytest.approx(best["score"])


def test_generate_inside_the_block_is_that_of_edited_weights(loaded, tmp_path):
    heads = ["L0.H1", (2, 3)]
    save_scaled(Path(loaded.hf.config.name_or_path), [(0, 1), (2, 3)], -1.0, tmp_path / "edited")
    edited = hp.load(tmp_path / "edited")
    before = loaded.generate(TEXTS)
    with hp.scaled(loaded, heads, np.float32(-1)):
        ids = loaded.tokenizer(TEXTS[0], return_tensors="pt")
        assert loaded.generate(TEXTS) == edited.generate(TEXTS) != before
        new = loaded.hf.generate(**ids, max_new_tokens=9, do_sample=False)
    assert torch.equal(new, edited.hf.generate(**ids, max_new_tokens=9, do_sample=False))
    assert loaded.generate(TEXTS) == before == [loaded.generate(text) for text in TEXTS]
    own, other = hp.respond(loaded, TEXTS, heads), hp.respond(edited, TEXTS)
    assert own.equals(other) and own["response"].tolist() == edited.generate(TEXTS)


def test_measures_are_those_by_hand(llama):
    words, heads = ["apple", "stone"], ["L0.H1", "L1.H2"]
    texts = pd.Series(TEXTS, index=["d", "a", "c", "b"])
    written = hp.respond(llama, texts, max_new_tokens=6)
    found = hp.measure(llama, texts, words, heads, 0.5, responses=written, max_new_tokens=6)
    ids = [llama.tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in words]
    sums = {}
    for when, alpha in (("before", 1.0), ("after", 0.5)):
        expected = nll = 0.0
        for text, response in zip(texts, written["token_ids"], strict=True):
            prompt = llama.tokenizer(text).input_ids
            with torch.inference_mode(), hp.scaled(llama, heads, alpha):
                logits = llama.hf(torch.tensor([prompt + list(response)])).logits[0]
            odds = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
            expected += float(odds[:, ids].exp().sum())
            nll -= float(odds[range(len(response)), list(response)].sum())
        sums[when] = [expected, nll]
    table = pd.DataFrame(sums, index=["expected", "nll"])
    assert np.allclose(found.loc[["expected", "nll"], ["before", "after"]], table, rtol=1e-4)
    text = " ".join(hp.respond(llama, texts, heads, 0.5, max_new_tokens=6)["response"])
    assert found.loc["occurrences", "after"] == len(re.findall(r"\b(apple|stone)\b", text, re.I))
    again = hp.measure(llama, texts, words, heads, 0.5, max_new_tokens=6)
    assert np.allclose(again, found, equal_nan=True)


def test_a_model_that_is_loaded_already_is_taken_as_it_is(model_path, llama):
    hf = AutoModelForCausalLM.from_pretrained(model_path("llama"))
    for own in (hp.load(hf), hp.load(hf, llama.tokenizer), hp.load(hf, model_path("gemma2"))):
        assert own.hf is hf and own.generate(TEXTS[0]) == llama.generate(TEXTS[0])


def test_a_finished_run_is_read_as_data_frames(made):
    run = hp.read_run(made)
    assert run.config["run"] == "made"
    for name in ("table2", "table1", "concepts.overlap", "published"):
        assert len(run.table(name)) > 0
    baseline, scaled = run.responses("rtp"), run.responses("rtp", "somp-k2")
    assert baseline["sample_id"].tolist() == scaled["sample_id"].tolist()
    assert set(scaled["condition"]) == {"somp-k2"}
    assert run.heads("rtp", "somp-k2") == [(1, 2), (0, 1)]
    assert set(run.words("rtp")["split"]) == {"selection", "heldout"}
    assert {"method", "layer", "head", "score"} <= set(run.rankings("rtp"))
    row = run.table("table2").query("method == 'somp' and measure == 'occurrences'").iloc[0]
    own = run.scores("rtp").query("condition == 'somp-k2' and measure == 'occurrences'")
    assert own["after"].sum() == row["after"]


@pytest.mark.parametrize(
    "heads", [("L0.H1", "L2.H3"), pd.Series(["L0.H1", "L2.H3"]), ["L0.H1", (0, 1), (2, 3)]]
)
def test_heads_are_named_in_several_ways_and_each_counts_once(llama, heads):
    pairs = [(0, 1), (2, 3)]
    assert hp.respond(llama, TEXTS, heads).equals(hp.respond(llama, TEXTS, pairs))
    assert hp.random_heads(llama, heads) == hp.random_heads(llama, pairs)


def test_heads_are_scaled_where_it_is_said(llama):
    heads = ["L0.H1", "L1.H2"]
    written = hp.respond(llama, TEXTS, max_new_tokens=6)
    how = {"measures": ["expected"], "responses": written, "max_new_tokens": 6}
    found = {
        at: hp.measure(llama, TEXTS, ["apple"], heads, 3.0, at=at, **how).loc["nll", "after"]
        for at in ("all", "prompt", "response")
    }
    assert len(set(found.values())) == 3
    one = hp.respond(llama, TEXTS, heads, 3.0, at="response", max_new_tokens=1)
    assert one["token_ids"].map(list).tolist() == [[ids[0]] for ids in written["token_ids"]]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, w: hp.respond(m, TEXTS, at=["prompt"]), r"at: \['prompt'\] is none of all"),
        (lambda m, w: hp.respond(m, TEXTS, at="image"), "at: 'image' is none of all"),
        (lambda m, w: hp.load(folder(m), dtype=torch.float16), "torch.float16 is none of float32"),
        (lambda m, w: hp.load(folder(m), device="tpu"), "device: 'tpu' is none of"),
        (lambda m, w: hp.load("no/such"), "no such folder, .* hf download no/such"),
        (lambda m, w: hp.load(m.hf, make_sentencepiece()), "another model's: its ids? "),
        (lambda m, w: hp.load(m.hf, shifted()), "another model's: its id of "),
        (lambda m, w: hp.cache(m, []), "no texts"),
        (lambda m, w: hp.cache(m, "apple"), "single one into a list"),
        (lambda m, w: hp.cache(m, ["apple", " "]), "Text 1 is empty"),
        (lambda m, w: hp.cache(m, pd.Series([*"ab"], index=[7, 7])), "texts have one name"),
        (lambda m, w: hp.cache(m, TEXTS, "middle"), "'middle' is none of prompt, last, response"),
        (lambda m, w: w["L3.H0"], "L3.H0 does not exist: 3 layers x 4 heads"),
        (lambda m, w: w[0, -1], "L0.H-1 does not exist"),
        (lambda m, w: hp.scaled(m, ["H2"]), "'H2' names no head"),
        (lambda m, w: hp.scaled(m, 2), "2 names no head"),
        (lambda m, w: hp.scaled(m, [(0.5, 1)]), r"\(0.5, 1\) names no head"),
        (lambda m, w: hp.scaled(m, "L0.H0", float("nan")), "alpha is a number, not nan"),
        (lambda m, w: hp.rank(w, []), "list of words is empty"),
        (lambda m, w: hp.rank(w, "apple"), "Words come as a list"),
        (lambda m, w: hp.rank(w, ["apple", "zebra"]), "one token of this model: zebra"),
        (lambda m, w: hp.rank(w, ["zebra"], strict=False), "one token of this model: zebra"),
        (lambda m, w: hp.rank(w, [10**6]), "1000000 is no token id"),
        (lambda m, w: hp.rank(w, ["apple"], "pca"), "'pca' is none of somp, logit_lens, size"),
        (lambda m, w: hp.rank(w, ["apple"], norms="l1"), "norms: unknown key; did you mean norm?"),
        (lambda m, w: hp.rank(w, ["apple"], norm="l3"), "norm: 'l3' is not one of"),
        (lambda m, w: hp.measure(m, TEXTS, ["apple"], [], measures="f1"), "'f1' is none of"),
        (lambda m, w: hp.measure(m, TEXTS, ["apple"], [], measures=[]), "None is none of expected"),
        (lambda m, w: hp.measure(m, TEXTS, ["apple"], "L0.H1", responses=pd.DataFrame()), "lack r"),
        (lambda m, w: hp.measure(m, TEXTS, ["apple"], []), "No head is named"),
        (lambda m, w: hp.measure(m, TEXTS, [259], "L0.H1"), "259 is no word: words are texts"),
        (lambda m, w: m.generate(5), "a list or a series"),
        (lambda m, w: hp.respond(m, TEXTS, "L0.H0", [0, 5]), r"alpha is a number, not \[0, 5\]"),
        (lambda m, w: hp.respond(m, TEXTS, max_new_tokens=0), "max_new_tokens: 0 is less than"),
        (lambda m, w: hp.cache(m, TEXTS, "response", responses=foreign()), "has no token 9999"),
        (lambda m, w: hp.cache(m, TEXTS, "response", responses=TEXTS), "lack repeat, sample_id"),
        (lambda m, w: hp.pursue(w, ["L0.H0", "L0.H1"]), "One head is asked about, not 2"),
        (lambda m, w: hp.rank(w, ["apple", 3]), "'apple' is no token id"),
        (lambda m, w: hp.rank(w, [1.5]), "1.5 is no token id"),
        (lambda m, w: hp.rank(w, ["apple"], cases="low"), "cases: 'low' is none of written, low"),
        (
            lambda m, w: hp.measure(m, TEXTS, ["apple"], "L0.H1", responses=named(m)),
            "not to these texts: there is no text a",
        ),
        (lambda m, w: hp.read_run("results/none"), "no run's folder"),
    ],
)
def test_a_mistake_is_one_exception_that_says_what_is_right(llama, writes, call, said):
    with pytest.raises(hp.UserError, match=said):
        call(llama, writes)


def folder(model: hp.load) -> str:
    return model.hf.config.name_or_path


def named(model: hp.load) -> pd.DataFrame:
    """Give responses to texts of other names."""
    return hp.respond(model, pd.Series(TEXTS, index=[*"abcd"]))


def foreign() -> pd.DataFrame:
    """Give responses of a model of a larger vocabulary."""
    return pd.DataFrame({"sample_id": [*"01"], "repeat": 0, "token_ids": [[], [5, 9999]]})


def shifted():
    """Give a tokenizer with the same tokens under other ids."""
    tokenizer = make_tokenizer()
    vocabulary = tokenizer.get_vocab()
    tokenizer.get_vocab = lambda: {**vocabulary, "Ġapple": vocabulary["apple"], "apple": 1}
    return tokenizer


def test_what_a_run_lacks_is_told(made):
    run = hp.read_run(made)
    with pytest.raises(hp.UserError, match="no experiment nope; there are triviaqa, rtp"):
        run.words("nope")
    with pytest.raises(hp.UserError, match="no responses under somp-k9; there are somp-k2"):
        run.responses("rtp", "somp-k9")
    with pytest.raises(hp.UserError, match=r"tables/table9\.csv is not there"):
        run.table("table9")


def test_the_examples_of_its_page_run(made, model_path, tmp_path, monkeypatch):
    """Each block of docs/api.md, in order, on a tiny model and a run made by hand."""
    places = {"resources/models/smollm2": model_path("llama"), "results/demo": made}
    for place, target in places.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks(ROOT / "docs/api.md")
    found: dict[str, Any] = {}
    for block in blocks[:-1]:  # the last has a test on a run of the workflow (test_run.py)
        exec(block.replace("somp-k4", "somp-k2"), found)
    assert len(blocks) == 8 and "hp.measure" in blocks[-1]
    assert set(found["heads"]) == set(found["ranking"]["name"].head(2))
