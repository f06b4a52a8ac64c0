"""What is refused of a table, how it is said, and that every table of a run has a contract."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from headpursuit.run.contracts import contract_of, contracts, violations
from headpursuit.run.files import UserError, write_parquet
from headpursuit.run.tables import read_cells, write_csv
from test_rules import texts

ROOT = Path(__file__).parents[2]


def words(**changes: list) -> pd.DataFrame:
    columns = {"word": ["plum", "pear"], "count": [3, 2], "rank": [1, 2]}
    return pd.DataFrame({**columns, "split": ["selection", "heldout"], **changes})


def lens(**changes: list) -> pa.Table:
    columns = {"layer": [0, 0], "head": [1, 1], "place": [1, 2], "token_id": [7, 8]}
    return pa.table({**columns, "token": ["a", "b"], **changes})


@pytest.mark.parametrize(
    ("path", "column"),
    [
        ("results/demo/words/rtp.csv", "word"),
        ("/elsewhere/words/rtp.csv", "word"),
        ("results/demo/scores/rtp.words.parquet", "split"),
        # Experiments that have the names of folders.
        ("results/demo/responses/words/baseline/part-1.parquet", "response"),
        ("results/demo/labels/second/second.parquet", "reply"),
        # The suffix decides, though `{table}` would take it as well.
        ("results/demo/tables/table2.draws.csv", "draw"),
        ("results/demo/tables/published.csv", "artefact"),
        *((path, None) for path in ("mine.csv", "results/demo/swords/rtp.csv", "words/r.csv.gz")),
    ],
)
def test_a_path_has_its_contract(path: str, column: str | None) -> None:
    found = contract_of(path, [])
    assert found is None if column is None else column in found["columns"]


def test_of_two_kinds_under_one_name_the_columns_decide() -> None:
    files = [file for contract in contracts() for file in contract["files"]]
    twice = {file for file in files if files.count(file) > 1}
    assert twice == {"samples/{experiment}.parquet", "tables/{table}.csv"}
    for contract in contracts():
        for file in twice.intersection(contract["files"]):
            path, columns = re.sub(r"\{\w+\}", "x", file), list(contract["columns"])
            assert contract_of(path, columns) is contract
            assert contract_of(path, columns[1:]) is contract  # and says what is lacking


def test_every_table_has_a_contract_and_is_documented() -> None:
    made = set()
    for block in re.findall(r"^    output:\n((?:        .*\n)+)", texts(), re.MULTILINE):
        made |= set(re.findall(r'"<results>/(\S+\.(?:csv|parquet))"', block))
    assert len(made) > 20
    for template in made:
        assert contract_of(re.sub(r"\{+\w+\}+", "x", template), []), template
    listed = (ROOT / "docs/files.md").read_text(encoding="utf-8")
    for template in (file for contract in contracts() for file in contract["files"]):
        assert f"`{template.split('{')[0].removesuffix('.csv')}" in listed, template


def test_the_schema_uses_known_words_only() -> None:
    """A misspelt rule would check nothing."""
    known = {"type", "items", "minimum", "maximum", "enum", "required", "description"}
    for contract in contracts():
        assert set(contract) <= {"files", "key", "columns"}
        assert set(contract.get("key", [])) <= set(contract["columns"])
        for name, column in contract["columns"].items():
            assert set(column) <= known, name
            assert column["description"], name
            assert ("items" in column) == (column["type"] == "array"), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"split": ["selection", "held out"]}, "column split, row 2: 'held out' is not one of "),
        ({"count": [3, -1]}, "column count, row 2: -1 is less than 0"),
        ({"count": [3.5, 1]}, "column count, row 1: '3.5' is not a whole number"),
        ({"count": [7, "many"]}, "column count, row 2: 'many' is not a whole number"),
        ({"word": ["plum", None]}, "column word, row 2: it is empty"),
        ({"word": ["plum", ""]}, "column word, row 2: it is empty"),
        ({"word": ["plum", "plum"]}, "word 'plum' stands in 2 rows, and should in one"),
        ({"more": [1, 2]}, "it has further columns; it has word, count, rank, split, more and "),
        ({"split": ["\x1b[31m", "heldout"]}, r"row 1: '\x1b[31m' is not one of"),
    ],
)
def test_a_csv_is_written_or_refused(tmp_path: Path, changes: dict, said: str | None) -> None:
    path = tmp_path / "words/x.csv"
    if said is None:
        write_csv(path, words(**changes))
        assert violations(path, read_cells(path)) == []
        return
    with pytest.raises(UserError, match=re.escape(said)) as error:
        write_csv(path, words(**changes))
    assert f"{path} is not written" in str(error.value)
    assert not path.parent.exists()


def test_columns_in_another_order(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its columns are in another order; it has split, rank"):
        write_csv(tmp_path / "words/x.csv", words()[["split", "rank", "count", "word"]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({name: [] for name in lens().column_names}, None),
        ({"token": [1, 2]}, "column token: its type is int64, which is no string"),
        ({"token": pa.nulls(2)}, "column token, row 1: it is empty"),
        ({"layer": [0, None]}, "column layer, row 2: it is empty"),
        ({"place": [1, 0]}, "column place, row 2: 0 is less than 1"),
        ({"place": [1, 1]}, "layer 0, head 1, place 1 stands in 2 rows, and should in one"),
    ],
)
def test_a_parquet_table_is_written_or_refused(tmp_path: Path, changes: dict, said) -> None:
    path = tmp_path / "lens/x.parquet"
    if said is None:
        write_parquet(path, lens(**changes))
        return
    with pytest.raises(UserError, match=said):
        write_parquet(path, lens(**changes))
    assert not path.exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.1, "1.1 is more than 1"),
        (-0.1, "-0.1 is less than 0"),
        (np.inf, "inf is no finite number"),
        (np.nan, "nan is not a number"),
        (1 + 1e-12, None),  # rounding
    ],
)
def test_a_share_is_a_share(value: float, said: str | None) -> None:
    rest = {"token_id": [0, 0], "token": ["a", "a"], "explained": [0.2, value]}
    table = pa.table({"layer": [0, 0], "head": [0, 0], "step": [1, 2], **rest})
    wanted = [] if said is None else [f"column explained, row 2: {said}"]
    assert violations("decompositions/x.parquet", table) == wanted


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2)])
def test_items_of_lists_are_checked(kind: pa.DataType) -> None:
    z = pa.array([[1.0, 2.0], [3.0, np.inf]], kind)
    table = pa.table({"sample_id": ["a", "b"], "layer": [0, 0], "z": z})
    [said] = violations("activations/x.parquet", table)
    assert said == "column z, row 2: inf is no finite number"


def test_a_column_that_may_be_empty_may_be_so_in_every_row() -> None:
    reply = {"sample_id": ["a"], "repeat": [0], "reply": pa.nulls(1), "words": [["b"]]}
    rest = {"dropped": [[]], "status": ["ok"], "attempts": [0], "cut": [False]}
    assert violations("labels/x.parquet", pa.table(reply | rest)) == []
