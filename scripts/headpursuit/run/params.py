"""What rules say of experiments to their jobs, out of a checked config.

It stands apart from :mod:`headpursuit.run.experiments`, on which results depend.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from headpursuit.run.experiments import (
    Config,
    candidate_layers,
    classifier_of,
    concept_of,
    family_of,
    heads_of,
    labeller_of,
    of_classes,
    of_images,
    positions_of,
    running,
)


def pick(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return some keys of a mapping."""
    return {key: mapping[key] for key in keys}


def stated(config: Config, name: str) -> dict[str, Any]:
    """Return what params say of an experiment: its keys, and the entries that these name."""
    own, compute = config["experiments"][name], config["compute"]
    samples, model = config["samples"][own["samples"]], config["models"][own["model"]]
    concept, reads = concept_of(config, own), not of_images(samples)
    excluded = config["samples"].get(samples.get("excluding"))
    classifier, batch_tokens = classifier_of(config, own), compute["batch_tokens"]["reading"]
    judging = {"name": own["classifier"], "device": compute["device"], "batch_tokens": batch_tokens}
    return {
        **own,
        "name": own["samples"],  # part of all seeds
        "samples": samples,
        "excluded": excluded
        and {key: excluded.get(key) for key in ("source", "files", "text", "where")},
        "reader": model if reads else None,
        "batch_images": None if reads else compute["batch_images"],
        "max_new_tokens": own["generation"]["max_new_tokens"] if reads else None,
        "model": model,
        "n_heads": model["heads"],
        "layers": candidate_layers(own, model),
        "concept": concept,
        "key": f"concepts.{own['concept']}",
        "words_file": concept and concept.get("file"),
        "labeller": labeller_of(config, concept or {}),
        "positions": positions_of(config, own),
        "method": own["methods"][0],
        "classifier": classifier and {**classifier, **judging},
    }


def ratio_facts(config: Config, name: str) -> dict[str, Any]:
    """Return what a table of ratios says of an experiment."""
    own, chooser = config["experiments"][name], heads_of(config, name)
    samples, chosen = config["samples"][own["samples"]], config["experiments"][chooser]
    return {
        **pick(own, "samples", "model", "concept", "alpha", "at", "signed"),
        **pick(own, "methods", "k", "draws"),
        "heads_from": own["heads_from"] and chooser,
        "ranked_by": chosen["methods"][0],
        "family": family_of(config, name),
        "captions": not of_classes(samples) and of_images(samples),
        "iterations": chosen["pursuit"]["iterations"],
        "layers": candidate_layers(chosen, config["models"][chosen["model"]]),
    }


def claim_facts(config: Config) -> dict[str, dict[str, Any]]:
    """Return what the paper's claims ask of each experiment of a run that has a concept."""
    experiments = {name: config["experiments"][name] for name in running(config)}
    return {
        name: {
            **pick(own, "samples", "concept", "model", "signed"),
            "reads": "images" if of_images(config["samples"][own["samples"]]) else "prompts",
            "held_out": concept["selection_share"] < 1,
        }
        for name, own in experiments.items()
        if (concept := concept_of(config, own))
    }


def hub_ids(config: Config, models: Iterable[str]) -> dict[str, str]:
    """Return each model's Hub repository; its name where it comes from elsewhere."""
    sources = {name: config["sources"][config["models"][name]["source"]] for name in models}
    return {name: own["id"] if own["kind"] == "hub" else name for name, own in sources.items()}
