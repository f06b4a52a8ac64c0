"""Whatever the config's schema accepts is planned, and run once, on the tiny model.

The choices are read out of the schema: lists of values, true and false, and null beside an example.
A few configs hold each of them at least once.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import yaml
from checkout import ROOT, Checkout, Preloaded, make_checkout
from snakemake.utils import update_config
from tiny import WORDS

pytestmark = pytest.mark.xdist_group("combinations")

SCHEMA = yaml.safe_load((ROOT / "schemas/config.schema.yaml").read_text(encoding="utf-8"))
# What a key holds that may also be null. A new one is missed by the test that reads the schema.
EXAMPLES: dict[str, Any] = {
    "samples.*.where": {"challenging": True},
    "samples.*.sample": 20,
    "concepts.*.top": 10,
    "labeller.ollama.host": "http://127.0.0.1:9",
    "labeller.lexicon.where": {"word": WORDS},
    "experiments.*.last_layer": 1,
    "experiments.*.count_draws": 1,
    "experiments.*.positions": "prompt",
    "experiments.*.vocabulary.heads": ["L1.H2", "L0.H0"],
    "publish.published_heads": {1: 16},
    "compute.image": "image.sif",
    "compute.memory_gb": 1,
}
# Choices that only a plan can try, since they need a server, a GPU or an image.
PLANNED = {
    "labeller.backend": ["ollama", "openai"],
    "labeller.second": ["ollama", "openai", "lexicon"],
    "labeller.ollama.host": ["http://127.0.0.1:9"],
    "compute.device": ["cuda"],
    "compute.image": ["image.sif"],
}
# Keys that others decide, or whose values other tests try.
ELSEWHERE = {
    "sources.*.kind": "test_download.py",
    "sources.*.repo_type": "test_download.py",
    "samples.*.references": "test_run.py",
    "samples.*.excluding": "test_run.py",
    "models.*.bits": "test_estimate.py",
    "models.*.gguf": "test_convert.py",
    "models.*.build": "test_run.py",
    "models.*.build.trained": "test_config.py",
    "experiments.*.concept": "test_run.py",
    "experiments.*.at": "test_run.py",
    "experiments.*.classifier": "test_run.py",
    "experiments.*.heads_from": "test_run.py",
    "experiments.*.measures": "test_run.py",
    "labeller.openai.base_url": "test_config.py",
    "labeller.openai.model": "test_config.py",
    "labeller.keywords.openai.model": "test_config.py",
    "labeller.lexicon.source": "test_config.py",
    "labeller.lexicon.files": "test_config.py",
}
# The tiny run's samples are prompts.
IMPOSSIBLE = {"experiments.*.positions": ["image"]}
ENTRIES = {
    "models": ["tiny"], "samples": ["rtp"], "concepts": ["toxic"], "experiments": ["rtp", "asked"]
}  # fmt: skip


def offered(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, list]]:
    """Yield each key of the schema with its choices; None stands for what is no list of values."""
    if "$ref" in schema:
        schema = {**SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]], **schema}
    items, key = schema.get("items", {}), ".".join(path)
    one_of = items.get("enum") or ([True, False] if items.get("type") == "boolean" else [])
    if one_of:
        least = [schema["contains"]["const"]] if "contains" in schema else [one_of[-1]]
        yield key, [one_of, one_of[:1], least]
    elif schema.get("type") == "boolean":
        yield key, [True, False]
    elif "enum" in schema:
        yield key, schema["enum"]
    elif "null" in schema.get("type", []):
        yield key, [None, ...]
    inner = dict(schema.get("properties", {}))
    if isinstance(schema.get("additionalProperties"), dict):
        inner["*"] = schema["additionalProperties"].get("else", schema["additionalProperties"])
    for name, own in inner.items():
        yield from offered(own, (*path, name))


def factors(planned: bool) -> dict[str, list]:
    """Return the choices of every key, by its path in the tiny config."""
    found = {}
    for key, values in offered(SCHEMA):
        if key in ELSEWHERE:
            continue
        values = [EXAMPLES[key] if value is ... else value for value in values]
        values = [value for value in values if value not in IMPOSSIBLE.get(key, [])]
        if not planned:
            values = [value for value in values if value not in PLANNED.get(key, [])]
        before, star, after = key.partition("*")
        for name in ENTRIES[before.rstrip(".")] if star else [""]:
            found[f"{before}{name}{after}"] = values
    return found


def rows(choices: dict[str, list]) -> list[dict[str, Any]]:
    """Return as few configs as hold every choice, each key in an order of its own."""
    orders = {
        key: random.Random(key).sample(values, len(values)) for key, values in choices.items()
    }
    return [
        {key: order[number % len(order)] for key, order in orders.items()}
        for number in range(max(map(len, orders.values())))
    ]


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        inside = config
        for name in parents:
            inside = inside.setdefault(name, {})
        inside[last] = value
    return config


@pytest.fixture(scope="module")
def anywhere(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Give a checkout that runs in another folder than its own, with files beside the workflow."""
    checkout = make_checkout(tmp_path_factory.mktemp("combinations") / "checkout", Preloaded)
    folder = checkout.folder
    (folder / "data/unrelated.txt").write_text("\n".join(WORDS))
    # Words in upper case, also where those of prompts are labelled.
    prompts = folder / "own/prompts.jsonl"
    told = [json.loads(line) for line in prompts.read_text().splitlines()]
    for row in told:
        row["prompt"]["text"] = row["prompt"]["text"].title()
    prompts.write_text("".join(f"{json.dumps(row)}\n" for row in told))
    (folder / "work").mkdir()
    return checkout


def configure(checkout: Checkout, name: str, row: dict[str, Any]) -> None:
    """Write an overlay: the tiny run, as small as it may be, with a row of choices."""
    overlay = yaml.safe_load((checkout.folder / "configs/tiny.yaml").read_text())
    pursuit = {"unrelated_words": "data/unrelated.txt", "iterations": 3}
    vocabulary = {"top": 2, "tokens": 2, "draws": 20, "neighbours": 20}
    small = {
        "run": name,
        "concepts": {"toxic": {"top": 10}},
        "defaults": {"k": [1], "count_draws": 1, "pursuit": pursuit, "vocabulary": vocabulary},
        "experiments": {"asked": {"model": "tiny", "samples": "rtp"}},
        "tables": {"table1": ["asked"]},
        "compute": {"parts": 1},
        "labeller": {"openai": {"base_url": "http://127.0.0.1:9/v1", "model": "x"}},
    }
    update_config(overlay, small)
    update_config(overlay, nested(row))
    if overlay["labeller"].get("second") == overlay["labeller"]["backend"]:
        overlay["labeller"]["second"] = None
    for source in overlay["sources"].values():
        source["path"] = str(checkout.folder / source["path"])
    (checkout.folder / f"configs/{name}.yaml").write_text(yaml.safe_dump(overlay))


def test_every_choice_of_the_schema_is_tried_or_named() -> None:
    keys = {key for key, _ in offered(SCHEMA)}
    assert keys >= {*EXAMPLES, *PLANNED, *ELSEWHERE}, "a key that the schema lacks"
    nullable = {key for key, values in offered(SCHEMA) if ... in values}
    assert nullable <= {*EXAMPLES, *ELSEWHERE}, "a key that may be null needs an example"
    for planned in (True, False):
        choices = factors(planned)
        tried = rows(choices)
        for key, values in choices.items():
            assert all(value in [row[key] for row in tried] for value in values), key


@pytest.mark.parametrize("number", range(len(rows(factors(True)))))
def test_it_is_planned(anywhere: Checkout, number: int) -> None:
    configure(anywhere, f"plan-{number}", rows(factors(True))[number])
    planned = anywhere.planned("--directory", "work", overlay=f"plan-{number}")
    assert planned["publish_heads"] == 1


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(rows(factors(False)))))
def test_it_runs(anywhere: Checkout, number: int) -> None:
    name, row = f"run-{number}", rows(factors(False))[number]
    configure(anywhere, name, row)
    made = anywhere.folder / "work/results" / name
    names = ["tables/table2.csv", "tables/table1.csv", "tables/published.csv", "preflight.json"]
    targets = [f"results/{name}/{file}" for file in names]
    anywhere.snakemake(*targets, "--directory", "work", overlay=name)
    table = pd.read_csv(made / "tables/table2.csv")
    assert set(table["method"]) <= {*row["experiments.rtp.methods"], "random"}
    if row["concepts.toxic.case_sensitive"]:
        words = pd.read_csv(made / "words/rtp.csv")["word"]
        assert any(word != word.casefold() for word in words)
        before = pd.read_parquet(made / "scores/rtp.words.parquet")
        counted = before[(before["measure"] == "occurrences") & (before["before"] > 0)]["word"]
        assert len(counted) == 0 or any(word != word.casefold() for word in counted)


@pytest.fixture(scope="module")
def many(anywhere: Checkout) -> Checkout:
    """Give the checkout with an overlay of the choices of configs/multiverse.yaml, on tiny rtp."""
    varied = yaml.safe_load((ROOT / "configs/multiverse.yaml").read_text(encoding="utf-8"))
    configure(anywhere, "many", {})
    path = anywhere.folder / "configs/many.yaml"
    overlay = yaml.safe_load(path.read_text())
    overlay["multiverse"] = varied["multiverse"] | {
        "of": ["rtp"], "all": {"measures": ["expected"], "k": [1], "draws": 2}
    }  # fmt: skip
    path.write_text(yaml.safe_dump(overlay))
    return anywhere


TABLE = "results/many/tables/multiverse-rtp.csv"


def test_a_multiverse_plans_what_differs_and_no_more(many: Checkout) -> None:
    """Of thirteen variants one makes no other choice on the tiny run, whose first layer is 0."""
    planned = many.planned(TABLE, "--directory", "work", overlay="many")
    shared = {"respond": 2, "label_responses": 2, "prepare_samples": 1, "cache_activations": 4}
    words = {"split_words": 4, "build_dictionary": 4, "rank_heads": 12}
    own = dict.fromkeys(["select_heads", "draw_controls", "measure_expected", "measure"], 12)
    found = {rule: planned[rule] for rule in (*shared, *words, *own)}
    assert found == {**shared, **words, **own} and "intervene" not in planned


@pytest.mark.long
def test_every_variant_of_the_multiverse_runs(many: Checkout) -> None:
    many.snakemake(TABLE, "--directory", "work", overlay="many")
    table = pd.read_csv(many.folder / "work" / TABLE)
    assert table["experiment"].nunique() == 13 and table["experiment"].iloc[0] == "rtp-as-is"
    assert (table.groupby("experiment")["method"].nunique() >= 2).all()
    assert (table["value"] >= 0).all() and table["opposed"].notna().any()
