import copy
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import shipped
from headpursuit.method.words import MIN_WORDS
from headpursuit.publish.settings import schema
from headpursuit.run.config import MOVED, load_config
from headpursuit.run.experiments import owners
from headpursuit.run.files import UserError

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
    "overlay", [None, *sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))]
)
def test_every_overlay_is_valid(overlay: str | None):
    under = ["demo"] if overlay in ("multiverse", "specificity") else []  # of its experiments
    config = shipped.config(*under, *filter(None, [overlay]))
    given = copy.deepcopy(config)
    full = load_config(config)
    assert config == given  # it is left as it was
    assert load_config(full) == full  # the config in force can be run again


RTP = "experiments/rtp"  # and all that are like it
IMAGES = "experiments/mnist"
ALL = "experiments/triviaqa"  # the whole vocabulary
HEADS = f"{ALL}/vocabulary"
OWN = {"kind": "local", "path": "no/such"}
PART = {"files": "*.parquet"}
SAME = {"of": ["rtp"], "choices": {"k": [[4], [4, 4], [4]]}}
PHOTOS = {"source": "mnist", "references": "caption", "selection": PART, "evaluation": PART}
CAPTIONED = {"samples": "photos", "concept": "colours", "measures": ["cider"]}
MISTAKES = [
    # What the schema refuses; every key comes below, in every way.
    (f"{RTP}/generation/temprature", 0.0, r"rtp\.generation\.temprature: unknown key; did you"),
    (f"{RTP}/7", 1, r"^experiments\.rtp\.7: unknown key; known are like, model, "),
    ("run", GONE, r"^run: missing\. Name of the run"),
    (f"{RTP}/generation", {"samples": 2.0}, r"generation\.samples: 2\.0 is not a whole number"),
    (f"{RTP}/generation", {"temperature": "1e-3"}, r"YAML takes it for text, write 0\.001\. Sampl"),
    (f"{RTP}/alpha", [5, -1, 5.0], r"rtp\.alpha: \[5, -1, 5\.0\] has non-unique elements\. What"),
    (f"{RTP}/at", ["response", "image"], r"rtp\.at: rtp are prompts, which have no image tokens"),
    ("run", "x\n", r"^run: 'x\\n' does not match"),
    ("se\x1b[31med", 1, r"^se\[31med: unknown key"),
    ("sources/models", OWN, r"^sources: 'models' does not match .* assembled and models are taken"),
    ("concepts/toxic/file", "x.txt", r"^concepts\.toxic: .*one of words, file, labelled, keyw"),
    (
        "concepts/months",
        {"words": ["May", "June"], "selection_share": 0.7},
        r"^concepts\.months\.words: \['May', 'June'\] is too short \(minItems 10\)\. To split them",
    ),
    # What refers to something else.
    (f"{RTP}/model", "mistrall", r"rtp\.model: 'mistrall' is not under models; .* mistral"),
    (f"{RTP}/samples", "x", r"^experiments\.rtp\.samples: 'x' is not under samples; there are"),
    (f"{RTP}/concept", "x", r"^experiments\.rtp\.concept: 'x' is not under concepts; there are"),
    (f"{RTP}/like", "x", r"^experiments\.rtp\.like: 'x' is not under experiments; .* rtp, .*tet"),
    (f"{RTP}/like", "tet", r"^experiments\.rtp\.like: leads back, in a circle: tet, rtp$"),
    (f"{RTP}/heads_from", "x", r"^experiments\.rtp\.heads_from: 'x' is not under experiments"),
    (f"{RTP}/heads_from", "rtp", r"^experiments\.rtp\.heads_from: rtp has its heads from rtp"),
    (f"{RTP}/heads_from", "mnist", r"rtp\.heads_from: mnist is of another model, llava-next"),
    (f"{RTP}/heads_from", "triviaqa", r"rtp\.heads_from: triviaqa asks for the whole vocabulary"),
    (f"{IMAGES}/generation", {"samples": 2, "temperature": 1}, r"samples: mnist are images, .* 1$"),
    (f"{IMAGES}/splits", 3, r"mnist\.splits: another split, but the concept's words are not split"),
    (
        "experiments/tet",
        {"like": "rtp", "samples": "rtp", "heads_from": "rtp", "split": 2},
        r"tet\.heads_from: words that are measured here choose heads in rtp, whose split is 0",
    ),
    (f"{IMAGES}/heads_from", "gtsrb", r"mnist\.k: 8 is not among the k of gtsrb, whose .*: 16"),
    (f"{IMAGES}/heads_from", "gtsrb", r"mnist\.methods: logit_lens is not among the .*: size"),
    (f"{IMAGES}/heads_from", "gtsrb", r"mnist\.draws: 10 is above the draws of gtsrb, .* has, 2"),
    ("tables/table2", ["rtp", "x"], r"^tables\.table2: 'x' is not under experiments; .* rtp, .*t"),
    (f"{ALL}/heads_from", "rtp", r"triviaqa\.heads_from: nothing is scaled where the whole"),
    ("tables/claims", ["rtp"], r"^tables\.claims: the report has a page of that name"),
    ("tables/table2", ["rtp", "months"], r"^tables\.table2: experiments with measures, with a"),
    ("samples/rtp/source", "nowhere", r"^samples\.rtp\.source: 'nowhere' is not under sources"),
    ("models/mistral/source", "x", r"^models\.mistral\.source: 'x' is not under sources"),
    (f"{RTP}/classifier", "x", r"rtp\.classifier: 'x' is not under classifiers; .* none"),
    (f"{RTP}/measures", ["toxicity"], r"rtp\.classifier: toxicity is measured by one; .* none"),
    ("labeller/backend", "lexicon", r"^labeller\.lexicon\.source: null is not under sources"),
    # Kinds that do not fit.
    (f"{RTP}/positions", "image", r"^experiments\.rtp\.positions: image is none of rtp, prompts"),
    (f"{RTP}/measures", ["exact_match"], r"rtp\.measures: exact_match is measured on images"),
    (f"{IMAGES}/measures", ["expected"], r"mnist\.measures: expected is measured on prompts"),
    (f"{IMAGES}/concept", "spoken", r"mnist\.concept: .* images have no prompts of their own"),
    (f"{RTP}/concept", "seen", r"^experiments\.rtp\.concept: keywords are asked about images; rtp"),
    (f"{RTP}/concept", "classes", r"^experiments\.rtp\.concept: rtp are prompts, which have no"),
    (f"{ALL}/measures", ["occurrences"], r"triviaqa\.measures: nothing can be measured"),
    (f"{RTP}/measures", ["f1"], r"^experiments\.rtp\.measures: f1 needs right answers or cap"),
    (f"{IMAGES}/measures", ["cider"], r"mnist\.measures: cider needs .*: references of mnist$"),
    (f"{IMAGES}/samples", "photos", r"exact_match is measured on images of classes; photos are im"),
    (f"{IMAGES}/samples", "photos", r"mnist\.concept: photos are images with references, which"),
    ("samples/mnist/references", "captions", r"^samples\.mnist\.object: unknown key; known are"),
    ("samples/photos/template", "Describe", r"^samples\.photos\.template: \{image\} has to be"),
    ("samples/photos/template", "{image} {object}", r"photos\.template: \{object\}, but images"),
    ("samples/rtp/excluding", "rtp", r"^samples\.rtp\.excluding: no prompt would be left$"),
    ("samples/rtp/excluding", "mnist", r"excluding: mnist are images, which have no text$"),
    ("samples/rtp/excluding", "x", r"^samples\.rtp\.excluding: 'x' is not under samples; there"),
    # Numbers that bound each other.
    (f"{RTP}/k", [512, 513], r"rtp\.k: 513 heads .* the 1024 heads .* at most 512 \(so in tet\)$"),
    (f"{RTP}/first_layer", 32, r"rtp\.first_layer: 32 comes after the last .* layer, 31"),
    (f"{RTP}/last_layer", 32, r"rtp\.last_layer: 32, but the last layer of mistral is 31"),
    (f"{RTP}/count_draws", 11, r"^experiments\.rtp\.count_draws: 11 is above draws, 10"),
    (f"{RTP}/generation", {"samples": 4}, r"samples: 4 greedy responses .* the same; 1, or"),
    (f"{RTP}/generation", {"seed": 1}, r"generation\.seed: greedy responses use no random numbers"),
    ("multiverse", {"of": ["x"]}, r"^multiverse\.of: 'x' is not under experiments; there are rtp"),
    *(
        ("multiverse", {"of": ["rtp"], **own}, rf"^multiverse\.{place}: '{key}' is no choice of an")
        for key in ("concept", "pursuit.nrom", "labeller.backend", "concept.words", "pursuit")
        for place, own in (
            ("choices", {"choices": {key: ["x"]}}),
            ("together", {"together": [{key: 1}]}),
        )
    ),
    (
        "multiverse",
        {"of": ["rtp"], "choices": {"pursuit.norm": ["l3"]}},
        r"^experiments\.rtp-norm-l3\.pursuit\.norm: 'l3' is not one of 'l1', 'l2'",
    ),
    ("multiverse", SAME, r"choices: 1 variants of rtp"),
    (HEADS, {"tokens": 51}, r"vocabulary\.tokens: 51 is above pursuit\.iterations, 50"),
    (HEADS, {"neighbours": 99}, r"vocabulary\.neighbours: 99 .*least 100"),
    (HEADS, {"heads": ["L32.H0"]}, r"vocabulary\.heads: L32\.H0, but mistral has 32 layers"),
    ("samples/dtd/selection/rows", [2, 1], r"^samples\.dtd\.selection\.rows: the first, 2, is aft"),
    ("samples/dtd/template", "{classes}", r"^samples\.dtd\.template: \{image\} has to be in it on"),
    # Files.
    ("concepts/months", {"file": "no"}, r"^concepts\.months\.file: there is no file 'no'$"),
    ("concepts/months", {"file": "None.txt"}, r"there is no file 'None\.txt'$"),
    ("concepts/months", {"file": "May, " * 60}, r"months\.file: 'May, .*': File name too long$"),
    ("concepts/months", {"file": "a{b}"}, r"months\.file: a path with \['\{', '\}'\] is none"),
    ("labeller/prompt", "no.yaml", r"^labeller\.prompt: there is no file 'no\.yaml'$"),
    (f"{RTP}/pursuit/unrelated_words", "x", r"_words: there is no file 'x' \(so in tet\)$"),
    ("sources/mnist", OWN, r"^sources\.mnist\.path: there is no file or folder 'no/such'$"),
    ("sources/mnist", OWN | {"path": "~/x"}, r"no file or folder '~/x'; ~ is not expanded, write"),
    # The labeller.
    ("labeller/second", "ollama", r"^labeller\.second: ollama is the first already; null, or"),
    ("labeller/second", "openai", r"^labeller\.openai\.base_url: missing; labeller\.backend or"),
]


@pytest.mark.parametrize(("path", "value", "said"), MISTAKES)
def test_a_mistake_is_named_with_what_is_right(paper: Config, path: str, value: Any, said: str):
    paper["concepts"]["spoken"] = {"labelled": {"texts": ["response", "prompt"]}}
    paper["concepts"]["seen"] = {"keywords": {}}
    paper["samples"]["photos"] = PHOTOS
    paper["experiments"]["svhn"] |= CAPTIONED
    paper["experiments"]["mnist"]["k"] = [8]
    paper["experiments"]["gtsrb"] |= {"k": [16], "methods": ["size"], "draws": 2}
    problems = refusal(put(paper, path, value))
    assert any(re.search(said, problem) for problem in problems), problems


@pytest.mark.parametrize(
    ("labeller", "said"),
    [
        ({"backend": "lexicon"}, r"^labeller\.backend: a word list sees no image, and a concept"),
        ({"second": "lexicon"}, r"^labeller\.second: a word list sees no image, and a concept"),
        ({"keywords": {"prompt": "no"}}, r"^labeller\.keywords\.prompt: there is no file 'no'$"),
        ({"second": "openai"}, r"^labeller\.keywords\.openai\.model: missing; labeller\.backend"),
        ({"keywords": {"ollama": {"host": "x"}}}, r"ollama\.host: unknown key; known are"),
        ({"prompt": "no"}, None),  # which is of texts, and none is labelled
    ],
)
def test_keywords_are_asked_of_what_sees_images(paper: Config, labeller: Config, said: str | None):
    paper["concepts"]["seen"] = {"keywords": {}}
    paper["experiments"] = {"mnist": paper["experiments"]["mnist"] | {"concept": "seen"}}
    paper["tables"] = {"figure9": ["mnist"]}
    load_config(paper)
    paper["labeller"] |= labeller
    assert said is None or any(re.search(said, problem) for problem in refusal(paper))
    assert said or load_config(paper)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("build/language_model", "x", r"\.build\.language_model: 'x' is not under models"),
        ("build/samples", "x", r"\.build\.samples: 'x' is not under samples"),
        ("build/samples", "rtp", r"\.build\.samples: rtp have no classes to be learnt"),
        ("build/trained", "x", r"\.build\.trained: there is no file 'x'"),
        ("build/tower/patch_size", 3, r"tower\.image_size: 8 is no multiple of patch_size"),
        ("gguf", "x", r"^models\.smollm2-digits\.gguf: null, since build makes this model"),
    ],
)
def test_a_mistake_in_a_model_that_is_put_together(demo: Config, path: str, value: Any, said: str):
    problems = refusal(put(demo, f"models/smollm2-digits/{path}", value))
    assert any(re.search(said, problem) for problem in problems), problems


def test_an_older_version_s_keys_are_refused_with_the_new_ones(paper: Config):
    for key in MOVED:
        put(paper, key.replace(".", "/"), {"old": 1})
    assert set(refusal(paper)) == {
        f"{key}: an older version's key; it says the same under {now}" for key, now in MOVED.items()
    }


def test_so_many_words_can_be_split_as_a_job_accepts(paper: Config):
    few = schema()["$defs"]["concept"]["then"]["properties"]
    assert few["words"]["minItems"] == few["top"]["minimum"] == MIN_WORDS
    paper["concepts"]["months"] = {"words": ["May", "June"], "selection_share": 1.0}
    load_config(paper)


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
    put(paper, "experiments/svhn", {"like": "mnist", "samples": "svhn", "k": "many"})
    put(paper, "score/min_count", -1)
    assert {problem.split(":")[0] for problem in refusal(paper)} == {
        *("sead", "publish.published_heads.4", "publish.published_heads.8", "score.min_count"),
        *("samples.rtp.source", "experiments.mnist.k", "experiments.svhn.k"),
    }


@pytest.mark.parametrize("name", ["weather", "nowhere"])
def test_of_an_experiment_that_is_like_none_only_that_is_told(paper: Config, name: str):
    put(paper, "experiments/weather", {"like": name})
    [problem] = refusal(paper)
    assert problem.startswith("experiments.weather.like: ")


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
    for value in (3, ["mistral"]):
        assert len(refusal(put(paper, section, value))) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [("models/mistral/layers", -3), ("samples/eurosat", []), (f"{IMAGES}/measures", None)],
)
def test_what_the_schema_refuses_has_no_other_consequences(paper: Config, path: str, value: Any):
    problems = refusal(put(paper, path, value))
    assert {problem.split(": ")[0].split(".")[-1] for problem in problems} == {path.split("/")[-1]}


def test_no_mistake_hides_another(paper: Config):
    put(paper, "models/mistral/source", "x")
    put(paper, "sources/mnist", OWN)
    put(paper, "concepts/file", {"file": "no"})
    put(paper, "experiments/rtp/concept", "file")
    assert [problem.split(": ")[0] for problem in refusal(paper)] == [
        *("models.mistral.source", "sources.mnist.path", "concepts.file.file")
    ]


def test_an_experiment_outside_all_tables_names_what_is_there(paper: Config):
    put(paper, "tables/figure1", [])
    put(paper, "experiments/mnist/model", "x")
    assert "experiments.mnist.model: 'x' is not under models" in refusal(paper)[0]


def test_splits_are_not_named_elsewhere(paper: Config):
    put(paper, "experiments/rtp/splits", 2)
    put(paper, "experiments/x", {"like": "rtp-split1"})
    assert any("x.like: rtp-split1 is made of splits" in own for own in refusal(paper))
    put(paper, "experiments/rtp-split1", {"like": "rtp", "k": [4]})
    assert any("rtp.splits: rtp-split1 is one of these" in own for own in refusal(paper))


def test_a_key_that_stands_twice_is_named(paper: Config, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("run: x\nscore: {min_count: 40}\nseed: 1\nscore:\n  a: 0\n  a: 1\n")
    with pytest.raises(UserError) as caught:
        load_config(paper, [path, tmp_path / "not.there"])
    assert re.findall(r"- (\w+): stands in .*mine\.yaml (.*); only the", str(caught.value)) == [
        *(("score", "twice, in lines 2 and 4"), ("a", "twice, in lines 5 and 6"))
    ]
    path.write_text("a: &a {b: [*a, *a]}\nb: &b {k: 1}\nc: {k: 1}\nd: {<<: *a, <<: *b}\n")
    load_config(paper, [path])


def test_what_does_not_run_may_lack_what_it_needs(paper: Config):
    put(paper, "samples/tet/source", "x")
    put(paper, "tables/table2", ["rtp"])
    put(paper, "experiments/tet/measures", ["toxicity"])
    owners(load_config(paper))


# Every key, wrong in every way that its schema knows.


@cache
def full_demo() -> Config:
    """Return the demo's config with all its keys, and an entry of each catalogue."""
    config = shipped.config("demo")
    config["classifiers"] = {"mine": {"source": "garak", "label": "toxic"}}
    config["concepts"]["seen"] = {"keywords": {}}
    return load_config(config)


def every_key(own: Config, path: str = "") -> Iterator[tuple[str, Config]]:
    if "$ref" in own:
        own = schema()["$defs"][own["$ref"].rsplit("/", 1)[1]] | own
    if path:
        yield path, own
    for name, inner in own.get("properties", {}).items():
        yield from every_key(inner, f"{path}.{name}" if path else name)
    entries = own.get("additionalProperties")
    kinds = (entries.get("then"), entries.get("else"), entries) if isinstance(entries, dict) else ()
    for kind in kinds:
        if kind and "$ref" in kind:
            yield from every_key(kind, f"{path}.*")


KEYS = dict(every_key(schema()))
OF_TYPE = {"string": "text", "number": 0.5, "integer": 1, "boolean": True, "null": None}
OF_TYPE |= {"array": [], "object": {}}
BEYOND = {"minimum": -1, "maximum": 1, "exclusiveMinimum": 0, "exclusiveMaximum": 0}
REFUSED = {"enum": "none of them", "pattern": "@/../\n", "minLength": "", "maxLength": "x" * 1000}
REFUSED |= {"minItems": [], "maxItems": [1] * 9, "minProperties": {}, "uniqueItems": ["x", "x"]}


def wrong_values(own: Config) -> Iterator[Any]:
    kinds = own.get("type", [])
    kinds = set(kinds if isinstance(kinds, list) else [kinds])
    if "number" in kinds:
        kinds.add("integer")
        yield from (float("inf"), float("nan"))
    yield from (OF_TYPE[kind] for kind in OF_TYPE if kinds and kind not in kinds)
    yield from (value for rule, value in REFUSED.items() if rule in own)
    yield from (own[rule] + by for rule, by in BEYOND.items() if rule in own)
    if "items" in own:
        yield from ([value] for value in wrong_values(own["items"]))


def place_of(key: str) -> str:
    """Return where the parent of a key such as ``models.*.build.trained`` stands."""
    found: list[tuple[str, Any]] = [("", full_demo())]
    for part in key.split(".")[:-1]:
        found = [
            (f"{path}{name}/", inner[name])
            for path, inner in found
            for name in (inner if part == "*" else [part])
            if isinstance(inner.get(name), dict)
        ]
    return found[0][0]


def batches() -> dict[tuple, list[tuple[str, Any]]]:
    """Give paths and wrong values, together where none takes another's place away."""
    found = defaultdict(list)
    for key, own in KEYS.items():
        parent, _, name = key.rpartition(".")
        if name == "*":
            continue
        needed = name in (KEYS[parent] if parent else schema()).get("required", [])
        holds_others = any(other.startswith(f"{key}.") for other in KEYS)
        depth = key.count(".") if holds_others else "leaf"
        for number, value in enumerate([*wrong_values(own), *([GONE] if needed else [])]):
            found[depth, number].append((place_of(key) + name, value))
        found["misspelt", 0].append((f"{place_of(key)}{name}x", None))
    return found


BATCHES = batches()
RIGHT = re.compile(
    r"unknown key; |: missing|is not |less than|greater than|does not match|too long|too short"
    r"|non-empty|enough properties|non-unique"
)


def test_every_key_is_wrong_in_several_ways():
    paths = [path for mistakes in BATCHES.values() for path, _ in mistakes]
    assert len(paths) > 700
    assert {"run", "experiments/rtp/k", "models/mistral/dtype", "labeller/lexicon/where"} <= {
        *paths
    }


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: "-".join(map(str, batch)))
def test_a_wrong_key_is_named_with_what_is_right(batch: tuple):
    config = copy.deepcopy(full_demo())
    for path, value in BATCHES[batch]:
        put(config, path, value)
    problems = refusal(config)
    assert all(map(str.isprintable, problems)), problems
    for path, value in BATCHES[batch]:
        name = re.escape(path.replace("/", "."))
        told = [problem for problem in problems if re.match(rf"{name}(\.\d+)?: ", problem)]
        assert told and all(map(RIGHT.search, told)), (path, value, problems)
