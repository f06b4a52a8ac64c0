"""The config: what is wrong with it, said all at once and before anything runs."""

import copy
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from headpursuit.files import ROOT, UserError, beside, plain
from headpursuit.labellers import used_labellers

SCHEMA = ROOT / "schemas" / "config.schema.yaml"
# Folders of resources/ that hold what is made of sources.
TAKEN = ("assembled", "models")
# Keys where a secret may have slipped in: messages do not repeat it.
SECRETIVE = ("base_url", "host", "key_variable")


def check_config(config: Mapping[str, Any], files: Iterable[str | Path] = ()) -> None:
    """Check a config against the schema and against itself.

    Args:
        config: what all files amount to.
        files: those it was read from; none may name a key twice.

    Raises:
        UserError: one message that lists everything wrong: the key, what is wrong with it, and
            what would be right.
    """
    # Keys can be numbers, which do not compare with text.
    errors = sorted(_validator().iter_errors(config), key=lambda e: list(map(str, e.path)))
    problems = [line for file in files for line in _repeats(file)]
    problems += [line for error in errors for line in _describe(error)]
    problems += _inconsistencies(config, errors)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
        raise UserError(f"The config cannot run:\n{listed}")


@cache
def _validator() -> Validator:
    """Return a validator for which 2.0 is no whole number, and neither NaN nor inf a number."""

    def is_integer(checker: Any, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def is_number(checker: Any, value: Any) -> bool:
        return is_integer(checker, value) or (isinstance(value, float) and math.isfinite(value))

    types = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": is_integer, "number": is_number}
    )
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    return extend(Draft202012Validator, type_checker=types)(schema)


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
    for check in _CHECKS:
        try:
            yield from check(config)
        except (AttributeError, KeyError, TypeError):  # it came upon what is missing or unsound
            if not errors:
                raise


def _named(config: Mapping[str, Any], key: str, catalogue: str) -> Iterator[str]:
    """Check that what stands under one key is among what another holds."""
    names, known = _at(config, key), _at(config, catalogue) or {}
    for name in names if isinstance(names, list) else [names]:
        if name is not None and name not in known:
            there = ", ".join(known) or "none"
            yield f"{key}: {_shown(name)} is not under {catalogue}; there are {there}"


def _at(config: Mapping[str, Any], key: str) -> Any:
    """Return what stands under a key; None where one of its parents is null."""
    value: Any = config
    for part in key.split("."):
        value = None if value is None else value[part]
    return value


def _used_sources(config: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Give the keys that name the sources of this run, and what they name."""
    vision = config["vision"] or {}
    build = vision.get("build") or {}
    models = [config["text"]["model"], *filter(None, [vision.get("model")])]
    models += filter(None, [build.get("language_model")])
    used = {"models": models, "datasets": used_datasets(config)}
    used["image_datasets"] = vision.get("datasets", [])
    for section, names in used.items():
        for name in names:
            if name in config.get(section, {}):
                yield f"{section}.{name}.source", config[section][name]["source"]
    if "lexicon" in used_labellers(config):
        yield "labeller.lexicon.source", config["labeller"]["lexicon"]["source"]


def _sources(config: Mapping[str, Any]) -> Iterator[str]:
    for key, name in _used_sources(config):
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


def _dataset_names(config: Mapping[str, Any]) -> Iterator[str]:
    for name in config["datasets"]:
        if str(name).endswith(".per_prompt"):
            yield f"datasets.{name}: its scores would be another's; use a name without .per_prompt"


def _file(
    key: str, path: str, folders: bool = True, find: Callable[[str], Path] = beside
) -> Iterator[str]:
    """Check that a file is there whose path the config holds, and that Snakemake can name it."""
    if signs := sorted(set(path) & set("{}<>\n")):
        yield f"{key}: a path with {_shown(signs)} is none for Snakemake; rename what is there"
    elif not (find(path).exists() if folders else find(path).is_file()):
        yield f"{key}: there is no file {'or folder ' if folders else ''}{_shown(path)}"


def _files(config: Mapping[str, Any]) -> Iterator[str]:
    if (words := config["words"]["file"]) is not None:
        yield from _file("words.file", words, folders=False)
    if {"ollama", "openai"} & set(used_labellers(config)):
        yield from _file("labeller.prompt", config["labeller"]["prompt"], folders=False)
    vision = config["vision"] or {}
    methods = config["heads"]["methods"] + (vision["heads"]["methods"] if vision else [])
    if "unrelated" in methods:
        path = config["pursuit"]["unrelated_words"]
        yield from _file("pursuit.unrelated_words", path, folders=False)
    if trained := (vision.get("build") or {}).get("trained"):
        yield from _file("vision.build.trained", trained, folders=False)


def _concept_files(config: Mapping[str, Any]) -> Iterator[str]:
    for concept, words in config["table1"]["concepts"].items():
        if isinstance(words, str) and config["table1"]["datasets"]:
            yield from _file(f"table1.concepts.{concept}", words, folders=False)


def _labellers(config: Mapping[str, Any]) -> Iterator[str]:
    labeller = config["labeller"]
    for backend in used_labellers(config):
        needed = {"lexicon": ["files"], "openai": ["base_url", "model"]}.get(backend, [])
        for key in needed:
            if labeller[backend][key] is None:
                yield f"labeller.{backend}.{key}: missing; labeller.backend or second needs it"


def _second_labeller(config: Mapping[str, Any]) -> Iterator[str]:
    labeller = config["labeller"]
    if labeller["second"] == labeller["backend"]:
        yield f"labeller.second: {labeller['second']} is the first already; null, or another"


def _samples(config: Mapping[str, Any]) -> Iterator[str]:
    generation = config["generation"]
    if generation["samples"] > 1 and generation["temperature"] == 0:
        yield (
            f"generation.samples: {generation['samples']} greedy responses of a prompt are all the "
            "same; 1, or a generation.temperature above 0"
        )


def _heads(config: Mapping[str, Any], experiment: str, section: str) -> Iterator[str]:
    if config[experiment] is None or (name := config[experiment]["model"]) not in config["models"]:
        return
    heads, model = _at(config, section), config["models"][name]
    first, last = candidate_layers(heads, model)
    if last >= model["layers"]:
        yield f"{section}.last_layer: {last}, but the last layer of {name} is {model['layers'] - 1}"
    elif first > last:
        yield f"{section}.first_layer: {first} comes after the last candidate layer, {last}"
    else:
        there = (last - first + 1) * model["heads"]
        for k in heads["k"]:
            if 2 * k > there:
                yield (
                    f"{section}.k: {k} heads and as many disjoint random ones do not fit into the "
                    f"{there} heads of {name}'s layers {first} to {last}; at most {there // 2}"
                )


def _count_draws(config: Mapping[str, Any]) -> Iterator[str]:
    heads = config["heads"]
    if heads["count_draws"] > heads["draws"]:
        yield f"heads.count_draws: {heads['count_draws']} is above heads.draws, {heads['draws']}"


def _rows(config: Mapping[str, Any]) -> Iterator[str]:
    for name in (config["vision"] or {}).get("datasets", []):
        for part in ("selection", "evaluation"):
            own = config["image_datasets"].get(name, {}).get(part, {})
            first, last = own.get("rows") or (1, 1)
            if first > last:
                yield f"image_datasets.{name}.{part}.rows: the first, {first}, is after the last"


def _question(config: Mapping[str, Any]) -> Iterator[str]:
    for field in ("{image}", "{classes}"):
        if config["vision"] and config["vision"]["template"].count(field) != 1:
            yield f"vision.template: {field} has to be in it once"


def _tower(config: Mapping[str, Any]) -> Iterator[str]:
    if not (build := _at(config, "vision.build")):
        return
    tower, model = build["tower"], config["vision"]["model"]
    for whole, part in (("image_size", "patch_size"), ("hidden_size", "heads")):
        if tower[whole] % tower[part]:
            yield f"vision.build.tower.{whole}: {tower[whole]} is no multiple of {part}"
    if config["models"].get(model, {}).get("gguf"):
        yield f"models.{model}.gguf: null, since vision.build makes this model"


def _shown_heads(config: Mapping[str, Any]) -> Iterator[str]:
    table1, name = config["table1"], config["text"]["model"]
    if not table1["datasets"] or name not in config["models"]:
        return
    model = config["models"][name]
    for head in table1["heads"] or []:
        layer, number = head_of(head)
        if layer >= model["layers"] or number >= model["heads"]:
            yield (
                f"table1.heads: {head}, but {name} has layers 0 to {model['layers'] - 1} of heads "
                f"0 to {model['heads'] - 1}; null takes the most specialised heads"
            )


def _tokens(config: Mapping[str, Any]) -> Iterator[str]:
    table1 = config["table1"]
    if table1["datasets"] and table1["tokens"] > table1["iterations"]:
        yield (
            f"table1.tokens: {table1['tokens']} tokens cannot be had from table1.iterations, "
            f"{table1['iterations']}"
        )


def _neighbours(config: Mapping[str, Any]) -> Iterator[str]:
    table1 = config["table1"]
    there, least = table1["random_sets"]["neighbours"], 2 * table1["iterations"]
    if table1["datasets"] and there < least:
        yield (
            f"table1.random_sets.neighbours: {there} tokens leave no choice for sets of "
            f"table1.iterations, {table1['iterations']}; at least {least}"
        )


# Small ones, since what is unsound ends the check that comes upon it.
_CHECKS: list[Callable[[Mapping[str, Any]], Iterator[str]]] = [
    partial(_named, key="text.model", catalogue="models"),
    partial(_named, key="text.datasets", catalogue="datasets"),
    partial(_named, key="table1.datasets", catalogue="datasets"),
    partial(_named, key="vision.model", catalogue="models"),
    partial(_named, key="vision.datasets", catalogue="image_datasets"),
    partial(_named, key="vision.build.language_model", catalogue="models"),
    partial(_named, key="vision.build.dataset", catalogue="vision.datasets"),
    partial(_heads, experiment="text", section="heads"),
    partial(_heads, experiment="vision", section="vision.heads"),
    *(_sources, _source_names, _dataset_names, _files, _concept_files),
    *(_labellers, _second_labeller, _samples, _count_draws),
    *(_rows, _question, _tower, _shown_heads, _tokens, _neighbours),
]


def used_datasets(config: Mapping[str, Any]) -> list[str]:
    """Return the data sets of a run, those of table 2 first."""
    return list(dict.fromkeys([*config["text"]["datasets"], *config["table1"]["datasets"]]))


def pooled_where(config: Mapping[str, Any], dataset: str) -> str:
    """Return which positions of a data set are averaged: its own key, or else the run's."""
    own = config["datasets"][dataset].get("positions")
    return config["activations"]["positions"] if own is None else own


def head_of(name: str) -> tuple[int, int]:
    """Return the layer and the head that a name like ``L18.H27`` means."""
    layer, head = re.fullmatch(r"L(\d+)\.H(\d+)", name).groups()
    return int(layer), int(head)


def candidate_layers(heads: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[int, int]:
    """Return the first and last candidate layer, both included."""
    last = heads["last_layer"]
    return heads["first_layer"], model["layers"] - 1 if last is None else last


def condition_name(method: str, k: int, draw: int | None = None) -> str:
    """Return a condition's name: ``somp-k16``, ``random-k16-d03``."""
    return f"{method}-k{k}" + ("" if draw is None else f"-d{draw:02d}")


def cross_name(condition: str, dataset: str) -> str:
    """Return the name of a condition whose heads were chosen on another data set."""
    return f"{condition}-from-{dataset}"


def condition_names(method: str, k: int, draws: int) -> list[str]:
    """Return the names of a method's conditions for one k: of ``random`` one for each draw."""
    if method == "random":
        return [condition_name(method, k, draw) for draw in range(draws)]
    return [condition_name(method, k)]


def random_conditions(heads: Mapping[str, Any], draws: int) -> list[str]:
    """Return the names of the first ``draws`` random controls of each k."""
    return [condition_name("random", k, d) for k in heads["k"] for d in range(draws)]


def selected_conditions(heads: Mapping[str, Any]) -> list[str]:
    """Return the names of the conditions whose heads a ranking selects."""
    return [condition_name(method, k) for method in heads["methods"] for k in heads["k"]]


def intervened_conditions(heads: Mapping[str, Any]) -> list[str]:
    """Return every condition but the baseline."""
    return selected_conditions(heads) + random_conditions(heads, heads["draws"])


def cross_conditions(vision: Mapping[str, Any], dataset: str) -> dict[str, tuple[str, str]]:
    """Return the conditions of a data set whose heads were chosen on another.

    Returns:
        Name to the other data set and the condition that its heads have there.
    """
    method = vision["heads"]["methods"][0]
    others = [other for other in vision["datasets"] if other != dataset] if vision["cross"] else []
    own = [condition_name(method, k) for k in vision["heads"]["k"]]
    return {cross_name(name, other): (other, name) for other in others for name in own}


def generated_conditions(heads: Mapping[str, Any]) -> list[str]:
    """Return the conditions, baseline apart, under which responses are generated."""
    return selected_conditions(heads) + random_conditions(heads, heads["count_draws"])


def generation_jobs(heads: Mapping[str, Any], conditions_per_job: int | None) -> dict[str, list]:
    """Divide the generated conditions among jobs, each of which loads the model once.

    A job's conditions are of one k, draws last, so that another k or more draws leave the jobs
    before them as they are.

    Args:
        heads: the config's ``heads``.
        conditions_per_job: how many share a job at most; None: all of a k.

    Returns:
        Name of a job (``k16-1``) to its conditions.
    """
    jobs = {}
    for k in heads["k"]:
        own = generated_conditions({**heads, "k": [k]})
        size = conditions_per_job or len(own)
        for start in range(0, len(own), size):
            jobs[f"k{k}-{start // size + 1}"] = own[start : start + size]
    return jobs
