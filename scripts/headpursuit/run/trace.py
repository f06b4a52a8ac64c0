"""The way from a number in a table back to heads, words, responses, images and prompts."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from headpursuit.method.heads import read_ranking, top_heads
from headpursuit.publish.masking import is_offensive
from headpursuit.publish.published import ARTEFACTS
from headpursuit.publish.table1 import head_name
from headpursuit.run.experiments import candidate_layers, head_of, kind_of, tables_of
from headpursuit.run.files import UserError, parquet_metadata, plain
from headpursuit.run.finished import ROWS, Run, row_names, run_folder
from headpursuit.run.trace_ratio import ranked, sources_of, trace_ratio


def trace(path: Path, row: Sequence[str], top: int, unmasked: bool) -> Iterator[str]:
    """Say, line by line, what a row of a table stands on.

    Args:
        path: the table, ``results/<run>/tables/table2.csv``; the run's folder stands for its first
            table of ratios.
        row: what names the row, as in :data:`~headpursuit.run.finished.ROWS`.
        top: how many words, samples or atoms are shown; what is not shown is summed up.
        unmasked: print offensive words in full.

    Raises:
        UserError: if there is no such table or row, or the files do not add up to it.
    """
    run = Run(run_folder(path), top, unmasked)
    ratios = [f"{name}.csv" for name in tables_of(run.config, "ratios")]
    if path.parent.name != "tables" and not ratios:
        raise UserError(f"{run.results} has no table of ratios; name the table to trace.")
    table = f"tables/{path.name if path.parent.name == 'tables' else ratios[0]}"
    steps = {"ratios": _ratio, "heads": _head, "overlaps": _overlap, "published": _published}
    yield from steps[kind_of_table(run, table)](run, table, row)


def kind_of_table(run: Run, table: str) -> str:
    """Return the kind of a table, a key of :data:`~headpursuit.run.finished.ROWS`."""
    name, *part = Path(table).stem.split(".")
    own = run.config["tables"].get(name)
    if own and not part:
        return kind_of(run.config, own)
    if own and part == ["overlap"]:
        return "overlaps"
    if name == "published" and not part:
        return "published"
    there = sorted(path.name for path in run.results.glob("tables/*.csv"))
    can = [own for own in there if not own.endswith(".draws.csv")]
    raise UserError(
        f"{run.results / table}: of the tables, {', '.join(can) or 'none'} can be traced."
    )


def _row(run: Run, table: str, wanted: Sequence[str]) -> pd.Series:
    """Return the first row of a table that the words name."""
    kind = kind_of_table(run, table)
    keys = ROWS[kind]
    rows = run.csv(table, ["experiment", "layer"] if kind == "heads" else list(keys))
    names = row_names(rows, kind)
    if len(wanted) >= len(keys) - (kind == "ratios"):
        for number, own in enumerate(names):
            if own[: len(wanted)] == tuple(wanted):
                return rows.iloc[number]
    raise UserError(
        f"{run.results / table} has no row {plain(' '.join(wanted)) or '(none named)'}. A row "
        f"is named by {' '.join(keys)}; there are\n"
        + "\n".join(map(" ".join, dict.fromkeys(names)))
    )


def _ratio(run: Run, table: str, wanted: Sequence[str]) -> Iterator[str]:
    yield from trace_ratio(run, _row(run, table, wanted))


# Heads


def _head(run: Run, table: str, wanted: Sequence[str]) -> Iterator[str]:
    name, layer, head = _named_head(run, table, wanted)
    yield f"{name}, {head_name(layer, head)}"

    def of(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[(rows["layer"] == layer) & (rows["head"] == head)]

    path = run.name("specialists/{decomposition}.csv", name)
    specialists = run.csv(path, ["layer", "head", "score", "rank"])
    own = of(specialists).iloc[0]
    yield f"  {path}: rank {own['rank']:g} of {len(specialists)}, score {own['score']:.4f}"
    for key in ("explained", "coherence"):
        numbers = (f"{own[each]:.4f}" for each in (key, f"{key}_null", f"{key}_high"))
        yield "    {}: {}; random sets: mean {}, 95th percentile {}".format(key, *numbers)
    path = run.name("decompositions/{decomposition}.parquet", name)
    null = run.name("specialists/{decomposition}.null.parquet", name)
    atoms = of(run.parquet(path, ["layer", "head", "step", "token", "explained"]))
    means = of(run.parquet(null, ["layer", "head", "step", "mean"]))[["step", "mean"]]
    atoms = atoms.merge(means, on="step", how="left").sort_values("step")
    yield f"  atoms ({path}), variance explained so far, random sets':"
    for atom in atoms.head(run.top).itertuples():
        yield f"    {atom.step}  {run.cover(atom.token)}  {atom.explained:.4f}  {atom.mean:.4f}"
    if len(atoms) > run.top:
        yield f"    {len(atoms) - run.top} more: {atoms['explained'].iloc[-1]:.4f}"
    path = run.name("lens/{lens}.parquet", name)
    lens = of(run.parquet(path, ["layer", "head", "place", "token"])).sort_values("place")
    yield f"  logit lens ({path}): {' '.join(map(run.cover, lens['token']))}"
    shown = run.csv(table, ["experiment", "published", "published_source", "overlap"])
    for text in of(shown[shown["experiment"] == name]).dropna(subset="published").itertuples():
        yield (
            f"  published, {text.method} ({text.published_source}): {text.published}; "
            f"{text.overlap} among the head's own"
        )
    yield from _farthest(run, name, layer, head)


def _named_head(run: Run, table: str, wanted: Sequence[str]) -> tuple[str, int, int]:
    """Return a head of a table; heads beside those shown have their files, too."""
    if len(wanted) == 2 and wanted[0] in run.config["tables"][Path(table).stem]:
        path = run.name("specialists/{decomposition}.csv", wanted[0])
        ranked = run.csv(path, ["layer", "head"])
        if wanted[1] in list(map(head_name, ranked["layer"], ranked["head"])):
            return wanted[0], *head_of(wanted[1])
    row = _row(run, table, wanted)  # says what rows there are
    return row["experiment"], row["layer"], row["head"]


def _farthest(run: Run, name: str, layer: int, head: int) -> Iterator[str]:
    """Say of which samples the head's cached inputs are, and which are farthest from their mean."""
    path = run.name("activations/{activations}.parquet", name)
    facts = parquet_metadata(run.path(path))
    table = run.parquet(path, ["sample_id", "z"], layer=layer)
    names, z = table["sample_id"], np.stack(table["z"]).reshape(len(table), facts["heads"], -1)
    distance = np.linalg.norm(z[:, head] - z[:, head].mean(0), axis=1)
    yield (
        f"  samples ({path}): {len(names)}, averaged over the positions: {facts['positions']}; "
        "those whose input to this head is farthest from the mean:"
    )
    places = np.argsort(-distance, kind="stable")[: run.top]
    ids = [names[place].split("/")[0] for place in places]
    sources = sources_of(run, name, ids)
    for place, sample in zip(places, ids, strict=True):
        yield f"    {names[place]}  {distance[place]:.3f}  {sources[sample]}"


# Heads that two experiments share, and published values


def _overlap(run: Run, table: str, wanted: Sequence[str]) -> Iterator[str]:
    row = _row(run, table, wanted)
    both, k = (row["one"], row["other"]), row["heads"]
    yield (
        f"{' and '.join(both)}, top {k} heads of each: {row['shared']} shared, Jaccard index "
        f"{row['jaccard']:.4f} (two random sets: {row['chance']:.4f})"
    )
    rankings, tops = {}, {}
    for name in both:
        own = run.experiment(name)
        path = run.name("rankings/{rankings}.csv", name)
        rankings[name] = read_ranking(run.path(path), own["methods"][0])
        layers = candidate_layers(own, run.config["models"][own["model"]])
        tops[name] = top_heads(rankings[name], k, *layers)
        yield f"  {name}: {own['methods'][0]} ({path}), layers {layers[0]} to {layers[1]}"
    offensive = {name: is_offensive(run.config, name) for name in both}
    shared = [head for head in tops[both[0]] if head in tops[both[1]]]
    for name in both:
        yield f"  shared heads, rank, score and atoms in {name}:"
        yield from ranked(run, rankings[name], shared, offensive[name])
    for name, other in (both, both[::-1]):
        yield f"  heads of {name} alone, as {other} ranks them:"
        alone = [head for head in tops[name] if head not in shared]
        yield from ranked(run, rankings[other], alone, offensive[other])
    if len(shared) != row["shared"]:
        raise UserError(
            f"The rankings share {len(shared)} heads, and the table says {row['shared']}: one of "
            "them is not of this run (verify names it)."
        )
    yield f"\nThis adds up to the table's {row['shared']} shared heads."


def _published(run: Run, table: str, wanted: Sequence[str]) -> Iterator[str]:
    row = _row(run, table, wanted)
    limits = f" [{row['low']:g}, {row['high']:g}]" if pd.notna(row["low"]) else ""
    yield f"{' '.join(wanted)}: published {row['published']:g}{limits} ({row['source']})"
    if pd.notna(row["remarks"]):
        yield f"  {row['remarks']}"
    for name in ("model", "labeller", "settings"):
        if pd.notna(row[name]):
            yield f"  {name}{' unlike the paper' if name == 'settings' else ''}: {row[name]}"
    if pd.isna(row["own"]):
        return
    inside = "inside" if row["inside"] else "outside"
    yield (
        f"  this run, {row['own_heads']:g} heads: {row['own']:.4f} [{row['own_low']:.4f}, "
        f"{row['own_high']:.4f}], difference {row['difference']:+.4f}; "
        f"the published value is {inside}\n"
    )
    experiment, measure = row["experiment"], ARTEFACTS[row["artefact"]]
    ratios = tables_of(run.config, "ratios").items()
    name = next(table for table, own in ratios if experiment in own)
    own = [experiment, row["method"], f"{row['own_heads']:g}", measure]
    yield from _ratio(run, f"tables/{name}.csv", own)
