"""docs/choices.md says what the schema and the configs say, and no text names a missing file."""

import re
from pathlib import Path

from headpursuit.publish.settings import leaves, schema
from headpursuit.run.choices import main

ROOT = Path(__file__).parents[2]


def test_record_is_up_to_date(capsys) -> None:
    main()
    written = (ROOT / "docs/choices.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == written, "run `make docs`"


def test_files_that_are_named_are_there() -> None:
    named = re.compile(
        r"(?<![\w/.{}<>*-])(?:benchmarks|configs|data|docs|envs|profiles|prompts|report|rules|schemas"
        r"|scripts|tests)/[\w./-]*\.\w+(?![\w*{<])"
    )
    examples = {"data/tools.txt", "prompts/original.yaml"}
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    folders = ("configs", "docs", "envs", "profiles", "rules", "schemas", "scripts", "benchmarks")
    texts = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    texts += [ROOT / name for name in ("README.md", "Snakefile", "config.yaml", "Makefile")]
    read = 0
    for path in texts:
        if path.suffix in (".md", ".yaml", ".smk", ".py") or path.parent == ROOT:
            text = path.read_text(encoding="utf-8")
            found = set(named.findall(text)) - examples
            read += len(found)
            assert not [name for name in found if not (ROOT / name).exists()], path
            assert set(re.findall(r"\btest_\w+\.py\b", text)) <= tests, path
    assert read > 100


def test_every_key_is_described_and_every_open_choice_has_its_reason() -> None:
    found = dict(leaves(schema()))
    assert len(found) > 100
    for path, leaf in found.items():
        assert leaf.get("description"), path
        if "paper" in leaf:
            assert leaf.get("reason"), path
            # Settled, with the place; or open, or nothing of the kind.
            assert re.search(r"^open|^no |seed|v2|table \d", leaf["paper"]), path
