import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from headpursuit.run import lineage
from headpursuit.run.lineage import code_hash

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
NO_RESULT = {"headpursuit.run.contracts", "headpursuit.run.retry"}
RULES = sorted(path.stem for path in SCRIPTS.glob("*.py"))
SMK = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))
# Their code is a param; what the others make is a record, of the config, the machine or the Hub.
HASHED = sorted(set(re.findall(r'code=code_hash\("(\w+)"\)', SMK)))


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


def test_the_code_is_a_param_of_every_rule_with_a_result():
    assert set(RULES) - set(HASHED) == {"download_source", "estimate", "preflight", "write_config"}
    blocks = [block for block in re.split(r"^(?:use )?rule ", SMK, flags=re.M) if "code=" in block]
    for block in blocks:
        [code] = re.findall(r'code=code_hash\("(\w+)"\)', block)
        # A rule that uses another one has no script of its own.
        assert re.findall(r'scripts/(\w+)\.py"', block) in ([code], [])


def test_the_place_and_the_date_of_the_code_do_not_matter(copy: Path):
    own = {rule: code_hash(rule) for rule in RULES}
    assert len(set(own.values())) == len(RULES)
    (copy / "headpursuit/method/heads.py").touch()
    lineage.SCRIPTS = SCRIPTS
    forget()
    assert own == {rule: code_hash(rule) for rule in RULES}


@pytest.mark.parametrize(
    ("rule", "module", "old", "new"),
    [
        (
            "select_heads",
            "method/heads.py",
            "    return ranked\n",
            "    # Best.\n    return ranked\n",
        ),
        ("select_heads", "method/heads.py", "    return ranked\n", "    return (ranked)\n\n\n"),
        (
            "select_heads",
            "method/heads.py",
            '"""Order heads by score, highest first;',
            '"""Sort heads;',
        ),
        (
            "select_heads",
            "method/heads.py",
            '"""Heads: which are selected',
            '"""Which are selected',
        ),
        ("rank_heads", "method/ranking.py", "raise UserError(", 'raise UserError("That is: "'),
        ("rank_heads", "run/files.py", "{path}: not readable JSON", "{path}: no JSON"),
        (
            "rank_heads",
            "method/ranking.py",
            'desc="ranking", unit="layer"',
            'desc="heads", unit="all"',
        ),
        ("respond", "method/batches.py", "log.warning(", 'log.warning("That is: "'),
        ("respond", "method/batches.py", '"%d finished batches are in', '"The journal has %d'),
        ("select_heads", "run/contracts.py", "SLACK = 1e-6", "SLACK = 1e-5"),
        ("label_responses", "run/retry.py", "LONGEST_WAIT = 0.5", "LONGEST_WAIT = 0.6"),
    ],
)
def test_what_changes_no_result_does_not_count(copy: Path, rule: str, module: str, old, new):
    """Comments, layout, docstrings, messages, column contracts and retries."""
    path = copy / "headpursuit" / module
    reached = {found for own in lineage.modules(rule) for found in imports(own)}
    assert path in reached, f"{rule} does not reach {module}"
    before = code_hash(rule)
    assert after(path, old, new, rule) == before


def imports(path: Path) -> set[Path]:
    return lineage._imported(lineage._parsed(path))


def test_a_download_does_not_count():
    reach = {
        rule for rule in RULES if SCRIPTS / "headpursuit/data/download.py" in lineage.modules(rule)
    }
    assert reach == {"download_source", "preflight"}  # neither is HASHED


def test_a_description_of_a_column_does_not_count():
    """Descriptions stand in a schema, which no hash reads."""
    assert not [path for rule in RULES for path in lineage.modules(rule) if path.suffix != ".py"]


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
    assert after(copy / module, old, new, rule) != before


def test_a_change_of_other_code_does_not_count(copy: Path):
    rules = ("select_heads", "respond")
    selecting, responding = map(code_hash, rules)
    path = copy / "headpursuit/method/responses.py"
    assert after(path, "row[2]", "row[1]", "select_heads") == selecting
    assert code_hash("respond") != responding


def test_a_lazy_import_counts(copy: Path):
    line = "    params, path ="
    lazy = f"    from headpursuit.method import words\n\n    words.__name__\n{line}"
    before = code_hash("select_heads")
    changed = after(copy / "select_heads.py", line, lazy, "select_heads")
    assert changed != before
    words = copy / "headpursuit/method/words.py"
    assert after(words, '"upper": str.upper', '"upper": str.lower', "select_heads") != changed


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
