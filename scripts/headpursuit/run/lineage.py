"""Which code a result stands on: a hash of a rule's script and of the modules it imports."""

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from headpursuit.run.files import ROOT, shipped

SCRIPTS = ROOT / "scripts"
# Modules that compute no result: what a table may hold, how often a server is asked, which GPU.
NO_RESULT = {"contracts.py", "retry.py", "gpu.py"}
LOGGERS = {"log", "logger", "logging"}
LEVELS = {"debug", "info", "warning", "error", "exception"}


@cache
def _parsed(path: Path) -> ast.Module:
    """Parse a module, without its docstrings and messages: a change of these changes no result."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
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
    return tree


def _imported(tree: ast.Module) -> set[Path]:
    """Return the library modules that a module imports, and the packages that they are in."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("headpursuit"):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    stems = {SCRIPTS.joinpath(*own[:end]) for own in parts for end in range(1, len(own) + 1)}
    files = [own for stem in stems for own in (stem.with_suffix(".py"), stem / "__init__.py")]
    return {own for own in files if own.exists()}


def _laid_out(tree: ast.Module) -> Iterator[tuple[str, str, bool]]:
    """Yield the columns that a module's tables get from their contracts, not from its code."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(ast.Name("lay_out"), [ast.Constant(table), *_]):
                for contract in shipped("schemas/tables.yaml")["tables"]:
                    columns = contract["columns"] if table in contract["files"] else {}
                    for name, own in columns.items():
                        yield name, own["type"], own.get("required", True)


def modules(rule: str) -> frozenset[Path]:
    """Return a rule's script and all library modules that it reaches and that compute results."""
    waiting, seen = {SCRIPTS / f"{rule}.py"}, set()
    while waiting:
        seen |= waiting
        reached = {own for path in waiting for own in _imported(_parsed(path))}
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
    trees = [_parsed(path) for path in sorted(modules(rule))]
    text = "\n".join(ast.dump(tree) + json.dumps([*_laid_out(tree)]) for tree in trees)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
