"""How many of their top heads experiments share."""

import itertools

import numpy as np
import pandas as pd
import pytest
from headpursuit.publish.overlap import chance_jaccard, display, jaccard, notes, overlaps

HEADS = pd.DataFrame(list(np.ndindex(4, 2)), columns=["layer", "head"])
UP, DOWN = HEADS.assign(rank=range(1, 9)), HEADS.assign(rank=range(8, 0, -1))


def test_jaccard_and_chance():
    assert jaccard([(0, 1), (0, 2)], [(0, 2), (0, 3)]) == pytest.approx(1 / 3)
    sets = list(itertools.combinations(range(7), 3))
    brute = np.mean([jaccard(a, b) for a in sets for b in sets])
    assert chance_jaccard(3, 7) == pytest.approx(brute)
    assert chance_jaccard(5, 5) == 1


def own(model: str = "m", k: tuple[int, ...] = (2, 4)) -> dict:
    return {"model": model, "k": list(k)}


@pytest.mark.parametrize(
    ("experiments", "layers", "rows"),
    [
        (
            {"up": own(), "down": own(), "same": own()},
            {},
            [
                *[[2, "up", "down", 0], [2, "up", "same", 2], [2, "down", "same", 0]],
                *[[4, "up", "down", 4], [4, "up", "same", 4], [4, "down", "same", 4]],
            ],
        ),
        # Each experiment has candidate layers of its own, and k that the other may lack.
        ({"up": own(k=(2, 3)), "same": own(k=(2,))}, {"same": (0, 1)}, [[2, "up", "same", 0]]),
        ({"up": own(), "same": own("other")}, {}, []),  # heads of two models share no number
    ],
)
def test_overlaps_keep_to_models_k_and_candidate_layers(experiments, layers, rows):
    rankings = {name: {"up": UP, "down": DOWN, "same": UP}[name] for name in experiments}
    layers = {name: layers.get(name, (2, 3)) for name in experiments}
    table = overlaps(rankings, experiments, layers)
    assert table[["heads", "one", "other", "shared"]].to_numpy().tolist() == rows
    for row in table.itertuples():
        assert row.jaccard == pytest.approx(row.shared / (2 * row.heads - row.shared))
        assert row.chance == pytest.approx(chance_jaccard(row.heads, 4))
    shown = display(table)["Jaccard (chance)"]
    assert list(shown[:1]) in (["0.00 (0.39)"], [])
    assert "Top heads of layers 2 to 3" in " ".join(notes(experiments, layers))
