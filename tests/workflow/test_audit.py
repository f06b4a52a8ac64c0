"""The manifest, what verify finds, and the way from a number to its prompts, on a real run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from checkout import Checkout

pytestmark = pytest.mark.xdist_group("workflow")


@pytest.fixture(scope="module")
def audited(finished: Checkout) -> Checkout:
    finished.snakemake("audit")
    return finished


def audit(checkout: Checkout, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "headpursuit.audit", *arguments],
        cwd=checkout.folder,
        env={"PYTHONPATH": "scripts"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_manifest(audited: Checkout) -> None:
    manifest = json.loads(audited.path("audit/manifest.json").read_text())
    files = manifest["files"]
    own = {path for path in files if path.startswith("results/")}
    there = {
        path.relative_to(audited.folder).as_posix()
        for part in ("prompts", "generations", "labels", "words", "heads", "tables", "figures")
        for path in audited.path(part).rglob("*.*")
    }
    assert there <= own
    assert "resources/tiny-prompts/provenance.json" in files
    words = files["results/tiny/words/rtp.csv"]
    assert words["rule"] == "split_words"
    assert words["inputs"] == ["results/tiny/labels/rtp.parquet"]
    assert words["rows"] == len(pd.read_csv(audited.path("words/rtp.csv")))
    assert list(words["columns"]) == ["word", "count", "rank", "split"]
    assert manifest["software"]["torch"]
    assert manifest["workflow"]["files"]["scripts/headpursuit/somp.py"]


def test_untouched_files_verify(audited: Checkout) -> None:
    assert audit(audited, "verify", "results/tiny") == (
        0,
        "All files are as the manifest says.\n",
    )


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def drop_row(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(True)[:-1]))


def swap_columns(path: Path) -> None:
    table = pd.read_csv(path, dtype=str)
    table[table.columns[::-1]].to_csv(path, index=False)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("generations/rtp/baseline.parquet", flip, "changed"),
        ("words/rtp.csv", drop_row, "rows are now"),
        ("rankings/rtp/somp.csv", swap_columns, "columns are in another order"),
        ("scores/rtp.per_prompt.parquet", truncate, "no longer readable"),
        ("heads/rtp/somp-k2.csv", remove, "missing"),
    ],
)
def test_damage_is_named_with_what_stands_on_it(
    audited: Checkout, name: str, damage, said: str
) -> None:
    path = audited.path(name)
    before = path.read_bytes()
    try:
        damage(path)
        code, output = audit(audited, "verify", "results/tiny")
    finally:
        path.write_bytes(before)
    assert code == 1
    [line] = output.splitlines()
    assert line.startswith(f"results/tiny/{name}: ")
    assert said in line
    assert "results/tiny/tables/table2.csv" in line


def test_a_file_of_unknown_origin_is_named(audited: Checkout) -> None:
    stranger = audited.path("tables/table9.csv")
    stranger.write_text("value\n0.5\n")
    code, output = audit(audited, "verify", "results/tiny")
    stranger.unlink()
    assert (code, output) == (1, "results/tiny/tables/table9.csv: not in the manifest\n")


def test_traced_counts_sum_to_every_cell(audited: Checkout) -> None:
    table = pd.read_csv(audited.path("tables/table2.csv"))
    assert len(table) == 6
    for row in table.itertuples():
        command = ["trace", "results/tiny/tables/table2.csv", row.dataset, row.method]
        code, output = audit(audited, *command, str(row.heads), row.metric)
        assert code == 0, output
        sums = re.findall(r"held-out words \(.*\): (\S+) before, (\S+) after", output)
        assert len(sums) == row.draws
        before, after = zip(*[map(float, pair) for pair in sums], strict=True)
        assert before == pytest.approx([row.baseline_count] * row.draws, rel=1e-5)
        assert sum(after) / row.draws == pytest.approx(row.count, rel=1e-5)


def test_trace_masks_words_unless_asked(audited: Checkout) -> None:
    words = pd.read_csv(audited.path("words/rtp.csv"))["word"]
    command = ["trace", "results/tiny", "rtp", "somp", "2"]
    masked = audit(audited, *command)[1].lower()
    shown = audit(audited, *command, "--unmasked")[1].lower()
    assert not [word for word in words if re.search(rf"\b{re.escape(word)}\b", masked)]
    assert [word for word in words if re.search(rf"\b{re.escape(word)}\b", shown)]


def test_trace_of_no_such_row(audited: Checkout) -> None:
    code, output = audit(audited, "trace", "results/tiny", "rtp", "somp", "3")
    assert code == 2
    assert "Table 2 has no row rtp somp 3 count" in output
    assert "Traceback" not in output
