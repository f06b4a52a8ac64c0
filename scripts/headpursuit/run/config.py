"""The config: what is wrong with it, said all at once and before anything runs."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from jsonschema.exceptions import ValidationError

from headpursuit.run.checks import CHECKS
from headpursuit.run.expand import expand, keep_choices
from headpursuit.run.experiments import Config
from headpursuit.run.files import LOADER, UserError, plain
from headpursuit.run.schema import described, joined, validator

# Keys of the config before experiments: what says the same now (CHANGELOG.md has all of it).
MOVED = {
    "datasets": "samples (prompts)",
    "image_datasets": "samples (images)",
    "text": "experiments (model, samples) and tables.table2",
    "vision": "experiments, tables.figure1, samples.*.template and per_class, models.*.build",
    "table1": "experiments.*.vocabulary, tables.table1 and concepts",
    "words": "concepts.* (file, top, selection_share, case_sensitive, inflections, labelled)",
    "dictionary": "concepts.* (rows, leading_space, cases)",
    "heads": "experiments.* or defaults (methods, k, first_layer, last_layer, alpha, draws)",
    "generation": "experiments.*.generation or defaults.generation; compute.batch_tokens and parts",
    "activations": "experiments.*.positions and special_tokens; compute.batch_tokens and cache",
    "pursuit": "experiments.*.pursuit or defaults.pursuit",
    "score.parts": "compute.parts",
    "score.batch_tokens": "compute.batch_tokens.reading",
    "score.products": "compute.products",
}


def load_config(config: Config, files: Iterable[str | Path] = ()) -> dict[str, Any]:
    """Return a config with all its keys, or say all that is wrong with it.

    Experiments get the keys of those that they are ``like``, then of ``defaults``, then the
    schema's; all else the schema's. None of the ``files`` it was read from may name a key twice.

    Raises:
        UserError: one message that lists everything wrong: the key, what is wrong with it, and
            what would be right.
    """
    problems = [line for file in files for line in _repeats(file)]
    full = copy.deepcopy(dict(config))
    for key, now in MOVED.items():
        *sections, last = key.split(".")
        inside = full.get(sections[0]) if sections else full
        if isinstance(inside, dict) and last in inside:
            problems.append(f"{key}: an older version's key; it says the same under {now}")
            del inside[last]
    problems += keep_choices(full)
    full = expand(full)
    errors = list(validator().iter_errors(full))
    refused = sorted(found for error in errors for found in described(error))
    _mark(full, errors)
    found = [*refused, *_contradictions(full, {key for key, _ in refused})]
    problems += _told_once(found, full.get("experiments"))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
        raise UserError(f"The config cannot run:\n{listed}")
    return full


def _repeats(file: str | Path) -> Iterator[str]:
    """Name the keys that a file has twice: YAML takes the last and says nothing."""
    try:
        nodes = [yaml.compose(Path(file).read_text(encoding="utf-8"), LOADER)]
    except (OSError, yaml.YAMLError):  # what was read all the same, in another form
        return
    looked: set[int] = set()
    for node in nodes:  # which grows
        if id(node) in looked or not isinstance(node, yaml.CollectionNode):
            continue  # an alias, or a value
        looked.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            nodes.append(value)
            name, line = str(key.value), key.start_mark.line + 1
            # Of merges (<<) all count.
            if (first := lines.get(name)) and not key.tag.endswith(":merge"):
                yield (
                    f"{plain(name)}: stands in {plain(file)} twice, in lines {first} and {line}; "
                    "only the last would count. Put all of it in one place"
                )
            lines[name] = line


class _Unsound:
    """Stands in a config for what the schema refuses: whatever looks at it, gives up."""

    def _refuse(self, *_: Any) -> Any:
        raise TypeError

    __hash__ = __eq__ = __bool__ = __str__ = _refuse


def _mark(config: Any, errors: Iterable[ValidationError]) -> None:
    """Put :class:`_Unsound` where the schema refuses what is there."""
    for error in sorted(errors, key=lambda error: -len(error.absolute_path)):
        of_key = "propertyNames" in error.absolute_schema_path
        if not of_key and error.validator not in ("required", "additionalProperties"):
            *path, last = error.absolute_path
            reduce(getitem, path, config)[last] = _Unsound()


def _told_once(found: Iterable[tuple[str, str]], experiments: Any) -> Iterator[str]:
    """Yield what is wrong; of experiments that share a mistake, the first is told, with the others.

    Experiments come behind those that they are like. What one lacks that is like none, is not told.
    """
    order = list(experiments) if isinstance(experiments, dict) else []
    shared: dict[tuple[str, str], list[str]] = {}
    for place, said in found:
        section, _, behind = place.partition(".")
        name, _, key = behind.partition(".")
        if section == "experiments" and key and name in order:
            shared.setdefault((key, said), []).append(name)
        else:
            yield f"{place}: {said}"
    lost = {name for (key, _), names in shared.items() for name in names if key == "like"}
    for (key, said), names in shared.items():
        lacking = lost if said.startswith("missing") else ()
        if told := [name for name in order if name in names and name not in lacking]:
            first, *others = told
            so = f" (so in {', '.join(others)})" if others else ""
            yield f"experiments.{first}.{key}: {said}{so}"


def _contradictions(config: Any, refused: set[str]) -> Iterator[tuple[str, str]]:
    """Run the checks; of keys that the schema refuses they say no more, but may come upon them."""
    told = bool(refused)

    @contextmanager
    def looking() -> Iterator[None]:
        try:
            yield
        except Exception:
            if not told:
                raise

    for section, used, check in CHECKS:
        names: list[Any] = []
        with looking():
            names += used(config)
        for name in names:
            with looking():
                entry = [] if name is None else [name]
                for key, wrong, said in check(config, reduce(getitem, [section, *entry], config)):
                    if wrong and (place := joined(section, *entry, key)) not in refused:
                        told = True
                        yield place, said
