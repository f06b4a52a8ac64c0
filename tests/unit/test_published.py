"""Published values beside a run's own."""

from pathlib import Path

import pandas as pd
import pytest
from headpursuit.publish.published import ARTEFACTS, LABELLER, MODELS, compare, display, notes
from headpursuit.publish.ratio import read_published

PUBLISHED = read_published(Path(__file__).parents[2] / "data/published.csv")
PAPER = MODELS["count"]


def run_of(value: float = 0.7, flag: str = "") -> pd.DataFrame:
    row = {
        **{"experiment": "rtp", "samples": "rtp", "model": "mistral", "heads_from": None},
        **{"method": "somp", "heads": 4, "measure": "count", "value": value},
        **{"ci_low": value - 0.1, "ci_high": value + 0.1, "draws": 1, "n": 400, "flag": flag},
    }
    draws = {"value": 1.3, "ci_low": 1.2, "ci_high": 1.4, "median": 1.1, "q25": 1.0, "q75": 1.2}
    return pd.DataFrame([row, {**row, "method": "random", "draws": 10, **draws}])


def compared(
    run: pd.DataFrame | None = None,
    model: str = PAPER,
    labeller: str = LABELLER,
    settings: tuple[str, ...] = (),
) -> pd.DataFrame:
    ratios = run_of() if run is None else run
    unlike = dict.fromkeys(ratios["experiment"], settings)
    return compare(PUBLISHED, ratios, {"mistral": model}, labeller, unlike, {4: 16})


def found(table: pd.DataFrame, **identity: object) -> pd.Series:
    for name, value in identity.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


SEED = {"artefact": "table2", "dataset": "rtp", "method": "somp", "heads": 16}


def test_every_published_value_has_its_row() -> None:
    table = compared()
    assert len(table) == len(PUBLISHED) == 8 + 18 + 18 + 54
    assert table["remarks"][table["own"].isna()].ne("").all()
    assert PUBLISHED["source"].notna().all()
    # Nothing is read for the first of several.
    assert not PUBLISHED.duplicated(["artefact", "dataset", "method", "heads"]).any()


def test_a_value_and_its_counterpart() -> None:
    row = found(compared(run_of(0.7)), **SEED)
    assert row["own_heads"] == 4
    assert row["n"] == 400
    assert row["difference"] == pytest.approx(0.7 - row["published"])
    assert row["inside"] == (0.6 <= row["published"] <= 0.8)


def test_a_median_over_draws_is_beside_the_own_median() -> None:
    row = found(compared(), artefact="table2_lexical", dataset="rtp", method="random", heads=16)
    assert (row["own"], row["own_low"], row["own_high"]) == (1.1, 1.0, 1.2)


@pytest.mark.parametrize(
    ("others", "experiment"),
    [
        ({}, "rtp"),
        ({"experiment": "rtp-l2"}, "rtp"),  # a variant stands behind
        ({"experiment": "crossed", "heads_from": "tet"}, "rtp"),  # heads of other samples never do
        ({"measure": "expected"}, "rtp"),
    ],
)
def test_the_experiment_named_like_the_samples_is_beside_it(
    others: dict[str, str], experiment: str
) -> None:
    run = pd.concat([run_of(0.2).assign(**others), run_of(0.7)]) if others else run_of(0.7)
    row = found(compared(run), **SEED)
    assert (row["experiment"], row["own"]) == (experiment, 0.7)


def test_a_variant_alone_stands_beside_its_samples() -> None:
    row = found(compared(run_of().assign(experiment="rtp-l2")), **SEED)
    assert (row["experiment"], row["dataset"], row["own_heads"]) == ("rtp-l2", "rtp", 4)
    none = found(compared(run_of().assign(heads_from="tet")), **SEED)
    assert none["remarks"].endswith("not in this run")


def test_what_else_differs_is_said() -> None:
    settings = ("concepts.toxic.labelled.texts", "samples.rtp.sample")
    own = run_of(flag="baseline count below 30")
    row = found(compared(own, "smollm2", "lexicon: better-profanity", settings), **SEED)
    assert row["model"] == "smollm2"
    assert row["labeller"] == "lexicon: better-profanity"
    assert row["settings"] == " ".join(settings)
    assert row["remarks"] == (
        "arxiv-v2-table8 prints 0.78; another model; words from elsewhere; other settings; "
        "baseline count below 30"
    )


def test_nothing_is_said_of_a_run_like_the_papers() -> None:
    row = found(compared(), **{**SEED, "heads": 32})
    assert row["remarks"] == "not in this run"
    row = found(compared(), artefact="table2", dataset="rtp", method="random", heads=16)
    assert row["remarks"] == ""


def test_impossible_published_values_are_flagged() -> None:
    """v2's table 8 has a median outside of its own quartiles, RTP and 16 random heads."""
    table = compared()
    flagged = table[table["remarks"].str.contains("outside its own interval")]
    identity = ["artefact", "dataset", "method", "heads"]
    assert [tuple(row) for row in flagged[identity].values] == [
        ("table2_lexical", "rtp", "random", 16)
    ]


def test_two_texts_that_print_different_values_are_set_beside_each_other() -> None:
    table = compared()
    row = found(table, artefact="table2", dataset="tet", method="somp", heads=32)
    assert "arxiv-v2-table8 prints 0.56" in row["remarks"]
    row = found(table, artefact="table2_lexical", dataset="tet", method="somp", heads=32)
    assert "seed prints 0.48" in row["remarks"]
    row = found(table, artefact="table2", dataset="rtp", method="somp", heads=32)
    assert "prints" not in row["remarks"]  # 0.72 in both


def test_every_artefact_is_known() -> None:
    assert set(PUBLISHED["artefact"]) == set(ARTEFACTS)


def test_shown_as_text() -> None:
    table = compared(model="smollm2", labeller="lexicon: mine", settings=("concepts.toxic.top",))
    shown = display(table)
    row = shown[(shown["artefact"] == "table2") & (shown["heads"] == "16 (here 4)")].iloc[0]
    assert row["this run"] == "0.70 [0.60, 0.80]"
    assert row["n"] == "400"
    assert row["inside"] in ("yes", "no")
    assert not shown.map(lambda cell: "nan" in cell.lower().split()).any(axis=None)
    said = notes(table, "demo")
    assert f"of {len(PUBLISHED)} published values" in said
    assert "another model than the paper (smollm2, not mistralai/Mistral-7B" in said
    assert "this run's are of lexicon: mine." in said
    assert "Other settings, rtp, than" in said
    assert "concepts.toxic.top." in said


def test_a_run_without_counterparts_says_no_more() -> None:
    none = compared(run_of().assign(samples="mine"))
    assert notes(none, "mine") == "Run mine: 0 of 98 published values have a counterpart."


def test_a_run_of_the_papers_model_is_not_called_another() -> None:
    said = notes(compared(), "paper")
    assert "another model" not in said
    assert "Other settings" not in said
