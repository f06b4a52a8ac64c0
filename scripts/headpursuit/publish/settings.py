"""The config's keys as the schema lists them, and those in which a run is not the paper's."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from headpursuit.run.config import labelled, load_config, running
from headpursuit.run.experiments import of_images
from headpursuit.run.files import ROOT
from headpursuit.run.schema import SCHEMA

PAPER = ROOT / "config.yaml"
# Said of a run in its own words (its model, samples, concept, heads and labeller).
ELSEWHERE = {"model", "samples", "concept", "measures", "methods", "k", "heads_from"}
ELSEWHERE |= {"backend", "second", "ollama.model", "lexicon.source"}
MISSING = object()


@cache
def schema() -> dict[str, Any]:
    """Return the config's schema."""
    return yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))


@cache
def paper() -> dict[str, Any]:
    """Return the paper's config, with all its keys."""
    return load_config(yaml.safe_load(PAPER.read_text(encoding="utf-8")))


def leaves(
    own: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield the path and the schema of every key that holds a value and no further keys.

    Entries of a catalogue (``models.<name>``) have the path part ``*``.
    """
    if "$ref" in own:
        own = {**schema()["$defs"][own["$ref"].rsplit("/", 1)[1]], **own}
    inner = dict(own.get("properties", {}))
    entries = own.get("additionalProperties")
    for kind in (entries.get("then"), entries.get("else")) if _either(entries) else [entries]:
        if isinstance(kind, Mapping) and ("$ref" in kind or "properties" in kind):
            yield from leaves(kind, (*path, "*"))
            inner.setdefault("*", None)
    if not inner:
        yield path, own
    for name, each in inner.items():
        if each is not None:
            yield from leaves(each, (*path, name))


def _either(entries: Any) -> bool:
    return isinstance(entries, Mapping) and "then" in entries


def value_at(config: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path; :data:`MISSING` where the config does not set it."""
    for name in path:
        if not isinstance(config, Mapping) or name not in config:
            return MISSING
        config = config[name]
    return config


def unlike_paper(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return, for each experiment of a run, the choices in which it is not the paper's.

    Choices are the keys with the paper's word on them in the schema: of the experiment, its
    samples, its concept and, where it names the words, the labeller. An experiment is compared
    with the paper's of that name, or else with the one that reads the same samples. It has no
    entry if the paper has neither.
    """
    found: dict[str, list[str]] = {}
    of_samples: dict[str, str] = {}
    for name, own in paper()["experiments"].items():
        of_samples.setdefault(own["samples"], name)
    asked = labelled(config)
    for name in running(config):
        samples = config["experiments"][name]["samples"]
        theirs = name if name in paper()["experiments"] else of_samples.get(samples)
        if theirs is not None:
            places = _compared(config, name, theirs, name in asked)
            found[name] = [
                f"{place}.{'.'.join(path)}"
                for place, (definition, mine, other) in places.items()
                for path, leaf in leaves(definition)
                if _differs(path, leaf, mine, other)
            ]
    return found


def _compared(
    config: Mapping[str, Any], name: str, theirs: str, asked: bool
) -> dict[str, tuple[Mapping[str, Any], Any, Any]]:
    """Return what is compared of an experiment: key to its schema, this run's, the paper's."""
    own, other = config["experiments"][name], paper()["experiments"][theirs]
    definitions = schema()["$defs"]
    places = {f"experiments.{name}": (definitions["experiment"], own, other)}
    kind = "images" if of_images(config["samples"][own["samples"]]) else "prompts"
    for key, catalogue, definition in (
        ("samples", "samples", kind),
        ("concept", "concepts", "concept"),
    ):
        if own[key] is not None and own[key] == other[key]:
            both = (each[catalogue][own[key]] for each in (config, paper()))
            places[f"{catalogue}.{own[key]}"] = (definitions[definition], *both)
    if asked:
        both = (each["labeller"] for each in (config, paper()))
        places["labeller"] = (schema()["properties"]["labeller"], *both)
    return places


def _differs(path: tuple[str, ...], leaf: Mapping[str, Any], own: Any, theirs: Any) -> bool:
    if "paper" not in leaf or ".".join(path) in ELSEWHERE:
        return False
    return value_at(own, path) != value_at(theirs, path)


def labeller_name(config: Mapping[str, Any]) -> str:
    """Return what names the words of a run: ``ollama: llama3.3:70b`` and the like."""
    backend = config["labeller"]["backend"]
    own = config["labeller"][backend]
    return f"{backend}: {own['source'] if backend == 'lexicon' else own['model']}"
