"""What a config's run uses: models, samples, concepts, classifiers, labellers and sources."""

from collections.abc import Iterable, Mapping
from typing import Any

from headpursuit.run.experiments import Config, concept_of, is_asked, models_of, running


def _experiments(config: Config) -> list[Mapping[str, Any]]:
    return [config["experiments"][name] for name in running(config)]


def used_models(config: Config) -> list[str]:
    """Return the models of a run, those that others are put together from included."""
    names = models_of(config, running(config))
    builds = [config["models"][name]["build"] for name in names]
    return list(dict.fromkeys([*names, *(own["language_model"] for own in builds if own)]))


def used_samples(config: Config) -> list[str]:
    """Return the samples of a run, with those that a tower learns from or that others exclude."""
    builds = [config["models"][name]["build"] for name in used_models(config)]
    names = [own["samples"] for own in (*_experiments(config), *filter(None, builds))]
    excluded = [config["samples"][name].get("excluding") for name in names]
    return list(dict.fromkeys([*names, *filter(None, excluded)]))


def used_concepts(config: Config) -> Iterable[str]:
    """Return the concepts of a run, each once."""
    return dict.fromkeys(own["concept"] for own in _experiments(config) if own["concept"])


def used_classifiers(config: Config) -> list[str]:
    """Return the classifiers of texts that a run uses."""
    using = [own for own in _experiments(config) if "toxicity" in own["measures"]]
    names = dict.fromkeys(own["classifier"] for own in using)
    return [name for name in names if name in config["classifiers"]]


def labelled(config: Config) -> dict[str, dict[str, Any]]:
    """Return the experiments of a run whose words a labeller names, each with its concept."""
    concepts = {name: concept_of(config, config["experiments"][name]) for name in running(config)}
    return {name: concept for name, concept in concepts.items() if is_asked(concept)}


def run_labellers(config: Config) -> list[str]:
    """Return the labelling backends that a run asks, the first first."""
    named = [config["labeller"][key] for key in ("backend", "second")]
    return list(filter(None, named)) if labelled(config) else []


def used_sources(config: Config) -> dict[str, Any]:
    """Return the sources that a checked config's run reads, name to spec, in the order of use."""
    models = [config["models"][name] for name in used_models(config)]
    names = [own["source"] for own in models if not own["build"]]
    names += [config["samples"][name]["source"] for name in used_samples(config)]
    names += [config["classifiers"][name]["source"] for name in used_classifiers(config)]
    if "lexicon" in run_labellers(config):
        names.append(config["labeller"]["lexicon"]["source"])
    return {name: config["sources"][name] for name in names if name in config["sources"]}
