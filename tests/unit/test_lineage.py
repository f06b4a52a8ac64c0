import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from headpursuit import lineage
from headpursuit.lineage import code_hash

SCRIPTS = Path(__file__).parents[2] / "scripts"
NO_RESULT = {"headpursuit.contracts", "headpursuit.retry"}
RULES = sorted(path.stem for path in SCRIPTS.glob("*.py"))


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a copy of the scripts that code_hash reads instead."""
    shutil.copytree(SCRIPTS, tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(lineage, "SCRIPTS", tmp_path / "scripts")
    forget()
    yield tmp_path / "scripts"
    forget()


def forget() -> None:
    lineage.code_hash.cache_clear()
    lineage._parsed.cache_clear()


def after(path: Path, old: str, new: str, rule: str) -> str:
    """Return the hash of a rule after a change of one of its files."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    forget()
    return code_hash(rule)


def test_the_place_of_the_code_does_not_matter(copy: Path):
    own = {rule: code_hash(rule) for rule in RULES}
    assert len(set(own.values())) > 1
    path = copy / "headpursuit" / "heads.py"
    path.touch()
    forget()
    assert own == {rule: code_hash(rule) for rule in RULES}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    return ranked\n", "    # Best first.\n    return ranked\n"),
        ("    return ranked\n", "    return (ranked)\n\n\n"),
        ('"""Order heads by score, highest first;', '"""Sort heads by score;'),
        ('"""Heads: which are selected', '"""Which heads are selected'),
    ],
    ids=["comment", "layout", "docstring", "module docstring"],
)
def test_what_says_nothing_to_the_machine_does_not_count(copy: Path, old: str, new: str):
    before = code_hash("select_heads")
    assert after(copy / "headpursuit" / "heads.py", old, new, "select_heads") == before


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("select_heads.py", "wildcards.k)", "wildcards.k) + 1"),
        ("headpursuit/heads.py", "ascending=[False, True, True]", "ascending=[True, True, True]"),
        ("headpursuit/tables.py", "keep_default_na=False", "keep_default_na=True"),
        ("headpursuit/files.py", ">> 1", ">> 2"),  # reached through heads
    ],
)
def test_a_change_of_reached_code_counts(copy: Path, module: str, old: str, new: str):
    before = code_hash("select_heads")
    assert after(copy / module, old, new, "select_heads") != before


def test_a_change_of_other_code_does_not_count(copy: Path):
    before = code_hash("select_heads")
    path = copy / "headpursuit" / "generate.py"
    assert after(path, "TemperatureLogitsWarper(float", "TemperatureLogitsWarper(2 * float",
                 "select_heads") == before  # fmt: skip
    assert code_hash("generate_baseline") != ""


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("ranking.py", "raise UserError(", 'raise UserError("In other words. "'),
        ("files.py", "{path}: not readable JSON", "{path}: no JSON"),
        ("score.py", "raise UserError(", 'raise UserError("In other words. "'),
        ("batches.py", "log.warning(", 'log.warning("In other words. "'),
        ("batches.py", '"%d finished batches are in', '"The journal has %d'),
        ("generate.py", 'unit="batch"', 'unit="step"'),
        ("contracts.py", "SLACK = 1e-6", "SLACK = 1e-5"),
        ("download.py", "ATTEMPTS = 8", "ATTEMPTS = 9"),
        ("retry.py", "FIRST_WAIT, LONGEST_WAIT = 0.5", "FIRST_WAIT, LONGEST_WAIT = 0.6"),
    ],
)
def test_messages_contracts_and_downloads_do_not_count(copy: Path, module: str, old: str, new: str):
    rules = ("rank_heads", "generate_intervened", "score_words", "label_responses")
    before = [code_hash(rule) for rule in rules]
    after(copy / "headpursuit" / module, old, new, "rank_heads")
    assert [code_hash(rule) for rule in rules] == before


def test_a_description_of_a_column_does_not_count():
    """Descriptions stand in a schema, which no hash reads."""
    assert not [path for rule in RULES for path in lineage.modules(rule) if path.suffix != ".py"]


@pytest.mark.parametrize(
    ("module", "old", "new", "rule"),
    [
        ("somp.py", "1e-", "2e-", "rank_heads"),
        ("special.py", "return ", "return 0 or ", "score_words"),
        ("batches.py", "> batch_tokens:", ">= batch_tokens:", "generate_intervened"),
        ("tables.py", '"number": pa.float64()', '"number": pa.float32()', "rank_heads"),
    ],
)
def test_a_changed_formula_counts(copy: Path, module: str, old: str, new: str, rule: str):
    before = code_hash(rule)
    assert after(copy / "headpursuit" / module, old, new, rule) != before


def test_a_lazy_import_counts(copy: Path):
    script = copy / "plot_table2.py"
    before = code_hash("plot_table2")
    changed = after(
        script,
        "    table = read_csv",
        "    from headpursuit import words\n\n    words.__name__\n    table = read_csv",
        "plot_table2",
    )
    assert changed != before
    assert after(copy / "headpursuit" / "words.py", '"upper": str.upper', '"upper": str.lower',
                 "plot_table2") != changed  # fmt: skip


# Imports each script in a process of its own, forked from one that has the large libraries.
LOAD = """
import os, sys
import datasets, matplotlib, pandas, pyarrow.parquet, torch, transformers
for rule in sys.argv[1:]:
    sys.stdout.flush()
    if not os.fork():
        __import__(rule)
        print(rule, *(name for name in sys.modules if name.split(".")[0] == "headpursuit"))
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0, rule
"""


def test_every_loaded_module_is_covered():
    """What Python itself loads for a script is what the hash stands on."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *RULES], cwd=SCRIPTS, stdout=subprocess.PIPE, check=True
    )
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert [rule for rule, *_ in lines] == RULES
    for rule, *loaded in lines:
        assert set(loaded) - NO_RESULT <= covered(rule), rule


def covered(rule: str) -> set[str]:
    """Return the names of the modules behind a rule's hash."""
    stems = [path.relative_to(SCRIPTS).with_suffix("") for path in lineage.modules(rule)]
    return {".".join(stem.parts).removesuffix(".__init__") for stem in stems}


def test_the_library_imports_by_full_names():
    """The hash follows absolute imports only."""
    for path in SCRIPTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
