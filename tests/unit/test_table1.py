"""What single heads write: a head built by hand, random sets, tokens as printed, concepts."""

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from headpursuit.activations import write_cache
from headpursuit.concepts import (
    chance_jaccard,
    concept_dictionary,
    concept_overlaps,
    concept_words,
    jaccard,
)
from headpursuit.config import check_config, head_of, pooled_where, used_datasets
from headpursuit.decompose import (
    coherence,
    decompose_heads,
    explained_by_sets,
    norm_matched_sets,
    rank_specialists,
    read_lens,
    vocabulary,
)
from headpursuit.files import UserError
from headpursuit.models import decoder_of
from headpursuit.sources import used_sources
from headpursuit.table1 import (
    display,
    latin,
    overlap,
    plot_atoms,
    plot_heads,
    read_published_tokens,
    shown_heads,
    table1,
)
from headpursuit.tables import save_figure
from headpursuit.tokens import token_texts, visible
from headpursuit.weights import HeadWeights, write_weights
from tiny import TEMPLATES, make_asking

ROOT = Path(__file__).parents[2]
PURSUIT = {"norm": "l1", "center": True, "normalise_atoms": False, "iterations": 50}
SETS = {"draws": 40, "neighbours": 60}
PLANTED = [100, 271, 182]  # rows of the unembedding that the head at L1.H2 writes
SPREAD = [4.0, 2.0, 1.0]  # standard deviations of their coefficients
NOISE = 0.5  # and of one further direction, orthogonal to those


@pytest.fixture(scope="module")
def planted(model, tmp_path_factory):
    """A model whose head L1.H2 writes three unembedding directions plus noise, and its cache.

    The directions are orthonormal and the coefficients exactly uncorrelated, so that the explained
    variances are those of SPREAD and NOISE alone.
    """
    decoder = decoder_of(copy.deepcopy(model("llama").model))
    g = torch.Generator().manual_seed(0)
    n, width, (_, heads) = 60, decoder.head_dim, decoder.shape
    rows = decoder.model.get_output_embeddings().weight
    basis = torch.linalg.qr(torch.randn(rows.shape[1], 4, generator=g)).Q.T
    rows *= 0.3 / rows.norm(dim=1, keepdim=True)
    rows[PLANTED] = basis[:3]
    columns = decoder.columns(1, 2)
    columns.zero_()
    columns[:, :4] = basis.T
    z = torch.randn(n, heads, width, generator=g)
    coefficients = torch.randn(n, 4, generator=g)
    coefficients = torch.linalg.qr(coefficients - coefficients.mean(0)).Q * n**0.5
    z[:, 2, :4] = coefficients * torch.tensor([*SPREAD, NOISE])
    z[:, 3] = 0.25  # L?.H3 writes always the same
    folder = tmp_path_factory.mktemp("planted")
    paths = [folder / f"layer-{layer:02d}.parquet" for layer in range(decoder.shape[0])]
    pooled = [(list(range(n)), layer, z.flatten(1)) for layer in range(len(paths))]
    names = [f"p-{i}/0" for i in range(n)]
    write_cache(paths, pooled, names, "float32", {"heads": json.dumps(heads)})
    write_weights(folder / "weights.safetensors", decoder, {})
    return HeadWeights(folder / "weights.safetensors"), paths


@pytest.fixture(scope="module")
def atoms(planted, tokenizer) -> pd.DataFrame:
    weights, paths = planted
    dictionary = vocabulary(weights, tokenizer, fold_norm_gain=False)
    return decompose_heads(weights, dictionary, paths, 4, PURSUIT)


def of(table: pd.DataFrame, layer: int, head: int) -> pd.DataFrame:
    return table[(table["layer"] == layer) & (table["head"] == head)]


def test_a_planted_head_is_recovered(atoms):
    found = of(atoms, 1, 2)
    assert found["token_id"].tolist()[:3] == PLANTED
    power = np.square([*SPREAD, NOISE])
    assert found["explained"].to_numpy()[:3] == pytest.approx(power[:3].cumsum() / power.sum())
    assert found["step"].tolist() == [1, 2, 3, 4]


def test_a_head_that_never_varies_has_no_atoms(atoms):
    assert not len(of(atoms, 1, 3))
    assert len(of(atoms, 0, 0)) == 4


def test_nothing_to_explain_is_refused(planted, tokenizer, tmp_path):
    weights, _ = planted
    path = tmp_path / "one.parquet"
    heads, width = weights.shape[1], weights.head_dim
    pooled = [([0], 0, torch.ones(1, heads * width))]
    write_cache([path], pooled, ["p"], "float32", {"heads": json.dumps(heads)})
    with pytest.raises(UserError, match="more than one prompt"):
        decompose_heads(weights, vocabulary(weights, tokenizer, False), [path], 3, PURSUIT)


def test_vocabulary_leaves_padding_rows_out(model, tokenizer, tmp_path):
    decoder = decoder_of(copy.deepcopy(model("llama").model))
    decoder.model.resize_token_embeddings(len(tokenizer) + 7, mean_resizing=False)
    write_weights(tmp_path / "padded.safetensors", decoder, {})
    weights = HeadWeights(tmp_path / "padded.safetensors")
    assert weights.rows == len(tokenizer) + 7
    ids, rows = vocabulary(weights, tokenizer, False)
    assert ids.tolist() == list(range(len(tokenizer) - 3))  # the last three are special
    assert torch.equal(rows, decoder.model.get_output_embeddings().weight[: len(ids)])


@pytest.mark.parametrize("family", list(TEMPLATES))
def test_no_special_token_is_an_atom(model, planted, family):
    """And ids are those of the vocabulary, though rows before them are left out."""
    weights, paths = planted
    tokenizer = make_asking(family)
    special = tokenizer.convert_tokens_to_ids(
        {"qwen": ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>"],
         "gemma": ["<unk>", "<s>", "</s>", "<start_of_turn>"]}.get(family, ["<unk>", "<s>", "</s>"])
    )  # fmt: skip
    ids, rows = words = vocabulary(weights, tokenizer, False)
    weight = weights.unembedding(range(weights.rows), False)
    assert not set(special) & set(ids.tolist())
    assert torch.equal(rows, weight[torch.tensor(ids)])
    if family != "qwen":
        assert tokenizer.convert_tokens_to_ids("<0x0A>") in ids.tolist()
    found = decompose_heads(weights, words, paths, 4, PURSUIT)
    lens = read_lens(weights, words, paths, per_sample=3, top=5)
    assert set(found["token_id"]) | set(lens["token_id"]) <= set(ids.tolist())
    best = of(found, 1, 2)
    options = {"tokens": 3, "random_sets": SETS, "center": True, "seed": 0, "dataset": "x"}
    ranking, _ = rank_specialists(weights, words, paths, found, **options)
    assert of(ranking, 1, 2)["explained"].iloc[0] == best["explained"].iloc[2]
    means = rows.mean(0)
    alike = coherence(weight[torch.tensor(best["token_id"].to_numpy()[:3])] - means)
    assert of(ranking, 1, 2)["coherence"].iloc[0] == pytest.approx(float(alike), abs=1e-5)


def test_lens_counts_what_stands_highest(planted, tokenizer):
    weights, paths = planted
    dictionary = vocabulary(weights, tokenizer, False)
    found = of(read_lens(weights, dictionary, paths, per_sample=1, top=2), 1, 2)
    # The largest coefficient stands first wherever it is positive.
    assert found["token_id"].tolist()[0] == PLANTED[0]
    assert found["place"].tolist() == [1, 2]


def test_the_planted_head_is_the_most_specialised(planted, atoms, tokenizer):
    weights, paths = planted
    ids, rows = vocabulary(weights, tokenizer, False)
    rows[PLANTED] += 2 * rows[PLANTED].mean(0)  # make the three alike
    dictionary = ids, rows
    options = {"tokens": 3, "random_sets": SETS, "center": True, "seed": 0, "dataset": "x"}
    ranking, null = rank_specialists(weights, dictionary, paths, atoms, **options)
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
    again = rank_specialists(weights, dictionary, paths, atoms, **options)
    pd.testing.assert_frame_equal(ranking, again[0])
    # A head's draws are its own: without the other heads they are the same.
    alone = rank_specialists(weights, dictionary, paths, of(atoms, 1, 2), **options)[1]
    pd.testing.assert_frame_equal(alone, of(null, 1, 2).reset_index(drop=True))


def test_equal_scores_go_by_explained_variance(planted, atoms, tokenizer):
    weights, paths = planted
    options = {"tokens": 3, "random_sets": SETS, "center": True, "seed": 0, "dataset": "x"}
    dictionary = vocabulary(weights, tokenizer, False)
    ranking, _ = rank_specialists(weights, dictionary, paths, atoms, **options)
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


# Tokens as printed


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b" his", "␣his"),
        (b"\n\n", r"\n\n"),
        (b"\t", r"\t"),
        (b"\xe2\x80", r"\xe2\x80"),
        ("…”".encode(), "…”"),
        ("\u200b".encode(), r"\u200b"),
        ("\xa0".encode(), r"\xa0"),
        (b"a\\n", r"a\\n"),
        ("日本".encode(), "日本"),
        (b"", ""),
    ],
)
def test_visible(raw, text):
    assert visible(raw) == text
    assert not set(text) & set(" \t\n\r\x0b\u2028")


def test_every_byte_is_told_apart():
    shown = [visible(bytes([byte])) for byte in range(256)]
    assert len(set(shown)) == 256 and all(len(text.split()) == 1 for text in shown)


def test_token_texts_of_a_byte_level_tokenizer(tokenizer):
    ids = tokenizer("apple River\n", add_special_tokens=False).input_ids
    assert token_texts(tokenizer, ids) == ["apple", "␣River", r"\n"]
    assert token_texts(tokenizer, [tokenizer.eos_token_id]) == ["<|end|>"]
    text = "naïve 日"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    raw = "".join(token_texts(tokenizer, ids))
    assert raw == r"na\xc3\xafve␣\xe6\x97\xa5"


class SentencePiece:
    """As much of a SentencePiece tokenizer as printing needs."""

    words = ("▁his", "<0x0A>", "<s>", "▁▁", "é", "Ġ")

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.words[number] for number in ids]


def test_token_texts_of_sentencepiece():
    assert token_texts(SentencePiece(), range(6)) == ["␣his", r"\n", "<s>", "␣␣", "é", "Ġ"]


def test_latin():
    assert latin("␣é “日”") == r"␣é \u201c\u65e5\u201d"


# Table 1

MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"


def test_published_tokens_belong_to_their_model():
    path = ROOT / "data" / "published_tokens.csv"
    published = read_published_tokens(path, "triviaqa", MISTRAL)
    assert set(zip(published["layer"], published["head"], strict=True)) == {
        (18, 27), (24, 20), (25, 14), (30, 28),
    }  # fmt: skip
    assert (published["tokens"].str.split().str.len() == 5).all()
    assert published["tokens"].iloc[-1] == "9 1 3 7 five"
    assert not len(read_published_tokens(path, "triviaqa", "my/model"))
    assert not len(read_published_tokens(path, "rtp", None))


def test_overlap_forgets_spaces_and_nothing_else():
    published = "December July April October February"
    assert overlap("␣December July ␣July ␣april Octo", published) == 2
    assert overlap("", published) == 0


@pytest.fixture
def parts() -> dict:
    heads = [(18, 27), (2, 1)]
    tokens = ["␣Obama", "COVID", "␣Biden", "␣a", "b", "␣c"]
    rows = [(*head, n, token) for head in heads for n, token in enumerate(tokens, start=1)]
    atoms = pd.DataFrame(rows, columns=["layer", "head", "step", "token"])
    atoms["explained"] = 0.1 * atoms["step"]
    specialists = pd.DataFrame(
        {"layer": [2, 18], "head": [1, 27], "score": [0.4, 0.2], "rank": [1, 2]}
    )
    for name in ("explained", "coherence"):
        specialists[name] = [0.5, 0.25]
        specialists[f"{name}_null"] = specialists[f"{name}_high"] = 0.01
    specialists["coherence_p"] = 0.01
    published = pd.DataFrame(
        {
            "layer": 18,
            "head": 27,
            "method": ["somp", "somp", "logit_lens"],
            "tokens": ["COVID Soviet Obama Biden Clinton", "COVID x", "b c"],
            "source": ["v2", "seed", "seed"],
        }
    )
    lens = atoms.rename(columns={"step": "place"}).sample(frac=1, random_state=0)
    return {
        "atoms": atoms.sample(frac=1, random_state=1),
        "lens": lens,
        "specialists": specialists,
        "published": published,
        "tokens": 5,
    }


def test_table1_has_both_methods_and_both_texts(parts):
    table = table1("triviaqa", [(18, 27), (2, 1)], **parts)
    keys = table[["layer", "method", "published_source"]].fillna("").values.tolist()
    assert keys == [
        [18, "somp", "v2"], [18, "somp", "seed"], [18, "logit_lens", "seed"],
        [2, "somp", ""], [2, "logit_lens", ""],
    ]  # fmt: skip
    assert (table["tokens"] == "␣Obama COVID ␣Biden ␣a b").all()
    assert table["overlap"].tolist()[:3] == [3, 1, 1] and table["overlap"].isna().tolist()[3:]
    assert table["rank"].tolist()[:2] == [2, 2]
    text = display(table)
    assert text["head"].tolist() == ["L18.H27", "L2.H1"]
    assert text["SOMP, v2"].tolist() == ["COVID Soviet Obama Biden Clinton (3 of 5)", ""]
    assert text["logit lens, seed"].tolist()[0] == "b c (1 of 2)"
    assert text["explained (random)"].tolist() == ["0.25 (0.01)", "0.50 (0.01)"]


def test_nothing_published_leaves_no_column(parts):
    parts["published"] = parts["published"].iloc[:0]
    table = table1("x", [(2, 1)], **parts)
    assert len(table) == 2
    assert list(display(table)) == [
        "data", "head", "rank", "explained (random)", "coherence (random)", "SOMP", "logit lens",
    ]  # fmt: skip


def test_shown_heads(parts):
    assert shown_heads(["L18.H27", "L2.H1"], parts["specialists"], 1) == [(18, 27), (2, 1)]
    assert shown_heads(None, parts["specialists"], 1) == [(2, 1)]
    assert shown_heads(None, parts["specialists"], 9) == [(2, 1), (18, 27)]


def test_figures_are_the_same_bytes_each_time(parts, tmp_path):
    atoms = parts["atoms"].assign(token=[r"\n", "日", "$x$", "␣a", "_", "{"] * 2)
    null = atoms[["layer", "head", "step"]].assign(mean=0.01, low=0.0, high=0.02)
    shown = {"a": [(18, 27)], "b": [(2, 1), (18, 27)]}
    colours = {"somp": "#3366aa", "random": "#bbbbbb"}
    grid = pd.DataFrame(list(np.ndindex(20, 30)), columns=["layer", "head"])
    grid["value"] = np.linspace(0, 0.6, len(grid))
    grid.loc[3, "value"] = np.nan  # a head that writes nothing
    for make in (
        lambda: plot_atoms(
            dict.fromkeys("ab", atoms), dict.fromkeys("ab", null), shown, 5, colours
        ),
        lambda: plot_heads(dict.fromkeys("ab", grid), shown, "explained"),
    ):
        for kind in ("pdf", "png"):
            paths = [tmp_path / f"{turn}.{kind}" for turn in (1, 2)]
            for path in paths:
                save_figure(make(), [path])
            assert paths[0].read_bytes() == paths[1].read_bytes()


# Concepts


def test_concept_words_come_from_a_list_or_a_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\ufeffMay\n\n  new   york \nMay\n", encoding="utf-8")
    assert concept_words("mine", str(path)) == ["May", "new york"]
    assert concept_words("mine", ["May", " may ", "May"]) == ["May", "may"]
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"concepts\.mine: .* not UTF-8"):
        concept_words("mine", str(path))
    with pytest.raises(UserError, match=r"concepts\.mine: .*none\.txt"):
        concept_words("mine", str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="no word"):
        concept_words("mine", [" "])


def test_a_concepts_words_are_looked_up_as_written(tokenizer):
    table = concept_dictionary("fruit", ["apple", "Lemon"], tokenizer, "single", [True, False])
    assert table["token"].tolist() == ["Ġapple", "apple", "ĠLemon", "Lemon"]
    assert set(table["split"]) == {"selection"}
    first = concept_dictionary("fruit", ["xyz"], tokenizer, "first", [False])
    assert first["token"].tolist() == ["x"]
    assert len(concept_dictionary("fruit", ["xyz"], tokenizer, "all", [True])) == 3
    with pytest.raises(UserError, match=r"concepts\.fruit: dictionary\.rows: single"):
        concept_dictionary("fruit", ["xyz"], tokenizer, "single", [True])


def test_jaccard_and_chance():
    assert jaccard([(0, 1), (0, 2)], [(0, 2), (0, 3)]) == pytest.approx(1 / 3)
    sets = list(itertools.combinations(range(7), 3))
    brute = np.mean([jaccard(a, b) for a in sets for b in sets])
    assert chance_jaccard(3, 7) == pytest.approx(brute)
    assert chance_jaccard(5, 5) == 1


def test_concept_overlaps_keep_to_the_candidate_layers():
    heads = pd.DataFrame(list(np.ndindex(4, 2)), columns=["layer", "head"])
    up, down = heads.assign(rank=range(1, 9)), heads.assign(rank=range(8, 0, -1))
    table = concept_overlaps("x", {"up": up, "down": down, "same": up}, [2, 4], (2, 3))
    pairs = table[["heads", "concept", "other", "shared"]].values.tolist()
    assert pairs == [
        [2, "up", "down", 0], [2, "up", "same", 2], [2, "down", "same", 0],
        [4, "up", "down", 4], [4, "up", "same", 4], [4, "down", "same", 4],
    ]  # fmt: skip
    assert table["chance"].tolist()[0] == pytest.approx(chance_jaccard(2, 4))


# The config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": ["L32.H0"]}, r"table1\.heads: L32\.H0, but mistral has layers 0 to 31"),
        ({"heads": ["L0.H32"]}, r"table1\.heads: L0\.H32"),
        ({"heads": ["18.27"]}, r"table1\.heads"),
        ({"tokens": 60}, r"table1\.tokens: 60 tokens"),
        ({"random_sets": {"draws": 50, "neighbours": 99}}, r"table1\.random_sets\.neighbours: 99"),
        ({"datasets": ["none"]}, r"table1\.datasets: 'none' is not under datasets"),
        (
            {"concepts": {"mine": "none.txt"}},
            r"table1\.concepts\.mine: there is no file 'none\.txt'",
        ),
        ({"concepts": {"my words": ["a"]}}, "my words"),
        ({"concepts": {"mine": [1]}}, "1 is not a text"),
        ({"tokns": 5}, r"table1\.tokns: unknown key; did you mean tokens\?"),
    ],
)
def test_a_wrong_table1_is_refused_by_name(paper, change, said):
    paper["table1"] |= change
    with pytest.raises(UserError, match=said):
        check_config(paper)


def test_a_data_set_of_table1_needs_a_source(paper):
    paper["datasets"]["triviaqa"]["source"] = "none"
    with pytest.raises(UserError, match=r"datasets\.triviaqa\.source: 'none' is not under sources"):
        check_config(paper)


def test_table1_can_be_left_out(paper):
    assert used_datasets(paper) == ["rtp", "tet", "triviaqa"]
    assert "trivia-qa" in used_sources(paper)
    paper["table1"] |= {"datasets": [], "heads": ["L99.H0"], "concepts": {"months": None}}
    check_config(paper)
    assert used_datasets(paper) == ["rtp", "tet"]
    assert "trivia-qa" not in used_sources(paper)


def test_a_data_set_may_have_positions_of_its_own(demo):
    check_config(demo)
    assert pooled_where(demo, "rtp") == "response"
    assert pooled_where(demo, "rtp-prompts") == "prompt"
    demo["datasets"]["rtp-prompts"]["positions"] = None
    check_config(demo)
    assert pooled_where(demo, "rtp-prompts") == "response"


def test_head_of():
    assert head_of("L18.H27") == (18, 27)
