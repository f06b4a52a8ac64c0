"""README and docs: their links lead somewhere, their examples are valid, and each page is found."""

import re
from pathlib import Path

import pytest
import shipped
import yaml
from checkout import code_blocks
from headpursuit.run.config import load_config
from snakemake.utils import update_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", own.lower()).replace(" ", "-") for own in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"`[^`]*`|^    .*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_first_page_is_short_and_the_index_has_every_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")}
    assert {name for name in pages if f"]({name})" not in index} == {"index.md"}


@pytest.mark.parametrize("page", ["README.md", "docs/change.md", "docs/vision.md"])
def test_overlays_of_the_docs_are_valid(page: str):
    """A block that begins with its file's name is laid over the demo, or over config.yaml."""
    blocks = [own.strip() for own in code_blocks(ROOT / page)]
    blocks = [own for own in blocks if re.match(r"# \w+\.yaml", own)]
    assert blocks
    for block in blocks:
        text, _, command = block.partition(".venv/bin/snakemake")
        over_paper = {"llama", "mnist"} & set(re.findall(r"\w+", text))
        config, overlay = shipped.config(*([] if over_paper else ["demo"])), yaml.safe_load(text)
        for own in overlay.get("sources", {}).values():
            own["path"] = str(ROOT / "data")  # in the place of a path of the user's
        update_config(config, overlay)
        load_config(config)
        for table, experiments in overlay["tables"].items():
            assert f"tables/{table}.csv" in command or "tables/" not in command
            assert set(experiments) <= set(config["experiments"])
