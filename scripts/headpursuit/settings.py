"""The config's keys as the schema lists them, and those in which a run is not the paper's."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from headpursuit.config import SCHEMA, labelled, load_config, running
from headpursuit.files import ROOT

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
    samples, its concept and, where it names the words, the labeller. An experiment that the paper
    does not have is compared in nothing.
    """
    found: dict[str, list[str]] = {}
    asked = labelled(config)
    for name in running(config):
        if name not in paper()["experiments"]:
            found[name] = []
            continue
        own, theirs = (each["experiments"][name] for each in (config, paper()))
        kind = "images" if "selection" in config["samples"][own["samples"]] else "prompts"
        places = {f"experiments.{name}": ("experiment", own, theirs)}
        for key, definition in (("samples", kind), ("concept", "concept")):
            catalogue = {"samples": "samples", "concept": "concepts"}[key]
            if own[key] is not None and own[key] == theirs[key]:
                both = (each[catalogue][own[key]] for each in (config, paper()))
                places[f"{catalogue}.{own[key]}"] = (definition, *both)
        differ = [
            f"{place}.{'.'.join(path)}"
            for place, (definition, mine, other) in places.items()
            for path, leaf in leaves(schema()["$defs"][definition])
            if _differs(path, leaf, mine, other)
        ]
        if name in asked:
            labeller = schema()["properties"]["labeller"]
            differ += [
                f"labeller.{'.'.join(path)}"
                for path, leaf in leaves(labeller)
                if _differs(path, leaf, config["labeller"], paper()["labeller"])
            ]
        found[name] = differ
    return found


def _differs(path: tuple[str, ...], leaf: Mapping[str, Any], own: Any, theirs: Any) -> bool:
    if "paper" not in leaf or ".".join(path) in ELSEWHERE:
        return False
    return value_at(own, path) != value_at(theirs, path)


def labeller_name(config: Mapping[str, Any]) -> str:
    """Return what names the words of a run: ``ollama: llama3.3:70b`` and the like."""
    backend = config["labeller"]["backend"]
    own = config["labeller"][backend]
    return f"{backend}: {own['source'] if backend == 'lexicon' else own['model']}"
