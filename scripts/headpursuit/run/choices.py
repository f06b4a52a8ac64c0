"""The record of choices, ``docs/choices.md``, out of the config's schema and its two configs.

``python -m headpursuit.run.choices`` prints it; ``make docs`` writes it; a test compares the two.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from headpursuit.publish.settings import MISSING, PAPER, leaves, schema, value_at
from headpursuit.run.files import ROOT
from headpursuit.run.tables import escape_markdown

HEADER = """# The record of choices

Every key of the config: what it is, its default, then its values in `config.yaml` (the paper's run)
where they are others, what the paper says of it ("open": nothing, in either text), why the value is
what it is, and, where the demo differs, its value and the reason. What stands under `defaults` in
a config holds for all experiments that do not say otherwise. "The seed" is the workshop version of
the paper, "v2" is
arXiv 2510.21518v2. This file is generated from `schemas/config.schema.yaml` by `make docs`.
"""


def record(paper: Mapping[str, Any], demo: Mapping[str, Any]) -> str:
    """Return the record of choices as Markdown: for each section its choices, then its settings.

    Args:
        paper: config.yaml.
        demo: the demo's overlay.
    """
    parts = [HEADER]
    sections = {name: own for name, own in schema()["properties"].items() if name != "defaults"}
    for section, own in sections.items():
        choices, settings = [], []
        for path, leaf in leaves(own, (section,)):
            key = f"`{'.'.join('<name>' if part == '*' else part for part in path)}`"
            what = _prose(leaf.get("description", ""))
            default = _code(leaf["default"]) if "default" in leaf else ""
            value = "; ".join(filter(None, [default, _shown(paper, path)]))
            if "paper" not in leaf:
                settings.append([key, default, what])
                continue
            in_demo = ". ".join(filter(None, [_shown(demo, path), leaf.get("demo")]))
            said = [_prose(leaf["paper"]), _prose(leaf["reason"])]
            choices.append([key, what, value, *said, in_demo])
        parts.append(f"\n## {section}\n")
        if (section,) not in dict(leaves(own, (section,))):
            parts.append(f"{_prose(own.get('description', ''))}\n")
        if choices:
            parts += _table(["key", "what it is", "value", "the paper", "reason", "demo"], choices)
        if choices and settings:
            parts.append("\nNo choice of the experiment:\n")
        if settings:
            parts += _table(["key", "default", "what it is"], settings)
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
    if path[0] == "experiments" and isinstance(config.get("defaults"), Mapping):
        entries = {"defaults": config["defaults"], **entries}
    inside = [(name, value_at(entry, path[at + 1 :])) for name, entry in entries.items()]
    return "; ".join(f"{name}: {_code(value)}" for name, value in inside if value is not MISSING)


def _code(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if "|" not in text else escape_markdown(text)


def main() -> None:
    """Print the record."""

    def load(path: Path) -> Any:
        return yaml.safe_load(path.read_text(encoding="utf-8"))

    print(record(load(PAPER), load(ROOT / "configs/demo.yaml")), end="")


if __name__ == "__main__":
    main()
