import copy
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from headpursuit.config import (
    SCHEMA,
    check_config,
    condition_name,
    generated_conditions,
    intervened_conditions,
)
from headpursuit.files import UserError
from snakemake.utils import update_config

Config = dict[str, Any]
ROOT = Path(__file__).parents[2]
# A mutation that deletes this key from its mapping.
GONE = object()


def put(config: Config, path: str, value: Any) -> Config:
    *parents, last = path.split("/")
    inner = config
    for key in parents:
        inner = inner[key]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    return config


def refusal(config: Config) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_config(config)
    first, *problems = str(caught.value).splitlines()
    assert first == "The config cannot run:"
    assert all(problem.startswith("  - ") for problem in problems)
    return [problem[4:] for problem in problems]


def test_the_paper_is_valid(paper: Config):
    check_config(paper)


def test_the_demo_is_valid(demo: Config):
    check_config(demo)
    assert demo["run"] == "demo"
    assert demo["heads"]["draws"] == 10  # an overlay replaces only what it holds


@pytest.mark.parametrize("overlay", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_overlay_is_valid(paper: Config, overlay: Path):
    update_config(paper, yaml.safe_load(overlay.read_text(encoding="utf-8")))
    check_config(paper)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        # Misspelt and unknown keys.
        ("generation/temprature", 0.0, r"^generation\.temprature: unknown key; did you mean tempe"),
        ("sead", 0, r"^sead: unknown key; did you mean seed\?"),
        ("models/mistral/layer", 3, r"^models\.mistral\.layer: unknown key; did you mean layers\?"),
        ("heads/zzzzzz", 1, r"^heads\.zzzzzz: unknown key; known are methods, k, "),
        ("heads/7", 1, r"^heads\.7: unknown key; known are methods"),
        # Missing keys, with what they are.
        ("score/resamples", GONE, r"^score\.resamples: missing\. Resamples of the paired boot"),
        ("seed", GONE, r"^seed: missing\. With its identity"),
        ("datasets/rtp/template", GONE, r"^datasets\.rtp\.template: missing\. What the model"),
        ("sources/real-toxicity-prompts/revision", GONE, r"real-toxicity-prompts\.revision: miss"),
        # Wrong types.
        ("seed", "zero", r"^seed: 'zero' is not a whole number\. With"),
        ("seed", None, r"^seed: null is not a whole number"),
        ("seed", True, r"^seed: true is not a whole number"),
        ("generation/samples", 2.0, r"^generation\.samples: 2\.0 is not a whole number"),
        ("generation/temperature", float("nan"), r"^generation\.temperature: nan is not a number"),
        ("heads/alpha", float("-inf"), r"^heads\.alpha: -inf is not a number"),
        ("heads/k", 16, r"^heads\.k: 16 is not a list"),
        ("heads/last_layer", "31", r"^heads\.last_layer: '31' is not a whole number or null"),
        ("generation", None, r"^generation: null is not a mapping"),
        ("models", ["mistral"], r"^models: \['mistral'\] is not a mapping"),
        ("words/case_sensitive", "no", r"^words\.case_sensitive: 'no' is not true or false"),
        ("datasets/rtp/where", {"challenging": None}, r"^datasets\.rtp\.where\.challenging: null"),
        # Out of range.
        ("generation/top_p", 0, r"^generation\.top_p: 0 is too small \(more than 0\)"),
        ("generation/top_p", 1.5, r"^generation\.top_p: 1\.5 is too large \(at most 1\)"),
        ("words/selection_share", 1, r"selection_share: 1 is too large \(less than 1\)"),
        ("score/resamples", 99, r"^score\.resamples: 99 is too small \(at least 100\)"),
        ("heads/k", [16, 0], r"^heads\.k\.1: 0 is too small \(at least 1\)"),
        ("heads/k", [], r"^heads\.k: \[\]"),
        ("heads/k", [16, 16], r"^heads\.k: \[16, 16\] names something twice"),
        ("heads/methods", ["sомр"], r"^heads\.methods\.0: 'sомр' is not one of somp, logit_lens"),
        ("pursuit/norm", "L1", r"^pursuit\.norm: 'L1' is not one of l1, l2\. Norm over samples"),
        ("datasets/rtp/template", "Say it", r"^datasets\.rtp\.template: 'Say it' does not match"),
        ("run", "../x", r"^run: '\.\./x' does not match"),
        ("run", "x\n", r"^run: 'x\\n' does not match"),
        ("run", "x" * 101, r"^run: 'xxx.* is too long \(at most 100\)"),
        ("generation/temperature", "1e-3", r"takes it for text, write 0\.001\. Sampling"),
        ("publish/colours/somp", "blue", r"^publish\.colours\.somp: 'blue' .* as \"#3366aa\"\.$"),
        ("words/texts", ["prompt"], r"^words\.texts: \['prompt'\] lacks response"),
        ("datasets/rtp/template", "x" * 200, r"'xxx.*\.\.\. \(202 characters\) does not match"),
        ("se\x1b[31med", 1, r"^se\[31med: unknown key"),
        ("two\nlines", 1, r"^two lines: unknown key"),
        ("sources/Bad Name", {"kind": "local", "path": "x"}, r"^sources: 'Bad Name' does not"),
        ("sources/wheels", {"kind": "whl"}, r"^sources\.wheels\.kind: 'whl' is not one of hub"),
        # What refers to something else.
        ("text/model", "mistrall", r"^text\.model: 'mistrall' is not under models; .* mistral"),
        ("text/datasets", ["rtp", "x"], r"^text\.datasets: 'x' is not under datasets; .* rtp, tet"),
        ("datasets/rtp/source", "nowhere", r"^datasets\.rtp\.source: 'nowhere' is not under sour"),
        ("models/mistral/source", "x", r"^models\.mistral\.source: 'x' is not under sources"),
        ("labeller/backend", "lexicon", r"^labeller\.lexicon\.source: null is not under sources"),
        # More heads than the candidate layers have.
        ("heads/k", [512, 513], r"^heads\.k: 513 heads .* the 1024 heads .* at most 512$"),
        ("heads/first_layer", 32, r"^heads\.first_layer: 32 comes after the last .* layer, 31"),
        ("heads/last_layer", 32, r"^heads\.last_layer: 32, but the last layer of mistral is 31"),
        ("heads/count_draws", 11, r"^heads\.count_draws: 11 is above heads\.draws, 10"),
        (
            "generation/samples",
            4,
            r"^generation\.samples: 4 greedy responses .* all the same; 1, or",
        ),
        ("words/file", "no.txt", r"^words\.file: there is no file 'no\.txt'$"),
        ("words/file", "a{b}.txt", r"^words\.file: a path with \['\{', '\}'\] is none for Snake"),
        ("labeller/prompt", "no.yaml", r"^labeller\.prompt: there is no file 'no\.yaml'$"),
        ("pursuit/unrelated_words", "x", r"^pursuit\.unrelated_words: there is no file 'x'$"),
        (
            "table1/concepts/months",
            "x.txt",
            r"^table1\.concepts\.months: there is no file 'x\.txt'",
        ),
        ("table1/tokens", 51, r"^table1\.tokens: 51 tokens cannot be had from .*iterations, 50"),
        ("table1/random_sets/neighbours", 99, r"^table1\.random_sets\.neighbours: 99 .*least 100"),
        ("table1/heads", ["L32.H0"], r"^table1\.heads: L32\.H0, but mistral has layers 0 to 31"),
        ("vision/model", "mistrall", r"^vision\.model: 'mistrall' is not under models; there are"),
        (
            "vision/datasets",
            ["x"],
            r"^vision\.datasets: 'x' is not under image_datasets; there are",
        ),
        ("vision/heads/k", [513], r"^vision\.heads\.k: 513 heads and as many .* at most 512$"),
        ("vision/template", "{classes}", r"^vision\.template: \{image\} has to be in it once"),
        (
            "image_datasets/dtd/selection/rows",
            [2, 1],
            r"^image_datasets\.dtd\.selection\.rows: the",
        ),
        ("labeller/second", "ollama", r"^labeller\.second: ollama is the first already; null, or"),
        (
            "labeller/second",
            "openai",
            r"^labeller\.openai\.base_url: missing; labeller\.backend or",
        ),
        (
            "sources/real-toxicity-prompts",
            {"kind": "local", "path": "no/such"},
            r"^sources\.real-toxicity-prompts\.path: there is no file or folder 'no/such'$",
        ),
        ("sources/models", {"kind": "local", "path": "x"}, r"^sources\.models: that folder of res"),
        (
            "datasets/rtp.per_prompt",
            {},
            r"datasets\.rtp\.per_prompt: its scores would be another's",
        ),
    ],
)
def test_a_mistake_is_named_with_what_is_right(paper: Config, path: str, value: Any, said: str):
    problems = refusal(put(paper, path, value))
    assert any(re.search(said, problem) for problem in problems), problems


def test_k_counts_candidate_layers_only(paper: Config):
    paper["heads"] |= {"first_layer": 10, "last_layer": 11, "k": [32]}
    check_config(paper)
    paper["heads"]["k"] = [33]
    assert "64 heads of mistral's layers 10 to 11; at most 32" in refusal(paper)[0]


def test_all_mistakes_are_told_at_once(paper: Config):
    put(paper, "sead", 1)
    put(paper, "heads/k", [16, -1])
    put(paper, "score/resamples", GONE)
    put(paper, "generation/temperature", "warm")
    put(paper, "publish/published_heads", {4: "x", "8": "y"})  # numbers and text as keys
    told = {problem.split(":")[0] for problem in refusal(paper)}
    assert told == {
        "sead",
        "heads.k.1",
        "score.resamples",
        "generation.temperature",
        "publish.published_heads.4",
        "publish.published_heads.8",
    }


def test_all_inconsistencies_are_told_at_once(paper: Config):
    put(paper, "datasets/rtp/source", "x")
    put(paper, "text/datasets", ["rtp", "y"])
    put(paper, "heads/k", [600])
    assert len(refusal(paper)) == 3


def test_mistakes_of_all_kinds_are_told_at_once(paper: Config):
    """What the schema refuses hides nothing of what only the whole config shows."""
    put(paper, "sead", 1)
    put(paper, "generation/top_p", 7)
    put(paper, "heads/k", [16, 600])
    put(paper, "datasets/rtp/source", "nowhere")
    put(paper, "datasets/tet/source", 3)
    put(paper, "vision/heads", GONE)
    put(paper, "table1/datasets", ["triviaqa", "poems"])
    assert [problem.split(":")[0] for problem in refusal(paper)] == [
        *("sead", "datasets.tet.source", "generation.top_p", "vision.heads"),
        *("table1.datasets", "heads.k", "datasets.rtp.source"),
    ]


def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(paper: Config):
    put(paper, "labeller/openai/base_url", "https://user:canary@example.org/v1")
    put(paper, "labeller/openai/key_variable", "sk-canary")
    put(paper, "labeller/ollama/host", "http://user:canary@example.org")
    problems = refusal(paper)
    assert [problem.split(": what is there does not match")[0] for problem in problems] == [
        *("labeller.ollama.host", "labeller.openai.base_url", "labeller.openai.key_variable")
    ]
    assert "canary" not in str(problems)


@pytest.mark.parametrize("section", ["models", "datasets", "sources", "text", "vision", "heads"])
def test_what_refers_to_something_unsound_is_not_blamed(paper: Config, section: str):
    assert len(refusal(put(paper, section, 3))) == 1


def test_a_key_that_stands_twice_is_named(paper: Config, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("run: x\nheads: {k: [4]}\nseed: 1\nheads:\n  alpha: 0\n  alpha: 1\n")
    with pytest.raises(UserError) as caught:
        check_config(paper, [path, tmp_path / "not.there"])
    assert "- heads: stands in" in str(caught.value)
    assert "mine.yaml twice, in lines 2 and 4; only the last would count" in str(caught.value)
    assert "- heads.alpha: stands in" in str(caught.value)
    path.write_text("a: &a {b: [*a, *a]}\nb: {k: 1}\nc: {k: 1}\n")
    check_config(paper, [path])


def test_an_unused_data_set_may_lack_its_source(paper: Config):
    put(paper, "datasets/tet/source", "x")
    put(paper, "text/datasets", ["rtp"])
    check_config(paper)


def shipped(overlay: str | None = None) -> Config:
    config = read("config.yaml")
    if overlay:
        update_config(config, read(overlay))
    return config


def read(name: str) -> Config:
    return copy.deepcopy(_read(name))


@cache
def _read(name: str) -> Config:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def leaves(schema: Config, path: str = "", inherited: bool = False) -> Iterator[tuple[str, Config]]:
    definitions = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))["$defs"]
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]] | schema
    if path:
        yield path, schema
    for name, own in schema.get("properties", {}).items():
        yield from leaves(own, f"{path}.{name}" if path else name)
    if isinstance(schema.get("additionalProperties"), dict) and "$ref" in (
        own := schema["additionalProperties"]
    ):
        yield from leaves(own, f"{path}.*")


KEYS = dict(leaves(yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))))


def test_the_walk_finds_the_keys():
    assert {"run", "heads.k", "models.*.dtype", "labeller.lexicon.where", "sources.*.id"} <= {*KEYS}


@pytest.mark.parametrize("key", [key for key in KEYS if not key.endswith(".*")])
def test_every_key_is_described(key: str):
    assert len(KEYS[key].get("description", "")) > 5


@pytest.mark.parametrize(
    "key", [key for key, own in KEYS.items() if "open" in str(own.get("paper", ""))]
)
def test_what_the_paper_leaves_open_has_a_reason(key: str):
    assert len(KEYS[key].get("reason", "")) > 10


@pytest.mark.parametrize("key", KEYS)
def test_every_mapping_forbids_unknown_keys(key: str):
    if "properties" in KEYS[key]:
        assert KEYS[key]["additionalProperties"] is False
        assert set(KEYS[key].get("required", [])) <= set(KEYS[key]["properties"])


# Every key, wrong in every way that its schema knows.

OF_TYPE = {"string": "text", "number": 0.5, "integer": 1, "boolean": True, "null": None}
OF_TYPE |= {"array": [], "object": {}}
BEYOND = {"minimum": -1, "maximum": 1, "exclusiveMinimum": 0, "exclusiveMaximum": 0}
REFUSED = {"enum": "none of them", "pattern": "@/../\n", "minLength": "", "maxLength": "x" * 1000}
REFUSED |= {"minItems": [], "maxItems": [1] * 9, "minProperties": {}, "contains": []}
REFUSED |= {"uniqueItems": ["x", "x"]}


def wrong_values(schema: Config) -> Iterator[tuple[str, Any]]:
    kinds = schema.get("type", [])
    kinds = set(kinds if isinstance(kinds, list) else [kinds])
    if "number" in kinds:
        kinds.add("integer")
        yield from (("infinite", float("inf")), ("not a number", float("nan")))
    yield from ((f"is {kind}", OF_TYPE[kind]) for kind in OF_TYPE if kinds and kind not in kinds)
    yield from ((rule, value) for rule, value in REFUSED.items() if rule in schema)
    yield from ((rule, schema[rule] + by) for rule, by in BEYOND.items() if rule in schema)
    if "items" in schema:
        yield from ((f"item {how}", [value]) for how, value in wrong_values(schema["items"]))


def places(key: str) -> Iterator[tuple[int, str]]:
    """Give where a key such as ``models.*`` stands, in the paper's config (0) or the demo's (1)."""
    for number, config in enumerate((shipped(), shipped("configs/demo.yaml"))):
        found: list[tuple[str, Any]] = [("", config)]
        for part in key.split(".") if key else []:
            found = [
                (f"{path}{name}/", inner[name])
                for path, inner in found
                if isinstance(inner, dict)
                for name in (inner if part == "*" else [part])
                if name in inner
            ]
        yield from ((number, path) for path, inner in found if isinstance(inner, dict))


def mistakes() -> Iterator[tuple[str, str, int, str, Any]]:
    """Give each key, how it is wrong, and in which config, where and with what value."""
    for key, schema in KEYS.items():
        parent, _, name = key.rpartition(".")
        if name == "*":
            continue
        number, inside = next(places(parent))  # every key's parent stands in one of them
        of_parent = KEYS[parent] if parent else yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
        wrong = [*wrong_values(schema), ("misspelt", None)]
        wrong += [("missing", GONE)] if name in of_parent.get("required", []) else []
        for how, value in wrong:
            yield key, how, number, f"{inside}{name}{'x' * (how == 'misspelt')}", value


MISTAKES = list(mistakes())
RIGHT = re.compile(
    r"unknown key; |: missing|is not |at least|more than|at most|less than|does not match|lacks"
    r"|twice|has to be in it"
)


def test_every_key_is_wrong_in_several_ways():
    assert {key for key, *_ in MISTAKES} == {key for key in KEYS if not key.endswith("*")}
    assert len(MISTAKES) > 800


@pytest.mark.parametrize("section", sorted({key.split(".")[0] for key in KEYS}))
def test_a_wrong_key_is_named_with_what_is_right(section: str):
    for key, how, number, path, value in MISTAKES:
        if key.split(".")[0] != section:
            continue
        config = shipped("configs/demo.yaml" if number else None)
        problems = refusal(put(config, path, value))
        name = re.escape(path.replace("/", "."))
        told = [problem for problem in problems if re.match(rf"{name}(\.\d+)?: ", problem)]
        assert told and all(map(RIGHT.search, told)), (key, how, problems)
        assert all(map(str.isprintable, problems)), (key, how, problems)


def test_conditions_have_the_contract_s_names(paper: Config):
    assert condition_name("somp", 16) == "somp-k16"
    assert condition_name("random", 16, 3) == "random-k16-d03"
    paper["heads"] |= {"k": [4, 8], "draws": 3, "count_draws": 1}
    named = intervened_conditions(paper["heads"])
    assert named[:4] == ["somp-k4", "somp-k8", "logit_lens-k4", "logit_lens-k8"]
    assert len(named) == len(set(named)) == 4 + 2 * 3
    drawn = [name for name in generated_conditions(paper["heads"]) if name.startswith("random")]
    assert drawn == ["random-k4-d00", "random-k8-d00"]
