"""Real runs of the tiny pipeline on a real SLURM, with faults on purpose."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from checkout import wait_until
from hub_server import Repo, serve
from on_slurm import PROMPTS, Cluster

# What is too short for jobs, or downloads.
LOCAL = {"all", "write_config", "preflight", "download_source"}
LOCAL |= {"split_words", "count_answered", "select_heads", "draw_controls"}


def test_the_tiny_run_with_nodes_that_have_no_hub(cluster: Cluster) -> None:
    prompts = (cluster.folder / "own/prompts.jsonl").read_bytes()
    source = {"kind": "hub", "id": "org/prompts", "repo_type": "dataset", "revision": "main"}
    cluster.configure(
        "hub",
        sources={"hub-prompts": {**source, "files": ["prompts.jsonl"], "licence": "none"}},
        samples={"rtp": {"source": "hub-prompts"}},
        compute={"device": "auto"},  # there is no GPU, but jobs ask SLURM for one
    )
    with serve({"org/prompts": Repo(files={"prompts.jsonl": prompts})}) as hub:
        cluster.succeeds("--until", "download_source", overlay="hub", HF_ENDPOINT=hub.url)
        assert not cluster.jobs()
        gone = hub.url
    said = cluster.succeeds(overlay="hub", HF_ENDPOINT=gone).said
    assert len(pd.read_csv(cluster.path("tables/table2.csv")))

    jobs = cluster.jobs()
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    ran = {re.match(r"rule_([a-z0-9_]+?)(_wildcards_|$)", job["Comment"])[1]: job for job in jobs}
    stats = said.split("Job stats:")[1].split("\ntotal")[0].splitlines()[3:]
    computing = {rule: int(n) for rule, n in map(str.split, stats) if rule not in LOCAL}
    assert set(ran) == set(computing)
    assert len(jobs) == sum(computing.values())
    with_model = {rule for rule, job in ran.items() if "gpu" in job.get("TresPerJob", "")}
    assert with_model == {"respond", "intervene", "cache_activations", "measure_expected"}
    # On two nodes at the same time.
    assert {job["NodeList"] for job in jobs} == {"one", "two"}
    assert any(
        first["StartTime"] < second["EndTime"] and second["StartTime"] < first["EndTime"]
        for first in jobs
        for second in jobs
        if first["NodeList"] != second["NodeList"]
    )


def test_a_failing_job_is_reported_with_its_log(cluster: Cluster) -> None:
    run, _ = cluster.start_a_job("raise RuntimeError('broken on purpose')", "--retries", "0")
    assert run.ended() != 0
    assert "RuntimeError: broken on purpose" in run.said  # of the rule's log
    assert "slurm_logs/rule_prepare_samples" in run.said  # where SLURM's own is
    assert cluster.states() == ["FAILED"]


def test_a_cancelled_job_is_submitted_again(cluster: Cluster) -> None:
    run, job = cluster.start_a_job("time.sleep(600)")
    subprocess.run(["scancel", job], check=True)
    assert run.ended() == 0, run.said
    assert cluster.states() == ["CANCELLED", "COMPLETED"]


def test_an_interrupt_cancels_what_runs_and_a_rerun_resumes(cluster: Cluster) -> None:
    run, _ = cluster.start_a_job("time.sleep(600)")
    run.process.send_signal(signal.SIGINT)
    assert run.ended() != 0
    assert cluster.states() == ["CANCELLED"]
    cluster.succeeds(PROMPTS)
    assert cluster.states() == ["CANCELLED", "COMPLETED"]


def test_a_killed_snakemake_is_taken_up_again(cluster: Cluster) -> None:
    """As docs/clusters.md says: cancel what it left in the queue, unlock, run again."""
    run, job = cluster.start_a_job("time.sleep(600)")
    run.process.kill()
    run.ended()
    assert cluster.states() == ["RUNNING"]  # SLURM's jobs outlive it
    name = re.search(r"SLURM run ID: (\S+)", run.said)[1]
    subprocess.run(["scancel", "--name", name], check=True)
    cluster.succeeds("--unlock")
    cluster.succeeds(PROMPTS)
    assert cluster.jobs()[0]["JobId"] == job
    assert cluster.states() == ["CANCELLED", "COMPLETED"]


@pytest.mark.parametrize(
    ("code", "resources", "field", "asked", "ends"),
    [
        (
            "time.sleep(600)",
            "mem_mb=4000, runtime=1",
            "TimeLimit",
            ["00:01:00", "00:02:00"],
            {"TIMEOUT"},
        ),
        (
            "more = b'x' * 1_500_000_000; time.sleep(600)",
            "mem_mb=1500, runtime=30",
            "MinMemoryNode",
            ["1500M", "3000M"],
            {"FAILED", "OUT_OF_MEMORY"},  # the second with cgroups
        ),
    ],
)
def test_a_job_over_its_time_or_memory_gets_more(
    cluster: Cluster, code: str, resources: str, field: str, asked: list[str], ends: set[str]
) -> None:
    cluster.change(
        "rules/samples.smk", "by_attempt(mem_mb=4000, runtime=60)", f"by_attempt({resources})"
    )
    run, _ = cluster.start_a_job(code)
    assert run.ended() == 0, run.said
    first, second = cluster.jobs()
    assert [first[field], second[field]] == asked
    assert first["JobState"] in ends
    assert second["JobState"] == "COMPLETED"


@pytest.mark.alone
def test_a_controller_that_dies_loses_nothing(cluster: Cluster, slurm: Path) -> None:
    run, _ = cluster.start_a_job("time.sleep(5)")
    controller = slurm / "slurmctld.process"  # slurm.py starts it again some seconds later
    before = controller.read_text()
    os.kill(int(before), signal.SIGKILL)
    wait_until(lambda: controller.read_text() not in ("", before))
    try:
        run.ended(within=120)
    except subprocess.TimeoutExpired:
        # The plugin asked just then, and has forgotten the job: docs/clusters.md says what to do.
        run.process.send_signal(signal.SIGINT)
        run.ended()
        run = cluster.start(PROMPTS)
    assert run.ended() == 0, run.said
    assert set(cluster.states()) == {"COMPLETED"}
