"""The config: what is wrong with it, said all at once and before anything runs."""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from headpursuit.files import UserError
from headpursuit.labellers import used_labellers

SCHEMA = Path(__file__).parents[2] / "schemas" / "config.schema.yaml"


def check_config(config: Mapping[str, Any]) -> None:
    """Check a config against the schema and against itself.

    Raises:
        UserError: one message that lists everything wrong: the key, what is wrong with it, and
            what would be right.
    """
    # Keys can be numbers, which do not compare with text.
    errors = sorted(_validator().iter_errors(config), key=lambda e: list(map(str, e.path)))
    problems = [line for error in errors for line in _describe(error)]
    # What refers to other keys is only looked at where those keys are sound.
    problems = problems or list(_inconsistencies(config))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
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


def _describe(error: ValidationError) -> Iterator[str]:
    key = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = list(error.schema.get("properties", {}))
        for name in error.instance:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                yield f"{f'{key}.{name}' if key else name}: unknown key; {hint}"
    elif error.validator == "required":
        name = error.message.split("'")[1]  # jsonschema gives one error for each missing key
        what = error.schema.get("properties", {}).get(name, {}).get("description", "")
        yield f"{f'{key}.{name}' if key else name}: missing. {what}".strip()
    else:
        what = error.schema.get("description", "") if isinstance(error.schema, Mapping) else ""
        yield f"{key or error.message}: {_complaint(error)}. {what}".strip()


def _complaint(error: ValidationError) -> str:
    value, wanted = error.instance, error.validator_value
    match error.validator:
        case "type":
            kinds = wanted if isinstance(wanted, list) else [wanted]
            return f"{value!r} is not {' or '.join(map(_article, kinds))}"
        case "enum":
            return f"{value!r} is not one of {', '.join(map(str, wanted))}"
        case "minimum":
            return f"{value!r} is too small (at least {wanted})"
        case "exclusiveMinimum":
            return f"{value!r} is too small (more than {wanted})"
        case "maximum":
            return f"{value!r} is too large (at most {wanted})"
        case "exclusiveMaximum":
            return f"{value!r} is too large (less than {wanted})"
        case _:
            return error.message


def _article(kind: str) -> str:
    names = {"integer": "a whole number", "null": "null", "object": "a mapping", "array": "a list"}
    return names.get(kind, f"a {kind}")


def _inconsistencies(config: Mapping[str, Any]) -> Iterator[str]:
    """What no schema can see: keys that name other keys, and numbers that bound each other."""
    known = config["sources"]

    def no_source(key: str, name: str | None) -> Iterator[str]:
        if name not in known:
            yield f"{key}: {name!r} is not under sources; there are {', '.join(known)}"

    model = config["text"]["model"]
    if model not in config["models"]:
        yield f"text.model: {model!r} is not under models; there are {', '.join(config['models'])}"
    else:
        yield from no_source(f"models.{model}.source", config["models"][model]["source"])
        yield from _head_problems(config["heads"], config["models"][model], model)
        if config["table1"]["datasets"]:
            yield from _table1_problems(config["table1"], config["models"][model], model)
    for section in ("text", "table1"):
        for name in config[section]["datasets"]:
            if name not in config["datasets"]:
                there = ", ".join(config["datasets"])
                yield f"{section}.datasets: {name!r} is not under datasets; there are {there}"
    for name in used_datasets(config):
        if name in config["datasets"]:
            yield from no_source(f"datasets.{name}.source", config["datasets"][name]["source"])
    if config.get("vision"):
        yield from _vision_problems(config, no_source)
    labeller = config["labeller"]
    for backend in used_labellers(config):
        if backend == "lexicon":
            yield from no_source("labeller.lexicon.source", labeller["lexicon"]["source"])
        needed = {"lexicon": ["files"], "openai": ["base_url", "model"]}.get(backend, [])
        for key in needed:
            if labeller[backend][key] is None:
                yield f"labeller.{backend}.{key}: missing; labeller.backend or second needs it"
    if labeller["second"] == labeller["backend"]:
        yield f"labeller.second: {labeller['second']} is the first already; null, or another"


def _head_problems(
    heads: Mapping[str, Any], model: Mapping[str, Any], name: str, section: str = "heads"
) -> Iterator[str]:
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
    if heads.get("count_draws", 0) > heads["draws"]:
        yield f"heads.count_draws: {heads['count_draws']} is above heads.draws, {heads['draws']}"


def _vision_problems(config: Mapping[str, Any], no_source: Callable) -> Iterator[str]:
    vision, models = config["vision"], config["models"]
    catalogue = config.get("image_datasets") or {}
    build = vision["build"] or {}
    for key, name in (
        ("vision.model", vision["model"]),
        ("vision.build.language_model", build.get("language_model", vision["model"])),
    ):
        if name not in models:
            yield f"{key}: {name!r} is not under models; there are {', '.join(models)}"
        else:
            yield from no_source(f"models.{name}.source", models[name]["source"])
    if vision["model"] in models:
        model = models[vision["model"]]
        yield from _head_problems(vision["heads"], model, vision["model"], "vision.heads")
    for name in vision["datasets"]:
        if name not in catalogue:
            there = ", ".join(catalogue) or "none"
            yield f"vision.datasets: {name!r} is not under image_datasets; there are {there}"
            continue
        yield from no_source(f"image_datasets.{name}.source", catalogue[name]["source"])
        for part in ("selection", "evaluation"):
            first, last = catalogue[name][part].get("rows") or (1, 1)
            if first > last:
                yield f"image_datasets.{name}.{part}.rows: the first, {first}, is after the last"
    for field in ("{image}", "{classes}"):
        if vision["template"].count(field) != 1:
            yield f"vision.template: {field} has to be in it once"
    if build:
        tower = build["tower"]
        if build["dataset"] not in vision["datasets"]:
            yield f"vision.build.dataset: {build['dataset']!r} is not among vision.datasets"
        for whole, part in (("image_size", "patch_size"), ("hidden_size", "heads")):
            if tower[whole] % tower[part]:
                yield f"vision.build.tower.{whole}: {tower[whole]} is no multiple of {part}"
        if models.get(vision["model"], {}).get("gguf"):
            yield f"models.{vision['model']}.gguf: null, since vision.build makes this model"


def _table1_problems(
    table1: Mapping[str, Any], model: Mapping[str, Any], name: str
) -> Iterator[str]:
    for head in table1["heads"] or []:
        layer, number = head_of(head)
        if layer >= model["layers"] or number >= model["heads"]:
            yield (
                f"table1.heads: {head}, but {name} has layers 0 to {model['layers'] - 1} of heads "
                f"0 to {model['heads'] - 1}; null takes the most specialised heads"
            )
    if table1["tokens"] > table1["iterations"]:
        yield (
            f"table1.tokens: {table1['tokens']} tokens cannot be had from table1.iterations, "
            f"{table1['iterations']}"
        )
    if table1["random_sets"]["neighbours"] < 2 * table1["iterations"]:
        yield (
            f"table1.random_sets.neighbours: {table1['random_sets']['neighbours']} tokens leave no "
            f"choice for sets of table1.iterations, {table1['iterations']}; at least "
            f"{2 * table1['iterations']}"
        )
    for concept, words in table1["concepts"].items():
        if isinstance(words, str) and not Path(words).is_file():
            yield f"table1.concepts.{concept}: there is no file {words}"


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
