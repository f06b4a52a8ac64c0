"""Real runs whose data and model come from a Hub that fails; each lack has one step to take.

What the Hub may answer is tried one by one in tests/unit/test_download.py.
"""

import os
import signal
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow.parquet as pq
import pytest
from checkout import Checkout, wait_until
from hub_server import Fault, Repo, serve

TOKEN = "hf_canaryCANARYcanary0123456789"
PROMPTS = "results/hub/samples/rtp.parquet"
CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def repos(checkout: Checkout) -> dict[str, Repo]:
    """Configure a run ``hub``, and give the repositories that hold its model and gated prompts."""
    own = checkout.folder / "own"
    model = {path.name: path.read_bytes() for path in (own / "model").iterdir()}
    # Large enough to arrive in several pieces: the client keeps whole ones of 10 MB.
    large = np.random.default_rng(0).bytes(25_000_000)
    source = {"kind": "hub", "revision": "main", "licence": "none"}
    checkout.configure(
        "hub",
        run="hub",
        sources={
            "hub-model": {
                **source, "id": "org/model", "repo_type": "model", "files": sorted(model)
            },
            "hub-prompts": {
                **source, "id": "org/prompts", "repo_type": "dataset",
                "files": ["prompts.jsonl", "large.jsonl"],
            },
        },
        models={"tiny": {"source": "hub-model"}},
        samples={"rtp": {"source": "hub-prompts"}},
    )  # fmt: skip
    prompts = {"prompts.jsonl": (own / "prompts.jsonl").read_bytes(), "large.jsonl": large}
    return {
        "org/model": Repo(files=model),
        "org/prompts": Repo(files=prompts, gated=True, token=TOKEN),
    }


def failure(checkout: Checkout, *targets: str, **env: str) -> str:
    said = checkout.refused(*targets, overlay="hub", **env)
    assert TOKEN not in said
    return said


@pytest.mark.short
def test_gated_then_killed_then_wrong_then_whole(checkout: Checkout, repos: dict) -> None:
    record = checkout.folder / "resources/hub-prompts/provenance.json"
    with serve(repos) as hub:
        at = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
        said = failure(checkout, HF_ENDPOINT=hub.url, HF_TOKEN="", HF_HOME="/nowhere")
        step = "org/prompts is gated. Open https://huggingface.co/datasets/org/prompts and accept"
        assert f"sources.hub-prompts: {step}" in said, said
        assert "set HF_TOKEN" in said
        assert not hub.asked("GET", "/resolve/")  # the preflight says it before any download

        released = Event()
        hub.faults.append(Fault("GET", r"large\.jsonl$", send=22_000_000, times=1, hold=released))
        run = checkout.start(PROMPTS, overlay="hub", **at)
        begun = checkout.folder / "resources/hub-prompts/.cache/huggingface/download"
        wait_until(lambda: any(p.stat().st_size > 20_000_000 for p in begun.glob("*.incomplete")))
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        released.set()
        assert not record.exists()  # so the file is not taken for whole
        checkout.snakemake("--unlock", overlay="hub")

        wrong = b"x" * len(repos["org/prompts"].files["large.jsonl"])
        hub.faults.append(Fault("GET", r"large\.jsonl$", body=wrong, times=1))
        said = failure(checkout, PROMPTS, **at)
        assert not list(begun.glob("*.incomplete"))  # nor is what the kill left
        assert "large.jsonl came with another size or checksum than the Hub gives" in said
        assert "and was deleted. Run the same command again" in said
        assert not record.with_name("large.jsonl").exists()
        assert not record.exists()

        checkout.snakemake(PROMPTS, overlay="hub", **at)
    made = pq.read_table(checkout.folder / PROMPTS)
    assert made.equals(pq.read_table(checkout.path("samples/rtp.parquet")))
    for path in checkout.folder.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_whole_run_without_a_network(checkout: Checkout, repos: dict, finished: Checkout) -> None:
    """With everything there, no server is asked for anything."""
    records = [f"resources/hub-{name}/provenance.json" for name in ("model", "prompts")]
    with serve(repos) as hub:
        checkout.snakemake(*records, overlay="hub", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    checkout.snakemake(overlay="hub", HF_ENDPOINT=CLOSED, HTTPS_PROXY=CLOSED, HTTP_PROXY=CLOSED)
    for table in ("table2.csv", "table2.draws.csv"):
        made = Path(checkout.folder, "results/hub/tables", table)
        assert made.read_bytes() == finished.path(f"tables/{table}").read_bytes()
