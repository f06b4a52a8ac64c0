"""Ratios, their intervals, flags and published values, and how they are shown."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from headpursuit.publish.against import Key
from headpursuit.publish.figure import plot
from headpursuit.publish.published import put_published
from headpursuit.publish.ratio import display, notes, ratio_rows
from headpursuit.publish.texts import by_text
from headpursuit.run.experiments import condition_name
from headpursuit.run.tables import read_csv, write_csv

PUBLISHED = read_csv(Path(__file__).parents[2] / "data/published.csv")
OWN: dict[str, Any] = {
    **{"model": "mistral", "concept": "toxic", "alpha": -1.0, "at": "all"},
    **{"signed": False, "heads_from": None, "iterations": 50, "differs": None},
    **{"methods": ["somp", "logit_lens"], "k": [16, 32], "draws": 4},
}
SCORE = {"confidence": 0.95, "min_count": 30}
NONE = pd.DataFrame(columns=["experiment", *Key._fields, "against"])  # no comparisons
COLOURS = {"somp": "#3366aa", "logit_lens": "#ee8866", "random": "#bbbbbb", "published": "#222222"}
KEYS = ["experiment", "method", "heads", "measure"]
N = 40
# What each kind of samples measures, and its file's metadata.
TEXT, IMAGES, JUDGED = ["occurrences", "expected"], ["exact_match", "first_word"], ["toxicity"]
JUDGE = {"name": "roberta", "label": "toxic", "threshold": 0.5, "limit": 512}
JUDGE |= {"cut": 3, "empty": 7, "responses": 4 * 40}
SIDES = {
    "occurrences": ["tokens", "repeated"],
    "expected": ["nll", "positions"],
    "exact_match": ["several"],
}
SIDES |= {"first_word": ["none"], "toxicity": ["tokens", "repeated"]}
both_kinds = pytest.mark.parametrize("measures", [TEXT, IMAGES])


def scored(measures: list[str] = TEXT) -> pd.DataFrame:
    """Give scores of every condition; only two random draws of a k wrote responses."""
    conditions = [condition_name(method, k) for method in OWN["methods"] for k in OWN["k"]]
    conditions += [condition_name("random", k, n) for k in OWN["k"] for n in range(OWN["draws"])]
    rng = np.random.default_rng(0)
    names = [name for measure in measures for name in (measure, *SIDES[measure])]
    scale = 6 if measures == TEXT else 2  # answers are right or wrong
    before = {name: rng.integers(0, scale, N).astype(float) for name in names}
    tables = []
    for number, condition in enumerate(conditions, start=1):
        after = {name: rng.integers(0, scale, N).astype(float) for name in names}
        if "tokens" in names:
            after["tokens"], after["repeated"] = 2 * before["tokens"], 3 * before["repeated"]
        if measures == TEXT:
            after["expected"] = before["expected"] * number / 10
            after["nll"] = before["nll"] + number * before["positions"]
        silent = (
            {"occurrences", "toxicity", "tokens", "repeated"}
            if condition[-4:] in ("-d02", "-d03")
            else set()
        )
        for name in set(names) - silent:
            own = {"condition": condition, "sample_id": [f"p{i:02d}" for i in range(N)]}
            own |= {"measure": name, "before": before[name], "after": after[name]}
            tables.append(pd.DataFrame(own))
    return pd.concat(tables)


def made(
    table: pd.DataFrame,
    score: dict[str, Any] = SCORE,
    names: tuple[str, ...] = ("rtp",),
    published_heads: dict | None = None,
    **changed: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    facts = {"coverage": 0.8} if "tokens" in set(table["measure"]) else {"classes": 10}
    facts["classifier"] = JUDGE
    own = OWN | ({} if "coverage" in facts else {"concept": "classes"})
    experiments = {name: own | {"samples": name, "family": name} | changed for name in names}
    rows, draws, _ = ratio_rows(dict.fromkeys(names, (table, facts)), experiments, score)
    return put_published(rows, PUBLISHED, {"mistral": "mistral"}, published_heads), draws


def one(table: pd.DataFrame, method: str, heads: int, measure: str) -> pd.Series:
    own = table.set_index(["method", "heads", "measure"]).loc[(method, heads, measure)]
    assert isinstance(own, pd.Series)
    return own


def test_splits_have_a_spread_of_their_own():
    scores = {name: scored() for name in ("rtp", "rtp-split1", "rtp-split2", "tet")}
    for number, name in enumerate(scores):
        scores[name]["after"] *= 1 + number
    scores = {name: (table, {"coverage": 0.8}) for name, table in scores.items()}
    own = {name: OWN | {"samples": "rtp", "family": name.split("-")[0]} for name in scores}
    table, _, _ = ratio_rows(scores, own, SCORE)
    rows = table.set_index(["experiment", "method", "heads", "measure"])
    for method, k, measure in product(["somp", "random"], OWN["k"], TEXT):
        value = rows.loc[("rtp", method, k, measure), "value"]
        for name in scores:
            row = rows.loc[(name, method, k, measure)]
            if name == "tet":
                assert row["splits"] == 1 and np.isnan([row["splits_mean"], row["splits_sd"]]).all()
            else:
                assert row["splits"] == 3
                assert (row["splits_mean"], row["splits_sd"]) == pytest.approx((2 * value, value))
    shown = display(table, NONE, "sd", 0.95)["mean of splits"]
    assert all(shown[table["experiment"] == "tet"] == "") and (shown != "").sum() == 3 * 12
    assert any(text.startswith("Mean of splits") for text in notes(table, scores, own, SCORE))
    alone, _ = made(scored())
    assert "mean of splits" not in display(alone, NONE, "sd", 0.95)


@both_kinds
def test_a_row_is_the_ratio_of_sums(measures: list[str], tmp_path: Path):
    scores = scored(measures)
    table, draws = made(scores)
    assert [tuple(row) for row in table[KEYS].to_numpy()] == [
        ("rtp", method, k, measure)
        for method in ("somp", "logit_lens", "random")
        for k in (16, 32)
        for measure in measures
    ]
    sums = scores.groupby(["condition", "measure"])[["before", "after"]].sum()
    for row in table.itertuples():
        n = 1 if row.method != "random" else 2 if row.measure == "occurrences" else 4
        name = f"{row.method}-k{row.heads}"
        names = [name] if n == 1 else [f"{name}-d{draw:02d}" for draw in range(n)]
        own = [sums.loc[(name, row.measure)] for name in names]
        before, after = own[0]["before"], [each["after"] for each in own]
        values = [each / before for each in after]
        assert (row.draws, row.n, row.before) == (n, N, before)
        assert (row.value, row.after) == pytest.approx((np.mean(values), np.mean(after)))
        assert row.ci_low <= row.value <= row.ci_high
        among = [row.sd, row.q25, row.median, row.q75]
        if n > 1:
            wanted = [np.std(values, ddof=1), *np.percentile(values, [25, 50, 75])]
            assert among == pytest.approx(wanted)
        else:
            assert np.isnan(among).all()
        same = (draws[KEYS] == [getattr(row, key) for key in KEYS]).all(axis=1)
        assert list(draws[same]["value"]) == pytest.approx(values)
        assert list(draws[same]["draw"]) == list(range(n))
    write_csv(tmp_path / "tables/t.csv", table)  # which checks its contract
    write_csv(tmp_path / "tables/t.draws.csv", draws)


def test_alphas_and_places_are_rows_of_their_own(tmp_path: Path):
    """With the ratios that each has alone; the text names what varies, and the figure groups it."""
    usual, rows = scored(), []
    others = [usual]
    for suffix, factor in (("-a5", 2), ("-response", 3), ("-a5-response", 4)):
        other = usual.assign(condition=usual["condition"] + suffix)
        others.append(other.assign(after=other["after"] * factor))
    changed = {"alpha": [5, -1], "at": ["all", "response"], "methods": ["somp"], "k": [16]}
    table, draws = made(pd.concat(others), **changed)
    plain, _ = made(usual, methods=["somp"], k=[16])
    for (alpha, at), factor in (
        ((-1, "all"), 1), ((5, "all"), 2), ((-1, "response"), 3), ((5, "response"), 4)
    ):  # fmt: skip
        own = table[(table["alpha"] == alpha) & (table["at"] == at)].reset_index(drop=True)
        rows.append(len(own))
        for column in ("value", "sd", "median"):
            np.testing.assert_allclose(own[column], factor * plain[column])
        # Published values are of heads that are inverted at all positions.
        assert own["published"].notna().any() == (factor == 1)
    assert rows == [len(plain)] * 4 and len(table) == 4 * len(plain)
    write_csv(tmp_path / "tables/t.csv", table)  # which checks its key
    write_csv(tmp_path / "tables/t.draws.csv", draws)
    shown = display(table, NONE, "sd", 0.95)
    assert list(shown[["alpha", "at"]].drop_duplicates().itertuples(index=False, name=None)) == [
        ("5", "all"), ("5", "response"), ("-1", "all"), ("-1", "response")
    ]  # fmt: skip
    assert not {"alpha", "at"} & set(display(plain, NONE, "sd", 0.95))
    figure = plot(table, draws, {}, COLOURS)
    axis = figure.axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [
        *("16 heads\nalpha -1\nall", "16 heads\nalpha -1\nresponse"),
        *("16 heads\nalpha 5\nall", "16 heads\nalpha 5\nresponse"),
    ]
    heights = [bar.get_height() for axis in figure.axes for bar in axis.patches]
    assert sorted(heights) == sorted(table["value"])
    text = next(notes(table, {"rtp": (usual, {})}, {"rtp": OWN | {"samples": "rtp"}}, SCORE))
    assert "writes times 5, -1 at all positions or in the response; 40 prompts" in text


def test_what_stands_beside_a_ratio():
    table, _ = made(scored())
    counts, expected = (table[table["measure"] == name] for name in TEXT)
    assert (counts["length_ratio"] == 2).all()
    assert np.allclose(counts["repetition_ratio"], 3 / 2)  # for each token, and there are twice
    assert (counts["coverage"] == 1).all() and (expected["coverage"] == 0.8).all()
    assert counts["nats_per_token"].isna().all() and expected["length_ratio"].isna().all()
    # Conditions 5 to 8 and 9 to 12 are the draws of 16 and of 32 heads.
    for method, k, nats in (("somp", 16, 1), ("logit_lens", 32, 4), ("random", 32, 10.5)):
        assert one(table, method, k, "expected")["nats_per_token"] == pytest.approx(nats)
    scores = scored(IMAGES)
    shares = scores[scores["condition"] == "somp-k16"].groupby("measure")["after"].mean()
    row = one(made(scores)[0], "somp", 16, "first_word")
    assert (row["several"], row["none"]) == (shares["several"], shares["none"])


def test_toxic_responses_have_their_number_and_their_share():
    table, _ = made(scored(JUDGED))
    row = one(table, "somp", 16, "toxicity")
    assert (row["share_before"], row["share_after"]) == (row["before"] / 160, row["after"] / 160)
    assert (row["length_ratio"], row["published_source"]) == (2, "arxiv-v2-table7, 16 heads")
    cells = display(table, NONE, "sd", 0.95).iloc[0]
    assert cells["before"] == f"{row['before']:.0f} ({row['before'] / 160:.1%})"


@pytest.mark.parametrize(
    ("measures", "measure", "before", "min_count", "flag"),
    [
        (JUDGED, "toxicity", 1, N + 1, f"baseline count below {N + 1}"),
        (TEXT, "occurrences", 1, N, ""),
        (TEXT, "occurrences", 1, N + 1, f"baseline count below {N + 1}"),
        (TEXT, "expected", 0, N + 1, "baseline is 0"),
        (IMAGES, "exact_match", 0.1, 0, "baseline no better than chance"),
        (IMAGES, "first_word", 0.2, 0, ""),
        (IMAGES, "exact_match", 0, 0, "baseline is 0"),
    ],
)
def test_a_row_that_says_little_is_flagged(measures, measure, before, min_count, flag):
    scores = scored(measures)
    scores.loc[scores["measure"] == measure, "before"] = before
    table, draws = made(scores, SCORE | {"min_count": min_count})
    own = table[table["measure"] == measure]
    assert set(own["flag"]) == {flag}
    if not before:
        assert own[["value", "ci_low", "ci_high"]].isna().all(axis=None)
        assert set(display(own, NONE, "sd", 0.95).iloc[:, 4]) == {"not defined"}
        plot(table, draws, {}, COLOURS)


def test_what_is_missing_is_left_out():
    scores = scored()
    silent = scores["condition"].str.startswith("random") & (scores["measure"] == "occurrences")
    table, _ = made(scores[~silent])
    assert "random" not in set(table[table["measure"] == "occurrences"]["method"])
    assert one(table, "random", 16, "expected")["draws"] == 4
    scores.loc[~scores["measure"].isin(["expected", "nll"]), "before"] = 0  # empty responses
    with np.errstate(all="raise"):
        table, _ = made(scores)
    beside = ["length_ratio", "repetition_ratio", "nats_per_token"]
    assert table[beside].isna().all(axis=None)


UNPUBLISHED = (None, None, None, None)
SOMP = "somp", 16, "occurrences"


@pytest.mark.parametrize(
    ("dataset", "row", "changed", "published"),
    [
        ("rtp", SOMP, {}, (0.77, None, None, "seed, 16 heads")),
        ("rtp", ("random", 32, "occurrences"), {}, (1.19, 0.88, 1.50, "seed, 32 heads")),
        # The first version has no logit lens, so the later one's word counts stand in.
        (
            "rtp",
            ("logit_lens", 32, "occurrences"),
            {},
            (0.78, None, None, "arxiv-v2-table8, 32 heads"),
        ),
        ("rtp", ("somp", 16, "expected"), {}, UNPUBLISHED),
        ("mine", SOMP, {}, UNPUBLISHED),
        ("mnist", ("random", 16, "exact_match"), {}, (1.0, 0.99, 1.0, "arxiv-v2-table9, 16 heads")),
        ("mnist", ("random", 16, "first_word"), {}, UNPUBLISHED),
        # A variant, and 16 heads that are as large a share as the paper's 32.
        ("rtp-l2", SOMP, {"samples": "rtp"}, (0.77, None, None, "seed, 16 heads")),
        ("rtp", SOMP, {"published_heads": {"16": 32}}, (0.72, None, None, "seed, 32 heads")),
        ("rtp", SOMP, {"heads_from": "tet"}, UNPUBLISHED),
    ],
)
def test_published_values_stand_beside_the_same_heads(dataset, row, changed, published):
    table, _ = made(scored(IMAGES if dataset == "mnist" else TEXT), names=(dataset,), **changed)
    found = one(table, *row)[["published", "published_low", "published_high", "published_source"]]
    assert tuple(None if pd.isna(own) else own for own in found) == published


@pytest.mark.parametrize("spread", ["sd", "iqr"])
@both_kinds
def test_the_display_holds_the_rows_numbers(measures: list[str], spread: str):
    table, _ = made(scored(measures))
    shown = display(table, NONE, spread, 0.975)
    for row, cells in zip(table.itertuples(), shown.to_dict("records"), strict=True):
        ratio = f"{row.value:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]"
        assert cells["after / before [97.5%]"] == ratio
        among = {"sd": f"± {row.sd:.2f}", "iqr": f"{row.median:.2f} [{row.q25:.2f}, {row.q75:.2f}]"}
        cell = cells["sd of draws" if spread == "sd" else "median [quartiles]"]
        assert cell == (among[spread] if row.method == "random" else "")
        form = {"occurrences": f"{row.before:.0f}", "expected": f"{row.before:.2f}"}
        assert cells["before"] == form.get(row.measure, f"{row.before / N:.2f}")
    assert not shown.isin(["nan", "None", "<NA>"]).any(axis=None)
    assert set(shown) & {"length", "no class"} == {"length" if measures == TEXT else "no class"}
    assert ("1.19 [0.88, 1.50]" in set(shown["published"])) == (measures == TEXT)


@pytest.mark.parametrize(
    ("measures", "facts", "said", "unsaid"),
    [
        (
            TEXT,
            {"coverage": 0.8},
            ["times -1 at all positions; 40 prompts.", "it sees 80% of these", "95%"],
            "classes",
        ),
        (
            JUDGED,
            {"classifier": JUDGE},
            [
                "roberta for rtp, from a probability of toxic of 0.5 on ",
                "160 responses a condition",
                "3 were cut at 512 tokens, 7 are empty",
            ],
            "ccurrences",
        ),
        (IMAGES, {"classes": 10}, ["40 images of 10 classes."], "prompts"),
    ],
)
def test_the_notes_say_how_it_was_measured(measures, facts, said, unsaid):
    scores = scored(measures)
    experiments = {"rtp": OWN | {"samples": "rtp"}}
    text = " ".join(notes(made(scores)[0], {"rtp": (scores, facts)}, experiments, SCORE))
    assert all(part in text for part in ["Model mistral", "95% score intervals", *said]), text
    assert unsaid not in text


def test_what_is_the_same_of_several_experiments_is_said_once():
    assert by_text({"rtp": "9 prompts", "tet": "9 prompts"}) == "9 prompts"
    several = by_text({"rtp": "9 prompts", "tet": "8 prompts", "rtp-l2": "9 prompts"})
    assert several == "9 prompts (rtp, rtp-l2), 8 prompts (tet)"


@pytest.mark.parametrize(
    ("measures", "ticks", "titles"),
    [
        (TEXT, ["16 heads", "32 heads"], ["rtp: occurrences", "rtp: expected"]),
        (IMAGES, ["rtp", "tet"], ["16 heads: exact match", "32 heads: exact match"]),
    ],
)
def test_the_figure_has_a_bar_for_each_row(measures, ticks, titles):
    table, draws = made(scored(measures), names=("rtp", "tet"))
    figure = plot(table, draws, {}, COLOURS)
    assert [axis.get_title() for axis in figure.axes][:2] == titles
    heights = [bar.get_height() for axis in figure.axes for bar in axis.patches]
    assert sorted(heights) == sorted(table["value"])
    lines = [line for axis in figure.axes for line in axis.lines]
    diamonds = [y for line in lines if line.get_marker() == "D" for y in line.get_ydata()]
    assert sorted(diamonds) == sorted(table["published"].dropna())
    dots = [y for line in lines if line.get_marker() == "o" for y in line.get_ydata()]
    assert sorted(dots) == sorted(draws[draws["method"] == "random"]["value"])
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named - {"published"} == {"SOMP", "logit lens", "random draw", "random"}
    for axis in figure.axes:
        assert axis.get_ylim()[0] == 0
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ticks
