import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from headpursuit.data import download, sources
from headpursuit.run.files import UserError


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


CHANGES = {
    "one byte": (lambda own: (own / "deep/b.csv").write_text("text\ndeep/c.csv\n"), False),
    "another name": (lambda own: (own / "a.csv").rename(own / "z.csv"), False),
    "one more": (lambda own: (own / "more").write_text(""), False),
    "one less": (lambda own: (own / "a.csv").unlink(), False),
    "a date": (lambda own: (own / "a.csv").touch(), True),
    "a hidden file": (lambda own: (own / ".DS_Store").write_text("x"), True),
    "elsewhere": (lambda own: own.rename(own.with_name("mine")), True),
}


@pytest.mark.parametrize(("change", "same"), CHANGES.values(), ids=CHANGES)
def test_content_is_that_of_the_files_and_their_names(own, change, same):
    before = sources.content("own")
    change(own)
    for path in own.rglob("*.csv"):
        os.utime(path, (1e9, 1e9))
    assert (sources.content("own" if own.exists() else "mine") == before) == same


def test_a_name_that_is_not_utf_8(own):
    (own / "deep/b.csv").rename(own / os.fsdecode(b"caf\xe9.csv"))
    assert sources.content("own") == sources.content("own")
    download.download("own", {"kind": "local", "path": "own"}, Path("resources"))
    sources.verify("resources/provenance.json")
    found = sources.source_files("resources/provenance.json", "caf*")
    assert [path.read_text() for path in found] == ["text\ndeep/b.csv\n"]


def test_content_of_one_file_and_of_none(own):
    (own / "empty").mkdir()
    names = ("a.csv", "deep/b.csv", "none", "empty")
    found = [sources.content(f"own/{name}") for name in names]
    assert len(set(found)) == 3 and found[2:] == [None, None]


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


@pytest.fixture
def recorded(own) -> Path:
    download.download("own", {"kind": "local", "path": str(own)}, Path("resources"))
    return Path("resources/provenance.json")


def test_a_changed_file_is_told_where_it_is_asked_for(recorded, own):
    (own / "deep/b.csv").write_text("text\ndeep/c.csv\n")  # of the same size
    assert len(sources.source_files(recorded, "**")) == 2
    with pytest.raises(UserError, match=r"b\.csv\. Delete .*provenance\.json and run again"):
        sources.verify(recorded)
    for change in (lambda path: path.write_text("text\nlonger\n"), Path.unlink):
        change(own / "a.csv")
        assert sources.source_files(recorded, "deep/*") == [Path("own/deep/b.csv")]
        with pytest.raises(UserError, match=r"a\.csv\. Delete .*provenance\.json and run again"):
            sources.source_files(recorded, "**")


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Collects the names of the files that are hashed."""
    names, sha256 = [], sources.sha256
    monkeypatch.setattr(sources, "sha256", lambda path: (names.append(path.name), sha256(path))[1])
    return names


def test_what_was_verified_is_not_hashed_again(recorded, own, hashed):
    sources.verify(recorded)
    assert sorted(hashed) == ["a.csv", "b.csv"]
    hashed.clear()
    sources.verify(recorded)
    assert hashed == []
    time.sleep(0.05)  # longer than the kernel's clock of files may stand still
    (own / "a.csv").touch()
    sources.verify(recorded)
    assert hashed == ["a.csv"]
    (own / "a.csv").write_bytes(bytes([(own / "a.csv").read_bytes()[0] ^ 1]) + b"ext\na.csv\n")
    os.utime(own / "a.csv", (1e9, 1e9))
    for _ in range(2):  # a damaged file is no verified one the second time
        with pytest.raises(UserError, match=r"a\.csv\. Delete"):
            sources.verify(recorded)
    assert hashed == ["a.csv", "a.csv"]


REMEMBERING = """
import sys
from pathlib import Path
from headpursuit.data import sources
for path in sorted(Path(sys.argv[1]).iterdir()):
    sources.checksums([path])
"""


def test_jobs_that_verify_at_once_lose_nothing(own):
    for job in range(4):
        (own / f"job{job}").mkdir()
        for name in range(25):
            (own / f"job{job}/{name}").write_text(f"{job} {name}")
    jobs = [
        subprocess.Popen([sys.executable, "-c", REMEMBERING, own / f"job{job}"]) for job in range(4)
    ]
    assert [job.wait(60) for job in jobs] == [0] * 4
    assert {path for path in json.loads(sources.KNOWN.read_text()) if "job" in path} == {
        str(path) for path in own.glob("job*/*")
    }


def test_where_nothing_can_be_kept_all_is_hashed(recorded, hashed):
    shutil.rmtree(sources.KNOWN.parent, ignore_errors=True)
    sources.KNOWN.parent.write_text("no folder")
    for _ in range(2):
        sources.verify(recorded)
    assert sorted(hashed) == ["a.csv", "a.csv", "b.csv", "b.csv"]


def test_a_pattern_without_a_file_and_a_record_that_is_none(recorded):
    with pytest.raises(UserError, match=r"'\*\.json'.*a\.csv, deep/b\.csv"):
        sources.source_files(recorded, "*.json")
    recorded.write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        sources.source_root(recorded)


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
        ("a.CSV", "*.csv", False),
    ],
)
def test_patterns(path, pattern, is_match):
    assert sources.matches(path, pattern) is is_match
