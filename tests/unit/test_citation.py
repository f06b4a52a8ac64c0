"""What the software says of itself, in three files, is the same; each keeps its format."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from jsonschema.validators import validator_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def citation() -> dict:
    # As the format's own validator reads it: dates are text.
    return yaml.load((ROOT / "CITATION.cff").read_text(encoding="utf-8"), yaml.BaseLoader)


def test_the_three_files_agree(citation):
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    meta = json.loads((ROOT / "codemeta.json").read_text(encoding="utf-8"))
    assert meta["@context"] == "https://w3id.org/codemeta/3.0"
    assert meta["@type"] == "SoftwareSourceCode"
    assert citation["title"].startswith(f"{package['name']}: ") and meta["name"] == package["name"]
    assert citation["version"] == meta["version"] == package["version"]
    assert citation["license"] == package["license"]
    assert meta["license"] == f"https://spdx.org/licenses/{package['license']}"
    assert meta["description"] == package["description"]
    assert meta["runtimePlatform"] == f"Python {package['requires-python']}"
    assert meta["dateModified"] == citation["date-released"]
    assert [own["name"] for own in meta["author"]] == [own["name"] for own in citation["authors"]]
    [paper], theirs = citation["references"], meta["referencePublication"]
    assert (theirs["name"], theirs["url"]) == (paper["title"], paper["url"])
    assert theirs["identifier"] == paper["identifiers"][0]["value"]


@pytest.mark.long
def test_the_citation_keeps_its_format(citation, tmp_path):
    """By the schema that cffconvert carries, whose own jsonschema is too old to be installed."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    subprocess.run([*pip, "--no-deps", "-d", tmp_path, "cffconvert==2.0.0"], check=True)
    [wheel] = tmp_path.glob("*.whl")
    schema = json.loads(zipfile.ZipFile(wheel).read("cffconvert/schemas/1.2.0/schema.json"))
    validator = validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(citation)] == []
    del citation["authors"]
    assert list(validator.iter_errors(citation))
