"""Which code a result stands on, and what changes its hash."""

import ast
import builtins
import importlib
import multiprocessing
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from headpursuit.run import files, lineage
from headpursuit.run.lineage import code_hash
from test_rules import texts

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
RULES = sorted(path.stem for path in SCRIPTS.glob("*.py"))


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    """Give the hash of every rule's code as it is."""
    return {rule: code_hash(rule) for rule in RULES}


@pytest.fixture
def copy(before: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a copy of the scripts that code_hash reads instead."""
    shutil.copytree(SCRIPTS, tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(lineage, "SCRIPTS", tmp_path / "scripts")
    monkeypatch.setattr(files, "ROOT", tmp_path)
    (tmp_path / "schemas").mkdir()
    shutil.copy(ROOT / "schemas/tables.yaml", tmp_path / "schemas")
    forget()
    yield tmp_path / "scripts"
    forget()


def forget() -> None:
    lineage.code_hash.cache_clear()
    lineage._read.cache_clear()
    files.shipped.cache_clear()


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} no longer has {old}"
    path.write_text(text.replace(old, new), encoding="utf-8")
    forget()


def test_the_code_is_a_param_of_every_rule_with_a_result():
    blocks = [own for own in re.split(r"^(?:use )?rule ", texts(), flags=re.M) if "code=" in own]
    hashed = set()
    for block in blocks:
        [code] = re.findall(r'code=code_hash\("(\w+)"\)', block)
        # A rule that uses another one has no script of its own.
        assert re.findall(r'scripts/(\w+)\.py"', block) in ([code], [])
        hashed.add(code)
    # What the others make is a record, of the config, the machine or the Hub.
    assert set(RULES) - hashed == {"download_source", "preflight", "write_config"}
    download = SCRIPTS / "headpursuit/data/download.py"
    assert not [rule for rule in hashed if download in lineage.modules(rule)]


def test_the_place_and_the_date_of_the_code_do_not_matter(before: dict[str, str], copy: Path):
    assert len(set(before.values())) == len(RULES)
    (copy / "headpursuit/method/heads.py").touch()
    assert before == {rule: code_hash(rule) for rule in RULES}


def test_what_changes_no_result_does_not_count(before: dict[str, str], copy: Path):
    """Comments, layout, docstrings, messages, column contracts and retries."""
    changes = [
        ("method/heads.py", "    return ranked\n", "    # Best.\n    return (ranked)\n\n\n"),
        ("method/heads.py", '"""Order heads by score', '"""Sort heads by score'),
        ("method/heads.py", '"""Heads: which are selected', '"""Which are selected'),
        ("method/ranking.py", "raise UserError(", 'raise UserError("That is: "'),
        ("run/files.py", "{path}: not readable JSON", "{path}: no JSON"),
        ("method/decompose.py", 'desc=what, unit="layer"', 'desc="heads", unit="all"'),
        ("method/batches.py", "log.warning(", 'log.warning("That is: "'),
        ("method/batches.py", '"%d finished batches are in', '"The journal has %d'),
        ("run/contracts.py", "SLACK = 1e-6", "SLACK = 1e-5"),
        ("run/retry.py", "LONGEST_WAIT = 0.5", "LONGEST_WAIT = 0.6"),
    ]
    rules = ["rank_heads", "respond", "label_responses"]
    paths = {path for rule in rules for path in lineage.modules(rule)}
    reached = {own for path in paths for own in lineage._read(path).imported}
    for module, old, new in changes:
        assert copy / "headpursuit" / module in reached
        change(copy / "headpursuit" / module, old, new)
    assert [before[rule] for rule in rules] == list(map(code_hash, rules))


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("select_heads.py", "in params.k\n", "in params.k[:1]\n"),
        ("headpursuit/method/heads.py", "[False, True, True]", "[True, True, True]"),
        ("headpursuit/run/files.py", ">> 1", ">> 2"),  # reached through heads
    ],
)
def test_a_changed_formula_counts(before: dict, copy: Path, module: str, old: str, new: str):
    change(copy / module, old, new)
    assert code_hash("select_heads") != before["select_heads"]


def test_the_columns_of_a_table_that_its_contract_lays_out_count(before: dict, copy: Path):
    """Not what they mean and may hold, nor columns that code names itself."""
    schema, found = copy.parent / "schemas/tables.yaml", dict(before)
    for old, new, counts in (
        ("      length_ratio: ", "      longer: ", True),
        ("n: {type: integer, minimum: 1, descr", "n: {type: number, minimum: 1, descr", True),
        ("minimum: 1, description: samples}", "minimum: 2, description: prompts}", False),
        ("      layer: *layer\n      z: ", "      layer: *layer\n      x: ", False),
    ):
        earlier = found
        change(schema, old, new)
        found = {rule: code_hash(rule) for rule in RULES}
        changed = {rule for rule in RULES if found[rule] != earlier[rule]}
        assert ("publish_ratios" in changed, bool(changed)) == (counts, counts)
        assert all(rule.startswith(("publish_", "compare", "write_")) for rule in changed)


def test_code_that_a_rule_does_not_import_does_not_count_until_it_does(before: dict, copy: Path):
    before, words = before["select_heads"], copy / "headpursuit/method/words.py"
    change(words, '"upper": str.upper', '"upper": str.lower')
    assert code_hash("select_heads") == before
    line = "def main(snakemake):\n"
    lazy = f"{line}    from headpursuit.method import words\n\n    words.__name__\n"
    change(copy / "select_heads.py", line, lazy)
    imported = code_hash("select_heads")
    assert imported != before
    change(words, '"upper": str.lower', '"upper": str.upper')
    assert code_hash("select_heads") != imported


def imports(rules: list[str]) -> dict[str, set[str]]:
    """Import scripts anew; return which modules of the library each file then imports."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("headpursuit", *rules)]:
        del sys.modules[name]
    found, plain = defaultdict(set), builtins.__import__

    def noted(name, globals=None, locals=None, fromlist=(), level=0):
        made = plain(name, globals, locals, fromlist, level)
        if name.startswith("headpursuit"):
            names = {name, *(f"{name}.{own}" for own in fromlist)} & sys.modules.keys()
            found[globals["__file__"]] |= names
        return made

    builtins.__import__ = noted
    for rule in rules:
        importlib.import_module(rule)
    return dict(found)


def test_every_imported_module_is_covered():
    """What Python itself imports for a module is what the hash follows."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply(imports, [RULES])
    assert {Path(file).stem for file in found} > set(RULES)
    for file, names in found.items():
        covered, parts = lineage._read(Path(file)).imported, [name.split(".") for name in names]
        for stem in {SCRIPTS.joinpath(*own[:end]) for own in parts for end in (1, 2, 3)}:
            assert {stem.with_suffix(".py"), stem / "__init__.py"} & covered, (file, stem)


def test_the_library_imports_by_full_names():
    """The hash follows absolute imports of names only."""
    for path in SCRIPTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
            elif isinstance(node, ast.Import):
                assert not any(own.name.startswith("headpursuit") for own in node.names), path
