"""docs/choices.md says what the schema and the configs say."""

import re
from pathlib import Path

import yaml
from headpursuit.choices import main
from headpursuit.config import SCHEMA
from headpursuit.settings import leaves

ROOT = Path(__file__).parents[2]


def test_record_is_up_to_date(capsys) -> None:
    main()
    written = (ROOT / "docs/choices.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == written, "run `make docs`"


def test_every_key_is_described_and_every_open_choice_has_its_reason() -> None:
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    found = dict(leaves(schema, schema["$defs"]))
    assert len(found) > 60
    for path, leaf in found.items():
        assert leaf.get("description"), path
        if "paper" in leaf:
            assert leaf.get("reason"), path
            # Settled, with the place; or open, or nothing of the kind.
            assert re.search(r"^open|^no |seed|v2|table 1", leaf["paper"]), path
