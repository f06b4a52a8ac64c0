import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from headpursuit.data import download, sources
from headpursuit.run import retry
from headpursuit.run.files import UserError
from hub_server import Fault, Hub, Repo, serve

CANARY = "hf_canaryCANARYcanary0123456789"
FILES = {
    "config.json": b'{"layers": 2}\n',
    "model.safetensors": bytes(range(256)) * 200,
    "pytorch_model.bin": b"a pickle",
    "modeling_tiny.py": b"print('run')",
    "data/train.csv": b"text\nhello\n",
}


@pytest.fixture
def hub(monkeypatch):
    """A Hub with an open model, a gated data set and a private model."""
    repos = {
        "org/tiny": Repo(dict(FILES)),
        "org/gated": Repo({"a.csv": b"text\nx\n"}, gated=True, token=CANARY),
        "org/private": Repo({"config.json": b"{}"}, private=True, token=CANARY),
    }
    with serve(repos) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
        monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
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


def failure(hub_spec: dict, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        download.download("tiny", hub_spec, folder)
    assert not (folder / "provenance.json").exists()
    assert CANARY not in str(caught.value)
    return str(caught.value)


# The Hub


def test_download_records_commit_sizes_and_hashes(hub: Hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = download.download("tiny", spec(), Path("resources/tiny"))
    folder = tmp_path / "resources/tiny"
    assert json.loads((folder / "provenance.json").read_text()) == given
    assert (given["revision"], given["commit"]) == ("main", "c" * 40)
    assert given["url"] == f"{hub.url}/org/tiny/tree/{'c' * 40}"
    assert given["root"] == "resources/tiny"
    assert [record["path"] for record in given["files"]] == ["config.json", "model.safetensors"]
    for record in given["files"]:
        content = FILES[record["path"]]
        assert record["size"] == len(content)
        assert record["sha256"] == hashlib.sha256(content).hexdigest()
        assert (folder / record["path"]).read_bytes() == content
    sources.verify(folder / "provenance.json")


def test_a_second_download_fetches_no_file_again(hub: Hub, tmp_path):
    first = download.download("tiny", spec(), tmp_path)
    (tmp_path / "provenance.json").unlink()
    asked = len(hub.asked("GET", "/resolve/"))
    assert download.download("tiny", spec(), tmp_path)["files"] == first["files"]
    assert len(hub.asked("GET", "/resolve/")) == asked == 2


def test_a_moved_branch_fetches_only_what_changed(hub: Hub, tmp_path):
    download.download("tiny", spec(), tmp_path)
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
    assert (tmp_path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    ranges = [h.get("Range") for m, p, h in hub.requests if m == "GET" and "safetensors" in p]
    assert ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/", 503),
        ("GET", "/api/", 429),
        ("GET", "/tree/", 503),
        ("GET", "/resolve/", 500),
    ],
)
def test_trouble_that_passes_is_waited_out(hub: Hub, tmp_path, method, path, status):
    hub.faults.append(Fault(method, path, status, times=2))
    download.download("tiny", spec(), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == FILES["config.json"]


def test_a_server_that_asks_for_patience_is_given_it(hub: Hub, tmp_path, caplog):
    """Five minutes at most, and no less than the pauses that grow by themselves."""
    hub.faults.append(Fault("GET", "/api/", 429, headers={"Retry-After": "1"}, times=1))
    download.download("tiny", spec(), tmp_path)
    assert "HTTP status 429; trying again in 1 s" in caplog.text


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


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_other_content_of_the_same_size_is_deleted(hub: Hub, tmp_path, path):
    hub.faults.append(Fault("GET", f"{path}$", body=b"x" * len(FILES[path]), times=1))
    said = failure(spec(), tmp_path)
    assert path in said and "checksum" in said and "deleted" in said
    assert not (tmp_path / path).exists()
    download.download("tiny", spec(), tmp_path)
    assert (tmp_path / path).read_bytes() == FILES[path]


def test_a_damaged_file_is_found_and_mended(hub: Hub, tmp_path):
    download.download("tiny", spec(), tmp_path)
    (tmp_path / "provenance.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"y" * len(FILES["model.safetensors"]))
    assert "checksum" in failure(spec(), tmp_path)
    download.download("tiny", spec(), tmp_path)


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        (spec("org/none"), ["no model org/none", "sources.tiny.id", "HF_TOKEN"]),
        (spec("org/private"), ["private", "HF_TOKEN"]),
        (spec(revision="v9"), ["no revision 'v9'", "sources.tiny.revision"]),
        (spec("a/b/c"), ["no repository name", "sources.tiny.id"]),
        (
            spec("org/gated", "*.csv", repo_type="dataset"),
            ["https://huggingface.co/datasets/org/gated", "accept its terms", "HF_TOKEN"],
        ),
        (spec("org/tiny", "weights/*"), ["nothing in org/tiny", "config.json, data/train.csv"]),
        (spec("org/tiny", "*.json", "vocab.txt"), ["no file vocab.txt", "sources.tiny.files"]),
        (spec("org/tiny", "pytorch_model.bin"), ["refused", "safetensors"]),
        (spec("org/tiny", "*.bin", "*.py"), ["nothing in org/tiny", ".bin"]),
    ],
)
def test_each_refusal_names_the_step_to_take(hub: Hub, tmp_path, asked, parts):
    said = failure(asked, tmp_path)
    assert said.startswith("sources.tiny")
    for part in parts:
        assert part in said


def test_a_token_opens_what_is_gated_and_is_kept_nowhere(hub: Hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    for id, pattern in [("org/gated", "*.csv"), ("org/private", "*.json")]:
        hub.faults.append(Fault("GET", "/resolve/", 503, times=1))
        download.download("tiny", spec(id, pattern), tmp_path / id)
    assert all(h.get("authorization") == f"Bearer {CANARY}" for _, _, h in hub.requests)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    assert "trying again" in caplog.text and CANARY not in caplog.text


@pytest.mark.parametrize(
    ("status", "token", "parts"),
    [
        (401, None, ["asks for a token", "settings/tokens", "set HF_TOKEN"]),
        (401, CANARY, ["refuses the token in use", "settings/tokens"]),
        (403, CANARY, ["(403)", "https://huggingface.co/org/tiny", "HF_TOKEN"]),
        (429, None, ["too many requests", "HF_TOKEN", "Run the same command again"]),
    ],
)
def test_bare_statuses(hub: Hub, tmp_path, monkeypatch, status, token, parts):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.faults.append(Fault("GET", "/api/", status))
    said = failure(spec(), tmp_path)
    for part in parts:
        assert part in said


def test_a_token_without_the_terms_accepted(hub: Hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    said = failure(spec("org/gated", "*.csv", repo_type="dataset"), tmp_path)
    assert "the account that the token in use belongs to" in said
    assert "hf_of_someone_else" not in said


def test_no_server_at_all(hub: Hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://user:secret@127.0.0.1:9")
    said = failure(spec(), tmp_path)
    assert "http://127.0.0.1:9" in said and "HTTPS_PROXY" in said and "secret" not in said


def test_a_login_page_is_no_hub(hub: Hub, tmp_path, monkeypatch):
    hub.faults.append(Fault("GET", "/api/", 200))  # an empty page
    assert "not as a Hub does" in failure(spec(), tmp_path)


def test_offline_mode_is_named(hub: Hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in failure(spec(), tmp_path)


def test_what_runs_code_is_left_out_of_a_wide_pattern(hub: Hub, tmp_path, caplog):
    given = download.download("tiny", spec("org/tiny", "**"), tmp_path)
    paths = [record["path"] for record in given["files"]]
    assert paths == ["config.json", "data/train.csv", "model.safetensors"]
    assert "modeling_tiny.py, pytorch_model.bin" in caplog.text
    assert not (tmp_path / "pytorch_model.bin").exists()


@pytest.mark.parametrize("path", ["../evil.csv", "/evil.csv", "a/../../evil.csv", "C:\\evil.csv"])
def test_a_repository_that_lists_a_file_outside_is_refused(hub: Hub, tmp_path, path):
    hub.repos["org/evil"] = Repo({"a.csv": b"x", path: b"evil"})
    said = failure(spec("org/evil", "**"), tmp_path / "tiny")
    assert "org/evil lists files that point outside it" in said
    assert not list(tmp_path.rglob("*.csv"))


def test_files_of_other_origin_in_the_folder_are_told(hub: Hub, tmp_path, caplog):
    (tmp_path / "adapter.json").write_text("{}")
    download.download("tiny", spec(), tmp_path)
    assert "adapter.json" in caplog.text


def test_the_environment_alone_leads_to_the_server(hub: Hub, tmp_path):
    code = (
        "import sys, json; from pathlib import Path\n"
        "from headpursuit.data.download import download\n"
        "download('tiny', json.loads(sys.argv[1]), Path(sys.argv[2]))"
    )
    scripts = str(Path(sources.__file__).parents[2])
    env = os.environ | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": scripts}
    command = [sys.executable, "-c", code, json.dumps(spec()), str(tmp_path)]
    subprocess.run(command, env=env, check=True, capture_output=True)
    sources.verify(tmp_path / "provenance.json")


def test_bytes_to_come_counts_what_is_missing(hub: Hub, tmp_path):
    assert download.bytes_to_come("tiny", spec(), tmp_path) == 51200 + len(FILES["config.json"])
    download.download("tiny", spec(), tmp_path)
    (tmp_path / "config.json").unlink()
    assert download.bytes_to_come("tiny", spec(), tmp_path) == len(FILES["config.json"])


# Wheels


def make_wheel(folder: Path, members: dict[str, bytes], name: str = "tinydata") -> str:
    """Write a wheel and return its SHA-256."""
    info = f"{name}-1.0.dist-info"
    members = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, and nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def wheel_spec(sha256: str, *files: str, version: str = "1.0") -> dict:
    return {
        "kind": "wheel",
        "id": "tinydata",
        "version": version,
        "sha256": sha256,
        "files": list(files),
        "licence": "MIT",
    }


def test_a_wheel_yields_its_matching_members_only(index, tmp_path):
    members = {
        "t/data/a.txt": b"one\n",
        "t/data/b.txt": b"two\n",
        "t/__init__.py": b"",
        "t/c.md": b"",
    }
    digest = make_wheel(index, members)
    given = download.download("w", wheel_spec(digest, "t/data/*.txt"), tmp_path / "w")
    assert [record["path"] for record in given["files"]] == ["t/data/a.txt", "t/data/b.txt"]
    assert (given["version"], given["wheel_sha256"]) == ("1.0", digest)
    assert set(given["tools"]) == {"python", "pip"}
    names = {path.name for path in (tmp_path / "w").rglob("*") if path.is_file()}
    assert names == {"a.txt", "b.txt", "provenance.json"}
    sources.verify(tmp_path / "w/provenance.json")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"sha256": "0" * 64}, ["another SHA-256", "sources.w.sha256"]),
        ({"version": "9.9"}, ["from versions: 1.0", "sources.w"]),
        ({"id": "no-such-package"}, ["from versions: none", "sources.w"]),
        ({"files": ["t/*.csv"]}, ["nothing in tinydata matches t/*.csv", "t/a.txt"]),
        ({"files": ["t/x.py"]}, ["refused"]),
    ],
)
def test_a_wheel_that_cannot_be_had(index, tmp_path, change, parts):
    digest = make_wheel(index, {"t/a.txt": b"one\n", "t/x.py": b""})
    with pytest.raises(UserError) as caught:
        download.download("w", wheel_spec(digest, "t/*.txt") | change, tmp_path / "w")
    for part in parts:
        assert part in str(caught.value)
    assert not list((tmp_path / "w").iterdir())


@pytest.mark.parametrize(
    "member", ["../../evil.txt", "/tmp/evil.txt", "t/../../evil.txt", "C:\\e.txt"]
)
def test_a_member_that_points_outside_is_refused(index, tmp_path, member):
    digest = make_wheel(index, {"t/a.txt": b"", member: b"evil"})
    with pytest.raises(UserError, match="points outside"):
        download.download("w", wheel_spec(digest, "**"), tmp_path / "w")
    assert not list(tmp_path.rglob("*evil*")) and not Path("/tmp/evil.txt").exists()


# The user's own files


def test_a_folder_of_ones_own_is_recorded_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("mine/b/two.csv", "mine/one.csv", "mine/.git/config"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("text\n")
    given = download.download("own", {"kind": "local", "path": "mine"}, Path("resources/own"))
    assert given["path"] == str(tmp_path / "mine") and given["root"] == "mine"
    assert [record["path"] for record in given["files"]] == ["b/two.csv", "one.csv"]
    provenance = Path("resources/own/provenance.json")
    assert sources.source_files(provenance, "**/*.csv") == [
        Path("mine/b/two.csv"),
        Path("mine/one.csv"),
    ]
    assert sources.source_root(provenance) == Path("mine")


def test_a_single_file_outside_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "words.txt").write_text("word\n")
    path = str(tmp_path / "words.txt")
    given = download.download("own", {"kind": "local", "path": path}, Path("resources/own"))
    assert given["root"] == str(tmp_path)
    found = sources.source_files("resources/own/provenance.json", "*.txt")
    assert found == [tmp_path / "words.txt"]


@pytest.mark.parametrize("made", [True, False])
def test_a_path_without_files_names_its_key(tmp_path, made):
    path = tmp_path / "nothing"
    if made:
        path.mkdir()
    with pytest.raises(UserError, match=r"sources\.own\.path") as caught:
        download.download("own", {"kind": "local", "path": str(path)}, tmp_path / "own")
    assert ("holds no file" if made else "does not exist") in str(caught.value)


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A folder of the user's own, two levels deep, with its dates in the past."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.csv", "deep/b.csv"):
        (folder / name).write_text(f"text\n{name}\n")
        os.utime(folder / name, (1e9, 1e9))
    return folder


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda own: (own / "deep/b.csv").write_text("text\ndeep/c.csv\n"), False),
        (lambda own: (own / "a.csv").rename(own / "z.csv"), False),
        (lambda own: (own / "more").write_text(""), False),
        (lambda own: (own / "a.csv").unlink(), False),
        (lambda own: (own / "a.csv").touch(), True),
        (lambda own: (own / ".DS_Store").write_text("x"), True),
        (lambda own: own.rename(own.with_name("mine")), True),
    ],
    ids=[
        "one byte",
        "another name",
        "one more",
        "one less",
        "a date",
        "a hidden file",
        "elsewhere",
    ],
)
def test_content_is_that_of_the_files_and_their_names(own, change, same):
    before = sources.content("own")
    change(own)
    for path in own.rglob("*.csv"):
        os.utime(path, (1e9, 1e9))
    assert (sources.content("own" if own.exists() else "mine") == before) == same


def test_content_of_one_file_and_of_none(own):
    assert len({sources.content(f"own/{name}") for name in ("a.csv", "deep/b.csv", "none")}) == 3
    assert sources.content("own/none") is None
    (own / "empty").mkdir()
    assert sources.content("own/empty") is None


def test_a_file_is_read_again_only_when_it_may_have_changed(own):
    before = sources.content("own")
    known = json.loads(sources.KNOWN.read_text())
    known[str(own / "a.csv")][-1] = "remembered"
    sources.KNOWN.write_text(json.dumps(known))
    assert sources.content("own") != before
    (own / "a.csv").touch()
    assert sources.content("own") == before
    sources.KNOWN.write_text("torn")
    assert sources.content("own") == before


# What later rules read


@pytest.fixture
def recorded(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("a.csv", "b.csv"):
        (mine / name).write_text("text\n")
    download.download("own", {"kind": "local", "path": str(mine)}, tmp_path / "own")
    return tmp_path / "own/provenance.json", mine


@pytest.mark.parametrize("change", ["gone", "longer"])
def test_a_changed_file_is_told_where_it_is_asked_for(recorded, change):
    provenance, mine = recorded
    if change == "gone":
        (mine / "a.csv").unlink()
    else:
        (mine / "a.csv").write_text("text\nmore\n")
    assert sources.source_files(provenance, "b.csv") == [mine / "b.csv"]
    with pytest.raises(UserError, match=r"a\.csv\. Delete .*provenance\.json and run again"):
        sources.source_files(provenance, "*")


def test_verify_sees_a_change_of_the_same_size(recorded):
    provenance, mine = recorded
    (mine / "b.csv").write_text("tex!\n")
    assert len(sources.source_files(provenance, "*")) == 2
    with pytest.raises(UserError, match=r"b\.csv"):
        sources.verify(provenance)


def test_a_pattern_without_a_file_and_a_record_that_is_none(recorded):
    provenance, _ = recorded
    with pytest.raises(UserError, match=r"'\*\.json'.*a\.csv, b\.csv"):
        sources.source_files(provenance, "*.json")
    provenance.write_text("{")
    with pytest.raises(UserError, match="not a readable record"):
        sources.source_root(provenance)


@pytest.mark.parametrize(
    ("path", "pattern", "is_match"),
    [
        ("a.csv", "*.csv", True),
        ("data/a.csv", "*.csv", False),
        ("data/a.csv", "data/*", True),
        ("data/x/a.csv", "data/*", False),
        ("data/x/a.csv", "data/**", True),
        ("data", "data/**", False),
        ("a.csv", "**/*.csv", True),
        ("x/y/a.csv", "**/*.csv", True),
        ("x/y/a.csv", "x/**/a.csv", True),
        ("x/a.csv", "x/**/a.csv", True),
        ("x/a.csv", "**", True),
        ("a.CSV", "*.csv", False),
        ("model-00001-of-00003.safetensors", "model*.safetensors*", True),
    ],
)
def test_patterns(path, pattern, is_match):
    assert sources.matches(path, pattern) is is_match
