"""The manifest, what verify finds, and the way from a number to its prompts, on a real run."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkout import Checkout
from headpursuit.__main__ import main
from headpursuit.run import lineage, manifest, verify
from headpursuit.run.files import UserError, sha256
from headpursuit.run.finished import row_names

pytestmark = pytest.mark.xdist_group("workflow")

Audit = Callable[..., tuple[int, str]]
SOUND = "All files are as the manifest says.\n"


@pytest.fixture(scope="module")
def audited(finished: Checkout) -> Checkout:
    finished.snakemake("audit")
    return finished


@pytest.fixture
def audit(capsys: pytest.CaptureFixture[str]) -> Audit:
    """Give the command, its exit status and all it prints."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        code = main([str(argument) for argument in arguments])
        return code, "".join(capsys.readouterr())

    return run


def read_manifest(checkout: Checkout) -> dict[str, Any]:
    return json.loads(checkout.path("audit/manifest.json").read_text())


# The manifest


def test_every_file_is_in_the_manifest_with_what_made_it(audited: Checkout) -> None:
    found = read_manifest(audited)
    files = found["files"]
    aside = ("audit", "logs", "benchmarks", "report")
    there = {
        path.relative_to(audited.folder).as_posix()
        for path in audited.path("").rglob("*")
        if path.is_file()
        and path.relative_to(audited.path("")).parts[0] not in aside
        and not path.name.startswith(".")
    }
    assert there == {path for path in files if path.startswith("results/")}
    # What the run stands on, down to the user's own files and the weights.
    weights = "own/model/model.safetensors"
    assert {"data/published.csv", "own/prompts.jsonl", weights} <= set(files)
    assert files[weights]["listed_in"] == "resources/tiny-model/provenance.json"
    for path, facts in files.items():
        known = facts.get("sha256") or found["circumstances"]["files"][path]["sha256"]
        assert known == sha256(audited.folder / path), path
        if path.startswith("results/") and not path.endswith(".journal.jsonl"):
            assert facts["rule"] in found["rules"], path
            assert isinstance(facts["params"], dict), path
            assert facts["software"] in found["software"], path
            assert set(facts["inputs"]) <= set(files), path
            assert all(facts["inputs"].values()), path


def test_a_file_has_its_whole_lineage(audited: Checkout) -> None:
    found = read_manifest(audited)
    path = "results/tiny/rankings/rtp.csv"
    facts = found["files"][path]
    assert facts["sha256"] == sha256(audited.folder / path)
    assert facts["bytes"] == (audited.folder / path).stat().st_size
    ranked = pd.read_csv(audited.folder / path)["method"].unique()
    assert {"somp", "logit_lens"} <= {*ranked} and facts["rows"] == len(ranked) * 12  # heads
    known = {"method": "string", "layer": "integer", "head": "integer", "score": "number"}
    assert facts["columns"].items() >= {**known, "rank": "integer", "atoms": "string"}.items()
    assert (facts["rule"], facts["script"]) == ("rank_heads", "scripts/rank_heads.py")
    assert facts["params"]["pursuit"]["iterations"] == 5
    dictionary = "results/tiny/dictionaries/rtp.csv"
    assert facts["inputs"][dictionary] == sha256(audited.folder / dictionary)
    assert found["software"][facts["software"]]["torch"]
    rule = found["rules"]["rank_heads"]
    assert facts["code"] == facts["params"]["code"] == rule["code"]
    assert {"scripts/rank_heads.py", "scripts/headpursuit/method/somp.py"} <= set(rule["modules"])
    hashes = found["workflow"]["files"]
    assert all(hashes[module] == sha256(audited.folder / module) for module in rule["modules"])
    job = found["circumstances"]["jobs"][path]
    assert job["seconds"] >= 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00", job["ended"])
    host = found["circumstances"]["hosts"][job["host"]]
    assert {"name", "system", "processor", "cores", "memory_bytes", "gpu"} == set(host)
    assert host["memory_bytes"] > 10**8


def test_files_without_records_make_no_manifest(finished: Checkout, tmp_path: Path) -> None:
    """Better none than an empty lineage."""
    made = [str(finished.path("words/rtp.csv"))]
    with pytest.raises(UserError, match=r"does not say how .*--persistence-backend db"):
        manifest.build_manifest(finished.path(""), tmp_path, made, "9")


def test_another_repository_s_commit_is_not_the_workflow_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", *who, *arguments]
        return subprocess.check_output(command, cwd=tmp_path, stderr=subprocess.DEVNULL, text=True)

    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/audit.smk").write_text("a")
    git("init")
    monkeypatch.setattr(manifest, "ROOT", tmp_path)
    assert manifest.describe_workflow()["commit"] is None
    git("add", ".")
    git("commit", "-m", "all")
    monkeypatch.setattr(manifest, "ROOT", tmp_path / "rules")
    assert manifest.describe_workflow() == {"commit": None, "changed": [], "files": {}}
    monkeypatch.setattr(manifest, "ROOT", tmp_path)
    (tmp_path / "rules/audit.smk").write_text("b")
    found = manifest.describe_workflow()
    assert found["commit"] == git("rev-parse", "HEAD").strip()
    assert found["changed"] == [" M rules/audit.smk"]
    assert found["files"] == {"rules/audit.smk": sha256(tmp_path / "rules/audit.smk")}


# Two runs


@pytest.mark.long
def test_runs_differ_in_dates_hosts_and_times_only(
    audited: Checkout, elsewhere: Checkout, audit: Audit
) -> None:
    """Of the same workflow in two folders, on two cores and on one."""
    elsewhere.snakemake("--cores", "1", "audit", LANG="C", TZ="Asia/Kathmandu")
    one, other = read_manifest(audited), read_manifest(elsewhere)
    said = audit("diff", audited.path(""), elsewhere.path(""))
    assert said == (0, "The runs differ in dates, hosts and times only.\n")
    assert one != other
    del one["circumstances"], other["circumstances"]
    assert one == other


def test_runs_that_differ_say_where(audited: Checkout, audit: Audit, tmp_path: Path) -> None:
    found = read_manifest(audited)
    (tmp_path / "audit").mkdir()
    (tmp_path / "config.yaml").touch()
    path = tmp_path / "audit/manifest.json"
    own = found["files"]["results/tiny/words/rtp.csv"]
    before, own["sha256"] = own["sha256"], "0" * 64
    del found["files"]["results/tiny/tables/table2.csv"]
    # Another run's folder is no difference.
    path.write_text(json.dumps(found).replace('"results/tiny', '"results/other'))
    code, said = audit("diff", audited.path(""), tmp_path)
    assert code == 1
    table, words = said.splitlines()
    assert table.startswith("files <results>/tables/table2.csv: {") and table.endswith("/ nothing")
    assert words == f"files <results>/words/rtp.csv sha256: {before:.60} / {'0' * 60}"


# What verify finds


def flip(path: Path) -> None:
    """Change a bit that breaks no contract: of Parquet files, in the name of what wrote them."""
    data = bytearray(path.read_bytes())
    data[data.index(b"parquet-cpp") if path.suffix == ".parquet" else len(data) // 2] ^= 1
    path.write_bytes(data)


def drop_row(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(True)[:-1]))


def swap_columns(path: Path) -> None:
    table = pd.read_csv(path, dtype=str)
    table[table.columns[::-1]].to_csv(path, index=False)


def swap_values(path: Path) -> None:
    """Exchange the values of two columns and leave their names where they are."""
    table = pd.read_csv(path, dtype=str)
    renamed = table.rename(columns={"word": "split", "split": "word"})
    renamed[table.columns].to_csv(path, index=False)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


# Of each file: how it is damaged, and what is said of it, line by line.
DAMAGE: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "results/tiny/activations/rtp.parquet": (flip, ["changed"]),
    "results/tiny/rankings/rtp.csv": (
        swap_columns,
        ["columns are now atoms, rows", "its columns are in another order; it has atoms"],
    ),
    "results/tiny/words/rtp.csv": (swap_values, ["changed", "column split, row 1: "]),
    "results/tiny/scores/rtp.parquet": (truncate, ["no longer readable"]),
    "results/tiny/heads/rtp/selected.csv": (Path.unlink, ["missing"]),
    "resources/tiny-words/provenance.json": (flip, ["changed"]),
    "own/model/model.safetensors": (flip, ["changed"]),
    "own/words.csv": (Path.unlink, ["missing"]),
    "data/published.csv": (drop_row, ["rows are now"]),
}


def test_damage_is_named_with_what_stands_on_it(audited: Checkout, audit: Audit) -> None:
    paths = {name: audited.folder / name for name in DAMAGE}
    before = {path: (path.read_bytes(), path.stat()) for path in paths.values()}
    try:
        for name, (damage, _) in DAMAGE.items():
            damage(paths[name])
        code, output = audit("verify", audited.path(""))
    finally:
        for path, (content, stat) in before.items():  # other tests share the run
            path.write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert code == 1
    lines = output.splitlines()
    assert len(lines) == sum(len(said) for _, said in DAMAGE.values()), output
    for name, (_, said) in DAMAGE.items():
        own = [line for line in lines if line.startswith(f"{name}: ")]
        assert all(part in line for line, part in zip(own, said, strict=True)), own
        assert "results/tiny/tables/table2.csv" in own[0]
        assert "results/tiny/tables/published.csv" in own[0]


def test_a_run_as_it_was_and_a_file_of_unknown_origin(audited: Checkout, audit: Audit) -> None:
    assert audit("verify", audited.path("")) == (0, SOUND)
    stranger = audited.path("tables/table9.csv")
    stranger.write_text("value\n0.5\n")
    code, output = audit("verify", audited.path(""))
    stranger.unlink()
    assert (code, output) == (1, "results/tiny/tables/table9.csv: not in the manifest\n")


def test_a_run_that_was_copied_without_its_downloads(
    audited: Checkout, audit: Audit, tmp_path: Path
) -> None:
    copy = tmp_path / "from-a-colleague/mine"
    shutil.copytree(audited.path(""), copy)
    code, output = audit("verify", copy)
    assert (code, output.startswith(SOUND)) == (0, True)
    assert re.search(r"Note: \d+ files that the run stands on, .* were not compared", output)
    drop_row(copy / "words/rtp.csv")
    code, output = audit("verify", copy)
    assert code == 1
    assert output.startswith("results/tiny/words/rtp.csv: changed")


def test_a_copy_that_pip_installed_compares_no_code(
    audited: Checkout, audit: Audit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify, "SCRIPTS", tmp_path / "none")
    code, said = audit("verify", audited.path(""))
    assert (code, said.count("Note: ")) == (0, 1) and "The code was not compared" in said


def test_newer_code_is_noted_and_a_comment_is_not(
    audited: Checkout, audit: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(audited.folder / "scripts", tmp_path / "scripts")
    monkeypatch.setattr(lineage, "SCRIPTS", tmp_path / "scripts")
    module = tmp_path / "scripts/headpursuit/method/ranking.py"
    for added, noted in (("# A remark.\n", False), ("CHANGED = True\n", True)):
        module.write_text(module.read_text() + added)
        lineage._read.cache_clear()
        lineage.code_hash.cache_clear()
        code, output = audit("verify", audited.path(""))
        assert (code, output.startswith(SOUND)) == (0, True)
        assert output.endswith("than is here now, of the rules rank_heads.\n") == noted
    lineage.code_hash.cache_clear()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist. Write it: snakemake --cores 1 audit"),
        ("{", "not readable JSON"),
        ("[]", "is no manifest of this version"),
        ('{"files": {}}', "is no manifest of this version"),
    ],
)
def test_without_a_manifest(audit: Audit, tmp_path: Path, content: str | None, said: str) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "audit").mkdir()
    if content is not None:
        (tmp_path / "audit/manifest.json").write_text(content)
    code, output = audit("verify", tmp_path)
    assert (code, said in output) == (2, True)


# The way from a number to its prompts


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        *(
            (name, "ratios")
            for name in ("table2", "figure1", "enhanced", "figure4", "figure2", "figure5")
        ),
        *(("figure1.overlap", "overlaps"), ("table1", "heads"), ("published", "published")),
    ],
)
def test_every_row_of_every_table_is_traced(
    audited: Checkout, audit: Audit, table: str, kind: str
) -> None:
    path = audited.path(f"tables/{table}.csv")
    rows = pd.read_csv(path, dtype={"heads": str})
    if kind == "published":  # of those without a value of the run a few stand for all
        rows = pd.concat([rows[rows["own"].notna()], rows[rows["own"].isna()].head(4)])
    assert len(rows)
    for row in dict.fromkeys(row_names(rows, kind)):
        code, output = audit("trace", path, *row, "--top", "3")
        assert code == 0, output
        assert not re.search(r"(prompt|image): +(nan|None)\b", output)
        assert ("\nThis adds up to the table's " in output) == (
            kind in ("ratios", "overlaps") or (kind == "published" and "  own: " in output)
        )
