"""Which code a result stands on: a hash of a rule's script and of the modules it imports."""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from headpursuit.run.files import ROOT, shipped

SCRIPTS = ROOT / "scripts"
# Modules that compute no result: what a table may hold, how often a server is asked, which GPU.
NO_RESULT = {"contracts.py", "retry.py", "gpu.py"}
LOGGERS = {"log", "logger", "logging"}
LEVELS = {"debug", "info", "warning", "error", "exception"}


class Module(NamedTuple):
    """What a hash needs of a module."""

    imported: frozenset[Path]  # library modules, and the packages that they are in
    text: str  # its code, and the columns that its tables get from their contracts


@cache
def _read(path: Path) -> Module:
    """Read a module, without its docstrings and messages: a change of these changes no result."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names, columns = set(), []
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() if ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
            case ast.Call(ast.Name("UserError")):
                node.args, node.keywords = [], []
            case ast.Call(ast.Attribute(ast.Name(name), level)):
                if name in LOGGERS and level in LEVELS:
                    node.args, node.keywords = [], []
            case ast.Call(ast.Name("tqdm" | "trange")):
                node.keywords = [own for own in node.keywords if own.arg not in ("desc", "unit")]
            case ast.Call(ast.Name("lay_out"), [ast.Constant(table), *_]):
                columns += _laid_out(table)
            case ast.ImportFrom() if node.module.startswith("headpursuit"):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return Module(_files(names), ast.dump(tree) + json.dumps(columns))


def _files(names: Iterable[str]) -> frozenset[Path]:
    """Return the files that may stand for what is imported: modules, and their packages'."""
    parts = [name.split(".") for name in names]
    stems = {SCRIPTS.joinpath(*own[:end]) for own in parts for end in range(1, len(own) + 1)}
    files = [own for stem in stems for own in (stem.with_suffix(".py"), stem / "__init__.py")]
    return frozenset(own for own in files if own.exists())


def _laid_out(table: str) -> Iterator[tuple[str, str, bool]]:
    """Yield the columns that a table gets from its contract, not from code."""
    for contract in shipped("schemas/tables.yaml")["tables"]:
        columns = contract["columns"] if table in contract["files"] else {}
        for name, own in columns.items():
            yield name, own["type"], own.get("required", True)


def modules(rule: str) -> frozenset[Path]:
    """Return a rule's script and all library modules that it reaches and that compute results."""
    waiting, seen = {SCRIPTS / f"{rule}.py"}, set()
    while waiting:
        seen |= waiting
        reached = {own for path in waiting for own in _read(path).imported}
        waiting = {path for path in reached - seen if path.name not in NO_RESULT}
    return frozenset(seen)


@cache
def code_hash(rule: str) -> str:
    """Return a hash of a rule's script and of all library modules that it reaches.

    Names and types of columns belong to it where a table is laid out by its contract. It is a param
    of every rule, so that a result is made again when the code behind it changes. Comments,
    docstrings, layout and messages do not count, and neither do the files' dates, which a fresh
    checkout resets.
    """
    text = "\n".join(_read(path).text for path in sorted(modules(rule)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
