"""What a config says in short: experiments that are like others, splits, and multiverses.

It stands apart from :mod:`headpursuit.run.experiments`, on which results depend.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from headpursuit.run.experiments import Config, merge
from headpursuit.run.schema import is_choice, shown, validator


def expand(config: Config) -> dict[str, Any]:
    """Return a config whose experiments have the keys of those they are ``like``, and defaults.

    An experiment comes behind those that it is like, so that what they share is theirs. One with
    ``splits: 3`` is followed by ``NAME-split1`` and ``NAME-split2``, here and in tables; a
    multiverse becomes variants and tables of them. ``like`` stays where it names none, or leads
    back; the config's check tells of it.
    """
    experiments = config.get("experiments")
    if not isinstance(experiments, Mapping):  # the schema tells of it
        return dict(config)

    def line(name: str, seen: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return an experiment, the one that it is like, and so on."""
        seen, own = (*seen, name), experiments[name]
        parent = own.get("like") if isinstance(own, Mapping) else None
        # A list is unhashable.
        return seen if parent in seen or parent not in list(experiments) else line(parent, seen)

    def whole(names: tuple[str, ...]) -> Any:
        name, *behind = names
        if not behind:
            return experiments[name]
        theirs, own = whole(tuple(behind)), experiments[name]
        if not isinstance(theirs, Mapping) or "like" not in theirs:
            own = {key: value for key, value in own.items() if key != "like"}
        return merge(theirs, own)

    lines = {name: line(name) for name in experiments}
    full = {
        name: merge(config.get("defaults"), whole(lines[name]))
        for name in sorted(experiments, key=lambda name: len(lines[name]))
    }
    if _sound(config.get("multiverse")):
        config, full = _with_variants(config, full)
    families = {name: {name: own, **_splits(name, own)} for name, own in full.items()}
    every = {name: own for family in families.values() for name, own in family.items()} | full
    tables = {key: _with_splits(own, families) for key, own in config.items() if key == "tables"}
    return {**config, "experiments": every, **tables}


def multiverse(config: Config) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the experiments that a multiverse varies: their variants, and the choices of each.

    The first variant makes no other choice than the experiment itself.
    """
    spec = config["multiverse"]
    single = [{key: value} for key, values in spec["choices"].items() for value in values]
    each = [{}, *single, *spec["together"]]
    return {base: {_variant_name(base, own): own for own in each} for base in spec["of"]}


def _variant_name(base: str, choices: Mapping[str, Any]) -> str:
    """Return a name such as ``rtp-norm-l2-center-false``."""
    said = [
        f"{key.rpartition('.')[2]}-{own}".replace("--", "-minus") for key, own in choices.items()
    ]
    return f"{base}-{re.sub('[^a-z0-9_]+', '-', '-'.join(said).lower()).strip('-') or 'as-is'}"


def _with_variants(config: Config, full: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Return a config with the multiverse's tables and concepts, and experiments with its variants.

    A key such as ``concept.rows`` is of the experiment's concept: the variant has one of its own.
    """
    concepts, tables = (config.get(key) or {} for key in ("concepts", "tables"))
    if not (isinstance(concepts, Mapping) and isinstance(tables, Mapping)):
        return config, full
    variants: dict[str, Any] = {}
    for base, all_choices in multiverse(config).items():
        if not isinstance(parent := full.get(base), Mapping):  # the config's check tells of it
            continue
        for name, choices in all_choices.items():
            changed: Any = {"splits": 1, **config["multiverse"]["all"]}
            for key, value in choices.items():
                for part in reversed(key.split(".")):
                    value = {part: value}
                changed = merge(changed, value)
            if concept := changed.pop("concept", None):
                theirs = concepts.get(parent.get("concept"))
                concepts = {name: merge(theirs, concept), **concepts}
                changed["concept"] = name
            variants[name] = merge(parent, changed)
        tables = {f"multiverse-{base}": list(all_choices), **tables}
    return {**config, "concepts": concepts, "tables": tables}, {**full, **variants, **full}


def _splits(name: str, own: Any) -> dict[str, Any]:
    """Return the further experiments that ``splits`` asks for: each splits the words anew."""
    first, n = (own.get(key, 0) if isinstance(own, Mapping) else 0 for key in ("split", "splits"))
    most = validator().schema["$defs"]["experiment"]["properties"]["splits"]["maximum"]
    if not type(first) is type(n) is int or n > most:  # the schema tells of it
        return {}
    return {
        f"{name}-split{split}": {**own, "split": split, "splits": 1}
        for split in range(first + 1, first + n)
    }


def _with_splits(tables: Any, families: Mapping[str, Iterable[str]]) -> Any:
    """Return tables in which an experiment is followed by its further splits."""
    if not isinstance(tables, Mapping):
        return tables

    def whole(names: Any) -> Any:
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            return names
        return list(dict.fromkeys(own for name in names for own in families.get(name, [name])))

    return {table: whole(names) for table, names in tables.items()}


def keep_choices(config: Config) -> Iterator[str]:
    """Name what a config's multiverse would vary that is no choice, and take it out."""
    varied = config.get("multiverse")
    if not _sound(varied):
        return
    places = [("choices", varied["choices"]), *(("together", own) for own in varied["together"])]
    for place, own in places:
        for key in [key for key in own if not is_choice(str(key))]:
            del own[key]
            yield (
                f"multiverse.{place}: {shown(key)} is no choice of an experiment, nor of its "
                "concept (such as concept.rows); docs/choices.md has all. What all experiments "
                "share, such as the labeller, differs between runs only"
            )


def _sound(varied: Any) -> bool:
    """Say whether there is a multiverse that the schema takes; it then has all its keys."""
    schema = validator().schema["properties"]["multiverse"]
    return bool(varied) and validator().evolve(schema=schema).is_valid(varied)
