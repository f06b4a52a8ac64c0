"""docs/choices.md and docs/columns.md, out of the schemas and the shipped configs.

``make docs`` writes them; tests compare.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import Environment, FileSystemLoader

from headpursuit.publish.settings import (
    MISSING,
    KeyPath,
    key_name,
    leaves,
    sections,
    value_at,
)
from headpursuit.run.contracts import contracts
from headpursuit.run.files import ROOT, shipped, write_text
from headpursuit.run.tables import escape_markdown


def documents() -> dict[str, str]:
    """Return the generated files of docs/, by their names."""
    folder = FileSystemLoader(ROOT / "docs")
    environment = Environment(loader=folder, trim_blocks=True, lstrip_blocks=True)
    described = [_section(name, own) for name, own in sections().items()]
    facts = {"contracts": contracts(), "sections": described}
    return {
        name: environment.get_template(f"{name}.jinja").render(facts).strip() + "\n"
        for name in ("choices.md", "columns.md")
    }


def _section(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section's choices, which have the paper's word on them, and its other settings."""
    choices, settings = [], []
    for path, leaf in leaves(own, (name,)):
        key, what = f"`{key_name(path)}`", _prose(leaf.get("description", ""))
        default = [_code(leaf["default"])] if "default" in leaf else []
        if "paper" in leaf:
            value = "; ".join([*default, *_set(shipped("config.yaml"), path)])
            in_demo = "; ".join(_set(shipped("configs/demo.yaml"), path))
            in_demo = ". ".join(filter(None, [in_demo, leaf.get("demo")]))
            said = (_prose(leaf["paper"]), _prose(leaf["reason"]))
            choices.append([key, what, value, *said, in_demo])
        elif (row := [key, *(default or [""]), what]) not in settings:  # kinds of samples share it
            settings.append(row)
    about = "" if (name,) in dict(leaves(own, (name,))) else _prose(own.get("description", ""))
    return {"name": name, "about": about, "choices": choices, "settings": settings}


def _prose(text: str) -> str:
    """Return a text in which ``<name>`` is no tag."""
    return text if "`" in text else text.replace("<", "&lt;")


def _set(config: Mapping[str, Any], path: KeyPath) -> Iterator[str]:
    """Yield a key's value where a config sets it; of a catalogue's key, each entry's."""
    if "*" not in path:
        value = value_at(config, path)
        yield from [] if value is MISSING else [_code(value)]
        return
    catalogue, rest = path[: path.index("*")], path[path.index("*") + 1 :]
    entries = value_at(config, catalogue)
    if path[0] == "experiments":
        entries = {"defaults": config.get("defaults"), **entries}
    for name, entry in entries.items() if entries is not MISSING else ():
        if (value := value_at(entry, rest)) is not MISSING:
            yield f"{name}: {_code(value)}"


def _code(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if "|" not in text else escape_markdown(text)


if __name__ == "__main__":
    for name, text in documents().items():
        write_text(ROOT / "docs" / name, text)
