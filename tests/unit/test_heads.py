from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from headpursuit.method.heads import (
    choose_heads,
    draw_control,
    rank,
    read_conditions,
    read_ranking,
    top_heads,
    write_conditions,
)
from headpursuit.run.files import UserError
from hypothesis import given
from hypothesis import strategies as st

Head = tuple[int, int]
scores = st.lists(st.sampled_from([0.0, -1.0, 0.5, 2.0, 1e-12]), min_size=1, max_size=40)


def table(values: list[float], n_heads: int = 4) -> pd.DataFrame:
    records = [(i // n_heads, i % n_heads, value, f"t{i}") for i, value in enumerate(values)]
    return pd.DataFrame(records, columns=["layer", "head", "score", "atoms"])


@given(scores, st.randoms())
def test_ranks_order_by_score_then_layer_then_head(values: list[float], random):
    shuffled = list(range(len(values)))
    random.shuffle(shuffled)
    ranked = rank(table(values).iloc[shuffled])
    assert list(ranked.columns) == ["layer", "head", "score", "rank", "atoms"]
    assert list(ranked["rank"]) == list(range(1, len(values) + 1))
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert list(ranked["atoms"]) == [f"t{i}" for i in order]


def test_a_score_that_is_not_a_number_comes_last():
    assert list(rank(table([np.nan, 1.0, 2.0]))["atoms"]) == ["t2", "t1", "t0"]


@given(scores, st.integers(1, 10), st.integers(0, 9), st.integers(0, 9), st.randoms())
def test_top_heads_are_the_best_of_the_candidate_layers(values, k, first, last, random):
    ranked = rank(table(values)).sample(frac=1, random_state=random.randrange(99))
    found = top_heads(ranked, k, first, last)
    inside = [i for i in range(len(values)) if first <= i // 4 <= last]
    best = sorted(inside, key=lambda i: (-values[i], i))[:k]
    assert found == [(i // 4, i % 4) for i in best]


heads = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, unique=True).filter(
    lambda own: max(Counter(layer for layer, _ in own).values()) <= 4
)


@given(heads, st.integers(0, 99), st.integers(0, 9))
def test_a_control_matches_by_layer_and_is_disjoint(selected: list[Head], seed: int, draw: int):
    drawn = draw_control(selected, 8, seed, "rtp", f"random-k4-d{draw:02d}")
    assert Counter(layer for layer, _ in drawn) == Counter(layer for layer, _ in selected)
    assert not set(drawn) & set(selected)
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= head < 8 for _, head in drawn)
    assert drawn == draw_control(selected[::-1], 8, seed, "rtp", f"random-k4-d{draw:02d}")


SELECTED = [(0, 1), (0, 2), (3, 0), (5, 7)]


def test_a_control_depends_on_its_identity_alone():
    conditions = [f"random-k4-d{d:02d}" for d in range(5)]
    identities = [(s, d, c) for s in (0, 1) for d in ("rtp", "tet") for c in conditions]
    drawn = {i: tuple(draw_control(SELECTED, 32, *i)) for i in identities}
    assert len(set(drawn.values())) == len(identities)
    assert drawn == {i: tuple(draw_control(SELECTED, 32, *i)) for i in reversed(identities)}


def test_every_other_head_is_drawn_as_often_as_any():
    drawn = Counter(
        head
        for d in range(2000)
        for layer, head in draw_control(SELECTED, 8, 0, "rtp", f"random-k4-d{d}")
        if layer == 0
    )
    assert sorted(drawn) == [0, 3, 4, 5, 6, 7]
    # 2,000 draws of 2 among 6; five standard errors.
    assert all(abs(n / 2000 - 1 / 3) < 5 * np.sqrt(2 / 9 / 2000) for n in drawn.values())


def test_a_layer_with_just_enough_others_and_one_with_too_few():
    selected = [(2, head) for head in range(4)]
    assert draw_control(selected, 8, 0, "rtp", "random-k4-d00") == [(2, h) for h in range(4, 8)]
    with pytest.raises(UserError, match=r"rtp, random-k6-d03: layer 2 has 5 selected .* 3 others"):
        draw_control([*selected, (2, 4), (0, 0)], 8, 0, "rtp", "random-k6-d03")


def test_chosen_heads_are_each_ranking_s_best_for_each_k():
    rankings = {"somp": rank(table([0, 3, 2, 1])), "size": rank(table([3, 0, 0, 0, 9, 8]))}
    assert list(choose_heads(rankings, [1, 2], (0, 0)).items()) == [
        ("somp-k1", [(0, 1)]), ("size-k1", [(0, 0)]),
        ("somp-k2", [(0, 1), (0, 2)]), ("size-k2", [(0, 0), (0, 1)]),
    ]  # fmt: skip


def test_conditions_round_trip(tmp_path: Path):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    write_conditions(one, {"b": SELECTED[:2], "a": [(9, 9)]})
    write_conditions(other, {"c": SELECTED[2:]})
    assert one.read_text() == "condition,layer,head\nb,0,1\nb,0,2\na,9,9\n"
    every = {"b": SELECTED[:2], "a": [(9, 9)], "c": SELECTED[2:]}
    assert list(read_conditions([one, other]).items()) == list(every.items())
    assert list(read_conditions([one, other], ["c", "b"])) == ["c", "b"]
    with pytest.raises(UserError, match=r"one\.csv, .*other\.csv: no heads of d"):
        read_conditions([one, other], ["a", "d"])


def test_a_ranking_that_lacks_a_method_says_where_the_reason_is(tmp_path: Path):
    row = {"method": "somp", "layer": 0, "head": 1, "score": 0.5, "rank": 1, "atoms": "a"}
    pd.DataFrame([row]).to_csv(tmp_path / "ranking.csv", index=False)
    assert len(read_ranking(tmp_path / "ranking.csv", "somp")) == 1
    with pytest.raises(UserError, match=r"no ranking by unrelated\. The log of rank_heads"):
        read_ranking(tmp_path / "ranking.csv", "unrelated")
