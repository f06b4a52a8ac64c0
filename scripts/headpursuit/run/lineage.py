"""Which code a result stands on: a hash of a rule's script and of the modules it imports."""

import ast
import hashlib
from functools import cache
from pathlib import Path

from headpursuit.run.files import ROOT

SCRIPTS = ROOT / "scripts"
# Modules that compute no result: what a table may hold, and how often a server is asked.
NO_RESULT = {"contracts.py", "retry.py"}
LOGGERS = {"log", "logger", "logging"}
LEVELS = {"debug", "info", "warning", "error", "exception"}


@cache
def _parsed(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        # A docstring says what the code does; changing it changes no result.
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            node.body = body[1:] or [ast.Pass()]
        if isinstance(node, ast.Call):
            _drop_message(node)
    return tree


def _drop_message(call: ast.Call) -> None:
    """Drop what a call only says: in errors for the user, in logs, beside progress bars."""
    match call.func:
        case ast.Name("UserError"):
            call.args, call.keywords = [], []
        case ast.Attribute(ast.Name(name), level) if name in LOGGERS and level in LEVELS:
            call.args, call.keywords = [], []
        case ast.Name("tqdm" | "trange"):
            call.keywords = [own for own in call.keywords if own.arg not in ("desc", "unit")]


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _imported(tree: ast.Module) -> set[Path]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [tuple(name.split(".")) for name in names if name.startswith("headpursuit")]
    # With a module, Python also runs the packages that it is in.
    stems = [SCRIPTS.joinpath(*own[:end]) for own in parts for end in range(1, len(own) + 1)]
    files = [stem.with_suffix(".py") for stem in stems] + [stem / "__init__.py" for stem in stems]
    return {path for path in files if path.exists()}


def modules(rule: str) -> frozenset[Path]:
    """Return a rule's script and all library modules that it reaches and that compute results."""
    waiting, seen = {SCRIPTS / f"{rule}.py"}, set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        reached = _imported(_parsed(path)) - seen
        waiting |= {path for path in reached if path.name not in NO_RESULT}
    return frozenset(seen)


@cache
def code_hash(rule: str) -> str:
    """Return a hash of a rule's script and of all library modules that it reaches.

    It is a param of every rule, so that a result is made again when the code behind it changes.
    Comments, docstrings, layout and messages do not count, and neither do the files' dates, which a
    fresh checkout resets.
    """
    text = "\n".join(ast.dump(_parsed(path)) for path in sorted(modules(rule)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
