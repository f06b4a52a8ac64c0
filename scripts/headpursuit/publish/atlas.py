"""The atlas of heads: what each head writes, its rank for each concept, and where it was scaled.

``report/atlas.js`` builds the page in the browser out of what :func:`atlas` returns.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pandas as pd

from headpursuit.method.heads import Head, read_heads, read_ranking, top_heads
from headpursuit.publish.masking import is_offensive, token_cover
from headpursuit.publish.table1 import shown_heads
from headpursuit.publish.texts import MEASURE_NAMES, METHOD_NAMES, number, ratio_text, scaling
from headpursuit.run.experiments import (
    candidate_layers,
    condition_name,
    head_name,
    running,
    tables_of,
)
from headpursuit.run.finished import Run

TOKENS = 10  # of a head
COLOURS = 64
INTRODUCTION = (
    "Each map has a cell for each head, with layer 0 at the bottom. Point at a cell, or go to a "
    "map with Tab and to its heads with the arrow keys, Home and End; what is known of the head is "
    "shown beside the maps. White frames: the heads that the experiment's first method chose, or "
    "those of table 1. Layers whose heads were no candidates are paler; colours go as far as the "
    "candidates' values. A row of the table below frames, in all maps, the heads that it scaled, "
    "in another colour."
)
COLUMNS = ("table", "experiment", "heads scaled", "measure", "after / before")

Said = dict[str, str]  # a head's name to a text
Drawn = dict[str, Any]  # a map


def atlas(run: Run) -> dict[str, Any]:
    """Return what the page shows of a run, ready for JSON.

    ``models`` are each a model's name, its ``maps`` (title, what is drawn, layers x heads of values
    and ranks, first and last candidate layer, the names of framed heads) and ``heads``: of each its
    texts, with what they are of. ``ratios`` are the rows of all tables of ratios: cells, model, and
    names of the heads scaled.
    """
    models: dict[str, dict[str, Any]] = {}
    for name, draw in _maps(run):
        model = run.config["experiments"][name]["model"]
        own = models.setdefault(model, {"name": model, "maps": [], "heads": {}})
        drawn, said = draw(run, name)
        own["maps"].append(drawn)
        for head, text in said.items():
            own["heads"].setdefault(head, []).append([drawn["title"], text])
    ratios = []
    for model, scaled, cells in _ratios(run):
        known = models[model]["heads"] if model in models else {}
        for head, often in scaled.items():
            text = f"{cells[2]}{often}: {cells[3]} {cells[4]}"
            known.setdefault(head, []).append([f"scaled, {cells[1]}", text])
        ratios.append({"model": model, "heads": list(scaled), "cells": cells})
    return {
        "models": list(models.values()),
        "columns": COLUMNS,
        "ratios": ratios,
        "colours": _colours(),
    }


def _colours() -> list[str]:
    """Return a scale from dark to light that is the same to colour-blind eyes, as #rrggbb."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return list(map(to_hex, colormaps["cividis"].resampled(COLOURS)(range(COLOURS))))


def _maps(run: Run) -> Iterator[tuple[str, Callable[[Run, str], tuple[Drawn, Said]]]]:
    """Yield the experiments whose files have a map, each file once, with what draws it."""
    concept = {name: run.config["experiments"][name]["concept"] for name in running(run.config)}
    for stage, draw in (("decomposition", _decomposed), ("rankings", _ranked)):
        names = [name for name, own in concept.items() if (own is None) == (draw is _decomposed)]
        for name in dict.fromkeys(run.owners[name][stage] for name in names):
            yield name, draw


def _grid(table: pd.DataFrame, column: str) -> list[list[float | None]]:
    """Return a column as layers x heads, None where it is missing."""
    grid = table.pivot(index="layer", columns="head", values=column).to_numpy(float)
    return [[None if pd.isna(value) else round(value, 4) for value in row] for row in grid]


def _decomposed(run: Run, name: str) -> tuple[Drawn, Said]:
    """Draw what tokens of the whole vocabulary explain of each head, and say it."""
    vocabulary = run.config["experiments"][name]["vocabulary"]
    table = run.csv(run.name("specialists/{decomposition}.csv", name), [])
    columns = ["layer", "head", "step", "token"]
    atoms = run.parquet(run.name("decompositions/{decomposition}.parquet", name), columns)
    tokens = atoms[atoms["step"] <= TOKENS].sort_values("step").groupby(["layer", "head"])["token"]
    show, written, said = _shown(run), tokens.agg(list).to_dict(), {}
    for row in table.to_dict("records"):
        own, null, high = (number(row[f"explained{end}"]) for end in ("", "_null", "_high"))
        atoms = " ".join(map(show, written.get((row["layer"], row["head"]), ())))
        said[head_name(row["layer"], row["head"])] = (
            f"rank {row['rank']} of {len(table)}; the first {vocabulary['tokens']} tokens explain "
            f"{own} of its variance, random tokens {null} (95 % of them below {high}): {atoms}"
            if own
            else f"rank {row['rank']} of {len(table)}; writes nothing"
        )
    return {
        "title": f"{name}, all tokens",
        "what": f"variance that {vocabulary['tokens']} tokens explain",
        "values": _grid(table, "explained"),
        "ranks": _grid(table, "rank"),
        "candidates": [0, int(table["layer"].max())],
        "framed": [head_name(*head) for head in shown_heads(vocabulary, table)],
    }, said


def _ranked(run: Run, name: str) -> tuple[Drawn, Said]:
    """Draw how a concept's tokens rank the heads, and say it."""
    own, path = run.config["experiments"][name], run.name("rankings/{rankings}.csv", name)
    rankings = {method: read_ranking(run.path(path), method) for method in own["methods"]}
    places = {
        method: table.set_index(["layer", "head"])["rank"] for method, table in rankings.items()
    }
    first = rankings[own["methods"][0]]
    show, said = _shown(run, whole=is_offensive(run.config, name)), {}
    for row in first.to_dict("records"):
        ranks = [
            f"{place[row['layer'], row['head']]} ({METHOD_NAMES[method]})"
            for method, place in places.items()
        ]
        atoms = [] if pd.isna(row["atoms"]) else row["atoms"].split()[:TOKENS]
        said[head_name(row["layer"], row["head"])] = (
            f"rank {', '.join(ranks)} of {len(first)}; score {number(row['score'], '.3g')}, writes "
            f"{'against' if row['direction'] < 0 else 'along'} the concept: "
            f"{' '.join(map(show, atoms))}"
        )
    layers = candidate_layers(own, run.config["models"][own["model"]])
    return {
        "title": name if name == own["concept"] else f"{name}, {own['concept']}",
        "what": f"score by {METHOD_NAMES[own['methods'][0]]}",
        "values": _grid(first, "score"),
        "ranks": _grid(first, "rank"),
        "candidates": layers,
        "framed": [head_name(*head) for head in top_heads(first, max(own["k"]), *layers)],
    }, said


def _shown(run: Run, whole: bool = False) -> Callable[[str], str]:
    """Return what shows a token, offensive words masked; ``whole`` masks all, as they are such."""
    cover = token_cover(run.cover.words)
    return cache(lambda token: run.cover.word(cover(token)) if whole else cover(token))


def _ratios(run: Run) -> Iterator[tuple[str, Said, list[str]]]:
    """Yield of each row of the tables of ratios its model, the heads scaled, and cells.

    Each head has a remark: in how many draws it is, where there are several.
    """

    @cache
    def sets(name: str) -> Mapping[str, list[Head]]:
        paths = (run.name(f"heads/{{{own}}}/{own}.csv", name) for own in ("selected", "random"))
        return read_heads(list(map(run.path, paths)))

    for table in tables_of(run.config, "ratios"):
        for row in run.table(table).to_dict("records"):
            method, k, known = row["method"], row["heads"], sets(row["experiment"])
            draws = range(row["draws"]) if method == "random" else [None]
            often = Counter(
                head_name(*head)
                for draw in draws
                for head in known[condition_name(method, k, draw)]
            )
            how = scaling(alpha=row["alpha"], at=row["at"])
            remark = " ({} of {} draws)" if method == "random" else ""
            yield (
                row["model"],
                {head: remark.format(n, len(draws)) for head, n in often.items()},
                [
                    table,
                    row["experiment"],
                    ", ".join([f"{k} by {METHOD_NAMES[method]}", *how]),
                    MEASURE_NAMES[row["measure"]],
                    ratio_text(row),
                ],
            )
