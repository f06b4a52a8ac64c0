"""Real runs of the tiny pipeline on a real SLURM, with faults on purpose."""

import re
import signal
import subprocess
from collections.abc import Callable

import pandas as pd
import pytest
from hub_server import Repo, serve
from on_slurm import PROMPTS, Cluster

LOCAL = {"all", "write_config", "preflight", "download_source"}
LOCAL |= {"split_words", "select_heads", "draw_controls"}  # too short for jobs


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
        downloads = cluster.start("--until", "download_source", overlay="hub", HF_ENDPOINT=hub.url)
        assert downloads.ended() == 0, downloads.said
        assert not cluster.jobs()
        gone = hub.url
    run = cluster.start(overlay="hub", HF_ENDPOINT=gone)
    assert run.ended() == 0, run.said
    assert len(pd.read_csv(cluster.path("tables/table2.csv")))

    jobs = cluster.jobs()
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    ran = {re.match(r"rule_([a-z0-9_]+?)(_wildcards_|$)", job["Comment"])[1]: job for job in jobs}
    computing = {rule: number for rule, number in run.planned.items() if rule not in LOCAL}
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
    cluster.first_try("raise RuntimeError('broken on purpose')")
    run = cluster.start(PROMPTS, "--retries", "0")
    assert run.ended() != 0
    assert "RuntimeError: broken on purpose" in run.said  # of the rule's log
    assert "slurm_logs/rule_prepare_samples" in run.said  # where SLURM's own is
    assert cluster.states() == ["FAILED"]


def test_a_cancelled_job_is_submitted_again(cluster: Cluster) -> None:
    cluster.first_try("time.sleep(600)")
    run = cluster.start(PROMPTS)
    subprocess.run(["scancel", cluster.wait_for_a_running_job()], check=True)
    assert run.ended() == 0, run.said
    assert cluster.states() == ["CANCELLED", "COMPLETED"]


def test_an_interrupt_cancels_what_runs_and_a_rerun_resumes(cluster: Cluster) -> None:
    cluster.first_try("time.sleep(600)")
    run = cluster.start(PROMPTS)
    cluster.wait_for_a_running_job()
    run.process.send_signal(signal.SIGINT)
    assert run.ended() != 0
    assert cluster.states() == ["CANCELLED"]
    again = cluster.start(PROMPTS)
    assert again.ended() == 0, again.said
    assert cluster.states() == ["CANCELLED", "COMPLETED"]


def test_a_killed_snakemake_is_taken_up_again(cluster: Cluster) -> None:
    """As docs/clusters.md says: cancel what it left in the queue, unlock, run again."""
    cluster.first_try("time.sleep(600)")
    run = cluster.start(PROMPTS)
    job = cluster.wait_for_a_running_job()
    run.process.kill()
    run.ended()
    assert cluster.states() == ["RUNNING"]  # SLURM's jobs outlive it
    name = re.search(r"SLURM run ID: (\S+)", run.said)[1]
    subprocess.run(["scancel", "--name", name], check=True)
    unlocking = cluster.start("--unlock")
    assert unlocking.ended() == 0, unlocking.said
    again = cluster.start(PROMPTS)
    assert again.ended() == 0, again.said
    assert cluster.jobs()[0]["JobId"] == job
    assert cluster.states() == ["CANCELLED", "COMPLETED"]


def test_a_job_over_its_time_gets_more(cluster: Cluster) -> None:
    cluster.change(
        "rules/samples.smk", "mem_mb=by_attempt(4000),\n        runtime=by_attempt(60)",
        "mem_mb=by_attempt(4000),\n        runtime=by_attempt(1)",
    )  # fmt: skip
    cluster.first_try("time.sleep(600)")
    run = cluster.start(PROMPTS)
    assert run.ended() == 0, run.said
    jobs = cluster.jobs()
    assert (jobs[0]["JobState"], jobs[0]["TimeLimit"]) == ("TIMEOUT", "00:01:00")
    assert (jobs[1]["JobState"], jobs[1]["TimeLimit"]) == ("COMPLETED", "00:02:00")


def test_a_job_over_its_memory_gets_more(cluster: Cluster) -> None:
    cluster.change(
        "rules/samples.smk", "mem_mb=by_attempt(4000),\n        runtime=by_attempt(60)",
        "mem_mb=by_attempt(1500),\n        runtime=by_attempt(30)",
    )  # fmt: skip
    cluster.first_try("more = b'x' * 1_500_000_000; time.sleep(600)")
    run = cluster.start(PROMPTS)
    assert run.ended() == 0, run.said
    jobs = cluster.jobs()
    assert [job["MinMemoryNode"] for job in jobs] == ["1500M", "3000M"]
    # Without cgroups SLURM says FAILED; with them OUT_OF_MEMORY.
    assert jobs[0]["JobState"] in ("FAILED", "OUT_OF_MEMORY")
    assert jobs[1]["JobState"] == "COMPLETED"


@pytest.mark.alone
def test_a_controller_that_dies_loses_nothing(
    cluster: Cluster, kill_controller: Callable[[], None]
) -> None:
    cluster.first_try("time.sleep(5)")
    run = cluster.start(PROMPTS)
    cluster.wait_for_a_running_job()
    kill_controller()
    try:
        run.ended(within=120)
    except subprocess.TimeoutExpired:
        # The plugin asked just then, and has forgotten the job: docs/clusters.md says what to do.
        run.process.send_signal(signal.SIGINT)
        run.ended()
        run = cluster.start(PROMPTS)
    assert run.ended() == 0, run.said
    assert set(cluster.states()) == {"COMPLETED"}
