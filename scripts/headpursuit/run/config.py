"""The config: what is wrong with it, said all at once and before anything runs."""

import copy
import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from headpursuit.labelling import used_labellers
from headpursuit.run.experiments import (
    candidate_layers,
    concept_of,
    expand,
    head_of,
    kind_of,
    models_of,
    of_images,
    running,
)
from headpursuit.run.files import ROOT, UserError, beside, plain

SCHEMA = ROOT / "schemas" / "config.schema.yaml"
# Folders of resources/ that hold what is made of sources.
TAKEN = ("assembled", "models")
# Keys where a secret may have slipped in: messages do not repeat it.
SECRETIVE = ("base_url", "host", "key_variable")


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


def load_config(config: Mapping[str, Any], files: Iterable[str | Path] = ()) -> dict[str, Any]:
    """Return a config with all its keys, or say all that is wrong with it.

    Experiments get the keys of those that they are ``like``, then of ``defaults``, then the
    schema's; all else the schema's.

    Args:
        config: what all files amount to.
        files: those it was read from; none may name a key twice.

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
    try:
        full = expand(full)
    except UserError as error:
        problems.append(str(error))
    # Keys can be numbers, which do not compare with text.
    errors = sorted(_validator().iter_errors(full), key=lambda e: list(map(str, e.path)))
    problems += [line for error in errors for line in _describe(error)]
    problems += _inconsistencies(full, errors)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
        raise UserError(f"The config cannot run:\n{listed}")
    return full


@cache
def _validator() -> Validator:
    """Return a validator that fills defaults in.

    To it 2.0 is no whole number, and neither NaN nor inf a number.
    """

    def is_integer(checker: Any, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def is_number(checker: Any, value: Any) -> bool:
        return is_integer(checker, value) or (isinstance(value, float) and math.isfinite(value))

    def fill(validator: Validator, properties: Any, instance: Any, schema: Any) -> Iterator:
        if isinstance(instance, dict):
            for name, own in properties.items():
                if "default" in own:
                    instance.setdefault(name, copy.deepcopy(own["default"]))
        yield from Draft202012Validator.VALIDATORS["properties"](
            validator, properties, instance, schema
        )

    types = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": is_integer, "number": is_number}
    )
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    return extend(Draft202012Validator, {"properties": fill}, type_checker=types)(schema)


def _repeats(file: str | Path) -> Iterator[str]:
    """Name the keys that a file has twice: YAML takes the last and says nothing."""
    try:
        root = yaml.compose(Path(file).read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, yaml.YAMLError):  # what was read all the same, in another form
        return
    waiting, looked = [("", root)], set()
    while waiting:
        path, node = waiting.pop()
        if id(node) in looked:  # an alias
            continue
        looked.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(path, item) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            seen: dict[Any, int] = {}
            for key, value in node.value:
                name, line = _joined(path, key.value), key.start_mark.line + 1
                if first := seen.get(key.value):
                    yield (
                        f"{name}: stands in {plain(file)} twice, in lines {first} and {line}; only "
                        "the last would count. Put all of it in one place"
                    )
                seen[key.value] = line
                waiting.append((name, value))


def _joined(*parts: Any) -> str:
    return ".".join(shown for part in parts if (shown := plain(part)))


def _describe(error: ValidationError) -> Iterator[str]:
    path = list(error.absolute_path)
    schema = error.schema if isinstance(error.schema, Mapping) else {}
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = list(schema.get("properties", {}))
        for name in error.instance:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                yield f"{_joined(*path, name)}: unknown key; {hint}"
    elif error.validator == "required":
        name = error.message.split("'")[1]  # jsonschema gives one error for each missing key
        what = schema.get("properties", {}).get(name, {}).get("description", "")
        yield f"{_joined(*path, name)}: missing. {what}".strip()
    else:
        what = schema.get("description", "")
        yield f"{_joined(*path) or 'the config'}: {_complaint(error)}. {what}".strip()


def _complaint(error: ValidationError) -> str:
    value, wanted = _shown(error.instance), error.validator_value
    if error.absolute_path and error.absolute_path[-1] in SECRETIVE:
        value = "what is there"
    match error.validator:
        case "type":
            kinds = wanted if isinstance(wanted, list) else [wanted]
            return f"{value} is not {' or '.join(map(_article, kinds))}{_yaml_trap(error)}"
        case "enum":
            return f"{value} is not one of {', '.join(map(_plainly, wanted))}"
        case "minimum":
            return f"{value} is too small (at least {wanted})"
        case "exclusiveMinimum":
            return f"{value} is too small (more than {wanted})"
        case "maximum":
            return f"{value} is too large (at most {wanted})"
        case "exclusiveMaximum":
            return f"{value} is too large (less than {wanted})"
        case "minItems" | "minProperties" | "minLength":
            return f"{value} is too short (at least {wanted})"
        case "maxItems" | "maxProperties" | "maxLength":
            return f"{value} is too long (at most {wanted})"
        case "uniqueItems":
            return f"{value} names something twice"
        case "pattern":
            return f"{value} does not match {wanted}"
        case "contains":
            return f"{value} lacks {wanted['const']}"
        case _:
            return f"{value} does not fit ({error.validator})"


def _shown(value: Any) -> str:
    """Return a value on one short line, as YAML has it where that is another word than Python's."""
    text = _plainly(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text)} characters)"


def _plainly(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def _article(kind: str) -> str:
    names = {"integer": "a whole number", "null": "null", "object": "a mapping", "array": "a list"}
    return names.get(kind, {"boolean": "true or false", "string": "a text"}.get(kind, f"a {kind}"))


def _yaml_trap(error: ValidationError) -> str:
    """Return what to write where a number was meant: to YAML, 1e-3 and anything quoted is text."""
    if "number" not in error.validator_value or not isinstance(error.instance, str):
        return ""
    try:
        return f"; YAML takes it for text, write {float(error.instance)}"
    except ValueError:
        return ""


class _Unsound:
    """Stands in a config for what the schema refuses: whatever looks at it, gives up."""

    def _refuse(self, *_: Any) -> Any:
        raise TypeError

    __hash__ = __eq__ = __bool__ = __str__ = _refuse


def _inconsistencies(config: Any, errors: Sequence[ValidationError]) -> Iterator[str]:
    """What no schema can see: keys that name other keys, and numbers that bound each other.

    Each check looks at the keys that are sound, so that what they show is told beside what the
    schema refuses.
    """
    config = copy.deepcopy(config)
    for error in sorted(errors, key=lambda e: -len(e.absolute_path)):
        of_key = "propertyNames" in error.absolute_schema_path
        if of_key or error.validator in ("required", "additionalProperties"):
            continue  # what is there can be looked at
        if not error.absolute_path:
            return
        *path, last = error.absolute_path
        reduce(getitem, path, config)[last] = _Unsound()
    told = bool(errors)
    for check in _CHECKS:
        try:
            for problem in check(config):
                told = True
                yield problem
        except (AttributeError, KeyError, TypeError):  # it came upon what is missing or unsound
            if not told:
                raise


def _named(
    config: Mapping[str, Any], key: str, catalogue: str, names: Sequence[str] | str | None
) -> Iterator[str]:
    """Check that what stands under a key is in one of the config's catalogues."""
    for name in [names] if isinstance(names, str) else names or []:
        if name not in config[catalogue]:
            there = ", ".join(config[catalogue]) or "none"
            yield f"{key}: {_shown(name)} is not under {catalogue}; there are {there}"


def _used(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the experiments that run, by name."""
    return {name: config["experiments"][name] for name in running(config)}


def _experiments_named(config: Mapping[str, Any]) -> Iterator[str]:
    for table, names in config["tables"].items():
        yield from _named(config, f"tables.{table}", "experiments", names)
    for name, own in _used(config).items():
        catalogues = {"model": "models", "concept": "concepts", "heads_from": "experiments"}
        for key in ("model", "samples", "concept", "heads_from"):
            catalogue = catalogues.get(key, key)
            yield from _named(config, f"experiments.{name}.{key}", catalogue, own[key])


def used_models(config: Mapping[str, Any]) -> list[str]:
    """Return the models of a run, those that others are put together from included."""
    names = models_of(config, running(config))
    builds = [config["models"][name]["build"] for name in names]
    return list(dict.fromkeys([*names, *(own["language_model"] for own in builds if own)]))


def used_samples(config: Mapping[str, Any]) -> list[str]:
    """Return the samples of a run, those that a tower learns from included."""
    names = [own["samples"] for own in _used(config).values()]
    builds = [config["models"][name]["build"] for name in used_models(config)]
    return list(dict.fromkeys([*names, *(own["samples"] for own in builds if own)]))


def labelled(config: Mapping[str, Any]) -> list[str]:
    """Return the experiments of a run whose words a labeller names."""
    return [
        name for name, own in _used(config).items() if "labelled" in (concept_of(config, own) or {})
    ]


def run_labellers(config: Mapping[str, Any]) -> list[str]:
    """Return the backends that a run asks."""
    return used_labellers(config) if labelled(config) else []


def used_sources(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sources that a checked config's run reads, name to spec, in the order of use."""
    models = [config["models"][name] for name in used_models(config)]
    names = [own["source"] for own in models if not own["build"]]
    names += [config["samples"][name]["source"] for name in used_samples(config)]
    if "lexicon" in run_labellers(config):
        names.append(config["labeller"]["lexicon"]["source"])
    return {name: config["sources"][name] for name in names}


def _sources(config: Mapping[str, Any]) -> Iterator[str]:
    keys = [(f"models.{name}.source", config["models"][name]["source"])
            for name in used_models(config)]  # fmt: skip
    keys += [(f"samples.{name}.source", config["samples"][name]["source"])
             for name in used_samples(config)]  # fmt: skip
    if "lexicon" in run_labellers(config):
        keys.append(("labeller.lexicon.source", config["labeller"]["lexicon"]["source"]))
    for key, name in keys:
        if name not in config["sources"]:
            there = ", ".join(config["sources"])
            yield f"{key}: {_shown(name)} is not under sources; there are {there}"
        elif config["sources"][name]["kind"] == "local":
            # download_source looks in the working directory only.
            yield from _file(f"sources.{name}.path", config["sources"][name]["path"], find=Path)


def _source_names(config: Mapping[str, Any]) -> Iterator[str]:
    for name in config["sources"]:
        if name in TAKEN:
            yield f"sources.{name}: that folder of resources/ is taken; use another name"


def _file(
    key: str, path: str, folders: bool = True, find: Callable[[str], Path] = beside
) -> Iterator[str]:
    """Check that a file is there whose path the config holds, and that Snakemake can name it."""
    if signs := sorted(set(path) & set("{}<>\n")):
        yield f"{key}: a path with {_shown(signs)} is none for Snakemake; rename what is there"
    elif not (find(path).exists() if folders else find(path).is_file()):
        yield f"{key}: there is no file {'or folder ' if folders else ''}{_shown(path)}"


def _files(config: Mapping[str, Any]) -> Iterator[str]:
    for name, own in _used(config).items():
        if path := (concept_of(config, own) or {}).get("file"):
            yield from _file(f"concepts.{own['concept']}.file", path, folders=False)
        if own["concept"]:
            path = own["pursuit"]["unrelated_words"]
            yield from _file(f"experiments.{name}.pursuit.unrelated_words", path, folders=False)
    if {"ollama", "openai"} & set(run_labellers(config)):
        yield from _file("labeller.prompt", config["labeller"]["prompt"], folders=False)
    for name in used_models(config):
        if trained := (config["models"][name]["build"] or {}).get("trained"):
            yield from _file(f"models.{name}.build.trained", trained, folders=False)


def _labellers(config: Mapping[str, Any]) -> Iterator[str]:
    labeller = config["labeller"]
    for backend in run_labellers(config):
        needed = {"lexicon": ["files"], "openai": ["base_url", "model"]}.get(backend, [])
        for key in needed:
            if labeller[backend][key] is None:
                yield f"labeller.{backend}.{key}: missing; labeller.backend or second needs it"
    if labeller["second"] == labeller["backend"]:
        yield f"labeller.second: {labeller['second']} is the first already; null, or another"


def _generation(config: Mapping[str, Any]) -> Iterator[str]:
    for name, own in _used(config).items():
        generation = own["generation"]
        if generation["samples"] > 1 and generation["temperature"] == 0:
            yield (
                f"experiments.{name}.generation.samples: {generation['samples']} greedy responses "
                "of a sample are all the same; 1, or a temperature above 0"
            )


def _heads(config: Mapping[str, Any]) -> Iterator[str]:
    for name, own in _used(config).items():
        key, model = f"experiments.{name}", config["models"][own["model"]]
        if own["concept"] is None:
            continue
        first, last = candidate_layers(own, model)
        there = (last - first + 1) * model["heads"]
        if last >= model["layers"]:
            yield (
                f"{key}.last_layer: {last}, but the last layer of {own['model']} is "
                f"{model['layers'] - 1}"
            )
        elif first > last:
            yield f"{key}.first_layer: {first} comes after the last candidate layer, {last}"
        else:
            for k in own["k"]:
                if 2 * k > there:
                    yield (
                        f"{key}.k: {k} heads and as many disjoint random ones do not fit into the "
                        f"{there} heads of {own['model']}'s layers {first} to {last}; at most "
                        f"{there // 2}"
                    )
        if (own["count_draws"] or 0) > own["draws"]:
            yield f"{key}.count_draws: {own['count_draws']} is above draws, {own['draws']}"


def _heads_from(config: Mapping[str, Any]) -> Iterator[str]:
    for name, own in _used(config).items():
        key = f"experiments.{name}.heads_from"
        if (other := own["heads_from"]) is None:
            continue
        seen = [name]
        while other is not None:
            if other in seen:
                yield f"{key}: {other} has its heads from {name} itself"
                return
            seen.append(other)
            other = config["experiments"][other]["heads_from"]
        theirs = config["experiments"][seen[-1]]
        if theirs["model"] != own["model"]:
            yield f"{key}: {seen[-1]} is of another model, {theirs['model']}"
        if lacking := sorted(set(own["k"]) - set(theirs["k"])):
            yield f"experiments.{name}.k: {lacking[0]} is no k of {seen[-1]}, whose heads it has"


def _kinds(config: Mapping[str, Any]) -> Iterator[str]:
    for name, own in _used(config).items():
        images = of_images(config["samples"][own["samples"]])
        key, concept = f"experiments.{name}", concept_of(config, own)
        positions = own["positions"]
        if positions is not None and (positions == "image") != images:
            kind = "images: image" if images else "prompts: prompt, last or response"
            yield f"{key}.positions: {positions} is none of {own['samples']}, {kind}"
        if own["measures"] and concept is None:
            yield f"{key}.measures: nothing can be measured without a concept"
        if concept and concept.get("class_names") and not images:
            yield f"{key}.concept: {own['samples']} are prompts, which have no classes"
        if "exact_match" in own["measures"] and not images:
            yield f"{key}.measures: exact_match needs images; {own['samples']} are prompts"
        if "expected" in own["measures"] and images:
            yield f"{key}.measures: expected is measured on prompts; {own['samples']} are images"
        if concept and {"prompt"} & set(concept.get("labelled", {}).get("texts", [])) and images:
            yield f"concepts.{own['concept']}.labelled.texts: images have no prompts of their own"
    for table, names in config["tables"].items():
        if len({kind_of(config, [name]) for name in names}) > 1:
            yield (
                f"tables.{table}: experiments with measures, with a concept alone and with neither "
                "make tables of their own"
            )


def _rows(config: Mapping[str, Any]) -> Iterator[str]:
    for name in used_samples(config):
        for part in ("selection", "evaluation"):
            own = config["samples"][name].get(part, {})
            first, last = own.get("rows") or (1, 1)
            if first > last:
                yield f"samples.{name}.{part}.rows: the first, {first}, is after the last"


def _question(config: Mapping[str, Any]) -> Iterator[str]:
    for name in used_samples(config):
        own = config["samples"][name]
        for field in ("{image}", "{classes}") if of_images(own) else ():
            if own["template"].count(field) != 1:
                yield f"samples.{name}.template: {field} has to be in it once"


def _tower(config: Mapping[str, Any]) -> Iterator[str]:
    for name in used_models(config):
        if not (build := config["models"][name]["build"]):
            continue
        key, tower = f"models.{name}.build", build["tower"]
        yield from _named(config, f"{key}.language_model", "models", build["language_model"])
        yield from _named(config, f"{key}.samples", "samples", build["samples"])
        for whole, part in (("image_size", "patch_size"), ("hidden_size", "heads")):
            if tower[whole] % tower[part]:
                yield f"{key}.tower.{whole}: {tower[whole]} is no multiple of {part}"
        if config["models"][name]["gguf"]:
            yield f"models.{name}.gguf: null, since build makes this model"


def _vocabulary(config: Mapping[str, Any]) -> Iterator[str]:
    for name, own in _used(config).items():
        if own["concept"] is not None:
            continue
        key, spec, model = f"experiments.{name}", own["vocabulary"], config["models"][own["model"]]
        for head in spec["heads"] or []:
            layer, number = head_of(head)
            if layer >= model["layers"] or number >= model["heads"]:
                yield (
                    f"{key}.vocabulary.heads: {head}, but {own['model']} has layers 0 to "
                    f"{model['layers'] - 1} of heads 0 to {model['heads'] - 1}; null takes the "
                    "most specialised heads"
                )
        iterations = own["pursuit"]["iterations"]
        if spec["tokens"] > iterations:
            yield (
                f"{key}.vocabulary.tokens: {spec['tokens']} tokens cannot be had from "
                f"pursuit.iterations, {iterations}"
            )
        if spec["neighbours"] < 2 * iterations:
            yield (
                f"{key}.vocabulary.neighbours: {spec['neighbours']} tokens leave no choice for "
                f"sets of pursuit.iterations, {iterations}; at least {2 * iterations}"
            )


# Small ones, since what is unsound ends the check that comes upon it.
_CHECKS: list[Callable[[Mapping[str, Any]], Iterator[str]]] = [
    *(_experiments_named, _sources, _source_names, _files, _labellers, _generation, _heads),
    *(_heads_from, _kinds, _rows, _question, _tower, _vocabulary),
]
