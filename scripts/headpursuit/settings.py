"""The config's keys as the schema lists them, and those in which a run is not the paper's."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from headpursuit.config import SCHEMA
from headpursuit.files import ROOT

PAPER = ROOT / "config.yaml"
# Sections that decide the numbers of each table.
DECIDES = {
    "table2": (
        *("datasets", "generation", "labeller", "words", "dictionary"),
        *("activations", "pursuit", "heads"),
    ),
    "figure1": ("image_datasets", "pursuit", "vision"),
}
# Without effect on a value, or said of a run in its own words (its model, heads and labeller).
ELSEWHERE = (
    *("labeller.backend", "labeller.lexicon.source", "labeller.ollama.model", "labeller.second"),
    *("heads.k", "heads.methods", "vision.heads.k", "vision.heads.methods"),
    *("vision.model", "vision.datasets", "vision.cross"),
)
MISSING = object()


def leaves(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield the path and the schema of every key that holds a value and no further keys.

    Entries of a catalogue (``models.<name>``) have the path part ``*``.
    """
    if "$ref" in schema:
        schema = {**definitions[schema["$ref"].rsplit("/", 1)[1]], **schema}
    inner = dict(schema.get("properties", {}))
    entry = schema.get("additionalProperties")
    if isinstance(entry, Mapping) and ("$ref" in entry or "properties" in entry):
        inner["*"] = entry
    if not inner:
        yield path, schema
    for name, own in inner.items():
        yield from leaves(own, definitions, (*path, name))


def value_at(config: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path; :data:`MISSING` where the config (an overlay) does not set it."""
    for name in path:
        if not isinstance(config, Mapping) or name not in config:
            return MISSING
        config = config[name]
    return config


def unlike_paper(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return, for each table, the choices in which a config is not the paper's ``config.yaml``.

    Choices are the keys with the paper's word on them in the schema; of a catalogue only entries
    that both have are compared.
    """
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    paper = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {name: [] for name in DECIDES}
    for path, leaf in leaves(schema, schema["$defs"]):
        if "paper" not in leaf or ".".join(path) in ELSEWHERE:
            continue
        for own in _entries(path, config):
            theirs = value_at(paper, own)
            if value_at(config, own) == theirs or (theirs is MISSING and "*" in path):
                continue
            for name, sections in DECIDES.items():
                if path[0] in sections:
                    found[name].append(".".join(own))
    return found


def _entries(path: tuple[str, ...], config: Mapping[str, Any]) -> list[tuple[str, ...]]:
    if "*" not in path:
        return [path]
    at = path.index("*")
    return [(*path[:at], name, *path[at + 1 :]) for name in value_at(config, path[:at])]


def labeller_name(config: Mapping[str, Any]) -> str:
    """Return what names the words of a run: ``ollama: llama3.3:70b`` and the like."""
    if config["words"]["file"]:
        return f"file: {config['words']['file']}"
    backend = config["labeller"]["backend"]
    own = config["labeller"][backend]
    return f"{backend}: {own['source'] if backend == 'lexicon' else own['model']}"
