"""The rule against real parts: a server of Ollama's API, a real small model.

`transformers serve` runs SmolLM2-135M-Instruct, and a random LLaVA for images;
`ollama-openai-proxy` speaks Ollama's HTTP API in front of it. The models are far too small to label
well: what is tested is that everything between the responses and the labels works on replies that
nobody wrote for the test.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from checkout import wait_until
from fake_ollama import free_port
from headpursuit.labelling.label import open_backend
from headpursuit.method.words import normalise
from test_keywords import encoded, images
from test_rule import ROOT, Run
from tiny_vision import make_vlm

SERVERS = ROOT / ".venv-labeller"
MODEL, SEEING = "demo/smollm2", "demo/llava"  # the second is tiny and random
STATUSES = {"ok", "none", "absent", "refused", "unparsed"}


@contextmanager
def process(command, url: str, log: Path, cwd: Path | None = None, **env: str):
    """Run a server until the block ends; begin when `url` answers."""
    with log.open("w") as handle:
        env = {**os.environ, **env}
        server = subprocess.Popen(command, stdout=handle, stderr=handle, cwd=cwd, env=env)

    def answers() -> bool:
        assert server.poll() is None, log.read_text()
        with suppress(httpx.HTTPError):
            return httpx.get(url, trust_env=False, timeout=5) is not None
        return False

    try:
        wait_until(answers, 120)
        yield
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """Give the demo's model, fetched and converted by the workflow where it is not there yet."""
    folder = ROOT / "resources/models/smollm2"
    if not (folder / "provenance.json").exists():
        snakemake = Path(sys.executable).with_name("snakemake")
        config = ["--configfile", "configs/demo.yaml"]
        target = "resources/models/smollm2/provenance.json"
        subprocess.run([snakemake, "--cores", "2", target, *config], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def servers(smollm2, tmp_path_factory):
    """Run both servers; give the address of each."""
    if not (SERVERS / "complete").exists():
        pytest.fail("`make test-labeller` installs the servers into .venv-labeller first")
    tmp = tmp_path_factory.mktemp("servers")
    # The server lists and finds models in a Hub cache. Whole seconds: the proxy takes no others.
    for name, folder in ((MODEL, smollm2), (SEEING, make_vlm(tmp / "vlm", "llava"))):
        repo = tmp / "hub" / f"models--{name.replace('/', '--')}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs/main").write_text("0" * 40)
        snapshot = repo / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        for file in folder.iterdir():
            shutil.copyfile(file, snapshot / file.name)
            os.utime(snapshot / file.name, (0, 0))
    python, ports = SERVERS / "bin/python", [free_port(), free_port()]
    backend, proxy = (f"127.0.0.1:{port}" for port in ports)
    main = "from transformers.cli.transformers import main; main()"
    serve = [python, "-c", main, "serve", "--host", "127.0.0.1", "--port", str(ports[0])]
    cache = {"HF_HUB_CACHE": str(tmp / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    uvicorn = [python, "-m", "uvicorn", "src.main:app", "--port", str(ports[1])]
    upstream = {"OPENAI_API_BASE_URL": f"http://{backend}/v1", "OPENAI_API_KEY": "none"}
    with (
        process(
            [*serve, "--device", "cpu", "--dtype", "float32"],
            f"http://{backend}/health",
            tmp / "serve",
            **cache,
        ),
        process(uvicorn, f"http://{proxy}/health", tmp / "proxy", SERVERS / "proxy", **upstream),
    ):
        yield backend, proxy


def test_the_rule_end_to_end(servers, responses, tmp_path):
    _, proxy = servers
    settings = {"attempts": 2, "slots": 1, "num_predict": 16, "patience": 60}
    server = {"host": proxy, "model": MODEL, "pull": False}
    night = Run(tmp_path, responses(2), **settings, ollama=server)
    assert night.finish(300) == 0, night.said()
    labels = pq.read_table(night.labels / "rtp.parquet")
    assert labels.num_rows == 2
    assert set(labels["status"].to_pylist()) <= STATUSES
    assert all(reply.strip() for reply in labels["reply"].to_pylist())
    texts = responses(2)["response"].to_pylist()
    for text, words in zip(texts, labels["words"].to_pylist(), strict=True):
        assert all(word in normalise(text) for word in words)
    facts = night.summary()
    assert facts["labeller"]["model"] == MODEL
    assert facts["labeller"]["version"]
    assert facts["labeller"]["digest"].startswith("sha256:")
    assert facts["distinct"] == 2
    assert facts["tokens_per_second"] > 0
    # The journal has every reply, the retries for bad ones too.
    assert night.events().count("sent") == facts["requests"] == 2 + facts["retries"]


def test_openai_backend(servers, settings, responses, label):
    backend, _ = servers
    settings |= {"backend": "openai", "num_predict": 16, "timeout": 60, "slots": 1, "attempts": 1}
    settings["openai"] |= {"base_url": f"http://{backend}/v1", "model": MODEL}
    labels = label(responses(1))
    assert set(labels["status"].to_pylist()) <= STATUSES
    assert all(reply.strip() for reply in labels["reply"].to_pylist())
    assert json.loads(labels.schema.metadata[b"labelling"])["tokens"] > 0


@pytest.mark.parametrize("backend", ["openai", "ollama"])
def test_images_reach_a_model(servers, settings, label, tmp_path, backend):
    """Its processor decodes them, and it reads more tokens than those of the question."""
    settings |= {"backend": backend, "num_predict": 8, "timeout": 60, "slots": 1, "attempts": 1}
    settings |= {"per_image": 5, "prompt": str(ROOT / "prompts/keywords.yaml")}
    settings["openai"] |= {"base_url": f"http://{servers[0]}/v1", "model": SEEING}
    settings["ollama"] |= {"model": SEEING}
    own = [encoded(1), encoded(200, "JPEG")]
    labels = label(images(*own), servers[1])
    assert all(labels["reply"].to_pylist())
    read = [json.loads(line).get("prompt_tokens") for line in (tmp_path / "journal").open()]
    settings["ollama"]["host"] = servers[1]
    with open_backend(settings, own) as asked:
        question = asked.ask("", 1).prompt_tokens
    assert min(filter(None, read)) == question + (8 // 4) ** 2  # a token for each patch
