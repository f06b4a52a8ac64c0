"""Published values beside a run's own."""

from pathlib import Path

import pandas as pd
import pytest
from headpursuit.publish.published import (
    CELL,
    LABELLER,
    compare,
    compare_tokens,
    display,
    notes,
)
from headpursuit.run.tables import read_csv

DATA = Path(__file__).parents[2] / "data"
PUBLISHED, TOKENS = read_csv(DATA / "published.csv"), read_csv(DATA / "published_tokens.csv")
SEED = {"artefact": "table2", "dataset": "rtp", "method": "somp", "heads": 16}
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
LLAVA, VICUNA = "llava-hf/llava-v1.6-mistral-7b-hf", "llava-hf/llava-v1.6-vicuna-13b-hf"
GEMMA, QWEN = "google/gemma-3-12b-it", "Qwen/Qwen2.5-VL-7B-Instruct"


def run_of(value: float = 0.7, flag: str = "", **changed: object) -> pd.DataFrame:
    row = {
        **{"experiment": "rtp", "samples": "rtp", "model": "mistral", "heads_from": None},
        **{"signed": False, "concept": "toxic", "alpha": -1.0, "at": "all"},
        **{"method": "somp", "heads": 4, "measure": "occurrences", "value": value},
        **{"ci_low": value - 0.1, "ci_high": value + 0.1, "draws": 1, "n": 400, "flag": flag},
    }
    draws = {"value": 1.3, "ci_low": 1.2, "ci_high": 1.4, "median": 1.1, "q25": 1.0, "q75": 1.2}
    rows = [row | changed, {**row, "method": "random", "draws": 10, **draws} | changed]
    return pd.DataFrame(rows)


def compared(
    run: pd.DataFrame | None = None,
    model: str = MISTRAL,
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
    assert len(usual) == len(PUBLISHED) == 8 + 18 + 18 + 54 + 108 + 292
    assert usual["remarks"][usual["own"].isna()].ne("").all()
    # Nothing is read for the first of several.
    assert not PUBLISHED.duplicated([*CELL, "source"]).any()
    assert usual["source"].value_counts().to_dict() == {
        "seed": 8,
        **{f"arxiv-v2-table{n}": 18 for n in (7, 8)},
        **{f"arxiv-v2-table{n}": 36 for n in (10, 11, 12)},
        **{"arxiv-v2-table9": 54, "arxiv-v2-table13": 108, "arxiv-v2-table15": 72},
        **{"arxiv-v2-table16": 64, "arxiv-v2-table17": 48},
    }


def test_a_value_and_its_counterpart(usual: pd.DataFrame) -> None:
    row = found(usual, **SEED)
    assert (row["own_heads"], row["n"]) == (4, 400)
    assert row["difference"] == pytest.approx(0.7 - row["published"])
    assert row["inside"] == (0.6 <= row["published"] <= 0.8)
    row = found(usual, **{**SEED, "heads": 32})
    assert row["remarks"] == "not in this run"
    row = found(usual, artefact="table2_classifier", dataset="tet", method="somp", heads=8)
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
        ([{"concept": "months"}], None),
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


def test_the_papers_model_goes_before_another() -> None:
    run = pd.concat([run_of(value=0.2, model="small"), run_of(experiment="large")])
    models = {"mistral": MISTRAL, "small": "smollm2"}
    table = compare(PUBLISHED, run, models, LABELLER, {"rtp": (), "large": ()}, {4: 16})
    assert found(table, **SEED)["experiment"] == "large"


def test_a_k_that_stands_for_another_number_of_heads_stands_for_that_alone() -> None:
    table = compare(
        PUBLISHED, run_of(heads=8), {"mistral": MISTRAL}, LABELLER, {"rtp": ()}, {8: 32}
    )
    assert found(table, **{**SEED, "heads": 32})["own_heads"] == 8
    eight = found(table, **{**SEED, "artefact": "table2_lexical", "heads": 8})
    assert eight["remarks"] == "not in this run"


def test_what_else_differs_is_said() -> None:
    settings = ("concepts.toxic.labelled.texts", "samples.rtp.sample")
    own = run_of(flag="baseline count below 30")
    table = compared(own, "smollm2", "lexicon: mine", settings)
    row = found(table, **SEED)
    assert (row["own_model"], row["labeller"]) == ("smollm2", "lexicon: mine")
    assert row["settings"] == " ".join(settings)
    assert row["remarks"] == (
        "arxiv-v2-table8 prints 0.78; another model; words from elsewhere; other settings; "
        "baseline count below 30"
    )
    shown = display(table)
    assert set(shown["model"]) == {
        name.split("/")[1] for name in (MISTRAL, LLAVA, VICUNA, GEMMA, QWEN)
    }
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
    for run in (run_of(samples="mine"), pd.DataFrame()):
        none = compare(PUBLISHED, run, {"mistral": MISTRAL}, LABELLER, {}, None)
        said = "Run mine: 0 of 498 published values have a counterpart."
        assert list(notes(none, "mine")) == [said]
    said = " ".join(notes(usual, "paper"))
    assert "another model" not in said and "Other settings" not in said


@pytest.mark.parametrize(
    ("hub", "where", "value"),
    [
        (LLAVA, {"artefact": "figure1", "model": LLAVA}, 0.28),
        (GEMMA, {"artefact": "figure1_models", "model": GEMMA}, 0.01),
        # A model of the paper's stands beside its own values, and one of ours beside all.
        (LLAVA, {"artefact": "figure1_models", "model": GEMMA}, None),
        ("mine", {"artefact": "figure1_models", "model": GEMMA}, 0.01),
        ("mine", {"artefact": "figure1", "model": LLAVA}, 0.28),
    ],
)
def test_each_model_has_its_own_values(hub: str, where: dict, value: float | None) -> None:
    images = {
        "experiment": "mnist",
        "samples": "mnist",
        "concept": "classes",
        "measure": "exact_match",
    }
    run = run_of(**images)
    table = compare(PUBLISHED, run, {"mistral": hub}, LABELLER, {"mnist": ()}, {4: 16})
    row = found(table, **where, dataset="mnist", method="somp", heads=16)
    assert row["published"] == (0.28 if where["model"] == LLAVA else 0.01)
    if value is None:
        assert row["remarks"] == "not in this run"
    else:
        assert row["difference"] == pytest.approx(0.7 - value)
        assert ("another model" in row["remarks"]) == (hub == "mine")
        assert pd.isna(row["labeller"])  # nobody labels class names


def test_an_illegible_value_stands_beside_the_runs() -> None:
    """Two values of v2's table 13 may stand in either of two places; either is in the remark."""
    captions = {"experiment": "c", "samples": "flickr30k", "concept": "caption-quantity"}
    run = run_of(**captions, alpha=5.0, model="llava")
    table = compare(PUBLISHED, run, {"llava": LLAVA}, LABELLER, {"c": ()}, {4: 16})
    blank = table[table["published"].isna()]
    assert sorted(zip(blank["measure"], blank["method"], strict=True)) == [
        *(("cider", "logit_lens"), ("cider", "random")),
        *(("occurrences", "logit_lens"), ("occurrences", "random")),
    ]
    row = found(blank, measure="occurrences", method="random")
    assert (row["own"], row["low"], row["high"]) == (1.1, 0.92, 1.0)
    assert pd.isna(row["difference"]) and pd.isna(row["inside"])
    assert "illegible: 1.00 or 0.96" in row["remarks"]
    cells = display(blank).to_dict("records")
    assert {(own["published"], own["difference"], own["inside"]) for own in cells} == {("",) * 3}


# What the 498 values say against each other, found by looking at them all, with other means.


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
    # Three of SOMP's four cells differ between the texts, and each is said on both sides.
    assert usual["remarks"].str.contains("prints").sum() == 2 * 3


def test_where_random_heads_ruin_the_captions_it_is_said(usual: pd.DataFrame) -> None:
    """Where these are, v2's appendix D.6 says: 32 heads, colours inverted, Gemma 3 and Qwen."""
    ruined = usual[usual["remarks"].str.contains("of CIDEr is left with random heads")]
    assert set(ruined["measure"]) == {"occurrences"}
    keys = ["model", "concept", "heads", "alpha"]
    cells = {tuple(row) for row in ruined[keys].to_numpy()}
    assert {(GEMMA, "caption-colours", 32, -1.0), (QWEN, "caption-colours", 32, -1.0)} <= cells
    spoilt = PUBLISHED[(PUBLISHED["measure"] == "cider") & (PUBLISHED["method"] == "random")]
    spoilt = spoilt[spoilt["value"] < 0.5]
    assert {
        tuple(row) for row in spoilt[["model", "concept", "heads", "alpha"]].to_numpy()
    } == cells


# Tokens


def heads_of(**tokens: str) -> pd.DataFrame:
    row = {"experiment": "triviaqa", "layer": 24, "head": 20, "overlap": 3}
    return pd.DataFrame(
        [
            row | {"method": method, "tokens": own, "published_source": f"arxiv-v2-table{table}"}
            for (method, own), table in zip(tokens.items(), (1, 6), strict=False)
        ]
    )


def test_tokens_of_a_head_stand_beside_those_published() -> None:
    run = heads_of(somp="British American European", logit_lens="America American California")
    table = compare_tokens(TOKENS, run, {"triviaqa": ("samples.triviaqa.sample",)})
    assert len(table) == len(TOKENS) == 8
    row = found(table, head="L24.H20", method="somp")
    assert (row["published"], row["own"], row["difference"], row["inside"]) == (5, 3, -2, False)
    assert row["remarks"] == (
        "printed: British American European German English; this run: British American European; "
        "other settings"
    )
    row = found(table, head="L24.H20", method="logit_lens")
    assert (row["published"], row["own"]) == (4, 3)  # one of its five stands there twice
    assert "prints one of them twice" in row["remarks"]
    assert table["remarks"].str.contains("not in this run").sum() == 6
    shown = display(table)
    assert shown["heads"].tolist()[:2] == ["L18.H27", "L24.H20"]
    assert shown["published"].tolist()[:2] == ["5", "5"] and shown["this run"].tolist()[1] == "3"
    said = " ".join(notes(table, "paper"))
    assert "2 of 8 published values" in said and "Tokens: how many" in said
