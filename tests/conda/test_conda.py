"""Snakemake's whole conda path: hashing, creation, activation, scripts, and what they import.

The environments are those of envs/, with real packages; conda is a stand-in (docs/environments.md).
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from checkout import ROOT, Checkout, make_checkout
from fake_ollama import FakeOllama
from hub_server import Repo, serve
from test_pins import ENVIRONMENTS, SCRIPTS, pip_pins, rules_of
from tiny import WORDS
from tiny_figure1 import prepare_figure1
from tiny_gguf import write_gguf

HERE = Path(__file__).parent
# What `make test-conda` makes: Snakemake alone, and beside it the environments, kept between runs.
BARE = ROOT / ".venv-conda"
PATH = os.pathsep.join([str(HERE / "standin/bin"), str(BARE / "bin"), os.environ["PATH"]])
ENVIRONMENTS_ONLY = "--conda-create-envs-only"


@dataclass
class CondaCheckout(Checkout):
    """A checkout that runs with ``--sdm conda``; scripts note in ``imports`` what they imported."""

    program: ClassVar[list[Path]] = [BARE / "bin/snakemake"]

    def start(self, *arguments: str, overlay: str = "tiny", **env: str) -> subprocess.Popen:
        """Start Snakemake as :meth:`Checkout.start` does, where nothing else is installed."""
        for package in (BARE / "envs").glob("*/lib/python*/site-packages"):
            shutil.copy(HERE / "record_imports.py", package)
            (package / "record_imports.pth").write_text("import record_imports\n")
        self.imports.mkdir(exist_ok=True)
        deployed = [] if "--sdm" in arguments else ["--sdm", "conda"]
        deployed += ["--conda-prefix", str(BARE / "envs")]
        env = {"PATH": PATH, "RECORDED": str(self.imports), **env}
        return super().start(*arguments, *deployed, overlay=overlay, **env)

    @property
    def imports(self) -> Path:
        return self.folder / "imports"


def make_conda_checkout(folder: Path) -> CondaCheckout:
    """Make a checkout in which nothing has run yet."""
    assert CondaCheckout.program[0].exists(), "make test-conda installs what these tests need"
    return CondaCheckout(make_checkout(folder).folder, patience=1800)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> CondaCheckout:
    """Give a checkout in which every rule has run, each script in its own environment."""
    checkout = make_conda_checkout(tmp_path_factory.mktemp("conda") / "checkout")
    checkout.configure("conda", **overlay(checkout.folder / "own"))
    # First, since a job's environment has to hold what records its imports.
    checkout.snakemake("all", ENVIRONMENTS_ONLY, overlay="conda")
    prompts = (checkout.folder / "own/prompts.jsonl").read_bytes()
    hub = serve({"org/prompts": Repo(files={"prompts.jsonl": prompts})})
    with hub as hub, FakeOllama(reply=lambda text, _: f"<answer>{WORDS[0]}</answer>") as server:
        targets = ["all", "crate", "resources/models/converted/provenance.json"]
        env = {"HF_ENDPOINT": hub.url, "OLLAMA_HOST": server.host}
        checkout.snakemake(*targets, overlay="conda", **env)
    return checkout


def overlay(own: Path) -> dict[str, Any]:
    """Return an overlay that needs every rule, with few jobs of each."""
    figure1 = prepare_figure1(own)
    assembled = figure1["models"]["assembled"]
    converted = {**assembled, "source": "tiny-gguf", "gguf": "tiny.gguf"}  # asked for by name
    write_gguf(own / "tiny.gguf", own / "model")
    (own / "quiz.jsonl").write_text('{"question": "Which is sour?", "answer": "lemon"}\n' * 6)
    prompts = {"kind": "hub", "id": "org/prompts", "repo_type": "dataset", "revision": "main"}
    own_experiments = {
        "rtp": {"methods": ["somp"]},
        "stripes": figure1["experiments"]["stripes"] | {"methods": ["somp"], "k": [1]},
        "named": {"like": "rtp", "measures": []},  # the same heads as rtp's
        "asked": {"like": "named", "concept": None, "vocabulary": {"draws": 20, "neighbours": 50}},
        "fruit": {"like": "named", "concept": "fruit"},
        "quiz": {"like": "fruit", "samples": "quiz", "measures": ["f1"], "heads_from": "fruit"},
    }
    return {
        **figure1,
        "sources": {
            **figure1["sources"],
            "tiny-gguf": {"kind": "local", "path": "own/tiny.gguf"},
            "quiz": {"kind": "local", "path": "own/quiz.jsonl"},
            "hub-prompts": {**prompts, "files": ["prompts.jsonl"], "licence": "none"},
        },
        "models": {"assembled": assembled, "converted": converted},
        "samples": {
            **figure1["samples"],
            "rtp": {"source": "hub-prompts", "sample": 24},
            "quiz": {"source": "quiz", "files": "quiz.jsonl", "text": "question"}
            | {"references": "answer"},
        },
        "concepts": {"fruit": {"words": ["apple", "lemon"]}},
        "experiments": figure1["experiments"] | own_experiments,
        "tables": {
            "table1": ["asked"],
            "concepts": ["named", "fruit"],
            "figure2": ["quiz"],
            "figure1": ["stripes"],
            "figure4": [],
        },
        "labeller": {"second": "ollama"},
        "compute": figure1["compute"] | {"parts": 1},
    }


def records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in folder.glob("*.json"):
        yield json.loads(path.read_text())


def foreign(record: dict[str, Any]) -> dict[str, str]:
    """Return the modules that came neither from the environment, Python nor the workflow."""

    def own(file: Path) -> bool:
        if file.is_relative_to(record["prefix"]) or file.is_relative_to(record["workflow"]):
            return True
        return file.is_relative_to(record["stdlib"]) and "site-packages" not in file.parts

    return {name: file for name, file in record["files"].items() if not own(Path(file))}


def test_every_script_ran_in_its_own_environment(ran: CondaCheckout) -> None:
    found: dict[str, set[str]] = {}
    for record in records(ran.imports):
        # Snakemake copies the file beside the environment that is made of it.
        name = yaml.safe_load(Path(f"{record['prefix']}.yaml").read_text())["name"]
        found.setdefault(record["script"], set()).add(name)
    wanted = {rule: {f"headpursuit-{name}"} for name in ENVIRONMENTS for rule in rules_of(name)}
    assert found == wanted
    assert set(found) == {path.stem for path in SCRIPTS.glob("*.py")}


def test_what_a_script_imports_lies_in_its_environment(ran: CondaCheckout) -> None:
    for record in records(ran.imports):
        assert {"headpursuit", "headpursuit.run.rule"} <= set(record["files"]), record["script"]
        assert foreign(record) == {}, record["script"]


def test_a_second_run_does_nothing(ran: CondaCheckout) -> None:
    assert ran.planned("crate", overlay="conda") == {}


def test_a_missing_package_is_caught(tmp_path: Path) -> None:
    """Snakemake's own puts itself in its place, without a word, and the check says so."""
    checkout = make_conda_checkout(tmp_path / "checkout")
    path = checkout.folder / "envs/download.yaml"
    environment = yaml.safe_load(path.read_text())
    environment["dependencies"][-1]["pip"] = [f"tabulate=={pip_pins('tables')['tabulate']}"]
    path.write_text(yaml.safe_dump(environment))
    checkout.snakemake("results/tiny/config.yaml", ENVIRONMENTS_ONLY)
    checkout.snakemake("results/tiny/config.yaml")
    [record] = records(checkout.imports)
    assert Path(foreign(record)["yaml"]).is_relative_to(BARE.resolve())


# Containers


def recipe(checkout: CondaCheckout, form: str) -> str:
    """Return what an image is built of, without what Snakemake says beside it."""
    said = checkout.snakemake("--containerize", form, overlay="conda")
    return said[said.index("FROM" if form == "dockerfile" else "Bootstrap") :]


@pytest.mark.parametrize("form", ["dockerfile", "apptainer"])
def test_an_image_holds_every_environment(ran: CondaCheckout, form: str) -> None:
    text = recipe(ran, form)
    for name in ENVIRONMENTS:
        prefix = re.search(rf"source: envs/{name}.yaml\n# +prefix: (\S+)", text)[1]
        file = f"{prefix}/environment.yaml"
        assert re.search(rf"^ *(COPY )?envs/{name}.yaml {file}$", text, re.MULTILINE)
        assert f"conda env create --prefix {prefix} --file {file}" in text


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
def test_jobs_run_in_an_image(ran: CondaCheckout, tmp_path: Path) -> None:
    """A job of each environment, where nothing of this machine is seen but what is bound."""
    image = tmp_path / "image"
    shutil.copytree(HERE / "standin", image / "opt/conda")
    (image / "conda-envs").mkdir()
    made = {file.read_text(): file.with_suffix("") for file in (BARE / "envs").glob("*.yaml")}
    for name, prefix in re.findall(
        r"source: (envs/\S+)\n# +prefix: (\S+)", recipe(ran, "apptainer")
    ):
        (image / prefix[1:]).symlink_to(made[(ran.folder / name).read_text()])
    config = yaml.safe_load((ran.folder / "configs/conda.yaml").read_text())
    config["compute"]["image"] = str(image)
    (ran.folder / "configs/image.yaml").write_text(yaml.safe_dump(config))
    targets = ["config.yaml", "labels/rtp.parquet", "dictionaries/stripes.csv"]
    targets += ["tables/table1.csv"]
    (ran.folder / "inside").mkdir()
    ran.snakemake(
        *(f"results/tiny/{name}" for name in targets),
        *("--force", "--rerun-triggers", "mtime", "--sdm", "conda", "apptainer"),
        overlay="image",
        RECORDED=str(ran.folder / "inside"),
        PATH=os.pathsep.join([str(HERE / "apptainer/bin"), PATH]),
    )
    found = {record["script"]: record for record in records(ran.folder / "inside")}
    assert set(found) == {"write_config", "label_responses", "build_dictionary", "publish_heads"}
    for record in found.values():
        assert record["prefix"].startswith("/conda-envs/")
        # Inside, the library lies where Snakemake puts the folders of its own path.
        assert all(name.startswith("headpursuit") for name in foreign(record))
