"""Whatever comes in: each property is tried on some cases, in `make fuzz` on 10,000."""

import copy
import html
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import shipped
from headpursuit.data.prompts import read_rows, sample_prompts, unique_prompts
from headpursuit.labelling.prompt import MODES
from headpursuit.labelling.reply import MAX_ENTRIES, MAX_PHRASE, parse_reply, sift_words
from headpursuit.method.heads import draw_control
from headpursuit.method.words import (
    count_words,
    label_counts,
    most_frequent,
    normalise,
    split_words,
    tidy_word,
)
from headpursuit.run.config import load_config
from headpursuit.run.experiments import candidate_layers, conditions, running
from headpursuit.run.files import UserError, plain, visible
from headpursuit.run.tables import escape_latex, escape_markdown
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_tables import typeset

few = settings(max_examples=int(os.environ.get("FUZZ_CASES", 60)))

# Text with more of what parsers act on than chance would give.
SCRAPS = ["<answer>", "</answer>", "< /ANSWER >", '{"words":', '["', "```json\n", "None", "- "]
SCRAPS += ["1. ", "**", "<b>", "&lt;", "\r\n", "\x1b[31m", "é", "e\u0301", "कि", "日本", "مرحبا"]
SCRAPS += [
    "👩‍👩‍👧",
    "word",
    "WORD",
    *"|\\$`{}~^#%=+-@'\",;、\n\t\x00\u2028\u202e\ufeff\u200d’İıßǰक _",
]
texts = st.lists(st.sampled_from(SCRAPS) | st.text(max_size=6), max_size=12).map("".join)
phrases = texts.map(tidy_word).filter(bool)


# The config


def paths(value: Any, at: tuple = ()) -> Iterator[tuple]:
    if at:
        yield at
    if isinstance(value, dict | list):
        for key, own in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(own, (*at, key))


BASE = shipped.config("demo")
PATHS = sorted(paths(BASE), key=str)
keys = st.one_of(texts, st.integers(), st.booleans(), st.none(), st.sampled_from(list(BASE)))
scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.integers(-2, 40), st.floats(), texts, st.dates()),
    st.sampled_from(["rtp", "mistral", "smollm2", "demo", "garak", "L1.H1", "lexicon", "data"]),
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=6
)
mutations = st.lists(
    st.tuples(st.sampled_from(PATHS), st.sampled_from(["put", "add", "drop"]), keys, values),
    max_size=4,
)


@few
@given(mutations)
@example([(("experiments", "months", "concept"), "put", None, "rtp")])
@example([(("experiments", "countries"), "put", None, [True])])
@example([(("experiments", "countries"), "put", None, None)])
@example([(("experiments", "colours", "like"), "put", None, [])])
def test_any_config_passes_or_is_refused_with_reasons(changes: list[tuple]) -> None:
    config = copy.deepcopy(BASE)
    for path, how, key, value in changes:
        inner: Any = config
        try:
            for part in path[:-1]:
                inner = inner[part]
            if how == "put":
                inner[path[-1]] = copy.deepcopy(value)
            elif how == "drop":
                del inner[path[-1]]
            else:
                inner[path[-1]][key] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier mutation took the place away
    try:
        config = load_config(config)
    except UserError as error:
        first, *problems = str(error).split("\n")
        assert changes and problems and first == "The config cannot run:"
        assert all(re.match(r"  - .+: .+", problem) for problem in problems), problems
        assert all(problem == visible(problem) for problem in problems), problems
        return
    # What passes can be enumerated, and its names stay inside their folders.
    catalogues = ("sources", "models", "samples", "concepts", "experiments")
    for name in [config["run"], *(name for key in catalogues for name in config[key])]:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    for experiment in running(config):
        own = config["experiments"][experiment]
        model = config["models"][own["model"]]
        first, last = candidate_layers(own, model)
        assert 0 <= first <= last < model["layers"]
        for measure in own["measures"]:
            names = conditions(config, experiment, measure)
            assert len(names) == len(set(names))


# Replies


@few
@given(texts, st.sampled_from(MODES), texts, st.booleans())
def test_any_reply_is_read_or_not(reply: str, mode: str, response: str, listed: bool) -> None:
    found = parse_reply(f"['{reply}']" if listed else reply, mode)
    if found is None:
        return
    assert len(found) <= MAX_ENTRIES and len(set(found)) == len(found)
    assert all(word == plain(word) and len(word.split()) <= MAX_PHRASE for word in found)
    kept, dropped = sift_words(found, response)
    assert sorted([*dict.fromkeys(map(normalise, kept)), *dropped]) == sorted(found)
    assert all(count_words([response], [word])[0, 0] for word in kept)


# Words


@few
@given(phrases)
def test_a_word_is_found_where_it_stands_alone(word: str) -> None:
    assert count_words([word], [word])[0, 0] >= 1
    assert count_words([f"( {word.upper()} )"], [word.upper()])[0, 0] >= 1
    assert count_words([f"x{word}x"], [word])[0, 0] == 0 or not re.match(r"\w", word)


# Splits, samples and controls


@few
@given(
    st.lists(st.lists(phrases, max_size=6), max_size=12),
    st.integers(10, 40),
    st.floats(0.001, 0.999),
    st.integers(0, 2**64),
    texts,
)
def test_any_labels_are_split_or_refused(labels, top, share, seed, dataset) -> None:
    counts = label_counts(labels)
    counts.update({f"w{number}": 1 for number in range(len(labels))})
    try:
        table = split_words(most_frequent(counts, top), share, seed, dataset)
    except UserError as error:
        assert len(counts) < 10 and "too few" in str(error)
        return
    assert table["split"].isin(["selection", "heldout"]).all() and table["split"].nunique() == 2
    assert table["word"].is_unique and len(table) == min(top, len(counts))
    assert table["count"].is_monotonic_decreasing
    again = most_frequent(Counter(dict(reversed(counts.items()))), top)
    assert table.equals(split_words(again, share, seed, dataset))


@few
@given(st.lists(texts, max_size=20), st.none() | st.integers(1, 20), st.integers(0, 2**64))
def test_any_prompts_are_drawn_or_refused(prompts, sample, seed) -> None:
    table = unique_prompts([(f"a:{n}", text) for n, text in enumerate(prompts)], "x")
    assert table["text"].to_pylist() == [t for t in dict.fromkeys(prompts) if t.strip()]
    try:
        drawn = sample_prompts(table, sample, seed, "x")
    except UserError as error:
        assert f"{len(table)} prompts are there" in str(error)
        return
    assert len(drawn) == (len(table) if sample is None else sample)
    ids = drawn["sample_id"].to_pylist()
    assert ids == sorted(set(ids)) and set(ids) <= set(table["sample_id"].to_pylist())


@few
@given(st.data(), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**64))
def test_controls_match_by_layer_and_are_disjoint(data, heads, layers, seed) -> None:
    every = [(layer, head) for layer in range(layers) for head in range(heads)]
    selected = data.draw(st.lists(st.sampled_from(every), unique=True, min_size=1))
    wanted = Counter(layer for layer, _ in selected)
    try:
        drawn = draw_control(selected, heads, seed, "x", "random-k1-d00", (0, layers - 1))
    except UserError as error:
        assert len(selected) * 2 > len(every) and "smaller k" in str(error)
        return
    found = Counter(layer for layer, _ in drawn)
    crowded = max(wanted.values()) * 2 > heads
    assert found == wanted or (crowded and found.total() == wanted.total())
    assert all(found[layer] >= min(n, heads - n) for layer, n in wanted.items())
    assert not set(drawn) & set(selected) and len(set(drawn)) == len(drawn)
    assert all(0 <= head < heads for _, head in drawn)
    again = draw_control(selected[::-1], heads, seed, "x", "random-k1-d00", (0, layers - 1))
    assert drawn == again


# Files


@few
@given(texts)
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    assert typeset(escape_latex(text)) == plain(text)
    escaped = escape_markdown(text)
    assert not re.search(r"[<>]|(?<!\\)(\\\\)*[`*_|\[\]~$]", escaped)
    assert html.unescape(re.sub(r"\\([\\`*_|\[\]~$])", r"\1", escaped)) == plain(text)


lines = st.lists(st.binary(max_size=30) | texts.map(str.encode), max_size=5).map(b"\n".join)


@few
@given(lines, st.sampled_from([".txt", ".csv", ".jsonl", ".json", ".parquet"]))
def test_any_file_is_read_or_refused_by_its_name(content: bytes, suffix: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"data{suffix}"
        path.write_bytes(content)
        try:
            rows = list(read_rows([path], {"text": "text"}, "samples.x"))
        except UserError as error:
            assert str(path) in str(error) and str(error).startswith("samples.x")
            return
    assert all(isinstance(text, str) for _, text in rows)
