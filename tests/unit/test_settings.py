"""In what a run is not the paper's; what the schema says of each key, and where it is printed."""

import re
from pathlib import Path
from typing import Any

import pytest
from headpursuit.publish.docs import documents
from headpursuit.publish.settings import (
    DEMO,
    differences,
    leaves,
    schema,
    shipped_config,
    unlike_paper,
)
from headpursuit.run.config import load_config
from headpursuit.run.experiments import merge
from headpursuit.run.files import shipped

ROOT = Path(__file__).parents[2]


def changed(**changes: Any) -> dict[str, list[str]]:
    return unlike_paper(load_config(merge(shipped("config.yaml"), changes)))


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({}, {}),
        # The tables say alpha and place of each row.
        ({"experiments": {"tet": {"alpha": 0.0, "at": ["all", "response"]}}}, {}),
        (
            {"experiments": {"tet": {"pursuit": {"norm": "l2"}}}},
            {"tet": ["experiments.tet.pursuit.norm"]},
        ),
        ({"samples": {"rtp": {"sample": 40}}}, {"rtp": ["samples.rtp.sample"]}),
        (
            {"concepts": {"toxic": {"top": 50}}},
            {"rtp": ["concepts.toxic.top"], "tet": ["concepts.toxic.top"]},
        ),
        (
            {"samples": {"mnist": {"per_class": {"selection": 3}}}},
            {"mnist": ["samples.mnist.per_class.selection"]},
        ),
        # One with a name of its own is compared with the paper's of the same samples.
        (
            {
                "experiments": {"mine": {"like": "tet", "positions": "last"}},
                "tables": {"table2": ["rtp", "tet", "mine"]},
            },
            {"mine": ["experiments.mine.positions"]},
        ),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], differ: dict[str, list[str]]) -> None:
    found = changed(**changes)
    assert {"rtp", "tet", "mnist", "dtd"} <= set(found)
    assert {name: keys for name, keys in found.items() if keys} == differ


def test_the_full_version_is_the_papers_too() -> None:
    full = merge(shipped("config.yaml"), shipped("configs/v2.yaml"))
    found = unlike_paper(load_config(full))
    assert {"rtp", "mnist-gemma", "colours-captions", "answers"} <= set(found)
    assert not any(found.values())
    other = merge(full, {"experiments": {"colours-captions": {"pursuit": {"norm": "l2"}}}})
    keys = unlike_paper(load_config(other))["colours-captions-qwen"]  # which is like it
    assert keys == ["experiments.colours-captions-qwen.pursuit.norm"]
    # What one of the texts says of an experiment of both is the paper's.
    toxicity = {"experiments": {"rtp": full["experiments"]["rtp"]}}
    toxicity |= {key: full[key] for key in ("sources", "classifiers")}
    assert not any(changed(**toxicity).values())


def test_what_the_paper_lacks_is_not_compared() -> None:
    mine = {"source": "real-toxicity-prompts", "files": "prompts.jsonl", "text": "prompt.text"}
    own = {"model": "mistral", "samples": "own", "concept": "toxic", "measures": ["occurrences"]}
    found = changed(
        samples={"own": mine | {"template": "{prompt}"}},
        experiments={"own": own},
        tables={"table2": ["rtp", "own"]},
    )
    assert "own" not in found and found["rtp"] == []


def test_every_key_is_described_and_every_open_choice_has_its_reason() -> None:
    found = dict(leaves(schema()))
    assert len(found) > 100
    for path, leaf in found.items():
        assert leaf.get("description"), path
        if "paper" in leaf:
            assert leaf.get("reason"), path
            # Settled, with the place; or open, or nothing of the kind.
            assert leaf["paper"].count("(") == leaf["paper"].count(")"), path  # a comma cuts it
            assert re.search(r"^open|^no |seed|v2|table \d", leaf["paper"]), path


@pytest.mark.parametrize("name", ["choices.md", "columns.md"])
def test_the_documentation_is_up_to_date(name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert documents()[name] == written, "run `make docs`"


def test_files_that_are_named_are_there() -> None:
    named = re.compile(
        r"(?<![\w/.{}<>*-])(?:benchmarks|configs|data|docs|envs|profiles|prompts|report|rules|schemas"
        r"|scripts|tests)/[\w./-]*\.\w+(?![\w*{<])"
    )
    examples = {"data/tools.txt", "prompts/original.yaml"}
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    folders = ("configs", "docs", "envs", "profiles", "rules", "schemas", "scripts", "benchmarks")
    texts = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    texts += [ROOT / name for name in ("README.md", "Snakefile", "config.yaml", "Makefile")]
    read = 0
    for path in texts:
        if path.suffix in (".md", ".yaml", ".smk", ".py") or path.parent == ROOT:
            text = path.read_text(encoding="utf-8")
            found = set(named.findall(text)) - examples
            read += len(found)
            assert not [name for name in found if not (ROOT / name).exists()], path
            assert set(re.findall(r"\btest_\w+\.py\b", text)) <= tests, path
    assert read > 100


def test_variants_are_told_from_other_experiments():
    """By what differs of the experiment and its concept; other words or heads are no variant."""
    own = shipped_config(DEMO)
    concepts = {**own["concepts"], "all": {**own["concepts"]["toxic"], "rows": "all"}}
    first = own["experiments"]["rtp"]
    l2 = {**first, "pursuit": {**first["pursuit"], "norm": "l2"}}
    experiments = {
        **{"rtp": first, "l2": l2, "rows": {**first, "concept": "all"}},
        "both": {**l2, "concept": "all", "first_layer": 0},
        "words": {**first, "concept": "months"},
        "heads": {**first, "heads_from": "l2"},
        "prompts": {**first, "samples": "rtp-prompts"},
    }
    config = {**own, "concepts": concepts, "experiments": experiments}
    assert differences(config, list(experiments)) == {
        "rtp": {},
        "l2": {"pursuit.norm": "l2"},
        "rows": {"concept.rows": "all"},
        "both": {"pursuit.norm": "l2", "concept.rows": "all", "first_layer": "0"},
        **dict.fromkeys(("words", "heads", "prompts")),
    }
