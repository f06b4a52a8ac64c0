"""Which heads are selected, and which are drawn; test_fuzz.py has the properties of any control."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from headpursuit.method.heads import (
    draw_control,
    rank,
    read_conditions,
    read_heads,
    read_ranking,
    top_heads,
    write_heads,
)
from headpursuit.run.files import UserError
from headpursuit.run.tables import write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

SELECTED = [(0, 1), (0, 2), (3, 0), (5, 7)]
LAYERS = (0, 5)


def table(values: list[float], n_heads: int = 4) -> pd.DataFrame:
    records = [(i // n_heads, i % n_heads, value, f"t{i}") for i, value in enumerate(values)]
    return pd.DataFrame(records, columns=["layer", "head", "score", "atoms"])


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from([0.0, -1.0, 0.5, 2.0, 1e-12]), min_size=1, max_size=40),
    *[st.integers(low, high) for low, high in ((1, 10), (0, 9), (0, 9))],
    st.integers(0, 99),
)
def test_heads_go_by_score_then_layer_then_head(values, k, first, last, seed):
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    ranked = rank(table(values).sample(frac=1, random_state=seed))
    assert list(ranked.columns) == ["layer", "head", "score", "rank", "atoms"]
    assert list(ranked["rank"]) == list(range(1, len(values) + 1))
    assert list(ranked["atoms"]) == [f"t{i}" for i in order]
    inside = [(i // 4, i % 4) for i in order if first <= i // 4 <= last]
    assert top_heads(ranked.sample(frac=1, random_state=seed), k, first, last) == inside[:k]


def test_a_score_that_is_not_a_number_comes_last():
    assert list(rank(table([np.nan, 1.0, 2.0]))["atoms"]) == ["t2", "t1", "t0"]


def test_a_control_depends_on_its_identity_alone():
    conditions = [f"random-k4-d{d:02d}" for d in range(5)]
    identities = [(s, d, c) for s in (0, 1) for d in ("rtp", "tet") for c in conditions]
    drawn = {i: tuple(draw_control(SELECTED, 32, *i, LAYERS)) for i in identities}
    assert len(set(drawn.values())) == len(identities)
    assert drawn == {i: tuple(draw_control(SELECTED, 32, *i, LAYERS)) for i in reversed(identities)}


def test_every_other_head_is_drawn_as_often_as_any():
    drawn = Counter(
        head
        for d in range(2000)
        for layer, head in draw_control(SELECTED, 8, 0, "rtp", f"random-k4-d{d}", LAYERS)
        if layer == 0
    )
    assert sorted(drawn) == [0, 3, 4, 5, 6, 7]
    # 2,000 draws of 2 among 6; five standard errors.
    assert all(abs(n / 2000 - 1 / 3) < 5 * np.sqrt(2 / 9 / 2000) for n in drawn.values())


def test_a_layer_with_just_enough_others_and_one_with_too_few():
    selected = [(2, head) for head in range(4)]
    drawn = draw_control(selected, 8, 0, "rtp", "random-k4-d00", (2, 2))
    assert drawn == [(2, h) for h in range(4, 8)]
    crowded = [*selected, (2, 4), (0, 0)]
    # All three others of layer 2, and two of the nearest layers in their place.
    drawn = draw_control(crowded, 8, 0, "rtp", "random-k6-d03", (0, 3))
    assert [head for layer, head in drawn if layer == 2] == [5, 6, 7]
    assert Counter(layer for layer, _ in drawn) == {0: 1, 1: 2, 2: 3}
    assert not set(drawn) & set(crowded)
    everything = [(2, head) for head in range(5)]
    with pytest.raises(UserError, match=r"random-k5-d03: there are only 3 heads in layers 2 to 2"):
        draw_control(everything, 8, 0, "rtp", "random-k5-d03", (2, 2))


def test_conditions_round_trip(tmp_path: Path, caplog):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    write_heads(one, {"b": SELECTED[:2], "a": [(9, 9)]})
    write_heads(other, {"c": SELECTED[2:]})
    assert one.read_text() == "condition,layer,head\nb,0,1\nb,0,2\na,9,9\n"
    every = {"b": SELECTED[:2], "a": [(9, 9)], "c": SELECTED[2:]}
    assert list(read_heads([one, other]).items()) == list(every.items())
    assert list(read_heads([one, other], ["c", "b"])) == ["c", "b"]
    with pytest.raises(UserError, match=r"one\.csv, .*other\.csv: no heads of d"):
        read_heads([one, other], ["a", "d"])
    wanted = {"c-a5": ("c", 5.0, "all"), "c": ("c", -1.0, "all"), "b-image": ("b", 1.0, "image")}
    assert read_conditions([one, other], wanted) == {
        "c-a5": (SELECTED[2:], 5.0, "all", []),
        "c": (SELECTED[2:], -1.0, "all", []),
        "b-image": (SELECTED[:2], 1.0, "image", []),
    }
    heads = [*SELECTED, (9, 9)]  # the second and the fourth write against the concept
    signs = pd.DataFrame(heads, columns=["layer", "head"]).assign(score=0.5, rank=range(1, 6))
    signs["direction"] = [1.0, -2.0, 0.0, -0.1, 3.0]
    signs = signs.assign(positive=0.5, score_5=0.1, score_10=0.2, score_20=0.3, rows=9, atoms="a")
    both = [signs, signs.assign(direction=-1.0)]
    both = [own.assign(method=name) for own, name in zip(both, ["somp", "unrelated"], strict=True)]
    table = pd.concat(both)
    write_csv(tmp_path / "rankings/x.csv", table[["method", *signs]])
    signed = read_conditions([one, other], wanted, [tmp_path / "rankings/x.csv"])
    against = {name: own.against for name, own in signed.items()}
    assert against == {"c-a5": [SELECTED[3]], "c": [SELECTED[3]], "b-image": [SELECTED[1]]}
    assert "so these are the baseline: b-image" in caplog.text


def test_a_ranking_that_lacks_a_method_says_why(tmp_path: Path):
    row = {"method": "somp", "layer": 0, "head": 1, "score": 0.5, "rank": 1, "atoms": "a"}
    pd.DataFrame([row]).to_csv(tmp_path / "ranking.csv", index=False)
    assert len(read_ranking(tmp_path / "ranking.csv", "somp")) == 1
    said = r"no ranking by unrelated\. .*pursuit\.unrelated_words .*Name a file with more words"
    with pytest.raises(UserError, match=said):
        read_ranking(tmp_path / "ranking.csv", "unrelated")
