"""In what a run is not the paper's."""

from typing import Any

import pytest
import yaml
from headpursuit.publish.settings import PAPER, unlike_paper
from headpursuit.run.config import load_config
from headpursuit.run.experiments import merge


def changed(**changes: Any) -> dict[str, list[str]]:
    config = merge(yaml.safe_load(PAPER.read_text(encoding="utf-8")), changes)
    return unlike_paper(load_config(config))


def test_the_paper_is_like_itself() -> None:
    found = changed()
    assert {"rtp", "tet", "mnist", "dtd"} <= set(found)
    assert not any(found.values())


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"experiments": {"tet": {"alpha": 0.0}}}, {"tet": ["experiments.tet.alpha"]}),
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
                "experiments": {"mine": {"like": "tet", "alpha": 0.0}},
                "tables": {"table2": ["rtp", "tet", "mine"]},
            },
            {"mine": ["experiments.mine.alpha"]},
        ),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], differ: dict[str, list[str]]) -> None:
    assert {name: keys for name, keys in changed(**changes).items() if keys} == differ


def test_what_the_paper_lacks_is_not_compared() -> None:
    mine = {"source": "real-toxicity-prompts", "files": "prompts.jsonl", "text": "prompt.text"}
    found = changed(
        samples={"own": mine | {"template": "{prompt}"}},
        experiments={
            "own": {"model": "mistral", "samples": "own", "concept": "toxic", "measures": ["count"]}
        },
        tables={"table2": ["rtp", "own"]},
    )
    assert "own" not in found and found["rtp"] == []
