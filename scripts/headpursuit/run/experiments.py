"""Experiments: what a config says of each, and which files two of them share.

An experiment is samples x model x concept x heads x measures. Each of its stages stands on some of
its keys and on other stages. Two experiments that agree on all that a stage stands on share that
stage's file: it is made once, under the name of one of them, its owner. The config alone decides
it, so Snakemake sees plain files.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from headpursuit.run.files import UserError

Config = Mapping[str, Any]
STAGES = (
    *("samples", "baseline", "labels", "words", "dictionary", "activations", "rankings"),
    *("selected", "random", "scaled", "expected", "scores", "decomposition", "lens"),
)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another; mappings inside are merged, all else is replaced."""
    both = {key: below[key] for key in below}
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        both[key] = merge(below[key], value) if nested else value
    return both


def expand(config: Config) -> dict[str, Any]:
    """Return a config whose experiments have the keys of those they are ``like``, and defaults.

    Raises:
        UserError: if an experiment is like one that is not there, or like itself.
    """
    experiments, defaults = config.get("experiments"), config.get("defaults")
    if not isinstance(experiments, Mapping):
        return dict(config)

    def lay(below: Any, above: Any) -> Any:
        """Merge what are mappings; the schema tells of what should be one."""
        both = isinstance(below, Mapping) and isinstance(above, Mapping)
        return merge(below, above) if both else above

    def whole(name: str, seen: tuple[str, ...]) -> Mapping[str, Any]:
        own = experiments[name]
        if not isinstance(own, Mapping) or "like" not in own:
            return own
        parent = own["like"]
        if parent in (*seen, name):
            raise UserError(f"experiments.{name}.like: {parent} is like {name} itself")
        if parent not in list(experiments):  # which also takes what is unhashable
            there = ", ".join(map(str, experiments))
            raise UserError(
                f"experiments.{name}.like: {parent!r} is not under experiments; there are {there}"
            )
        return lay(whole(parent, (*seen, name)), {k: v for k, v in own.items() if k != "like"})

    full = {name: lay(defaults, whole(name, ())) for name in experiments}
    return {**config, "experiments": full}


def running(config: Config) -> list[str]:
    """Return the experiments of a run: those of its tables, and those whose heads they use."""
    names = dict.fromkeys(name for own in config["tables"].values() for name in own)
    for name in list(names):
        names |= dict.fromkeys(_back(config, name))
    return list(names)


def of_images(samples: Mapping[str, Any]) -> bool:
    """Say whether samples are images; else they are prompts."""
    return "selection" in samples


def concept_of(config: Config, experiment: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return an experiment's concept; None if it asks for the whole vocabulary."""
    name = experiment["concept"]
    return None if name is None else config["concepts"][name]


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


def condition_name(method: str, k: int, draw: int | None = None) -> str:
    """Return a condition's name: ``somp-k16``, ``random-k16-d03``."""
    return f"{method}-k{k}" + ("" if draw is None else f"-d{draw:02d}")


def draws_of(experiment: Mapping[str, Any], measure: str) -> int:
    """Return how many random draws a measure has: `expected` all, others those with responses."""
    fewer = experiment["count_draws"]
    return experiment["draws"] if measure == "expected" or fewer is None else fewer


def methods_of(config: Config, name: str) -> list[str]:
    """Return how an experiment's heads are chosen, random ones apart."""
    own = config["experiments"][name]
    if own["heads_from"]:
        return config["experiments"][heads_of(config, name)]["methods"][:1]
    return own["methods"]


def conditions(config: Config, name: str, measure: str) -> list[str]:
    """Return the names of an experiment's conditions under which something is measured.

    Args:
        config: expanded, with defaults.
        name: of the experiment.
        measure: see :func:`draws_of`.
    """
    own = config["experiments"][name]
    chosen = [condition_name(method, k) for method in methods_of(config, name) for k in own["k"]]
    draws = 0 if own["heads_from"] else draws_of(own, measure)
    return chosen + [condition_name("random", k, d) for k in own["k"] for d in range(draws)]


def head_of(name: str) -> tuple[int, int]:
    """Return the layer and the head that a name like ``L18.H27`` means."""
    layer, head = re.fullmatch(r"L(\d+)\.H(\d+)", name).groups()
    return int(layer), int(head)


def writes_responses(experiment: Mapping[str, Any]) -> bool:
    """Say whether responses are written under an experiment's conditions."""
    return bool({"count", "exact_match"} & set(experiment["measures"]))


def stands_on(config: Config, name: str) -> dict[str, tuple[list[Any], list[str]]]:
    """Return the values and the earlier stages that each of an experiment's stages stands on."""
    own = config["experiments"][name]
    images = of_images(config["samples"][own["samples"]])
    concept, model = concept_of(config, own) or {}, own["model"]
    answered = positions_of(config, own) == "response"
    counted = [conditions(config, name, measure) for measure in ("count", "expected")]
    spoken = [
        model,
        own["generation"]["max_new_tokens"],
    ]
    words = ["labels"] if "labelled" in concept else []
    words += ["samples"] if "class_names" in concept else []
    words += ["baseline"] if concept.get("top") and "labelled" not in concept else []
    layers = [own["first_layer"], own["last_layer"]]
    vocabulary = [own["vocabulary"][key] for key in ("tokens", "draws", "neighbours")]
    lens = [own["vocabulary"][key] for key in ("tokens", "per_sample")]
    return {
        "samples": ([own["samples"], *([] if images else spoken)], []),
        "baseline": ([model, own["generation"]], ["samples"]),
        "labels": ([concept.get("labelled")], ["baseline"]),
        "words": ([own["concept"]], words),
        "dictionary": ([model], ["words"]),
        "activations": (
            [model, positions_of(config, own), own["special_tokens"]],
            ["samples", *(["baseline"] if answered else [])],
        ),
        "rankings": ([own["pursuit"]], ["activations", "dictionary"]),
        "selected": ([own["methods"], own["k"], *layers], ["rankings"]),
        "random": ([own["draws"]], ["selected"]),
        "scaled": ([own["alpha"], counted[0]], ["baseline", "random"]),
        "expected": ([own["alpha"], counted[1]], ["baseline", "dictionary", "random"]),
        "scores": ([own["measures"], own["normalise"]], ["words", "scaled", "expected"]),
        "decomposition": ([own["pursuit"], vocabulary], ["activations"]),
        "lens": ([own["pursuit"]["fold_norm_gain"], lens], ["activations"]),
    }


def owners(config: Config) -> dict[str, dict[str, str]]:
    """Return, for each experiment, under whose name each of its stages' files lie.

    Of the experiments that share a file, the one that is named like its samples owns it, or else
    the first in the config.
    """
    graph = {name: stands_on(config, name) for name in config["experiments"]}
    known: dict[tuple[str, str], str] = {}

    def identity(name: str, stage: str) -> str:
        if stage in ("rankings", "selected", "random"):
            name = heads_of(config, name)
        if (name, stage) not in known:
            values, earlier = graph[name][stage]
            known[name, stage] = json.dumps(
                [stage, values, [identity(name, own) for own in earlier]], sort_keys=True
            )
        return known[name, stage]

    found: dict[str, dict[str, str]] = {name: {} for name in graph}
    for stage in STAGES:
        sharing: dict[str, list[str]] = {}
        for name in graph:
            sharing.setdefault(identity(name, stage), []).append(name)
        for names in sharing.values():
            alike = [name for name in names if name == config["experiments"][name]["samples"]]
            for name in names:
                found[name][stage] = (alike or names)[0]
    return found


def stage_owners(config: Config) -> dict[str, list[str]]:
    """Return whose files of each stage but scores a run makes: experiments, each once."""
    named = owners(config)
    found: dict[str, dict[str, None]] = {stage: {} for stage in STAGES}
    for name in running(config):
        own, graph = config["experiments"][name], stands_on(config, name)
        last = ["activations", *(["rankings"] if own["concept"] else ["decomposition", "lens"])]
        last += ["expected"] if "expected" in own["measures"] else []
        last += ["scaled"] if writes_responses(own) else []
        for stage in last:
            for earlier in _with_earlier(graph, stage):
                found[earlier][named[name][earlier]] = None
    return {stage: list(names) for stage, names in found.items()}


def _with_earlier(graph: Mapping[str, tuple[Any, list[str]]], stage: str) -> Iterator[str]:
    yield stage
    for earlier in graph[stage][1]:
        yield from _with_earlier(graph, earlier)


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


def models_of(config: Config, names: Iterable[str]) -> list[str]:
    """Return the models of experiments, each once."""
    return list(dict.fromkeys(config["experiments"][name]["model"] for name in names))
