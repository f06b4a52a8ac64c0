"""Experiments: what a config says of each, and which files two of them share.

An experiment is samples x model x concept x heads x measures. Each of its stages stands on some of
its keys and on other stages. Two experiments that agree on all that a stage stands on share that
stage's file: it is made once, under the name of one of them, its owner. The config alone decides
it, so Snakemake sees plain files.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

Config = Mapping[str, Any]
STAGES = (
    *("samples", "baseline", "labels", "words", "dictionary", "activations", "rankings"),
    *("selected", "random", "scaled", "expected", "scores", "decomposition", "lens"),
)
# Of an experiment that has its heads from another, these are the other's.
CHOICE = ("rankings", "selected", "random")


def merge(below: Any, above: Any) -> Any:
    """Lay one mapping over another; mappings inside are merged, all else is replaced."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: merge(below.get(key), own) for key, own in above.items()}}


def family_of(config: Config, name: str) -> str:
    """Return the experiment that an experiment is a further split of, or its own name."""
    return name.removesuffix(f"-split{config['experiments'][name]['split']}")


def running(config: Config) -> list[str]:
    """Return the experiments of a run: those of its tables, and those whose heads they use."""
    in_tables = dict.fromkeys(name for own in config["tables"].values() for name in own)
    there = [name for name in in_tables if name in config["experiments"]]
    behind = [own for name in there for own in _back(config, name)]
    return list(dict.fromkeys([*there, *behind]))


def of_images(samples: Mapping[str, Any]) -> bool:
    """Say whether samples are images; else they are prompts."""
    return "selection" in samples


def of_classes(samples: Mapping[str, Any]) -> bool:
    """Say whether samples are images of classes; images with references have none."""
    return "object" in samples


def concept_of(config: Config, experiment: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return an experiment's concept; None if it asks for the whole vocabulary."""
    name = experiment["concept"]
    return None if name is None else config["concepts"][name]


def classifier_of(config: Config, experiment: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what calls an experiment's responses toxic; None where nothing is asked to.

    One that is in no table may lack it.
    """
    named = experiment["classifier"] if "toxicity" in experiment["measures"] else None
    return config["classifiers"].get(named)


def is_asked(concept: Mapping[str, Any] | None) -> bool:
    """Say whether a concept's words are asked of a labeller: in texts, or as keywords of images."""
    return bool({"labelled", "keywords"} & set(concept or ()))


def labeller_of(config: Config, concept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the labeller as it is asked for a concept's words.

    Where it is asked about images, ``labeller.keywords`` says what differs, and the concept how
    many words an image has, ``per_image``.
    """
    own = {**config["labeller"], "per_image": None}
    images = own.pop("keywords")
    del own["second"]
    return {**merge(own, images), **concept["keywords"]} if "keywords" in concept else own


def positions_of(config: Config, experiment: Mapping[str, Any]) -> str:
    """Return which positions an experiment averages."""
    usual = "image" if of_images(config["samples"][experiment["samples"]]) else "prompt"
    return experiment["positions"] or usual


def heads_of(config: Config, name: str) -> str:
    """Return the experiment that chooses an experiment's heads."""
    return _back(config, name)[-1]


def _back(config: Config, name: str) -> list[str]:
    """Return an experiment, the one that it has its heads from, and so on."""
    seen, all_ = [name], config["experiments"]
    while (name := all_[name]["heads_from"]) in all_ and name not in seen:
        seen.append(name)
    return seen


def candidate_layers(experiment: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[int, int]:
    """Return the first and last candidate layer, both included."""
    last = experiment["last_layer"]
    return experiment["first_layer"], model["layers"] - 1 if last is None else last


def condition_name(
    method: str, k: int, draw: int | None = None, alpha: float = -1.0, at: str = "all"
) -> str:
    """Return a condition's name: ``somp-k16``, ``random-k16-d03``, ``somp-k16-a5-response``.

    Without alpha and place it is -1 at all positions, and the name of the set of heads, too.
    """
    return (
        f"{method}-k{k}"
        + ("" if draw is None else f"-d{draw:02d}")
        + ("" if alpha == -1 else f"-a{alpha_name(alpha)}")
        + ("" if at == "all" else f"-{at}")
    )


def alpha_name(alpha: float) -> str:
    """Return an alpha as it is written: ``5``, ``0.5``."""
    return repr(float(alpha)).removesuffix(".0")


def scalings(experiment: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Return an experiment's alphas and places, each with each."""
    alphas, places = (
        own if isinstance(own, list) else [own] for own in (experiment["alpha"], experiment["at"])
    )
    return list(product(map(float, alphas), places))


def conditions(config: Config, name: str, measure: str) -> dict[str, tuple[str, float, str]]:
    """Return an experiment's conditions: of each the name of its heads, its alpha and its place.

    There are all draws for ``expected``, and ``count_draws`` for other measures.
    """
    own = config["experiments"][name]
    few, all_ = own["count_draws"], own["draws"]
    draws = all_ if measure == "expected" or few is None else few
    heads = [*product(own["methods"], own["k"]), *product(["random"], own["k"], range(draws))]
    return {
        condition_name(*chosen, alpha=alpha, at=at): (condition_name(*chosen), alpha, at)
        for chosen in heads
        for alpha, at in scalings(own)
    }


def head_name(layer: int, head: int) -> str:
    """Return a head's name as the paper writes it: ``L18.H27``."""
    return f"L{layer}.H{head}"


def head_of(name: str) -> tuple[int, int]:
    """Return the layer and the head that a name like ``L18.H27`` means; ValueError if none."""
    if not (named := re.fullmatch(r"L(\d+)\.H(\d+)", name)):
        raise ValueError(name)
    return int(named[1]), int(named[2])


def writes_responses(experiment: Mapping[str, Any]) -> bool:
    """Say whether responses are written under an experiment's conditions."""
    return bool(set(experiment["measures"]) - {"expected"})


def stands_on(config: Config, name: str) -> dict[str, tuple[list[Any], list[str]]]:
    """Return the values and the earlier stages that each of an experiment's stages stands on."""
    own = config["experiments"][name]
    images = of_images(config["samples"][own["samples"]])
    concept, model = concept_of(config, own) or {}, own["model"]
    answered = positions_of(config, own) == "response"
    counted = [conditions(config, name, measure) for measure in ("occurrences", "expected")]
    spoken = [model, own["generation"]["max_new_tokens"]]
    words = ["labels"] if is_asked(concept) else []
    words += ["samples"] if "class_names" in concept else []
    words += ["baseline"] if concept.get("top") and not is_asked(concept) else []
    asked = [concept["keywords"]] if "keywords" in concept else [concept.get("labelled")]
    layers = [own["first_layer"], own["last_layer"]]
    vocabulary = [own["vocabulary"][key] for key in ("tokens", "draws", "neighbours")]
    lens = [own["vocabulary"][key] for key in ("tokens", "per_sample")]
    written = ["scaled"] if writes_responses(own) else []
    written += ["expected"] if "expected" in own["measures"] else []
    return {
        "samples": ([own["samples"], *([] if images else spoken)], []),
        "baseline": ([model, own["generation"]], ["samples"]),
        "labels": (asked, ["samples" if "keywords" in concept else "baseline"]),
        "words": ([own["concept"], own["split"]], words),
        "dictionary": ([model], ["words"]),
        "activations": (
            [model, positions_of(config, own), own["special_tokens"]],
            ["samples", *(["baseline"] if answered else [])],
        ),
        "rankings": ([own["pursuit"]], ["activations", "dictionary"]),
        "selected": ([own["methods"], own["k"], *layers], ["rankings"]),
        "random": ([own["draws"]], ["selected"]),
        "scaled": ([counted[0], own["signed"]], ["baseline", "random"]),
        "expected": ([counted[1], own["signed"]], ["baseline", "dictionary", "random"]),
        "scores": (
            [own["measures"], own["normalise"], classifier_of(config, own)],
            ["words", *written],
        ),
        "decomposition": ([own["pursuit"], vocabulary], ["activations"]),
        "lens": ([own["pursuit"]["fold_norm_gain"], lens], ["activations"]),
    }


def graph_of(config: Config) -> dict[str, dict[str, tuple[list[Any], list[str]]]]:
    """Return what the stages of every experiment stand on."""
    return {name: stands_on(config, name) for name in config["experiments"]}


def owners(config: Config) -> dict[str, dict[str, str]]:
    """Return, for each experiment, under whose name each of its stages' files lie.

    Of the experiments that share a file, the one that is named like its samples owns it, or else
    the first in the config. One with the heads of another comes last: those are not its to choose.
    """
    experiments = config["experiments"]

    def order(name: str) -> tuple[bool, bool]:
        own = experiments[name]
        return own["heads_from"] is not None, name != own["samples"]

    graph = graph_of(config)

    @cache
    def identity(name: str, stage: str) -> str:
        if stage in CHOICE:
            name = heads_of(config, name)
        values, earlier = graph[name][stage]
        return json.dumps([stage, values, [identity(name, own) for own in earlier]], sort_keys=True)

    first_of: dict[str, str] = {}
    found: dict[str, dict[str, str]] = {name: {} for name in experiments}
    for name in sorted(experiments, key=order):
        for stage in STAGES:
            found[name][stage] = first_of.setdefault(identity(name, stage), name)
    return found


def stage_owners(config: Config) -> dict[str, list[str]]:
    """Return whose files of each stage a run makes: experiments, each once."""
    named, graph = owners(config), graph_of(config)
    found: dict[str, dict[str, None]] = {stage: {} for stage in STAGES}

    @cache
    def need(name: str, stage: str) -> None:
        if stage in CHOICE:
            name = heads_of(config, name)
        found[stage][named[name][stage]] = None
        for earlier in graph[name][stage][1]:
            need(name, earlier)

    for name in running(config):
        own = config["experiments"][name]
        for stage in ["dictionary", "rankings"] if own["concept"] else ["decomposition", "lens"]:
            need(name, stage)
        if own["measures"]:
            need(name, "scores")
    return {stage: list(names) for stage, names in found.items()}


def kind_of(config: Config, names: Sequence[str]) -> str:
    """Return what a table of these experiments holds: ``ratios``, ``heads`` or ``overlaps``."""
    first = config["experiments"][names[0]]
    if first["measures"]:
        return "ratios"
    return "overlaps" if first["concept"] else "heads"


def tables_of(config: Config, kind: str) -> dict[str, list[str]]:
    """Return the run's tables of a kind, and their experiments."""
    full = {name: own for name, own in config["tables"].items() if own}
    return {name: list(own) for name, own in full.items() if kind_of(config, own) == kind}


def ratio_tables(config: Config) -> list[str]:
    """Return the run's tables of ratios as they are shown.

    The one that the report opens with comes first, then those that were named last.
    """
    names = [*reversed(tables_of(config, "ratios"))]
    return sorted(names, key=lambda name: name != config["publish"]["first"])


def model_record(config: Config, name: str) -> str:
    """Return, below resources/, the record of a model's files.

    They are as downloaded, converted from GGUF, or put together of several.
    """
    model = config["models"][name]
    if model["build"]:
        return f"assembled/{name}/provenance.json"
    return (
        f"models/{name}/provenance.json" if model["gguf"] else f"{model['source']}/provenance.json"
    )


def models_of(config: Config, names: Iterable[str]) -> list[str]:
    """Return the models of experiments, each once."""
    return list(dict.fromkeys(config["experiments"][name]["model"] for name in names))
