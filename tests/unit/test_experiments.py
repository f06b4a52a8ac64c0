"""What experiments have in common, and what each stage of one stands on."""

from typing import Any

import pytest
from headpursuit.run.config import load_config
from headpursuit.run.expand import multiverse
from headpursuit.run.experiments import (
    STAGES,
    condition_name,
    conditions,
    family_of,
    heads_of,
    owners,
    running,
    stage_owners,
    tables_of,
)
from headpursuit.run.params import hub_ids

Config = dict[str, Any]
EFFECTS = ["scaled", "expected", "scores"]
HEADS = ["selected", "random", *EFFECTS]
CACHE = ["activations", "rankings", *HEADS, "decomposition", "lens"]
WORDS = ["baseline", "labels", "words", "dictionary", "rankings", *HEADS]


def with_variant(paper: Config, parent: str = "rtp", **changes: Any) -> Config:
    paper["experiments"]["variant"] = {"like": parent, **changes}
    paper["tables"]["mine"] = ["variant"]
    paper["classifiers"] = {"mine": {"source": "mnist", "label": "toxic"}}
    paper["samples"]["triviaqa"]["references"] = "answer.value"
    return load_config(paper)


def test_a_variant_has_its_parents_keys_but_for_its_own(paper: Config) -> None:
    paper["defaults"] = {"k": [4], "pursuit": {"norm": "l2", "center": False}}
    paper["experiments"]["tet"]["pursuit"] = {"iterations": 7}
    own = with_variant(paper, "tet", pursuit={"center": True})["experiments"]["variant"]
    assert (own["samples"], own["concept"], own["k"]) == ("tet", "toxic", [4])
    assert own["pursuit"] == {
        "iterations": 7, "norm": "l2", "center": True, "normalise_atoms": False,
        "fold_norm_gain": False, "unrelated_words": "data/unrelated_words.txt",
    }  # fmt: skip
    assert "like" not in own and "mine" not in own


@pytest.mark.parametrize(
    ("parent", "changes", "own"),
    [
        ("rtp", {}, []),
        ("rtp", {"measures": ["occurrences"]}, ["scores"]),
        ("rtp", {"measures": ["toxicity"], "classifier": "mine"}, ["scores"]),
        ("rtp", {"classifier": "mine"}, []),  # which nothing asks
        ("countries", {"measures": ["f1"]}, ["scores"]),
        ("rtp", {"alpha": 5}, EFFECTS),
        ("rtp", {"alpha": [-1]}, []),
        ("rtp", {"alpha": [-1, 5]}, EFFECTS),
        ("rtp", {"at": ["all"]}, []),
        ("rtp", {"at": "response"}, EFFECTS),
        ("rtp", {"draws": 12}, ["random", *EFFECTS]),
        ("rtp", {"count_draws": 2}, ["scaled", "scores"]),
        ("rtp", {"k": [8]}, HEADS),
        ("rtp", {"methods": ["size"]}, HEADS),
        ("rtp", {"first_layer": 3}, HEADS),
        ("rtp", {"pursuit": {"norm": "l2"}}, ["rankings", *HEADS, "decomposition"]),
        # Listed words are those of whoever lists them first, here experiments.months.
        ("rtp", {"concept": "months"}, ["labels", "rankings", *HEADS]),
        ("rtp", {"signed": True}, EFFECTS),
        ("rtp", {"split": 1}, ["words", "dictionary", "rankings", *HEADS]),
        ("rtp", {"positions": "last"}, CACHE),
        ("rtp", {"generation": {"temperature": 1.0}}, WORDS),
        ("rtp", {"model": "llava-next", "concept": "months"}, [s for s in STAGES if s != "words"]),
        ("rtp", {"samples": "tet"}, []),
        ("mnist", {"normalise": []}, ["scores"]),
        ("mnist", {"generation": {"max_new_tokens": 9}}, ["baseline", "labels", *EFFECTS]),
        ("mnist", {"heads_from": "svhn"}, EFFECTS),
        ("triviaqa", {"vocabulary": {"per_sample": 3}}, ["lens"]),
        ("triviaqa", {"vocabulary": {"draws": 50}}, ["decomposition"]),
        ("triviaqa", {"vocabulary": {"top": 3}}, []),
    ],
)
def test_a_variant_shares_all_that_does_not_differ(
    paper: Config, parent: str, changes: Config, own: list[str]
) -> None:
    found = owners(with_variant(paper, parent, **changes))["variant"]
    assert {stage for stage, owner in found.items() if owner == "variant"} == set(own)
    if changes.get("samples"):
        assert set(found.values()) == {"tet"}  # it is another experiment's equal
    if changes.get("heads_from"):
        assert found["rankings"] == found["selected"] == "svhn"


def test_heads_from_elsewhere_need_no_activations(paper: Config) -> None:
    """Of other questions than those that choose heads, such as the full version's."""
    paper["samples"]["others"] = paper["samples"]["triviaqa"]
    changes = {"samples": "others", "heads_from": "countries", "measures": ["occurrences"]}
    paper["experiments"]["answers"] = {"like": "countries", **changes}
    paper["tables"] = {"one": ["answers"]}
    made = stage_owners(load_config(paper))
    assert (made["activations"], made["rankings"]) == (["triviaqa"], ["countries"])
    assert made["scaled"] == made["baseline"] == ["answers"]


def test_keywords_stand_on_the_images_alone(paper: Config) -> None:
    """No response is needed to rank heads by them; a toxic word's labels need the baseline's."""
    paper["concepts"]["seen"] = {"keywords": {}, "top": 40}
    paper["experiments"]["mnist"] |= {"concept": "seen", "measures": []}
    paper["tables"] = {"one": ["mnist"]}
    changes = {"generation": {"max_new_tokens": 9}, "pursuit": {"norm": "l2"}}
    config = with_variant(paper, "mnist", **changes)
    found = owners(config)["variant"]
    assert found["labels"] == found["words"] == found["activations"] == "mnist"
    assert found["baseline"] == found["rankings"] == "variant"
    made = stage_owners(config)
    assert (made["labels"], made["baseline"]) == (["mnist"], [])
    config["concepts"]["few"] = config["concepts"]["seen"] | {"keywords": {"per_image": 3}}
    config["experiments"]["variant"]["concept"] = "few"
    assert owners(config)["variant"]["labels"] == "variant"


def test_splits_are_experiments_that_follow_theirs(paper: Config) -> None:
    config = with_variant(paper, splits=3, pursuit={"norm": "l2"})
    family = ["variant", "variant-split1", "variant-split2"]
    assert config["tables"]["mine"] == [n for n in config["experiments"] if n in family] == family
    own = config["experiments"]
    assert [own[name]["split"] for name in family] == [0, 1, 2]
    assert own["variant-split2"] == own["variant"] | {"split": 2, "splits": 1}
    assert [family_of(config, name) for name in [*family, "rtp"]] == ["variant"] * 3 + ["rtp"]
    owned = [owners(config)[name] for name in family]
    assert {own["activations"] for own in owned} == {own["labels"] for own in owned} == {"rtp"}
    assert [own["words"] for own in owned] == ["rtp", *family[1:]]  # the first is rtp's own split
    assert load_config(config) == config


def test_a_multiverse_is_variants_that_share_all_but_their_choices(demo: Config) -> None:
    demo["multiverse"] = {
        "of": ["pronouns", "rtp"],
        "all": {"measures": ["expected"], "k": [8], "draws": 3},
        "choices": {"pursuit.norm": ["l2"], "concept.rows": ["all"], "alpha": [-1.0, 1.0]},
        "together": [{"generation.seed": 1, "split": 2}],
    }
    demo["experiments"]["rtp"]["splits"] = 2
    config = load_config(demo)
    own, varied = config["experiments"], multiverse(config)
    labels = ["as-is", "norm-l2", "rows-all", "alpha-minus1-0", "alpha-1-0", "seed-1-split-2"]
    for base in ("rtp", "pronouns"):
        names = [f"{base}-{label}" for label in labels]
        assert config["tables"][f"multiverse-{base}"] == list(varied[base]) == names
        as_is = own[base] | {"measures": ["expected"], "k": [8], "draws": 3, "splits": 1}
        assert own[names[0]] == as_is
        assert own[names[1]]["pursuit"] == own[base]["pursuit"] | {"norm": "l2"}
        assert own[names[2]] == as_is | {"concept": names[2]}
        theirs = config["concepts"][own[base]["concept"]]
        assert config["concepts"][names[2]] == theirs | {"rows": "all"}
        assert (own[names[5]]["generation"]["seed"], own[names[5]]["split"]) == (1, 2)
    found = owners(config)
    for stage, owner in {"labels": "rtp", "activations": "rtp", "rankings": "rtp-norm-l2"}.items():
        assert found["rtp-norm-l2"][stage] == owner
    assert found["rtp-rows-all"]["labels"] == "rtp"
    assert found["pronouns-rows-all"]["activations"] == "rtp"
    assert found["rtp-seed-1-split-2"]["baseline"] == "pronouns-seed-1-split-2"
    assert load_config(config) == config


def test_the_experiment_named_like_its_samples_owns_what_is_shared(paper: Config) -> None:
    found = owners(load_config(paper))
    assert found["months"]["activations"] == found["countries"]["samples"] == "triviaqa"
    assert found["months"]["words"] == "months"
    paper["samples"]["other"] = paper["samples"]["triviaqa"]
    for name in ("triviaqa", "countries", "months"):
        paper["experiments"][name]["samples"] = "other"
    assert owners(load_config(paper))["months"]["activations"] == "triviaqa"  # the first


def test_a_parent_owns_what_it_shares_wherever_it_stands(paper: Config) -> None:
    """And of two that are like none, the first in the config."""
    own = {"model": "mistral", "samples": "triviaqa", "concept": "months"}
    paper["experiments"] = {
        "grandchild": {"like": "child", "alpha": 0.0},
        "child": {"like": "parent", "k": [8]},
        "later": {**own, "pursuit": {"norm": "l2"}},
        "parent": own,
    }
    paper["tables"] = {"mine": ["grandchild", "parent", "later"]}
    config = load_config(paper)
    found = owners(config)
    assert found["parent"]["activations"] == found["grandchild"]["activations"] == "later"
    assert found["grandchild"]["rankings"] == "parent"
    assert found["grandchild"]["selected"] == "child"
    assert found["grandchild"]["scaled"] == "grandchild"
    assert owners(load_config(config)) == found  # as a finished run's config.yaml is read


def test_what_runs_is_what_is_published(paper: Config) -> None:
    every = {kind: list(tables_of(load_config(paper), kind)) for kind in ("ratios", "heads")}
    assert every == {"ratios": ["table2", "figure1"], "heads": ["table1"]}
    assert list(tables_of(load_config(paper), "overlaps")) == ["concepts"]
    paper["experiments"]["other"] = {"like": "mnist", "heads_from": "dtd"}
    paper["tables"] = {"mine": ["other"], "none": []}
    config = load_config(paper)
    assert running(config) == ["other", "dtd"]
    assert tables_of(config, "ratios") == {"mine": ["other"]}
    assert heads_of(config, "other") == "dtd"
    # With the heads of elsewhere go their random ones.
    assert conditions(config, "other", "occurrences") == conditions(config, "dtd", "occurrences")
    assert owners(config)["other"]["random"] == "dtd"
    # Also where it comes first, and is named like its samples.
    mine = {"mnist": {**paper["experiments"]["mnist"], "heads_from": "dtd", "methods": ["somp"]}}
    paper["experiments"] = mine | {"dtd": {**paper["experiments"]["mnist"], "samples": "dtd"}}
    paper["tables"] = {"mine": ["mnist"]}
    found = owners(load_config(paper))
    assert {found[name]["selected"] for name in mine} == {found["mnist"]["rankings"]} == {"dtd"}


def test_conditions(paper: Config) -> None:
    assert condition_name("somp", 16) == "somp-k16"
    assert condition_name("random", 16, 3) == "random-k16-d03"
    assert condition_name("somp", 16, alpha=-1) == "somp-k16"
    for alpha, name in ((5, "a5"), (5.0, "a5"), (0.5, "a0.5"), (0, "a0"), (-2.0, "a-2")):
        assert condition_name("somp", 16, alpha=alpha) == f"somp-k16-{name}"
    assert condition_name("somp", 16, alpha=0.5, at="image") == "somp-k16-a0.5-image"
    assert condition_name("random", 16, 3, 5) == "random-k16-d03-a5"
    assert condition_name("somp", 16, at="response") == "somp-k16-response"
    config = with_variant(paper, k=[4, 8], draws=3, count_draws=1)
    expected = list(conditions(config, "variant", "expected"))
    assert expected[:4] == ["somp-k4", "somp-k8", "logit_lens-k4", "logit_lens-k8"]
    assert len(expected) == len(set(expected)) == 4 + 2 * 3
    counted = conditions(config, "variant", "occurrences")
    assert [name for name in counted if "random" in name] == ["random-k4-d00", "random-k8-d00"]
    own = config["experiments"]["variant"]
    own |= {"alpha": [-1, 5], "at": ["all", "response"], "methods": ["somp"], "k": [4]}
    assert conditions(config, "variant", "occurrences") == {
        "somp-k4": ("somp-k4", -1, "all"),
        "somp-k4-response": ("somp-k4", -1, "response"),
        "somp-k4-a5": ("somp-k4", 5, "all"),
        "somp-k4-a5-response": ("somp-k4", 5, "response"),
        "random-k4-d00": ("random-k4-d00", -1, "all"),
        "random-k4-d00-response": ("random-k4-d00", -1, "response"),
        "random-k4-d00-a5": ("random-k4-d00", 5, "all"),
        "random-k4-d00-a5-response": ("random-k4-d00", 5, "response"),
    }


def test_a_package_is_no_repository_of_the_hub(demo: Config, paper: Config) -> None:
    assert hub_ids(paper, ["mistral"]) == {"mistral": "mistralai/Mistral-7B-Instruct-v0.2"}
    assert hub_ids(demo, ["smollm2"]) == {"smollm2": "smollm2"}
