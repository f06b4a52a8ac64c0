"""The config's keys as the schema lists them, and those in which a run is not the paper's."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, reduce
from typing import Any

import yaml

from headpursuit.run.config import load_config
from headpursuit.run.experiments import Config, concept_of, merge, of_images, running
from headpursuit.run.files import shipped
from headpursuit.run.uses import labelled, used_models, used_samples

# Said of a run in its own words (its model, samples, concept, heads and labeller).
ELSEWHERE = {"model", "samples", "concept", "measures", "methods", "k", "heads_from"}
ELSEWHERE |= {"alpha", "at"}
ELSEWHERE |= {"backend", "second", "ollama.model", "keywords.ollama.model", "lexicon.source"}
# Which conditions and splits an experiment has, and what is measured under them.
CONDITIONS = {"measures", "methods", "k", "draws", "count_draws", "alpha", "at", "classifier"}
CONDITIONS |= {"splits"}
# With which the config has the full version's experiments, too; and that of the demo.
FULL, DEMO = "configs/v2.yaml", "configs/demo.yaml"
MISSING = object()
KeyPath = tuple[str, ...]


def schema() -> dict[str, Any]:
    """Return the config's schema."""
    return shipped("schemas/config.schema.yaml")


@cache
def shipped_config(*overlays: str) -> dict[str, Any]:
    """Return config.yaml, the paper's of the seed, with overlays on it and with all its keys."""
    return load_config(reduce(merge, map(shipped, overlays), shipped("config.yaml")))


def leaves(
    own: Mapping[str, Any], path: KeyPath = ()
) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """Yield the path and the schema of every key that holds a value and no further keys.

    Entries of a catalogue (``models.<name>``) have the path part ``*``.
    """
    if "$ref" in own:
        own = {**schema()["$defs"][own["$ref"].rsplit("/", 1)[1]], **own}
    entries = own.get("additionalProperties")
    kinds = _kinds(entries) if isinstance(entries, Mapping) else []
    catalogue = [("*", kind) for kind in kinds if {"$ref", "properties"} & set(kind)]
    inner = [*catalogue, *own.get("properties", {}).items()]
    for name, each in inner:
        yield from leaves(each, (*path, name))
    if not inner:
        yield path, own


def _kinds(entries: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "then" not in entries:
        return [entries]
    return [*_kinds(entries["then"]), *_kinds(entries["else"])]


def sections() -> dict[str, Mapping[str, Any]]:
    """Return the schema of each section of the config that an expanded one has, too."""
    return {name: own for name, own in schema()["properties"].items() if name != "defaults"}


def key_name(path: KeyPath) -> str:
    """Return a key as a person writes it: ``models.<name>.dtype``."""
    return ".".join("<name>" if part == "*" else part for part in path)


def value_at(config: Any, path: KeyPath) -> Any:
    """Return the value at a path; :data:`MISSING` where the config does not set it."""
    for name in path:
        if not isinstance(config, Mapping) or name not in config:
            return MISSING
        config = config[name]
    return config


def in_force(config: Config, path: KeyPath) -> Any:
    """Return a key's value; of a catalogue's key, those of the entries that the run uses.

    Where all these have the same, it is that value alone.
    """
    if "*" not in path:
        return value_at(config, path)
    experiments = running(config)
    names = {
        "experiments": experiments,
        "models": used_models(config),
        "samples": used_samples(config),
        "concepts": {config["experiments"][name]["concept"]: None for name in experiments},
    }.get(path[0], ())
    values = {name: value_at(config, (path[0], name, *path[2:])) for name in names}
    values = {name: value for name, value in values.items() if value is not MISSING}
    first = next(iter(values.values()), MISSING)
    return first if all(value == first for value in values.values()) else values


def shown(value: Any) -> str:
    """Return a config's value as a person would write it."""
    if value is MISSING:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {shown(own)}" for name, own in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return yaml.safe_dump(value).splitlines()[0]


def unlike_paper(config: Config) -> dict[str, list[str]]:
    """Return, for each experiment of a run, the choices in which it is not the paper's.

    Choices are the keys with the paper's word on them in the schema: of the experiment, its
    samples, its concept and, where it names the words, the labeller. An experiment is compared
    with the paper's of that name, or else with the one that reads the same samples. Where both the
    seed and the full version have it, its choices may be either's. It has no entry if the paper has
    none.
    """
    found: dict[str, list[str]] = {}
    for version in (shipped_config(FULL), shipped_config()):
        experiments, own = version["experiments"], config["experiments"]
        reading = {each["samples"]: name for name, each in reversed(experiments.items())}
        for name in running(config):
            if theirs := name if name in experiments else reading.get(own[name]["samples"]):
                unlike = list(_differences(config, name, version, theirs))
                found[name] = [key for key in found.get(name, unlike) if key in unlike]
    return found


def _differences(config: Config, name: str, version: Config, theirs: str) -> Iterator[str]:
    own, other = config["experiments"][name], version["experiments"][theirs]
    defined = schema()["$defs"]
    compared = [(("experiments", name), ("experiments", theirs), defined["experiment"])]
    kind = "images" if of_images(config["samples"][own["samples"]]) else "prompts"
    for key, catalogue, definition in (
        ("samples", "samples", kind),
        ("concept", "concepts", "concept"),
    ):
        if own[key] is not None and own[key] == other[key]:
            compared.append((*[(catalogue, own[key])] * 2, defined[definition]))
    if name in labelled(config):
        compared.append((("labeller",), ("labeller",), schema()["properties"]["labeller"]))
    images = "keywords" in (concept_of(config, own) or {})
    elsewhere = ELSEWHERE | ({"prompt"} if images else {"keywords.prompt"})  # of the labeller
    for at, paper_at, definition in compared:
        for path, leaf in _apart(definition, value_at(config, at), value_at(version, paper_at)):
            if "paper" in leaf and ".".join(path) not in elsewhere:
                yield ".".join((*at, *path))


def _apart(
    definition: Mapping[str, Any], one: Any, other: Any
) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """Yield the path and the schema of each key that has two values."""
    for path, leaf in leaves(definition):
        if value_at(one, path) != value_at(other, path):
            yield path, leaf


def labeller_name(config: Config) -> str:
    """Return what names the words of a run: ``ollama: llama3.3:70b`` and the like."""
    backend = config["labeller"]["backend"]
    own = config["labeller"][backend]
    return f"{backend}: {own['source'] if backend == 'lexicon' else own['model']}"


def differences(config: Config, names: Sequence[str]) -> dict[str, dict[str, str] | None]:
    """Return in what each experiment differs from the first: key to its own value, as text.

    The keys are those of the experiment and of its concept (``concept.rows``), but for what is
    measured under which conditions, which the rows say. Of experiments with
    other samples, another model, other words or another's heads it is None: they are no variants.
    """

    defined = schema()["$defs"]
    keys = {"properties": {**defined["experiment"]["properties"], "concept": defined["concept"]}}

    def stated(name: str) -> dict[str, Any]:
        own = config["experiments"][name]
        return {**own, "concept": config["concepts"].get(own["concept"])}

    first, found = stated(names[0]), {}
    for name in names:
        own = stated(name)
        values = {
            ".".join(path): shown(value_at(own, path))
            for path, _ in _apart(keys, own, first)
            if path[0] not in CONDITIONS
        }
        apart = {"samples", "model", "heads_from", "concept.words", "concept.file"} & {*values}
        same = not apart and {*(own["concept"] or ())} == {*(first["concept"] or ())}
        found[name] = values if same else None
    return found
