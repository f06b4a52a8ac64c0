"""How many of their top heads experiments share."""

import itertools

import numpy as np
import pandas as pd
import pytest
from headpursuit.method.heads import FEWER_ATOMS, rank, top_heads
from headpursuit.publish.overlap import (
    chance,
    choosers,
    concept_tokens,
    display,
    is_crossed,
    jaccard,
    notes,
    overlaps,
    plot_crossed,
    put_rankings,
    ranking_notes,
)
from headpursuit.run.tables import write_csv

HEADS = pd.DataFrame(list(np.ndindex(4, 2)), columns=["layer", "head"])
UP, DOWN = HEADS.assign(rank=range(1, 9)), HEADS.assign(rank=range(8, 0, -1))


def test_jaccard_and_chance():
    assert jaccard([(0, 1), (0, 2)], [(0, 2), (0, 3)]) == pytest.approx(1 / 3)
    sets = list(itertools.combinations(range(7), 3))
    brute = np.mean([jaccard(a, b) for a in sets for b in sets])
    two = np.mean([len({*a} & {*b}) >= 2 for a in sets for b in sets])
    assert chance(3, 7, 2) == pytest.approx((brute, two))
    assert chance(3, 7, 0)[1] == 1
    assert chance(5, 5, 5) == (1, 1)


def own(model: str = "m", k: tuple[int, ...] = (2, 4), layers: tuple = (2, 3)) -> dict:
    return {"model": model, "k": list(k), "layers": layers}


@pytest.mark.parametrize(
    ("experiments", "rows"),
    [
        (
            {"up": own(), "down": own(), "same": own()},
            [
                *[[2, "up", "down", 0], [2, "up", "same", 2], [2, "down", "same", 0]],
                *[[4, "up", "down", 4], [4, "up", "same", 4], [4, "down", "same", 4]],
            ],
        ),
        # Each experiment has candidate layers of its own, and k that the other may lack.
        ({"up": own(k=(2, 3)), "same": own(k=(2,), layers=(0, 1))}, [[2, "up", "same", 0]]),
        ({"up": own(), "same": own("other")}, []),  # heads of two models share no number
    ],
)
def test_overlaps_keep_to_models_k_and_candidate_layers(experiments, rows):
    rankings = {name: {"up": UP, "down": DOWN, "same": UP}[name] for name in experiments}
    table = overlaps(rankings, experiments)
    assert table[["heads", "one", "other", "shared"]].to_numpy().tolist() == rows
    for row in table.itertuples():
        assert row.jaccard == pytest.approx(row.shared / (2 * row.heads - row.shared))
        assert (row.chance, row.p) == pytest.approx(chance(row.heads, 4, row.shared))
    assert "tokens of both" not in display(table)
    shown = display(table)["Jaccard (chance)"]
    assert list(shown[:1]) in (["0.00 (0.39)"], [])
    assert "Top heads of layers 2 to 3" in " ".join(notes(experiments))


def test_heads_are_those_of_who_chooses_them_in_a_table_or_not(tmp_path):
    files = {name: tmp_path / f"rankings/{name}.csv" for name in ("x", "y")}
    for (name, path), first in zip(files.items(), (UP, DOWN), strict=True):
        both = first.assign(method="somp"), (UP if first is DOWN else DOWN).assign(method="size")
        more = dict.fromkeys(["score", "direction", "positive", *FEWER_ATOMS], 1.0)
        own = pd.concat(both).assign(**more, rows=1, atoms="a")
        columns = ["method", "layer", "head", "score", "rank"]
        write_csv(path, own[[*columns, *(name for name in own if name not in columns)]])
    said = {"model": "m", "k": [2], "layers": (0, 3), "ranked_by": "somp"}
    table = {
        "of-x": {**said, "heads_from": "x", "k": [1]},  # before its own
        "of-y": {**said, "heads_from": "y", "ranked_by": "size"},  # which is not here
        "x": {**said, "heads_from": None},
    }
    rankings, own = choosers([files["x"], files["y"], files["x"]], table)
    assert list(rankings) == list(own) == ["x", "y"]
    assert [top_heads(rankings[name], 1, 0, 3) for name in "xy"] == [[(0, 0)], [(0, 0)]]
    assert own["x"]["k"] == [2]


def test_rows_have_what_the_ranking_says_and_cannot_say(tmp_path):
    """By 20 atoms heads are ranked as by all, by 10 the two best change places, by 5 all do."""
    score = np.arange(8, 0, -1) / 10
    ten = score[[1, 0, *range(2, 8)]]
    facts = {"direction": [1, -1, -1, 1, -1, 1, 1, 1], "positive": 0.5, "score_5": score[::-1]}
    facts |= {"score_10": ten, "score_20": score, "rows": 12, "atoms": "a"}
    somp = rank(HEADS.assign(method="somp", score=score, **facts))
    lens = rank(HEADS.assign(method="logit_lens", score=score, **facts))
    lens[["score_5", "score_10", "score_20"]] = np.nan
    columns = ["method", "layer", "head", "score", "rank", *facts]
    path = tmp_path / "rankings/x.csv"
    write_csv(path, pd.concat([somp, lens])[columns])
    methods = ["somp"] * 3 + ["logit_lens", "random"]
    table = pd.DataFrame({"experiment": "x", "method": methods, "heads": [1, 2, 8, 2, 2]})
    said = put_rankings(table, {"x": path}, {"x": {"layers": (0, 3)}})
    found = said[["opposed", "rows", "kept_5", "kept_10", "kept_20"]].astype(float)
    nan = np.nan
    wanted = [[0, 12, 0, 0, 1], [1, 12, 0, 2, 2], [3, 12, 8, 8, 8]]
    wanted += [[1, 12, nan, nan, nan], [nan] * 5]
    np.testing.assert_array_equal(found, wanted)
    late = put_rankings(table, {"x": path}, {"x": {"layers": (1, 3)}})
    assert late["opposed"].tolist()[:2] == [1, 1]  # of the candidate layers alone
    for iterations, whole in ((11, False), (12, True)):
        text = " ".join(ranking_notes(said, {"x": {"iterations": iterations}}))
        assert "write against the concept" in text and ("x: 12 rows" in text) == whole


def test_concepts_that_share_tokens_are_told_with_which(tmp_path):
    paths = {}
    for name, tokens in {"up": ["Ġone", "two", "▁two"], "down": ["one", "Ġtwos"]}.items():
        paths[name] = tmp_path / f"{name}.csv"
        pd.DataFrame({"token": tokens}).to_csv(paths[name], index=False)
    tokens = {name: concept_tokens(path) for name, path in paths.items()}
    assert tokens == {"up": {"one", "two"}, "down": {"one", "twos"}}
    rankings = {"up": UP, "down": DOWN}
    table = overlaps(rankings, dict.fromkeys(rankings, own(layers=(0, 3))), tokens)
    assert set(table["tokens"]) == {"one"}
    assert set(display(table)["tokens of both"]) == {"one"}
    write_csv(tmp_path / "tables/t.overlap.csv", table)


CHOSEN = {"a": ("A", "x"), "b": ("B", "x")}  # experiment to its samples and concept


def crossed(pairs: list[tuple[str, str | None, float]], alphas: tuple = (-1.0,)) -> pd.DataFrame:
    """Give rows of experiments (``a``, or ``a-from-b``), the heads' source and the ratio at k 2."""
    rows = []
    for name, source, value in pairs:
        samples, concept = CHOSEN[name[0]]
        row = {"experiment": name, "samples": samples, "concept": concept, "model": "m"}
        row |= {"heads_from": source, "method": "somp", "at": "all", "measure": "exact_match"}
        for k, alpha in itertools.product((4, 2), alphas):
            own = value + k / 100 + (alpha > 0)
            row |= {"heads": k, "alpha": alpha, "value": own}
            rows.append(row | {"ci_low": own - 0.1, "ci_high": own + 0.1})
    return pd.DataFrame(rows)


FOUR = [("a", None, 0.1), ("b", None, 0.2), ("a-from-b", "b", 0.3), ("b-from-a", "a", 0.4)]


@pytest.mark.parametrize("alphas", [(-1.0,), (-1.0, 5.0)])
def test_the_crossed_figure_has_each_number_in_its_place(alphas):
    """Rows are what is measured on, columns whose heads they are, in the order of the table."""
    table = crossed([*FOUR, ("a-again", "b", 0.7)], alphas)  # of several the first is shown
    alone = table[table["heads_from"].isna()]  # measured with nobody else's heads
    others = alone.assign(measure="occurrences"), alone.assign(method="random", value=9.0)
    shared = pd.DataFrame({"heads": [2, 4], "one": "a", "other": "b", "jaccard": [0.33, 0.6]})
    figure = plot_crossed(pd.concat([table, *others]), shared)
    axes = np.array(figure.axes).reshape(2, 1 + len(alphas))
    for k, jaccard_, line in ((2, "0.33", axes[0]), (4, "0.60", axes[1])):
        texts = [[text.get_text() for text in axis.texts] for axis in line]
        assert texts[0] == ["1.00", jaccard_, jaccard_, "1.00"]
        for alpha, found in zip(alphas, texts[1:], strict=True):
            wanted = [own + k / 100 + (alpha > 0) for own in (0.1, 0.3, 0.4, 0.2)]
            assert found[::2] == [f"{own:.2f}" for own in wanted]
            assert found[1::2] == [f"[{own - 0.1:.2f}, {own + 0.1:.2f}]" for own in wanted]
        assert all(f"{k} heads: " in axis.get_title() for axis in line)
    for axis in axes[0]:
        for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
            assert [own.get_text() for own in labels] == ["a", "b"]


def test_the_crossed_figure_is_blank_where_nothing_was_measured():
    table = crossed(FOUR)
    table = table[(table["heads"] == 2) | (table["experiment"] == "a")]
    shared = pd.DataFrame({"heads": [2], "one": "a", "other": "b", "jaccard": [0.33]})
    few = plot_crossed(table, shared).axes[3]
    assert [text.get_text() for text in few.texts][::2] == ["0.14"]


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [(FOUR, True), (FOUR[:2], False), ([("a-from-b", "b", 1.0)], False), (FOUR[1:3], False)],
)
def test_which_tables_are_crossed(pairs, wanted):
    assert is_crossed(crossed(pairs)) == wanted
