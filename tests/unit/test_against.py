"""Sets of heads against each other: which are compared, on what, and where random draws lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from headpursuit.publish.against import Key, Measured, compared_cells, comparisons
from headpursuit.publish.statistics import ratio, ratio_of_ratios
from headpursuit.run.tables import write_csv

N, K = 30, (4, 8)
BASE = np.random.default_rng(0).poisson(2.0, N).astype(float)


def sets(before: np.ndarray = BASE, draws: int = 3, samples: str = "p", seed: int = 1) -> dict:
    rng, found = np.random.default_rng(seed), {}
    for method in ("somp", "logit_lens", "random"):
        for k in K:
            n = draws if method == "random" else 1
            key = Key(method, k, -1.0, "all", "occurrences")
            after = rng.poisson(before * k / 8, (n, N)).astype(float)
            found[key] = Measured([], [f"{samples}{i}" for i in range(N)], before, after)
    return found


def compared(scores: dict[str, dict], **differs: Any) -> pd.DataFrame:
    facts = {"samples": "rtp", "model": "m", "heads_from": None, "methods": ["somp", "logit_lens"]}
    experiments = {name: facts | {"differs": differs.get(name)} for name in scores}
    return comparisons(scores, experiments, {(name, "occurrences"): "" for name in scores}, 0.95)


def test_every_set_is_compared_with_what_it_can_be():
    own = sets()
    table = compared({"rtp": own})
    assert table[["method", "heads", "against", "against_heads"]].fillna(0).to_numpy().tolist() == [
        ["somp", 4, "baseline", 0], ["somp", 4, "logit_lens", 4], ["somp", 4, "random", 4],
        ["somp", 8, "baseline", 0], ["somp", 8, "logit_lens", 8], ["somp", 8, "random", 8],
        ["somp", 8, "somp", 4],
        ["logit_lens", 4, "baseline", 0], ["logit_lens", 4, "random", 4],
        ["logit_lens", 8, "baseline", 0], ["logit_lens", 8, "random", 8],
        ["logit_lens", 8, "logit_lens", 4],
        ["random", 4, "baseline", 0], ["random", 8, "baseline", 0],
    ]  # fmt: skip
    for row in table.itertuples():
        key = Key(row.method, row.heads, -1.0, "all", "occurrences")
        other = BASE[None]
        if row.against != "baseline":
            other = own[key._replace(method=row.against, heads=row.against_heads)].after
        chance = {"random": "one"}.get(row.against, "mean" if row.method == "random" else None)
        wanted = ratio(other, own[key].after, 0.95, chance)
        assert (row.value, row.low, row.high, row.p) == pytest.approx(
            (wanted.value, wanted.low, wanted.high, wanted.p)
        )
        assert row.draws == (3 if "random" in (row.method, row.against) else 1) and row.n == N


@pytest.mark.parametrize(("totals", "below", "above"), [((1, 2, 9), 2, 1), ((5, 5, 6), 0, 1)])
def test_the_rank_among_draws_counts_no_ties(totals: tuple, below: int, above: int):
    own = sets()
    one = np.eye(N)[0]
    own[Key("somp", 4, -1.0, "all", "occurrences")] = Measured([], ["p"], BASE, 5 * one[None])
    drawn = np.stack([total * one for total in totals])
    own[Key("random", 4, -1.0, "all", "occurrences")] = Measured([], ["p"], BASE, drawn)
    table = compared({"rtp": own})
    row = table[(table["against"] == "random") & (table["heads"] == 4)].iloc[0]
    assert (row["method"], row["below"], row["above"]) == ("somp", below, above)


def test_one_random_draw_has_a_ratio_and_no_interval():
    table = compared({"rtp": sets(draws=1)})
    own = table[table["against"].eq("random") | table["method"].eq("random")]
    assert own["value"].notna().all() and own[["low", "high", "p"]].isna().all(axis=None)


def test_a_variant_is_set_beside_the_first_experiment(tmp_path: Path):
    more = np.random.default_rng(5).poisson(2.0, N).astype(float)
    scores = {"rtp": sets(), "l2": sets(seed=2), "seed": sets(more), "other": sets(samples="q")}
    differs = {"rtp": {}, "l2": {"pursuit.norm": "l2"}, "seed": {"generation.seed": "1"}}
    table = compared(scores, **differs, other={"split": "1"})
    own = table[table["against"] == "original"]
    assert set(own["experiment"]) == {"l2", "seed", "other"} and set(own["method"]) == {
        "somp",
        "logit_lens",
    }
    key = Key("somp", 8, -1.0, "all", "occurrences")
    for name in ("l2", "seed"):
        row = own[(own["experiment"] == name) & (own["heads"] == 8)].iloc[0]
        parts = [(each[key].before, each[key].after[0]) for each in (scores[name], scores["rtp"])]
        assert row["value"] == pytest.approx(ratio_of_ratios(*parts, 0.95).value)
    assert own[own["experiment"] == "other"]["value"].isna().all()  # other samples
    write_csv(tmp_path / "tables/t.tests.csv", table)
    shown = compared_cells(table, 0.95)
    assert "pursuit.norm: l2" in set(shown["differs in"])
    moved = table[table["against"].eq("original") & table["value"].notna()]["value"]
    largest = np.exp(np.abs(np.log(moved)).max())
    assert any(f"{each:.2f} [" in shown.iloc[0, 7] for each in (largest, 1 / largest))
    assert not shown.isin(["nan", "None", "<NA>"]).any(axis=None)


def test_columns_that_no_row_has_are_left_out():
    assert {"differs in", "note"}.isdisjoint(compared_cells(compared({"rtp": sets()}), 0.95))


def test_without_comparisons_there_is_an_empty_table():
    only = {key: own for key, own in sets().items() if key.method == "random"}
    table = compared({"rtp": only})
    assert list(table["against"]) == ["baseline"] * 2
    assert compared_cells(table, 0.95).empty
