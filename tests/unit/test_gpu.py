"""Which GPU a job takes, on a machine of eight whose nvidia-smi is a stand-in."""

import json
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
from headpursuit.run import gpu
from headpursuit.run.files import UserError

ROOT = Path(__file__).parents[2]
UUIDS = [f"GPU-{number}aaa-bbbb" for number in range(8)]
# What a job with a device does: it waits until so many have had one, since a busy machine may take
# long to start them, and then for a time.
HOLD = """
def hold(others, seconds):
    folder, until = Path(os.environ["TMPDIR"]), time.monotonic() + 60
    (folder / f"took-{os.getpid()}").touch()
    while len([*folder.glob("took-*")]) < others and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(seconds)
"""
# A job: it notes its device, and from when to when it has it.
JOB = f"""
import os, sys, time
from pathlib import Path
from headpursuit.run.gpu import take_gpus
{HOLD}
took, since = take_gpus(1), time.monotonic()
print(took[0], flush=True)
hold(int(sys.argv[1]), float(sys.argv[2]))
print(os.environ["CUDA_VISIBLE_DEVICES"], since, time.monotonic(), flush=True)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put eight GPUs into a machine, and its locks into a folder of the test's own."""
    said = "\n".join(UUIDS)
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv(gpu.VISIBLE, raising=False)


def start(others: int, seconds: float) -> subprocess.Popen:
    job = [sys.executable, "-c", JOB, str(others), str(seconds)]
    return subprocess.Popen(job, stdout=subprocess.PIPE, text=True)


def most_at_once(spans: list[tuple[str, float, float]]) -> int:
    """Return how many devices were held at one time; fail if one was held twice."""
    for one, other in combinations(spans, 2):
        if one[0] == other[0]:
            assert one[2] <= other[1] or other[2] <= one[1], (one, other)
    return max(sum(s[1] <= own[1] < s[2] for s in spans) for own in spans)


def test_no_two_jobs_on_one_device_and_all_busy(machine: None) -> None:
    jobs = [start(8, 0.5) for _ in range(12)]
    said = [job.communicate(timeout=120)[0].split() for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 12
    assert all(first == visible for first, visible, *_ in said)  # CUDA sees what was taken
    spans = [(name, float(since), float(until)) for name, _, since, until in said]
    assert {name for name, *_ in spans} == set(UUIDS)
    assert most_at_once(spans) == 8


def test_a_killed_jobs_device_is_free_again(machine: None, monkeypatch) -> None:
    monkeypatch.setenv(gpu.VISIBLE, "5")
    first, second = start(1, 600), None
    try:
        assert first.stdout.readline().strip() == UUIDS[5]
        second = start(1, 0)
        time.sleep(1.5)
        assert second.poll() is None  # it waits
        first.kill()
        assert second.communicate(timeout=60)[0].split()[0] == UUIDS[5]
    finally:
        for job in filter(None, (first, second)):
            job.kill()


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, UUIDS),
        ("", []),
        ("-1", []),
        ("3", [UUIDS[3]]),
        ("6, 0,6", [UUIDS[6], UUIDS[0]]),
        ("1,9,2", [UUIDS[1]]),  # CUDA sees nothing behind a device that is none
        ("GPU-2", [UUIDS[2]]),
        ("MIG-1-2-3", ["MIG-1-2-3"]),
    ],
)
def test_only_visible_devices_are_candidates(machine, monkeypatch, visible, found) -> None:
    if visible is not None:
        monkeypatch.setenv(gpu.VISIBLE, visible)
    assert gpu.candidates() == found


def test_without_nvidia_smi(machine, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.take_gpus(1) == []
    monkeypatch.setenv(gpu.VISIBLE, "1,0")
    assert gpu.candidates() == ["1", "0"]


def test_several_devices_or_none(machine, monkeypatch) -> None:
    monkeypatch.setenv(gpu.VISIBLE, "1,4,5")
    with pytest.raises(UserError, match=r"asks for 4 GPUs, and 3 .*GPU-4aaa-bbbb"):
        gpu.take_gpus(4)
    handle = gpu._try(UUIDS[1])
    assert gpu._lock(UUIDS[:2], 2) == []
    assert gpu.take_gpus(2) == [UUIDS[4], UUIDS[5]]  # 0 was given back, but cannot be seen
    os.close(handle)


SNAKEFILE = """
rule all:
    input: expand("done/{number}.json", number=range(16)), "done/none.json"
rule on_gpu:
    output: "done/{number}.json"
    log: "log/{number}.log"
    resources: gpu=1
    params: others=8, seconds=lambda wildcards: int(wildcards.number) % 3
    script: "job.py"
rule without:
    output: "done/none.json"
    log: "log/none.log"
    params: others=0, seconds=0
    script: "job.py"
ruleorder: without > on_gpu
"""
SCRIPT = f"""
import json, os, time
from pathlib import Path
from headpursuit.run.rule import run_rule
{HOLD}
def main(snakemake):
    since, visible = time.monotonic(), os.environ.get("CUDA_VISIBLE_DEVICES")
    hold(snakemake.params.others, snakemake.params.seconds)
    Path(snakemake.output[0]).write_text(json.dumps([visible, since, time.monotonic()]))

run_rule(main, snakemake)
"""


@pytest.mark.long
def test_the_profile_of_eight_gpus_under_snakemake(machine, tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "job.py").write_text(SCRIPT)
    (tmp_path / "empty.yaml").write_text("{}")
    command = [f"{sys.prefix}/bin/snakemake", "--workflow-profile", str(ROOT / "profiles/node8")]
    command += ["--configfile", "empty.yaml", "--cores", "32", "--quiet"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("done/*")}
    assert found.pop("none")[0] is None  # a job that asks for no GPU takes none
    assert most_at_once([tuple(own) for own in found.values()]) == 8
