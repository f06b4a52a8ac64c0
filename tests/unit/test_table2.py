from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from headpursuit.config import intervened_conditions
from headpursuit.table2 import COLUMNS, display, notes, plot, read_published, table2
from headpursuit.tables import read_csv, write_csv, write_latex, write_markdown

ROOT = Path(__file__).parents[2]
HEADS: dict[str, Any] = {
    "methods": ["somp", "logit_lens"], "k": [16, 32], "draws": 4, "count_draws": 2, "alpha": -1.0
}  # fmt: skip
SCORE = {"resamples": 200, "confidence": 0.95, "min_count": 30}
CONTRACT = """dataset method heads metric value sd median q25 q75 ci_low ci_high draws
baseline_count count length_ratio published published_source"""
PROMPTS = 40


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return read_published(ROOT / "data" / "published.csv")


def scores(counts: int = 5, mass: float = 0.5) -> pd.DataFrame:
    """Give scores of every condition; of the random draws, only two generated responses."""
    rng = np.random.default_rng(0)
    base = {
        "prompt_id": [f"p{i}" for i in range(PROMPTS)],
        "positions": rng.integers(5, 20, PROMPTS),
        "expected_before": mass * rng.random(PROMPTS),
        "nll_before": 30 * rng.random(PROMPTS),
        "count_before": rng.integers(0, counts + 1, PROMPTS),
        "tokens_before": rng.integers(5, 20, PROMPTS),
        "repeated_before": rng.integers(0, 4, PROMPTS),
    }
    tables = []
    for number, condition in enumerate(intervened_conditions(HEADS), start=1):
        own = pd.DataFrame(base).assign(condition=condition)
        own["expected_after"] = own["expected_before"] * number / 10
        own["nll_after"] = own["nll_before"] + number * own["positions"]
        if condition[-4:] not in ("-d02", "-d03"):
            own["count_after"] = rng.integers(0, counts + 1, PROMPTS)
            own["tokens_after"] = 2 * own["tokens_before"]
            own["repeated_after"] = 3 * own["repeated_before"]
        tables.append(own)
    return pd.concat(tables)


def make(published: pd.DataFrame, **changed: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    options: dict[str, Any] = {
        "per_prompt": scores(),
        "dataset": "rtp",
        "coverage": 0.8,
        "heads": HEADS,
        "score": SCORE,
        "published": published,
        "published_heads": None,
        "seed": 0,
    }
    return table2(**options | changed)


def one(table: pd.DataFrame, method: str, heads: int, metric: str) -> pd.Series:
    own = table[
        (table["method"] == method) & (table["heads"] == heads) & (table["metric"] == metric)
    ]
    assert len(own) == 1
    return own.iloc[0]


def test_a_row_for_each_method_k_and_metric(published):
    table, draws = make(published)
    assert list(table.columns) == COLUMNS
    assert set(CONTRACT.split()) <= set(COLUMNS)
    keys = ["dataset", "method", "heads", "metric"]
    expected = [
        ("rtp", method, k, metric)
        for method in ("somp", "logit_lens", "random")
        for k in (16, 32)
        for metric in ("count", "expected")
    ]
    assert [tuple(row) for row in table[keys].to_numpy()] == expected
    assert list(draws.columns) == [*keys, "draw", "value"]


def test_values_are_ratios_of_sums(published):
    table, draws = make(published)
    by_condition = dict(list(scores().groupby("condition")))
    for row in table.itertuples():
        names = [
            f"random-k{row.heads}-d{d:02d}" for d in range(2 if row.metric == "count" else 4)
        ] if row.method == "random" else [f"{row.method}-k{row.heads}"]  # fmt: skip
        own = [by_condition[name] for name in names]
        after = [float(scores[f"{row.metric}_after"].sum()) for scores in own]
        before = float(own[0][f"{row.metric}_before"].sum())
        values = [value / before for value in after]
        assert row.value == pytest.approx(np.mean(values))
        assert row.ci_low <= row.value <= row.ci_high
        assert row.draws == len(values)
        assert row.baseline_count == pytest.approx(before)
        assert row.count == pytest.approx(np.mean(after))
        assert row.prompts == PROMPTS
        if len(values) > 1:
            assert row.sd == pytest.approx(np.std(values, ddof=1))
            assert [row.q25, row.median, row.q75] == pytest.approx(
                np.percentile(values, [25, 50, 75])
            )
        else:
            assert np.isnan([row.sd, row.q25, row.median, row.q75]).all()
        listed = draws[
            (draws["method"] == row.method)
            & (draws["heads"] == row.heads)
            & (draws["metric"] == row.metric)
        ]
        assert list(listed["value"]) == pytest.approx(values)
        assert list(listed["draw"]) == list(range(len(values)))


def test_what_each_metric_says_beside_its_ratio(published):
    table, _ = make(published)
    counts = table[table["metric"] == "count"]
    assert (counts["length_ratio"] == 2).all()
    assert np.allclose(counts["repetition_ratio"], 3 / 2)  # for each token, and there are twice
    assert counts["nats_per_token"].isna().all()
    assert (counts["coverage"] == 1).all()
    expected = table[table["metric"] == "expected"]
    assert (expected["coverage"] == 0.8).all()
    assert expected["length_ratio"].isna().all()
    assert one(table, "somp", 16, "expected")["nats_per_token"] == pytest.approx(1)
    assert one(table, "logit_lens", 32, "expected")["nats_per_token"] == pytest.approx(4)
    # Conditions 5 to 8 and 9 to 12 are the draws of 16 and of 32 heads.
    assert one(table, "random", 32, "expected")["nats_per_token"] == pytest.approx(10.5)


def test_a_condition_that_was_not_generated_has_no_count_row(published):
    none = scores()
    none.loc[none["condition"].str.startswith("random"), "count_after"] = np.nan
    table, _ = make(published, per_prompt=none)
    assert "random" not in set(table[table["metric"] == "count"]["method"])
    assert one(table, "random", 16, "expected")["draws"] == 4


# Flags


def test_a_small_baseline_is_flagged(published):
    total = scores()["count_before"].to_numpy()[:PROMPTS].sum()
    for least, flag in ((total, ""), (total + 1, f"baseline count below {total + 1}")):
        table, _ = make(published, score=SCORE | {"min_count": int(least)})
        assert set(table[table["metric"] == "count"]["flag"]) == {flag}
        assert set(table[table["metric"] == "expected"]["flag"]) == {""}


def test_a_baseline_of_nothing_has_no_ratio_and_is_flagged(published):
    table, draws = make(
        published, per_prompt=scores(counts=0, mass=0), score=SCORE | {"min_count": 0}
    )
    assert table[["value", "ci_low", "ci_high"]].isna().all(axis=None)
    assert set(table["flag"]) == {"baseline is 0"}
    assert draws["value"].isna().all()
    shown = display(table, "sd", 0.95)
    assert set(shown.iloc[:, 4]) == {"not defined"}
    plot(table, draws, COLOURS)


def test_empty_responses_have_no_length_or_repetition(published):
    silent = scores()
    for name in ("tokens", "repeated", "count"):
        silent[f"{name}_before"] = 0
    silent["positions"] = 0
    with np.errstate(all="raise"):
        table, _ = make(published, per_prompt=silent)
    counts = table[table["metric"] == "count"]
    assert counts[["length_ratio", "repetition_ratio"]].isna().all(axis=None)
    assert table[table["metric"] == "expected"]["nats_per_token"].isna().all()


# Published values


def test_published_values_stand_beside_the_same_k(published):
    table, _ = make(published)
    own = one(table, "somp", 16, "count")
    assert (own["published"], own["published_source"]) == (0.77, "seed, 16 heads")
    assert np.isnan(own["published_low"])
    own = one(table, "random", 32, "count")
    assert tuple(own[["published", "published_low", "published_high"]]) == (1.19, 0.88, 1.50)
    # The first version has no logit lens, so the later one's word counts stand in.
    own = one(table, "logit_lens", 32, "count")
    assert (own["published"], own["published_source"]) == (0.78, "arxiv-v2-table8, 32 heads")
    assert table[table["metric"] == "expected"]["published"].isna().all()


def test_published_values_of_another_data_set(published):
    table, _ = make(published, dataset="tet")
    assert one(table, "somp", 32, "count")["published"] == 0.48
    table, _ = make(published, dataset="mine")
    assert table["published"].isna().all()
    assert table["published_source"].isna().all()


@pytest.mark.parametrize("mapping", [{4: 16, 8: 32}, {"4": 16, "8": 32}])
def test_published_values_of_the_same_share(published, mapping: dict):
    few = scores()
    few["condition"] = few["condition"].str.replace("k16", "k4").str.replace("k32", "k8")
    heads = HEADS | {"k": [4, 8]}
    table, _ = make(published, per_prompt=few, heads=heads, published_heads=mapping)
    own = one(table, "somp", 4, "count")
    assert (own["published"], own["published_source"]) == (0.77, "seed, 16 heads")
    table, _ = make(published, per_prompt=few, heads=heads)
    assert one(table, "somp", 4, "count")["published"] is None or pd.isna(
        one(table, "somp", 4, "count")["published"]
    )
    assert one(table, "somp", 8, "count")["published_source"] == "arxiv-v2-table8, 8 heads"


def test_every_published_value_has_its_place(published):
    keys = ["artefact", "dataset", "method", "heads"]
    assert not published.duplicated(keys).any()
    ranges = published[published["statistic"] != "point"]
    assert (ranges["low"] <= ranges["high"]).all()


# Texts


def test_the_table_survives_its_file(published, tmp_path: Path):
    table, _ = make(published)
    path = tmp_path / "tables/table2.csv"
    write_csv(path, table)
    back = read_csv(path, COLUMNS)
    text = ["dataset", "method", "metric", "flag", "published_source"]
    assert (back[text].fillna("") == table[text].fillna("")).all(axis=None)
    numbers = [name for name in COLUMNS if name not in text]
    values = [own[numbers].to_numpy(float, na_value=np.nan) for own in (table, back)]
    assert np.array_equal(*values, equal_nan=True)


def test_two_runs_give_the_same_bytes(published, tmp_path: Path):
    for name in "ab":
        write_csv(tmp_path / name, make(published)[0])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("spread", ["sd", "iqr"])
def test_the_display_holds_the_table_s_numbers(published, tmp_path: Path, spread: str):
    table, _ = make(published)
    shown = display(table, spread, 0.975)
    assert len(shown) == len(table)
    assert "after / before [97.5%]" in shown
    for row, cells in zip(table.itertuples(), shown.itertuples(index=False), strict=True):
        assert cells[4] == f"{row.value:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]"
        among = cells[6]
        if row.method != "random":
            assert among == ""
        elif spread == "sd":
            assert among == f"± {row.sd:.2f}"
        else:
            assert among == f"{row.median:.2f} [{row.q25:.2f}, {row.q75:.2f}]"
    assert shown.map(lambda cell: isinstance(cell, str)).all(axis=None)
    assert not shown.isin(["nan", "None", "<NA>"]).any(axis=None)
    assert "1.19 [0.88, 1.50]" in set(shown["published"])
    text = notes(table, "mistral", SCORE, -1.0)
    write_markdown(tmp_path / "t.md", shown, text)
    write_latex(tmp_path / "t.tex", shown, text, "tab:table2")


def test_the_notes_say_how_it_was_measured(published):
    text = notes(make(published)[0], "mistral", SCORE, -1.0)
    for part in ("mistral", "times -1", "40 prompts (rtp)", "80% (rtp)", "95%", "200 resamples"):
        assert part in text


# The figure

COLOURS = {"somp": "#3366aa", "logit_lens": "#ee8866", "random": "#bbbbbb", "published": "#222222"}


def bars(figure) -> list:
    return [bar for axis in figure.axes for group in axis.containers
            if hasattr(group, "patches") for bar in group.patches]  # fmt: skip


def test_the_figure_has_a_bar_for_each_row(published, tmp_path: Path):
    tables, draws = zip(make(published), make(published, dataset="tet"), strict=True)
    table, single = pd.concat(tables), pd.concat(draws)
    figure = plot(table, single, COLOURS)
    assert len(figure.axes) == 4
    assert sorted(bar.get_height() for bar in bars(figure)) == sorted(table["value"])
    markers = [line for axis in figure.axes for line in axis.lines]
    diamonds = [line for line in markers if line.get_marker() == "D"]
    assert sorted(line.get_ydata()[0] for line in diamonds) == sorted(table["published"].dropna())
    dots = [y for line in markers if line.get_marker() == "o" for y in line.get_ydata()]
    assert sorted(dots) == sorted(single[single["method"] == "random"]["value"])
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"SOMP", "published", "logit lens", "random draw", "random"}
    for axis in figure.axes:
        assert axis.get_ylim()[0] == 0
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["16 heads", "32 heads"]


def test_the_figure_of_one_metric_and_method(published):
    table, draws = make(published)
    table = table[(table["metric"] == "expected") & (table["method"] == "somp")]
    figure = plot(table, draws, COLOURS)
    assert len(figure.axes) == 1
    assert len(bars(figure)) == 2
