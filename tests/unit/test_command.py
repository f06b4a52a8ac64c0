"""The command `headpursuit`: its help, its mistakes, and the package that brings it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from headpursuit.__main__ import main
from headpursuit.run.config import load_config
from headpursuit.run.estimate import estimate, render

ROOT = Path(__file__).parents[2]
COMMANDS = ["claims", "open", "pin", "trace", "verify", "diff", "estimate", "checkpoint"]
COMMANDS += ["apply"]


@pytest.mark.parametrize("command", [[], *([own] for own in COMMANDS)], ids=str)
def test_help_fits_a_screen(command: list[str], capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert command or all(
        re.search(f"^  +{own}$|^  +{own} ", "\n".join(lines), re.M) for own in COMMANDS
    )


def test_help_imports_no_large_library():
    code = "import sys, headpursuit.__main__; print(*sys.modules)"
    env = {"PYTHONPATH": str(ROOT / "scripts")}
    said = subprocess.check_output([sys.executable, "-c", code], env=env, text=True)
    assert not {"torch", "pandas", "pyarrow", "snakemake"} & set(said.split())


def test_an_estimate_is_that_of_the_merged_config(demo, capsys, tmp_path, monkeypatch):
    over = tmp_path / "more.yaml"
    over.write_text("experiments: {rtp: {k: [4]}}\n")
    demo["experiments"]["rtp"]["k"] = [4]
    monkeypatch.chdir(tmp_path)  # whose results/ has no benchmarks
    assert main(["estimate", "--configfile", str(ROOT / "configs/demo.yaml"), str(over)]) == 0
    assert capsys.readouterr().out == render(estimate(load_config(demo), {}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("a: [\n", "not valid JSON or YAML"),
        ("words\n", "keys at top level"),
        ("run: caf\udce9\n", "can't decode byte 0xe9"),
        ("experimets: {}\n", "experimets: unknown key; did you mean experiments?"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_message(content, said, capsys, tmp_path):
    path = tmp_path / "over.yaml"
    if content:
        path.write_text(content, errors="surrogateescape")
    assert main(["estimate", "--configfile", str(path)]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


@pytest.mark.parametrize(
    "command", ["claims", "open", "pin", "trace", "verify", "diff", "checkpoint"]
)
def test_an_unknown_run_is_told_with_those_there_are(command, made, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = {"diff": [str(made)], "checkpoint": ["rtp", "somp-k2", "edited"]}.get(command, [])
    assert main([command, "results/nope", *more]) == 2
    assert "Here there are none in results/" in capsys.readouterr().err
    for name in ("one", "other"):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "config.yaml").touch()
    assert main([command, "results/nope", *more]) == 2
    assert "Here there are results/one, results/other." in capsys.readouterr().err


def test_a_run_of_another_version_is_told(made, capsys, tmp_path):
    config = yaml.safe_load((made / "config.yaml").read_text())
    for name, changed, said in (
        ("before", {"text": {}, "datasets": {}}, "or no run's: datasets: unknown key"),
        ("other", {**config, "heads": {"k": [16]}}, "version, or no run's: heads: unknown key"),
        ("another", ["rtp"], "version, or no run's: the config: ['rtp'] is not a mapping"),
        ("broken", None, "is not readable YAML"),
    ):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("a: [" if changed is None else yaml.safe_dump(changed))
        assert main(["trace", str(folder)]) == 2
        assert said in capsys.readouterr().err


@pytest.fixture
def browser(tmp_path: Path, monkeypatch) -> Path:
    """Make the browser a program that writes down what it is to show."""
    program, shown = tmp_path / "browser", tmp_path / "shown"
    program.write_text(f'#!/bin/sh\necho "$1" > {shown}\n')
    program.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{program} %s")
    monkeypatch.setattr("webbrowser._tryorder", None)
    return shown


def test_the_report_or_a_page_opens_in_the_browser(made: Path, tmp_path: Path, browser, capsys):
    run = shutil.copytree(made, tmp_path / "a run")
    assert main(["open", str(run)]) == 2
    assert "report is not there: run Snakemake again" in capsys.readouterr().err
    (run / "report").mkdir()
    for name, page in (
        ([], "report/answer.html"),
        (["table2"], "report/table2.html"),
        (["tables/table2.csv"], "tables/table2.csv"),
        ([], "report.html"),  # once it is there
    ):
        (run / page).touch()
        assert main(["open", str(run), *name]) == 0
        assert browser.read_text().strip() == (run / page).as_uri()
    assert capsys.readouterr().out == ""
    assert main(["open", str(run), "table9"]) == 2
    assert "has no page table9; there are answer, table2." in capsys.readouterr().err


def test_without_a_browser_the_path_is_said(run: Path, capsys, monkeypatch):
    (run / "report.html").touch()
    monkeypatch.setattr("webbrowser._tryorder", [])
    assert main(["open", str(run)]) == 0
    assert capsys.readouterr().out == f"No browser opens here. The page is {run / 'report.html'}\n"


@pytest.mark.long
def test_a_copy_that_pip_installed_needs_no_checkout(made: Path, tmp_path: Path):
    """Built as users do, and run where no checkout is near."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, ROOT], check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    library = {
        path.relative_to(ROOT / "scripts") for path in (ROOT / "scripts/headpursuit").rglob("*.py")
    }
    assert {path.as_posix() for path in library} <= names
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", tmp_path / "there", wheel], check=True
    )

    def run(*arguments: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "PYTHONPATH": str(tmp_path / "there")}
        program = [sys.executable, tmp_path / "there/bin/headpursuit", *arguments]
        return subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert "# What the run `paper` takes" in run("estimate").stdout
    traced = run("trace", str(made / "tables/table2.csv"), "rtp", "somp", "2")
    assert "This adds up to the table's" in traced.stdout, traced.stderr
    code = "from headpursuit.run.files import ROOT; print(ROOT)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "there")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True)
    assert done.stdout.decode().strip() == str(tmp_path / "there/headpursuit/shipped")
