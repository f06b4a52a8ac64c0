"""Published values beside a run's own."""

from pathlib import Path

import pandas as pd
import pytest
from headpursuit.publish.published import LABELLER, MODELS, compare, display, notes
from headpursuit.publish.ratio import ARTEFACTS
from headpursuit.run.tables import read_csv

PUBLISHED = read_csv(Path(__file__).parents[2] / "data/published.csv")
SEED = {"artefact": "table2", "dataset": "rtp", "method": "somp", "heads": 16}


def run_of(value: float = 0.7, flag: str = "", **changed: object) -> pd.DataFrame:
    row = {
        **{"experiment": "rtp", "samples": "rtp", "model": "mistral", "heads_from": None},
        "signed": False,
        **{
            "alpha": -1.0,
            "at": "all",
            "method": "somp",
            "heads": 4,
            "measure": "count",
            "value": value,
        },
        **{"ci_low": value - 0.1, "ci_high": value + 0.1, "draws": 1, "n": 400, "flag": flag},
    }
    draws = {"value": 1.3, "ci_low": 1.2, "ci_high": 1.4, "median": 1.1, "q25": 1.0, "q75": 1.2}
    rows = [row | changed, {**row, "method": "random", "draws": 10, **draws} | changed]
    return pd.DataFrame(rows)


def compared(
    run: pd.DataFrame | None = None,
    model: str = MODELS["count"],
    labeller: str = LABELLER,
    settings: tuple[str, ...] = (),
) -> pd.DataFrame:
    ratios = run_of() if run is None else run
    unlike = dict.fromkeys(ratios["experiment"], settings)
    return compare(PUBLISHED, ratios, {"mistral": model}, labeller, unlike, {4: 16})


@pytest.fixture(scope="module")
def usual() -> pd.DataFrame:
    return compared()


def found(table: pd.DataFrame, **identity: object) -> pd.Series:
    for name, value in identity.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_every_published_value_has_its_row(usual: pd.DataFrame) -> None:
    assert len(usual) == len(PUBLISHED) == 8 + 18 + 18 + 54
    assert usual["remarks"][usual["own"].isna()].ne("").all()
    # Nothing is read for the first of several.
    assert not PUBLISHED.duplicated(["artefact", "dataset", "method", "heads"]).any()
    assert set(PUBLISHED["artefact"]) == set(ARTEFACTS)


def test_a_value_and_its_counterpart(usual: pd.DataFrame) -> None:
    row = found(usual, **SEED)
    assert (row["own_heads"], row["n"]) == (4, 400)
    assert row["difference"] == pytest.approx(0.7 - row["published"])
    assert row["inside"] == (0.6 <= row["published"] <= 0.8)
    row = found(usual, **{**SEED, "heads": 32})
    assert row["remarks"] == "not in this run"
    row = found(usual, artefact="table2", dataset="rtp", method="random", heads=16)
    assert row["remarks"] == ""
    # Beside a median over draws the own median over draws.
    row = found(usual, artefact="table2_lexical", dataset="rtp", method="random", heads=16)
    assert (row["own"], row["own_low"], row["own_high"]) == (1.1, 1.0, 1.2)


@pytest.mark.parametrize(
    ("runs", "experiment"),
    [
        ([{"experiment": "rtp-l2"}, {"value": 0.7}], "rtp"),  # a variant stands behind
        ([{"experiment": "rtp-l2", "value": 0.7}], "rtp-l2"),
        ([{"experiment": "crossed", "heads_from": "tet"}, {"value": 0.7}], "rtp"),
        ([{"measure": "expected"}, {"value": 0.7}], "rtp"),
        ([{"signed": True}], None),
        ([{"heads_from": "tet"}], None),  # heads of other samples never do
        ([{"alpha": 5.0}], None),  # nor another alpha or place
        ([{"at": "response"}, {"value": 0.7}], "rtp"),
    ],
)
def test_the_experiment_named_like_the_samples_is_beside_it(runs, experiment) -> None:
    run = pd.concat([run_of(**{"value": 0.2, **changed}) for changed in runs])
    row = found(compared(run), **SEED)
    if experiment is None:
        assert row["remarks"].endswith("not in this run")
    else:
        assert (row["experiment"], row["own"], row["own_heads"]) == (experiment, 0.7, 4)


def test_what_else_differs_is_said() -> None:
    settings = ("concepts.toxic.labelled.texts", "samples.rtp.sample")
    own = run_of(flag="baseline count below 30")
    table = compared(own, "smollm2", "lexicon: mine", settings)
    row = found(table, **SEED)
    assert (row["model"], row["labeller"]) == ("smollm2", "lexicon: mine")
    assert row["settings"] == " ".join(settings)
    assert row["remarks"] == (
        "arxiv-v2-table8 prints 0.78; another model; words from elsewhere; other settings; "
        "baseline count below 30"
    )
    shown = display(table)
    row = shown[(shown["artefact"] == "table2") & (shown["heads"] == "16 (here 4)")].iloc[0]
    assert (row["this run"], row["n"]) == ("0.70 [0.60, 0.80]", "400")
    assert row["inside"] in ("yes", "no")
    assert not shown.map(lambda cell: "nan" in cell.lower().split()).any(axis=None)
    said = " ".join(notes(table, "demo"))
    assert f"of {len(PUBLISHED)} published values" in said
    assert "another model than the paper (smollm2, not mistralai/Mistral-7B" in said
    assert "this run's are of lexicon: mine." in said
    assert "Other settings, rtp, than" in said and "samples.rtp.sample." in said


def test_the_notes_say_no_more_than_there_is(usual: pd.DataFrame) -> None:
    none = compared(run_of(samples="mine"))
    assert list(notes(none, "mine")) == ["Run mine: 0 of 98 published values have a counterpart."]
    said = " ".join(notes(usual, "paper"))
    assert "another model" not in said and "Other settings" not in said


def test_what_is_odd_about_published_values_is_said(usual: pd.DataFrame) -> None:
    """v2's table 8 has a median outside of its own quartiles, RTP and 16 random heads."""
    flagged = usual[usual["remarks"].str.contains("outside its own interval")]
    identity = ["artefact", "dataset", "method", "heads"]
    assert flagged[identity].to_numpy().tolist() == [["table2_lexical", "rtp", "random", 16]]
    tet = {"dataset": "tet", "method": "somp", "heads": 32}
    assert "arxiv-v2-table8 prints 0.56" in found(usual, artefact="table2", **tet)["remarks"]
    assert "seed prints 0.48" in found(usual, artefact="table2_lexical", **tet)["remarks"]
    rtp = found(usual, **{**SEED, "heads": 32})
    assert "prints" not in rtp["remarks"]  # 0.72 in both
