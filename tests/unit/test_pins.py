import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest
import yaml
from headpursuit.run import lineage
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
ENVIRONMENTS = {path.stem: path for path in sorted((ROOT / "envs").glob("*.yaml"))}
environments = pytest.mark.parametrize("name", ENVIRONMENTS)
# What another package asks for when it is used, without an import of ours.
BEHIND = {
    "idna": "jsonschema, which imports it where it is found",
    "sentencepiece": "transformers, for tokenizers of that kind",
    "tabulate": "pandas, for Markdown; torch, which imports it where it is found",
    "tokenizers": "transformers",
}


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


def test_requirements_are_what_is_installed():
    """These tests speak of the pinned versions."""
    for name, pinned in (requirements() | requirements("requirements-dev.txt")).items():
        assert version(name).split("+")[0] == pinned, name


@pytest.mark.parametrize("name", ["requirements-dev.txt", "requirements-cluster.txt"])
def test_what_stands_on_the_requirements_repeats_none(name: str):
    assert not set(requirements()) & set(requirements(name))
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert "-r requirements.txt" in lines


@environments
def test_an_environment_repeats_the_requirements(name: str):
    for package, pinned in pip_pins(name).items():
        assert requirements().get(package) == pinned, package


@environments
def test_an_environment_is_exact_and_from_one_channel(name: str):
    own = environment(name)
    assert own["name"] == f"headpursuit-{name}"
    assert own["channels"] == ["conda-forge"]
    conda = [part for part in own["dependencies"] if isinstance(part, str)]
    assert {"python=3.11", "pip=25.3"} <= set(conda)
    for part in conda:
        assert re.fullmatch(r"[a-z0-9_.-]+=[0-9][0-9.]*", part), f"{part}: no exact pin"


def test_nothing_pins_environments_a_second_time():
    assert not list((ROOT / "envs").glob("*.pin.txt"))


# What scripts import


def imported(tree: ast.AST, optional: bool = False) -> set[str]:
    """Return the top-level names of absolute imports, lazy ones too.

    Those that the code can do without, having its own ``except ImportError``, only if asked for.
    """
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try) and any(_catches(handler) for handler in node.handlers):
            names |= imported(node, optional) if optional else set()
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
        names |= imported(node, optional)
    return names


def _catches(handler: ast.ExceptHandler) -> bool:
    caught = ast.walk(handler.type) if handler.type else ()
    return any(getattr(node, "id", None) == "ImportError" for node in caught)


def modules_of(script: Path) -> set[Path]:
    waiting, seen = {script}, set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        waiting |= lineage._imported(lineage._parsed(path)) - seen
    return seen


@cache
def third_party(path: Path, optional: bool = False) -> frozenset[str]:
    names = imported(ast.parse(path.read_text(encoding="utf-8")), optional)
    foreign = {name for name in names - {"headpursuit"} if name not in sys.stdlib_module_names}
    return frozenset(normal(distributions()[name][0]) for name in foreign)


distributions = cache(packages_distributions)


def rules_of(name: str) -> set[str]:
    """Return the scripts that run in an environment."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))
    # From a rule's environment to its script, past no other rule.
    pattern = r'conda:\s+"../envs/(\w+)\.yaml"(?:(?!\nrule ).)*?scripts/(\w+)\.py'
    found = re.findall(pattern, text, re.DOTALL)
    return {script for environment, script in found if environment == name}


def needed(name: str, optional: bool = False) -> set[str]:
    paths = {path for rule in rules_of(name) for path in modules_of(SCRIPTS / f"{rule}.py")}
    return {package for path in paths for package in third_party(path, optional)}


def test_every_script_runs_in_one_environment():
    scripts = {path.stem for path in SCRIPTS.glob("*.py")}
    assert scripts == set().union(*map(rules_of, ENVIRONMENTS))
    assert sum(len(rules_of(name)) for name in ENVIRONMENTS) == len(scripts)


@environments
def test_an_environment_holds_what_its_scripts_import(name: str):
    assert needed(name) - set(pip_pins(name)) == set()


@environments
def test_an_environment_holds_nothing_else(name: str):
    assert set(pip_pins(name)) - needed(name, optional=True) <= set(BEHIND)


def test_requirements_hold_what_the_code_imports_and_nothing_else():
    every = {own for path in SCRIPTS.rglob("*.py") for own in third_party(path, optional=True)}
    assert every - set(requirements()) == set()
    assert set(requirements()) - every == set(BEHIND) | {"snakemake"}


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


def test_the_snakefile_imports_nothing_that_snakemake_lacks():
    """With --sdm conda nothing else is installed where the Snakefile is read."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))
    modules = ", ".join(sorted(set(re.findall(r"^from (headpursuit[\w.]*) import", text, re.M))))
    code = (
        f"import sys; there = set(sys.modules); import {modules}; print(*set(sys.modules) - there)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tops = {name.split(".")[0] for name in done.stdout.split()}
    packages = {normal(distributions()[top][0]) for top in tops & set(distributions())}
    assert {"jsonschema", "pyyaml"} <= packages
    assert packages - behind("snakemake") == set()
