"""What the config's schema says: its defaults filled in, and its errors in plain words."""

import copy
import difflib
import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from reprlib import Repr
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from headpursuit.run.files import UserError, plain, shipped

# Keys where a secret may have slipped in: messages do not repeat it.
SECRETIVE = ("base_url", "host", "key_variable")
# JSON Schema's types in plain words.
TYPES = {"object": "a mapping", "array": "a list", "string": "a text", "null": "null"}
TYPES |= {"number": "a number", "integer": "a whole number", "boolean": "true or false"}


class _Repr(Repr):
    """Python's short form of a value, with YAML's words for nothing, yes and no."""

    def repr_bool(self, value: bool | None, level: int) -> str:
        return json.dumps(value)

    repr_NoneType = repr_bool


SHORT = _Repr()
SHORT.maxstring = SHORT.maxother = 100


@cache
def validator() -> Validator:
    """Return a validator that fills defaults in.

    To it 2.0 is no whole number, and neither NaN nor inf a number.
    """

    def fill(validator: Validator, properties: Any, instance: Any, schema: Any) -> Iterator:
        if isinstance(instance, dict):
            for name, own in properties.items():
                if "default" in own:
                    instance.setdefault(name, copy.deepcopy(own["default"]))
        yield from Draft202012Validator.VALIDATORS["properties"](
            validator, properties, instance, schema
        )

    types = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda checker, value: type(value) is int,
            "number": lambda checker, value: type(value) in (int, float) and math.isfinite(value),
        }
    )
    schema = shipped("schemas/config.schema.yaml")
    return extend(Draft202012Validator, {"properties": fill}, type_checker=types)(schema)


def with_defaults(key: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return options of an experiment's ``key``, such as pursuit, with the defaults of the others.

    Keys that name files are none of them. UserError if one is unknown or wrong.
    """
    own = validator().schema["$defs"]["experiment"]["properties"][key]["properties"]
    known = {name: spec for name, spec in own.items() if spec.get("type") != "string"}
    schema = {"properties": known, "additionalProperties": False}
    for error in validator().evolve(schema=schema).iter_errors(options):
        for name, said in described(error):
            raise UserError(f"{name}: {said}")
    return options


def is_choice(key: str) -> bool:
    """Say whether a key of an experiment, or of its concept (``concept.rows``), is a choice.

    Choices are the keys with the paper's word on them in the schema.
    """
    kind, path = ("concept", key[8:]) if key.startswith("concept.") else ("experiment", key)
    own = validator().schema["$defs"][kind]
    for part in path.split("."):
        own = own.get("properties", {}).get(part, {})
    return "paper" in own


def joined(*parts: Any) -> str:
    """Return a key's path as messages have it."""
    return ".".join(shown for part in parts if (shown := plain(part)))


def shown(value: Any) -> str:
    """Return a value on one short line, as YAML has it."""
    return SHORT.repr(value)


def described(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Give each key that an error is about, and what is wrong with it and would be right."""
    path, properties = list(error.absolute_path), error.schema.get("properties", {})
    if error.validator == "additionalProperties":
        for name in error.instance.keys() - properties.keys():
            near = difflib.get_close_matches(str(name), properties, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(properties)}"
            yield joined(*path, name), f"unknown key; {hint}"
    elif error.validator == "required":
        name = error.message.split("'")[1]  # jsonschema gives one error for each missing key
        yield joined(*path, name), f"missing. {properties.get(name, {}).get('description', '')}"
    else:
        what = error.schema.get("description", "")
        yield joined(*path) or "the config", f"{_complaint(error)}. {what}".strip()


def _complaint(error: ValidationError) -> str:
    secretive = error.absolute_path and error.absolute_path[-1] in SECRETIVE
    value = "what is there" if secretive else shown(error.instance)
    rule, wanted = error.validator, error.validator_value
    said = error.message.replace(repr(error.instance), value, 1)
    if rule == "enum":
        said = f"{value} is not one of {', '.join(map(shown, wanted))}"
    elif re.match("(min|max)[A-Z]", rule):
        said += f" ({rule} {wanted})"
    elif rule == "type":
        kinds = [wanted] if isinstance(wanted, str) else wanted
        said = f"{value} is not {' or '.join(TYPES[kind] for kind in kinds)}"
        if "string" in kinds and isinstance(error.instance, bool):
            said += "; YAML takes yes, no, on and off for it, unless they are in quotes"
        if "number" in kinds and isinstance(error.instance, str):
            # To YAML, 1e-3 and anything quoted is text.
            with suppress(ValueError):
                if math.isfinite(number := float(error.instance)):
                    said += f"; YAML takes it for text, write {number}"
    return plain(said)
