"""Which code a result stands on, and what changes its hash."""

import ast
import importlib
import multiprocessing
import re
import shutil
import sys
from pathlib import Path

import pytest
from headpursuit.run import files, lineage
from headpursuit.run.lineage import code_hash

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
NO_RESULT = {"headpursuit.run.contracts", "headpursuit.run.retry", "headpursuit.run.gpu"}
RULES = sorted(path.stem for path in SCRIPTS.glob("*.py"))


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))
    blocks = [own for own in re.split(r"^(?:use )?rule ", text, flags=re.M) if "code=" in own]
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


def test_the_place_and_the_date_of_the_code_do_not_matter(copy: Path):
    own = {rule: code_hash(rule) for rule in RULES}
    assert len(set(own.values())) == len(RULES)
    (copy / "headpursuit/method/heads.py").touch()
    lineage.SCRIPTS = SCRIPTS
    forget()
    assert own == {rule: code_hash(rule) for rule in RULES}


def test_what_changes_no_result_does_not_count(copy: Path):
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
    before = {rule: code_hash(rule) for rule in rules}
    paths = {path for rule in rules for path in lineage.modules(rule)}
    reached = {own for path in paths for own in lineage._read(path).imported}
    for module, old, new in changes:
        assert copy / "headpursuit" / module in reached
        change(copy / "headpursuit" / module, old, new)
    assert before == {rule: code_hash(rule) for rule in rules}


@pytest.mark.parametrize(
    ("rule", "module", "old", "new"),
    [
        ("select_heads", "select_heads.py", "in params.k\n", "in params.k[:1]\n"),
        (
            "select_heads",
            "headpursuit/method/heads.py",
            "[False, True, True]",
            "[True, True, True]",
        ),
        ("select_heads", "headpursuit/run/files.py", ">> 1", ">> 2"),  # reached through heads
        ("select_heads", "headpursuit/run/tables.py", "pa.float64()", "pa.float32()"),
        ("rank_heads", "headpursuit/method/somp.py", "STOP = 1e-7", "STOP = 2e-7"),
        ("respond", "headpursuit/method/batches.py", "> batch_tokens:", ">= batch_tokens:"),
    ],
)
def test_a_changed_formula_counts(copy: Path, rule: str, module: str, old: str, new: str):
    before = code_hash(rule)
    change(copy / module, old, new)
    assert code_hash(rule) != before


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("      length_ratio: ", "      longer: ", True),
        (
            "n: {type: integer, minimum: 1, description: samples}",
            "n: {type: number, description: n}",
            True,
        ),
        ("minimum: 1, description: samples}", "minimum: 2, description: prompts}", False),
        ("      layer: *layer\n      z: ", "      layer: *layer\n      x: ", False),
    ],
)
def test_the_columns_of_a_table_that_its_contract_lays_out_count(copy: Path, old, new, counts):
    """Not what they mean and may hold, nor columns that code names itself."""
    before = {rule: code_hash(rule) for rule in RULES}
    change(copy.parent / "schemas/tables.yaml", old, new)
    changed = {rule for rule in RULES if code_hash(rule) != before[rule]}
    assert ("publish_ratios" in changed, bool(changed)) == (counts, counts)
    assert not [rule for rule in changed if not rule.startswith(("publish_", "compare", "write_"))]


def test_code_that_a_rule_does_not_import_does_not_count_until_it_does(copy: Path):
    before, words = code_hash("select_heads"), copy / "headpursuit/method/words.py"
    change(words, '"upper": str.upper', '"upper": str.lower')
    assert code_hash("select_heads") == before
    line = "def main(snakemake):\n"
    lazy = f"{line}    from headpursuit.method import words\n\n    words.__name__\n"
    change(copy / "select_heads.py", line, lazy)
    imported = code_hash("select_heads")
    assert imported != before
    change(words, '"upper": str.lower', '"upper": str.upper')
    assert code_hash("select_heads") != imported


def loaded(rule: str) -> set[str]:
    """Import a rule's script anew and return the modules of the library that it loads."""
    for name in [name for name in sys.modules if name.split(".")[0] == "headpursuit"]:
        del sys.modules[name]
    importlib.import_module(rule)
    return {name for name in sys.modules if name.split(".")[0] == "headpursuit"}


def test_every_loaded_module_is_covered():
    """What Python itself loads for a script is what the hash stands on."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.map(loaded, RULES)
    for rule, modules in zip(RULES, found, strict=True):
        stems = [path.relative_to(SCRIPTS).with_suffix("") for path in lineage.modules(rule)]
        covered = {".".join(stem.parts).removesuffix(".__init__") for stem in stems}
        assert modules - NO_RESULT <= covered, rule


def test_the_library_imports_by_full_names():
    """The hash follows absolute imports of names only."""
    for path in SCRIPTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
            elif isinstance(node, ast.Import):
                assert not any(own.name.startswith("headpursuit") for own in node.names), path
