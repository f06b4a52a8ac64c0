import copy
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from headpursuit.run.config import MOVED, SCHEMA, load_config
from headpursuit.run.files import UserError
from snakemake.utils import update_config

Config = dict[str, Any]
ROOT = Path(__file__).parents[2]
# A mutation that deletes this key from its mapping.
GONE = object()


def put(config: Config, path: str, value: Any) -> Config:
    *parents, last = path.split("/")
    inner = config
    for key in parents:
        inner = inner.setdefault(key, {})
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    return config


def refusal(config: Config) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(config)
    first, *problems = str(caught.value).splitlines()
    assert first == "The config cannot run:"
    assert all(problem.startswith("  - ") for problem in problems)
    return [problem[4:] for problem in problems]


@pytest.mark.parametrize(
    "overlay", [None, *sorted((ROOT / "configs").glob("*.yaml"))], ids=lambda p: p and p.stem
)
def test_every_overlay_is_valid(paper: Config, overlay: Path | None):
    if overlay:
        update_config(paper, yaml.safe_load(overlay.read_text(encoding="utf-8")))
    given = copy.deepcopy(paper)
    full = load_config(paper)
    assert paper == given  # it is left as it was
    assert load_config(full) == full  # the config in force can be run again


# What stands in experiments.rtp, and in all that are like it.
RTP = "experiments/rtp"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        # Misspelt and unknown keys.
        (f"{RTP}/generation/temprature", 0.0, r"rtp\.generation\.temprature: unknown key; did you"),
        ("sead", 0, r"^sead: unknown key; did you mean seed\?"),
        ("models/mistral/layer", 3, r"^models\.mistral\.layer: unknown key; did you mean layers\?"),
        (f"{RTP}/zzzzzz", 1, r"^experiments\.rtp\.zzzzzz: unknown key; known are like, model, "),
        (f"{RTP}/7", 1, r"^experiments\.rtp\.7: unknown key; known are like"),
        ("defaults/zzzzzz", 1, r"^experiments\.mnist\.zzzzzz: unknown key; known are like"),
        # Missing keys, with what they are.
        ("run", GONE, r"^run: missing\. Name of the run"),
        ("samples/rtp/text", GONE, r"^samples\.rtp\.text: missing\. Column that"),
        (f"{RTP}/model", GONE, r"^experiments\.rtp\.model: missing\. A key of models"),
        ("sources/real-toxicity-prompts/revision", GONE, r"real-toxicity-prompts\.revision: miss"),
        # Wrong types.
        ("seed", "zero", r"^seed: 'zero' is not a whole number\. With"),
        ("seed", None, r"^seed: null is not a whole number"),
        ("seed", True, r"^seed: true is not a whole number"),
        (f"{RTP}/generation", {"samples": 2.0}, r"generation\.samples: 2\.0 is not a whole number"),
        (f"{RTP}/generation", {"temperature": float("nan")}, r"temperature: nan is not a number"),
        (f"{RTP}/alpha", float("-inf"), r"^experiments\.rtp\.alpha: -inf is not a number"),
        (f"{RTP}/k", 16, r"^experiments\.rtp\.k: 16 is not a list"),
        (f"{RTP}/last_layer", "31", r"rtp\.last_layer: '31' is not a whole number or null"),
        ("score", None, r"^score: null is not a mapping"),
        ("models", ["mistral"], r"^models: \['mistral'\] is not a mapping"),
        ("concepts/toxic/case_sensitive", "no", r"case_sensitive: 'no' is not true or false"),
        ("samples/rtp/where", {"challenging": None}, r"^samples\.rtp\.where\.challenging: null"),
        # Out of range.
        (f"{RTP}/generation", {"top_p": 0}, r"top_p: 0 is too small \(more than 0\)"),
        (
            "concepts/toxic/selection_share",
            1.1,
            r"selection_share: 1\.1 is too large \(at most 1\)",
        ),
        ("score/resamples", 99, r"^score\.resamples: 99 is too small \(at least 100\)"),
        (f"{RTP}/k", [16, 0], r"^experiments\.rtp\.k\.1: 0 is too small \(at least 1\)"),
        (f"{RTP}/k", [], r"^experiments\.rtp\.k: \[\]"),
        (f"{RTP}/k", [16, 16], r"\.k: \[16, 16\] names something twice"),
        (f"{RTP}/methods", ["sомр"], r"methods\.0: 'sомр' is not one of somp, logit_lens"),
        (f"{RTP}/pursuit", {"norm": "L1"}, r"pursuit\.norm: 'L1' is not one of l1, l2\. Norm over"),
        ("samples/rtp/template", "Say it", r"^samples\.rtp\.template: 'Say it' does not match"),
        ("run", "../x", r"^run: '\.\./x' does not match"),
        ("run", "x\n", r"^run: 'x\\n' does not match"),
        ("run", "x" * 101, r"^run: 'xxx.* is too long \(at most 100\)"),
        (f"{RTP}/generation", {"temperature": "1e-3"}, r"takes it for text, write 0\.001\. Sampl"),
        ("publish/colours", {"somp": "blue"}, r"^publish\.colours\.somp: 'blue' .* as \"#3366aa\""),
        ("concepts/toxic/labelled", {"texts": ["prompt"]}, r"texts: \['prompt'\] lacks response"),
        ("samples/rtp/template", "x" * 200, r"'xxx.*\.\.\. \(202 characters\) does not match"),
        ("se\x1b[31med", 1, r"^se\[31med: unknown key"),
        ("two\nlines", 1, r"^two lines: unknown key"),
        ("sources/Bad Name", {"kind": "local", "path": "x"}, r"^sources: 'Bad Name' does not"),
        ("sources/wheels", {"kind": "whl"}, r"^sources\.wheels\.kind: 'whl' is not one of hub"),
        ("concepts/toxic/file", "x.txt", r"^concepts\.toxic: .*one of words, file, labelled and"),
        # What refers to something else.
        (f"{RTP}/model", "mistrall", r"rtp\.model: 'mistrall' is not under models; .* mistral"),
        (f"{RTP}/samples", "x", r"^experiments\.rtp\.samples: 'x' is not under samples; there are"),
        (
            f"{RTP}/concept",
            "x",
            r"^experiments\.rtp\.concept: 'x' is not under concepts; there are",
        ),
        (f"{RTP}/like", "x", r"^experiments\.rtp\.like: 'x' is not under experiments; there are"),
        (f"{RTP}/like", "tet", r"^experiments\..*\.like: .* is like .* itself"),
        (f"{RTP}/heads_from", "x", r"^experiments\.rtp\.heads_from: 'x' is not under experiments"),
        (f"{RTP}/heads_from", "rtp", r"^experiments\.rtp\.heads_from: rtp has its heads from rtp"),
        (f"{RTP}/heads_from", "mnist", r"rtp\.heads_from: mnist is of another model, llava-next"),
        (
            "tables/table2",
            ["rtp", "x"],
            r"^tables\.table2: 'x' is not under experiments; .* rtp, tet",
        ),
        ("tables/table2", ["rtp", "months"], r"^tables\.table2: experiments with measures, with a"),
        ("samples/rtp/source", "nowhere", r"^samples\.rtp\.source: 'nowhere' is not under sources"),
        ("models/mistral/source", "x", r"^models\.mistral\.source: 'x' is not under sources"),
        ("labeller/backend", "lexicon", r"^labeller\.lexicon\.source: null is not under sources"),
        # Kinds that do not fit.
        (
            f"{RTP}/positions",
            "image",
            r"^experiments\.rtp\.positions: image is none of rtp, prompts",
        ),
        (f"{RTP}/measures", ["exact_match"], r"rtp\.measures: exact_match needs images"),
        (
            "experiments/mnist/measures",
            ["expected"],
            r"mnist\.measures: expected is measured on pro",
        ),
        (
            f"{RTP}/concept",
            "classes",
            r"^experiments\.rtp\.concept: rtp are prompts, which have no",
        ),
        (
            "experiments/triviaqa/measures",
            ["count"],
            r"triviaqa\.measures: nothing can be measured",
        ),
        # More heads than the candidate layers have.
        (
            f"{RTP}/k",
            [512, 513],
            r"^experiments\.rtp\.k: 513 heads .* the 1024 heads .* at most 512$",
        ),
        (f"{RTP}/first_layer", 32, r"rtp\.first_layer: 32 comes after the last .* layer, 31"),
        (f"{RTP}/last_layer", 32, r"rtp\.last_layer: 32, but the last layer of mistral is 31"),
        (f"{RTP}/count_draws", 11, r"^experiments\.rtp\.count_draws: 11 is above draws, 10"),
        (f"{RTP}/generation", {"samples": 4}, r"samples: 4 greedy responses .* the same; 1, or"),
        # Files.
        (
            "concepts/months",
            {"file": "no.txt"},
            r"^concepts\.months\.file: there is no file 'no\.txt",
        ),
        (
            "concepts/months",
            {"file": "a{b}.txt"},
            r"months\.file: a path with \['\{', '\}'\] is none",
        ),
        ("labeller/prompt", "no.yaml", r"^labeller\.prompt: there is no file 'no\.yaml'$"),
        (f"{RTP}/pursuit", {"unrelated_words": "x"}, r"unrelated_words: there is no file 'x'$"),
        # Single heads.
        (
            "experiments/triviaqa/vocabulary",
            {"tokens": 51},
            r"tokens: 51 tokens cannot be had from",
        ),
        ("experiments/triviaqa/vocabulary", {"neighbours": 99}, r"neighbours: 99 .*least 100"),
        (
            "experiments/triviaqa/vocabulary",
            {"heads": ["L32.H0"]},
            r"heads: L32\.H0, but mistral has",
        ),
        # Images.
        (
            "samples/dtd/template",
            "{classes}",
            r"^samples\.dtd\.template: \{image\} has to be in it on",
        ),
        (
            "samples/dtd/selection/rows",
            [2, 1],
            r"^samples\.dtd\.selection\.rows: the first, 2, is aft",
        ),
        # The labeller, and sources.
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
    ],
)
def test_a_mistake_is_named_with_what_is_right(paper: Config, path: str, value: Any, said: str):
    problems = refusal(put(paper, path, value))
    assert any(re.search(said, problem) for problem in problems), problems


@pytest.mark.parametrize("key", MOVED)
def test_an_older_version_s_key_is_refused_with_the_new_one(paper: Config, key: str):
    [problem] = refusal(put(paper, key.replace(".", "/"), {"old": 1}))
    assert problem == f"{key}: an older version's key; it says the same under {MOVED[key]}"


def test_k_counts_candidate_layers_only(paper: Config):
    paper["experiments"]["rtp"] |= {"first_layer": 10, "last_layer": 11, "k": [32]}
    load_config(paper)
    paper["experiments"]["rtp"]["k"] = [33]
    assert "64 heads of mistral's layers 10 to 11; at most 32" in refusal(paper)[0]


def test_mistakes_of_all_kinds_are_told_at_once(paper: Config):
    """What the schema refuses hides nothing of what only the whole config shows."""
    put(paper, "sead", 1)
    put(paper, "publish/published_heads", {4: "x", "8": "y"})  # numbers and text as keys
    put(paper, "samples/rtp/source", "nowhere")
    put(paper, "experiments/mnist/k", [16, 600])
    put(paper, "score/resamples", 1)
    told = {problem.split(":")[0] for problem in refusal(paper)}
    assert {
        *("sead", "publish.published_heads.4", "publish.published_heads.8", "score.resamples"),
        *("samples.rtp.source", "experiments.mnist.k", "experiments.dtd.k"),
    } <= told


def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(paper: Config):
    put(paper, "labeller/openai/base_url", "https://user:canary@example.org/v1")
    put(paper, "labeller/openai/key_variable", "sk-canary")
    put(paper, "labeller/ollama/host", "http://user:canary@example.org")
    problems = refusal(paper)
    assert [problem.split(": what is there does not match")[0] for problem in problems] == [
        *("labeller.ollama.host", "labeller.openai.base_url", "labeller.openai.key_variable")
    ]
    assert "canary" not in str(problems)


@pytest.mark.parametrize("section", ["models", "samples", "sources", "concepts", "tables"])
def test_what_refers_to_something_unsound_is_not_blamed(paper: Config, section: str):
    assert len(refusal(put(paper, section, 3))) == 1


def test_a_key_that_stands_twice_is_named(paper: Config, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("run: x\nscore: {resamples: 400}\nseed: 1\nscore:\n  a: 0\n  a: 1\n")
    with pytest.raises(UserError) as caught:
        load_config(paper, [path, tmp_path / "not.there"])
    assert "- score: stands in" in str(caught.value)
    assert "mine.yaml twice, in lines 2 and 4; only the last would count" in str(caught.value)
    assert "- score.a: stands in" in str(caught.value)
    path.write_text("a: &a {b: [*a, *a]}\nb: {k: 1}\nc: {k: 1}\n")
    load_config(paper, [path])


def test_what_does_not_run_may_lack_what_it_needs(paper: Config):
    put(paper, "samples/tet/source", "x")
    put(paper, "tables/table2", ["rtp"])
    load_config(paper)


def shipped(overlay: str | None = None) -> Config:
    return copy.deepcopy(_shipped(overlay))


@cache
def _shipped(overlay: str | None) -> Config:
    """Return a shipped config with all its keys."""
    config = read("config.yaml")
    if overlay:
        update_config(config, read(overlay))
    return load_config(config)


def read(name: str) -> Config:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def leaves(schema: Config, path: str = "", inherited: bool = False) -> Iterator[tuple[str, Config]]:
    definitions = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))["$defs"]
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]] | schema
    if path:
        yield path, schema
    for name, own in schema.get("properties", {}).items():
        yield from leaves(own, f"{path}.{name}" if path else name)
    entries = schema.get("additionalProperties")
    for own in (
        (entries.get("then"), entries.get("else"), entries) if isinstance(entries, dict) else ()
    ):
        if own and "$ref" in own:
            yield from leaves(own, f"{path}.*")


KEYS = dict(leaves(yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))))


def test_the_walk_finds_the_keys():
    assert {
        "run",
        "experiments.*.k",
        "models.*.dtype",
        "labeller.lexicon.where",
        "sources.*.id",
    } <= {*KEYS}


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
    named = {key for key in KEYS if not key.endswith("*")} - {
        key for key in KEYS if key.startswith("defaults.")
    }
    assert {key for key, *_ in MISTAKES} == named
    assert len(MISTAKES) > 700


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
