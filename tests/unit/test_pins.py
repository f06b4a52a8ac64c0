"""requirements.txt is what is installed, and each environment holds what its stage needs of it."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from headpursuit.run import lineage
from packaging.requirements import Requirement
from test_rules import texts, workflow

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
ENVIRONMENTS = {path.stem: path for path in sorted((ROOT / "envs").glob("*"))}
environments = pytest.mark.parametrize("name", ENVIRONMENTS)
# What another package asks for when it is used, without an import of ours.
BEHIND = {
    "idna": "jsonschema, which imports it where it is found",
    "sentencepiece": "transformers, for tokenizers of that kind",
    "tabulate": "pandas, for Markdown; torch, which imports it where it is found",
    "tokenizers": "transformers",
}
distributions = cache(packages_distributions)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(lines: list[str]) -> dict[str, str]:
    pins = {}
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), f"{line}: no exact pin"
        name, pinned = line.split("==")
        assert normal(name) not in pins, f"{name}: pinned twice"
        pins[normal(name)] = pinned
    return pins


@cache
def requirements(name: str = "requirements.txt") -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return read_pins([line for line in lines if line and not line.startswith(("#", "-r "))])


def environment(name: str) -> dict:
    return yaml.safe_load(ENVIRONMENTS[name].read_text(encoding="utf-8"))


def pip_pins(name: str) -> dict[str, str]:
    (own,) = (part["pip"] for part in environment(name)["dependencies"] if isinstance(part, dict))
    return read_pins(own)


def test_requirements_are_what_is_installed() -> None:
    """These tests speak of the pinned versions."""
    for name, pinned in (requirements() | requirements("requirements-dev.txt")).items():
        assert version(name).split("+")[0] == pinned, name


@pytest.mark.parametrize("name", ["requirements-dev.txt", "requirements-cluster.txt"])
def test_what_stands_on_the_requirements_repeats_none(name: str) -> None:
    assert not set(requirements()) & set(requirements(name))
    assert "-r requirements.txt" in (ROOT / name).read_text(encoding="utf-8").splitlines()


@environments
def test_an_environment_is_exact_of_one_channel_and_repeats_the_requirements(name: str) -> None:
    """Nothing else pins it: beside a .pin.txt, Snakemake leaves out the pip section."""
    assert ENVIRONMENTS[name].name == f"{name}.yaml"
    own = environment(name)
    assert own["name"] == f"headpursuit-{name}"
    assert own["channels"] == ["conda-forge"]
    conda = [part for part in own["dependencies"] if isinstance(part, str)]
    assert {"python=3.11", "pip=25.3"} <= set(conda)
    for part in conda:
        assert re.fullmatch(r"[a-z0-9_.-]+=[0-9][0-9.]*", part), f"{part}: no exact pin"
    assert pip_pins(name).items() <= requirements().items()


# What scripts import


def imported(tree: ast.AST, optional: bool = False) -> set[str]:
    """Return the top-level names of absolute imports, lazy ones too.

    Those that the code can do without, having its own ``except ImportError``, only if asked for.
    """
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try) and "ImportError" in map(ast.unparse, _caught(node)):
            names |= imported(node, optional) if optional else set()
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
        names |= imported(node, optional)
    return names


def _caught(node: ast.Try) -> list[ast.AST]:
    return [part for own in node.handlers if own.type for part in ast.walk(own.type)]


@cache
def third_party(path: Path, optional: bool = False) -> frozenset[str]:
    names = imported(ast.parse(path.read_text(encoding="utf-8")), optional)
    foreign = names - {"headpursuit"} - sys.stdlib_module_names
    return frozenset(normal(distributions()[name][0]) for name in foreign)


def rules_of(name: str) -> set[str]:
    """Return the scripts that run in an environment."""
    rules = [rule for rule in workflow().rules if rule.script]
    return {Path(rule.script).stem for rule in rules if Path(rule.conda_env).stem == name}


def needed(name: str, optional: bool = False) -> set[str]:
    with patch.object(lineage, "NO_RESULT", ()):  # these import packages, too
        paths = {path for rule in rules_of(name) for path in lineage.modules(rule)}
    return {package for path in paths for package in third_party(path, optional)}


def test_every_script_runs_in_one_environment() -> None:
    found = [script for name in ENVIRONMENTS for script in rules_of(name)]
    assert sorted(found) == sorted(path.stem for path in SCRIPTS.glob("*.py"))


@environments
def test_an_environment_holds_what_its_scripts_import_and_nothing_else(name: str) -> None:
    assert needed(name) - set(pip_pins(name)) == set()
    assert set(pip_pins(name)) - needed(name, optional=True) <= set(BEHIND)


def test_requirements_hold_what_the_code_imports_and_nothing_else() -> None:
    every = {own for path in SCRIPTS.rglob("*.py") for own in third_party(path, optional=True)}
    assert every - set(requirements()) == set()
    assert set(requirements()) - every == set(BEHIND)


def behind(package: str) -> set[str]:
    """Return the packages that come with a package."""
    waiting, seen = {package}, set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        own = map(Requirement, requires(name) or [])
        here = [it for it in own if not it.marker or it.marker.evaluate({"extra": ""})]
        waiting |= {normal(it.name) for it in here} - seen
    return seen


def test_the_snakefile_imports_nothing_that_snakemake_lacks() -> None:
    """With --sdm conda nothing else is installed where the Snakefile is read."""
    modules = ", ".join(sorted(set(re.findall(r"^from (headpursuit[\w.]*) import", texts(), re.M))))
    code = (
        f"import sys; there = set(sys.modules); import {modules}; print(*set(sys.modules) - there)"
    )
    command, env = [sys.executable, "-c", code], {"PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    tops = {name.split(".")[0] for name in done.stdout.split()} - {"headpursuit"}
    packages = {normal(distributions()[top][0]) for top in tops & set(distributions())}
    assert {"jsonschema", "pyyaml"} <= packages
    assert packages - behind("snakemake") == set()
