import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from headpursuit.config import (
    SCHEMA,
    candidate_layers,
    check_config,
    condition_name,
    generated_conditions,
    intervened_conditions,
)
from headpursuit.files import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

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
    from snakemake.utils import update_config

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
        ("seed", None, r"^seed: None is not a whole number"),
        ("seed", True, r"^seed: True is not a whole number"),
        ("generation/samples", 2.0, r"^generation\.samples: 2\.0 is not a whole number"),
        ("generation/temperature", float("nan"), r"^generation\.temperature: nan is not a number"),
        ("heads/alpha", float("-inf"), r"^heads\.alpha: -inf is not a number"),
        ("heads/k", 16, r"^heads\.k: 16 is not a list"),
        ("heads/last_layer", "31", r"^heads\.last_layer: '31' is not a whole number or null"),
        ("generation", None, r"^generation: None is not a mapping"),
        ("models", ["mistral"], r"^models: \['mistral'\] is not a mapping"),
        ("words/case_sensitive", "no", r"^words\.case_sensitive: 'no' is not a boolean"),
        ("datasets/rtp/where", {"challenging": None}, r"^datasets\.rtp\.where\.challenging: None"),
        # Out of range.
        ("generation/top_p", 0, r"^generation\.top_p: 0 is too small \(more than 0\)"),
        ("generation/top_p", 1.5, r"^generation\.top_p: 1\.5 is too large \(at most 1\)"),
        ("words/selection_share", 1, r"selection_share: 1 is too large \(less than 1\)"),
        ("score/resamples", 99, r"^score\.resamples: 99 is too small \(at least 100\)"),
        ("heads/k", [16, 0], r"^heads\.k\.1: 0 is too small \(at least 1\)"),
        ("heads/k", [], r"^heads\.k: \[\]"),
        ("heads/k", [16, 16], r"^heads\.k: .*non-unique"),
        ("heads/methods", ["sомр"], r"^heads\.methods\.0: 'sомр' is not one of somp, logit_lens"),
        ("pursuit/norm", "L1", r"^pursuit\.norm: 'L1' is not one of l1, l2\. Norm over samples"),
        ("datasets/rtp/template", "Say it", r"^datasets\.rtp\.template: 'Say it' does not match"),
        ("run", "../x", r"^run: '\.\./x' does not match"),
        ("sources/Bad Name", {"kind": "local", "path": "x"}, r"^sources: 'Bad Name' does not"),
        ("sources/wheels", {"kind": "whl"}, r"^sources\.wheels\.kind: 'whl' is not one of hub"),
        # What refers to something else.
        ("text/model", "mistrall", r"^text\.model: 'mistrall' is not under models; .* mistral"),
        ("text/datasets", ["rtp", "x"], r"^text\.datasets: 'x' is not under datasets; .* rtp, tet"),
        ("datasets/rtp/source", "nowhere", r"^datasets\.rtp\.source: 'nowhere' is not under sour"),
        ("models/mistral/source", "x", r"^models\.mistral\.source: 'x' is not under sources"),
        ("labeller/backend", "lexicon", r"^labeller\.lexicon\.source: None is not under sources"),
        # More heads than the candidate layers have.
        ("heads/k", [512, 513], r"^heads\.k: 513 heads .* the 1024 heads .* at most 512$"),
        ("heads/first_layer", 32, r"^heads\.first_layer: 32 comes after the last .* layer, 31"),
        ("heads/last_layer", 32, r"^heads\.last_layer: 32, but the last layer of mistral is 31"),
        ("heads/count_draws", 11, r"^heads\.count_draws: 11 is above heads\.draws, 10"),
    ],
)
def test_a_mistake_is_named_with_what_is_right(paper: Config, path: str, value: Any, said: str):
    problems = refusal(put(paper, path, value))
    assert re.search(said, problems[0]), problems


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


def test_an_unused_data_set_may_lack_its_source(paper: Config):
    put(paper, "datasets/tet/source", "x")
    put(paper, "text/datasets", ["rtp"])
    check_config(paper)


def paths(value: Any, at: tuple = ()) -> Iterator[tuple]:
    if at:
        yield at
    if isinstance(value, dict | list):
        for key, own in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(own, (*at, key))


def shipped() -> Config:
    return yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


keys = st.one_of(st.text(max_size=4), st.integers(), st.booleans(), st.just("source"))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.dates()
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=6
)
mutation = st.tuples(
    st.sampled_from(list(paths(shipped()))), st.sampled_from(["put", "add", "drop"]), keys, values
)


@settings(max_examples=200)
@given(st.lists(mutation, min_size=1, max_size=4))
def test_any_config_passes_or_is_refused(mutations: list[tuple]):
    config = shipped()
    for path, how, key, value in mutations:
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
        check_config(config)
    except UserError as error:
        assert str(error).count("\n  - ") >= 1
        return
    # What passes can be enumerated.
    model = config["models"][config["text"]["model"]]
    first, last = candidate_layers(config["heads"], model)
    assert 0 <= first <= last < model["layers"]
    assert set(generated_conditions(config["heads"])) <= set(intervened_conditions(config["heads"]))


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


def test_conditions_have_the_contract_s_names(paper: Config):
    assert condition_name("somp", 16) == "somp-k16"
    assert condition_name("random", 16, 3) == "random-k16-d03"
    paper["heads"] |= {"k": [4, 8], "draws": 3, "count_draws": 1}
    named = intervened_conditions(paper["heads"])
    assert named[:4] == ["somp-k4", "somp-k8", "logit_lens-k4", "logit_lens-k8"]
    assert len(named) == len(set(named)) == 4 + 2 * 3
    drawn = [name for name in generated_conditions(paper["heads"]) if name.startswith("random")]
    assert drawn == ["random-k4-d00", "random-k8-d00"]
