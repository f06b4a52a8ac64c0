import json
import stat
from pathlib import Path

import pyarrow as pa
import pytest
from headpursuit.run.files import (
    UserError,
    atomic,
    parquet_metadata,
    read_json,
    read_parquet,
    seed_for,
    sha256,
    write_json,
    write_parquet,
    write_text,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "table.csv"
    with atomic(path) as part:
        part.write_text("whole")
        assert not path.exists()
        assert part.parent == path.parent  # a rename must not cross file systems
        assert part.suffix == path.suffix  # matplotlib chooses the format by it
        number = part.stat().st_ino
    assert path.read_text() == "whole"
    assert path.stat().st_ino == number  # renamed, not copied
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(ZeroDivisionError), atomic(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "whole"
    assert [own.name for own in path.parent.iterdir()] == ["table.csv"]


def test_json_round_trip_and_damage(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"b": ["ä", None, 1.5], "a": 1})
    assert read_json(path) == {"b": ["ä", None, 1.5], "a": 1}
    assert path.read_text().index('"b"') < path.read_text().index('"a"')
    write_text(path, '{"b": ')
    with pytest.raises(UserError, match=r"a\.json"):
        read_json(path)


def test_parquet_round_trip_with_metadata_in_equal_bytes(tmp_path: Path):
    path = tmp_path / "a.parquet"
    table = pa.table({"x": [1, 2], "y": ["ä", None]})
    metadata = {"heads": [[0, 1]], "alpha": -1.0, "name": "ü"}
    write_parquet(path, table, metadata)
    assert read_parquet(path, ["y"]).to_pydict() == {"y": ["ä", None]}
    assert parquet_metadata(path) == metadata
    with pytest.raises(UserError, match="no column z; it has x, y"):
        read_parquet(path, ["x", "z"])
    write_parquet(tmp_path / "b.parquet", table, metadata)
    assert sha256(path) == sha256(tmp_path / "b.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x,y\n1,2\n"])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "torn.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"torn\.parquet"):
        read_parquet(path, ["x"])


identity = st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=3)


@settings(max_examples=50)
@given(st.integers(), identity, st.integers(), identity)
def test_seeds_differ_where_identities_do(seed, own, other_seed, other):
    a, b = seed_for(seed, *own), seed_for(other_seed, *other)
    assert 0 <= a < 2**63
    assert (a == b) == (json.dumps([seed, *own]) == json.dumps([other_seed, *other]))


def test_seeds_stay_what_they_are():
    # A published number stands on them.
    assert seed_for(0, "rtp", "split") == 7839966385584993435
