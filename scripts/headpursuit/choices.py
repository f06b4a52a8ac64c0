"""The record of choices, ``docs/choices.md``, out of the config's schema and its two configs.

``python -m headpursuit.choices`` prints it; ``make docs`` writes it; a test compares the two.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from headpursuit.config import SCHEMA
from headpursuit.files import ROOT
from headpursuit.settings import MISSING, PAPER, leaves, value_at
from headpursuit.tables import escape_markdown

HEADER = """# The record of choices

Every key of the config: what it is, its value in `config.yaml` (the paper's run), what the paper
says of it ("open": nothing, in either text), why the value is what it is, and, where the demo
differs, its value and the reason. "The seed" is the workshop version of the paper, "v2" is
arXiv 2510.21518v2. This file is generated from `schemas/config.schema.yaml` by `make docs`.
"""


def record(schema: Mapping[str, Any], paper: Mapping[str, Any], demo: Mapping[str, Any]) -> str:
    """Return the record of choices as Markdown: for each section its choices, then its settings."""
    parts = [HEADER]
    for section, own in schema["properties"].items():
        choices, settings = [], []
        for path, leaf in leaves(own, schema["$defs"], (section,)):
            key = f"`{'.'.join('<name>' if part == '*' else part for part in path)}`"
            what = _prose(leaf.get("description", ""))
            if "paper" not in leaf:
                settings.append([key, "" if "*" in path else _shown(paper, path), what])
                continue
            in_demo = ". ".join(filter(None, [_shown(demo, path), leaf.get("demo")]))
            said = [_prose(leaf["paper"]), _prose(leaf["reason"])]
            choices.append([key, what, _shown(paper, path), *said, in_demo])
        parts.append(f"\n## {section}\n")
        if (section,) not in dict(leaves(own, schema["$defs"], (section,))):
            parts.append(f"{_prose(own.get('description', ''))}\n")
        if choices:
            parts += _table(["key", "what it is", "value", "the paper", "reason", "demo"], choices)
        if choices and settings:
            parts.append("\nNo choice of the experiment:\n")
        if settings:
            parts += _table(["key", "value", "what it is"], settings)
    return "\n".join(parts) + "\n"


def _prose(text: str) -> str:
    """Return a text in which ``<name>`` is no tag."""
    return text if "`" in text else text.replace("<", "&lt;")


def _table(heading: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _shown(config: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """Return a value as inline code; for a catalogue, each entry's value with its name."""
    if "*" not in path:
        value = value_at(config, path)
        return "" if value is MISSING else _code(value)
    at = path.index("*")
    entries = value_at(config, path[:at])
    if not isinstance(entries, Mapping):
        return ""
    inside = [(name, value_at(entry, path[at + 1 :])) for name, entry in entries.items()]
    return "; ".join(f"{name}: {_code(value)}" for name, value in inside if value is not MISSING)


def _code(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if "|" not in text else escape_markdown(text)


def main() -> None:
    """Print the record."""

    def load(path: Path) -> Any:
        return yaml.safe_load(path.read_text(encoding="utf-8"))

    print(record(load(SCHEMA), load(PAPER), load(ROOT / "configs/demo.yaml")), end="")


if __name__ == "__main__":
    main()
