"""The way from a row of a table back to heads, words or classes, samples and responses."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import pandas as pd

from headpursuit.method.heads import FEWER_ATOMS, read_ranking, top_heads
from headpursuit.method.words import count_words, measured_words
from headpursuit.publish.masking import is_offensive
from headpursuit.publish.ratio import ANSWERS
from headpursuit.publish.texts import bare
from headpursuit.run.experiments import (
    candidate_layers,
    condition_name,
    head_name,
    head_of,
    kind_of,
    ratio_tables,
    tables_of,
)
from headpursuit.run.files import UserError, parquet_metadata, plain
from headpursuit.run.finished import (
    OPTIONAL,
    ROWS,
    Run,
    as_in_files,
    left_out,
    row_keys,
    row_names,
    run_folder,
)

WORDS = 3  # that move most, for one sample
BY_WORD = ("occurrences", "expected")  # measures of words


def trace(path: Path, wanted: Sequence[str], top: int, unmasked: bool) -> Iterator[str]:
    """Say, line by line, what a row of a table stands on.

    Args:
        path: the table, ``results/<run>/tables/table2.csv``; the run's folder stands for its first
            table of ratios.
        wanted: what names the row, as in :data:`~headpursuit.run.finished.ROWS`.
        top: how many words, samples or atoms are shown; what is not shown is summed up.
        unmasked: print offensive words in full.

    Raises:
        UserError: if there is no such table or row, or the files do not add up to it.
    """
    run = Run(run_folder(path), top, unmasked)
    if path.is_dir():
        if not (ratios := ratio_tables(run.config)):
            raise UserError(f"{run.results} has no table of ratios; name the table to trace.")
        path = Path(f"{ratios[0]}.csv")
    table = f"tables/{path.name}"
    kind = _kind(run, table)
    ways = {"ratios": _ratio, "overlaps": _overlap, "published": _published}
    try:
        if kind == "heads":
            yield from _head(run, table, wanted)
        else:
            yield from ways[kind](run, _row(run, table, kind, wanted))
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"The files behind this row do not fit each other: {error}. One of them is not of this "
            "run (verify names it)."
        ) from error


def _kind(run: Run, table: str) -> str:
    """Return the kind of a table, a key of ROWS."""
    tables = {name: own for name, own in run.config["tables"].items() if own}
    kinds = {f"{name}.csv": kind_of(run.config, own) for name, own in tables.items()}
    kinds |= {f"{name}.overlap.csv": "overlaps" for name in tables} | {"published.csv": "published"}
    if (name := Path(table).name) in kinds:
        return kinds[name]
    can = sorted(path.name for path in run.results.glob("tables/*.csv") if path.name in kinds)
    raise UserError(
        f"{run.results / table}: of the tables, {', '.join(can) or 'none'} can be traced, those of "
        f"{run.results}/config.yaml, which a run without a target writes."
    )


def _row(run: Run, table: str, kind: str, wanted: Sequence[str]) -> pd.Series:
    """Return the first row of a table that the words name."""
    columns = {"heads": ["experiment", "layer"], "published": [*ROWS["published"], "head"]}
    rows = run.csv(table, columns.get(kind, list(ROWS[kind])))
    keys, names = row_keys(rows, kind), row_names(rows, kind)
    wanted = as_in_files(wanted, names)
    if kind == "overlaps" and (turned := (*wanted[1::-1], *wanted[2:])) in names:
        wanted = turned
    fits = [own[: len(wanted)] == wanted for own in names]
    if len(wanted) >= len(keys) - OPTIONAL.get(kind, 0) and any(fits):
        return rows[fits].iloc[0]
    raise UserError(
        f"{run.results / table} has no row {plain(' '.join(wanted)) or '(none named)'}. A row "
        f"is named by {' '.join(keys)}; there are\n"
        + "\n".join(map(" ".join, dict.fromkeys(names)))
    )


def _facts(run: Run, row: pd.Series) -> Iterator[str]:
    """Yield what a row holds, a column a line."""
    for key, value in row.dropna().items():
        yield f"  {key}: {run.cover(f'{value:.6g}' if isinstance(value, float) else value)}"


def _lines(frame: pd.DataFrame) -> list[str]:
    return indent(frame.to_string(index=False), "    ").splitlines() if len(frame) else []


# Ratios


def _ratio(run: Run, row: pd.Series) -> Iterator[str]:
    name, method, measure = row["experiment"], row["method"], row["measure"]
    yield f"{name} {method} {row['heads']} {measure}"
    yield from _facts(run, row.drop(["experiment", "method", "heads", "measure"]))
    first = run.path(run.written(name, "baseline").replace("*", "1"))
    if run.has_images(name) and (question := parquet_metadata(first).get("question")):
        yield f"  asked of each: {run.cover(question)}"
    path, sums = run.name("scores/{scores}.parquet", name), {}
    columns = ["condition", "sample_id", "measure", "before", "after"]
    for draw in range(row["draws"]) if method == "random" else [None]:
        condition = condition_name(method, row["heads"], draw, row["alpha"], row["at"])
        yield f"\n{condition}"
        yield from _heads(run, name, method, condition)
        samples = run.parquet(path, columns, condition=condition, measure=measure)
        for where, what, parts in _parts(run, name, condition, measure, samples):
            yield from _changes(run, what, where, parts)
            sums.setdefault(where, []).append(parts.sum())
        samples = samples.set_index("sample_id")[["before", "after"]]
        texts = partial(_texts, run, name, condition, measure)
        yield from _changes(run, "samples", path, samples, texts)
        sums.setdefault(path, []).append(samples.sum())
    for file, own in sums.items():
        found, wanted = np.mean(own, axis=0), (row["before"], row["after"])
        if not np.allclose(found, wanted, rtol=1e-9, atol=1e-9):
            said = "{} add up to {:g} before and {:g} after, and the table says {:g} and {:g}"
            raise ValueError(said.format(file, *found, *wanted))
    yield f"\nThis adds up to the table's {row['before']:g} before and {row['after']:g} after."


def _heads(run: Run, name: str, method: str, condition: str) -> Iterator[str]:
    kind = "random" if method == "random" else "selected"
    path = run.name(f"heads/{{{kind}}}/{kind}.csv", name)
    heads = run.heads(name, condition)
    yield f"  heads ({path}): {', '.join(head_name(*own) for own in heads)}"
    if kind == "selected":
        path = run.name("rankings/{rankings}.csv", name)
        ranking = read_ranking(run.path(path), method)
        if lost := set(heads).difference(zip(ranking["layer"], ranking["head"], strict=True)):
            raise ValueError(f"{run.results / path} has no {head_name(*min(lost))}")
        yield f"  as ranked ({path}, dictionary of {ranking['rows'].iloc[0]} rows):"
        offensive = is_offensive(run.config, name) and method != "unrelated"
        yield from _ranked(run, ranking, heads, offensive)
        yield from left_out(run, name, ranking, heads)


def _ranked(
    run: Run, ranking: pd.DataFrame, heads: Sequence[tuple[int, int]], offensive: bool
) -> list[str]:
    """Return how a ranking places heads: score, that of fewer atoms, direction, and first atoms.

    Atoms of offensive words are masked each, as they may be pieces of words.
    """
    show = run.cover.word if offensive else run.cover

    def atoms(text: Any) -> str:
        each = [] if pd.isna(text) else text.split()[:5]
        return " ".join(show(bare(atom)) for atom in each)

    own = ranking.set_index(["layer", "head"]).loc[list(heads)]
    fewer = {f"of {n} atoms": own[score] for score, n in FEWER_ATOMS.items()}
    shown = {"rank": own["rank"], "score": own["score"], **fewer, "direction": own["direction"]}
    shown |= {"positive": own["positive"], "first atoms": own["atoms"].map(atoms)}
    table = pd.DataFrame({"head": [head_name(*head) for head in heads], **shown})
    return _lines(table.dropna(axis=1, how="all"))


def _parts(
    run: Run, name: str, condition: str, measure: str, samples: pd.DataFrame
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield of what a measure of classes or words is the sum: file, what it holds, both sums."""
    if measure in ANSWERS:
        path = run.name("samples/{samples}.parquet", name)
        classes = run.parquet(path, ["sample_id", "class_name"])
        own = samples.merge(classes, on="sample_id").groupby("class_name", sort=False)
        yield path, "right answers by class", own[["before", "after"]].sum()
    if measure in BY_WORD:
        path = run.name("scores/{scores}.words.parquet", name)
        columns = ["measure", "condition", "word", "split", "before", "after"]
        own = run.parquet(path, columns, condition=condition, measure=measure)
        yield path, "words", own[measured_words(own)].set_index("word")[["before", "after"]]


def _changes(
    run: Run,
    what: str,
    path: str,
    parts: pd.DataFrame,
    texts: Callable[[list[str]], dict[str, list[str]]] | None = None,
) -> Iterator[str]:
    """Say which parts of a sum changed most, and sum up the rest.

    Those with texts are shown if they changed, others if they are not zero.
    """
    change = parts["after"] - parts["before"]
    yield (
        f"  {what} ({path}): {len(parts)}, {parts['before'].sum():g} before, "
        f"{parts['after'].sum():g} after; {(change > 0).sum()} gained, {(change < 0).sum()} lost"
    )
    kept = change != 0 if texts else (parts != 0).any(axis=1)
    order = change[kept].abs().sort_values(ascending=False, kind="stable")
    shown = parts.loc[order.index[: run.top]]
    lines = texts(list(shown.index)) if texts and len(shown) else {}
    for part in shown.itertuples():
        yield f"    {run.cover(part.Index)}: {part.before:g} -> {part.after:g}"
        yield from (f"      {line}" for line in lines.get(part.Index, ()))
    if len(rest := parts.drop(shown.index)):
        yield f"    {len(rest)} more: {rest['before'].sum():g} -> {rest['after'].sum():g}"


def _texts(
    run: Run, name: str, condition: str, measure: str, ids: list[str]
) -> dict[str, list[str]]:
    """Return what each of some samples is, what was written for it, and the words that moved."""
    lines = {sample: [source] for sample, source in _sources(run, name, ids).items()}
    written = {"before": "baseline", "after": condition}
    if measure == "expected":  # the words' probability in what the model wrote before
        written = {"read": "baseline"}
    responses = {}
    for label, own in written.items():
        responses[label] = _values(run, run.written(name, own), "response", own, ids)
        for sample, texts in responses[label].items():
            lines[sample].append(f"{label + ':':<7} {' | '.join(map(run.cover, texts))}")
    if measure == "toxicity":
        columns, path = ["sample_id", "before", "after"], run.name("scores/{scores}.parquet", name)
        wanted = {"condition": condition, "measure": "toxic_probability", "sample_id": ids}
        for row in run.parquet(path, columns, **wanted).itertuples():
            lines[row.sample_id].insert(0, f"toxic:  {row.before:.3g} -> {row.after:.3g}")
    if measure not in BY_WORD:
        return lines

    words = run.csv(run.name("words/{words}.csv", name), ["word", "split"])
    measured = measured_words(words)
    words = list(words["word"][measured])
    concept = run.config["concepts"][run.experiment(name)["concept"]]
    matching = {key: concept[key] for key in ("case_sensitive", "inflections")}
    both = list(responses.values())
    if measure == "expected":
        path = run.name("expected/{expected}/part-*.parquet", name)
        both = [_values(run, path, "mass", own, ids) for own in ("baseline", condition)]
    for sample in ids:
        before, after = (
            np.sum(own[sample], axis=0)[measured]
            if measure == "expected"
            else count_words(own[sample], words, **matching).sum(0)
            for own in both
        )
        lines[sample].insert(0, _moved(run, words, before, after))
    return lines


def _values(run: Run, parts: str, column: str, condition: str, ids: list[str]) -> dict[str, list]:
    """Return what a column holds for each of some samples, over all its repeats."""
    table = run.parquet(parts, ["sample_id", column], condition=condition, sample_id=ids)
    return table.groupby("sample_id")[column].agg(list).to_dict()


def _moved(run: Run, words: Sequence[str], before: np.ndarray, after: np.ndarray) -> str:
    order = np.argsort(-np.abs(after - before), kind="stable")
    moved = [at for at in order if before[at] != after[at]]
    said = [f"{run.cover(words[at])} {before[at]:.3g} -> {after[at]:.3g}" for at in moved[:WORDS]]
    rest = f" and {len(moved) - WORDS} more" if len(moved) > WORDS else ""
    return f"words:  {', '.join(said)}{rest}"


def _sources(run: Run, name: str, ids: Sequence[str]) -> dict[str, str]:
    """Return a line for each of some samples: prompt or class, where it stands, references."""
    said, kind = ("class_name", "image") if run.has_images(name) else ("text", "prompt")
    path = run.name("samples/{samples}.parquet", name)
    columns = ["sample_id", "source", "references", said]
    table = run.parquet(path, columns, sample_id=list(ids))

    def line(row: Any) -> str:
        what, right = getattr(row, said), " | ".join(map(run.cover, row.references))
        where = f"{run.cover(what)} ({plain(row.source)})" if pd.notna(what) else plain(row.source)
        return f"{kind + ':':<7} {where}" + (f"; references: {right}" if right else "")

    return {row.sample_id: line(row) for row in table.itertuples()}


# Single heads, heads that two experiments share, and published values


def _head(run: Run, table: str, wanted: Sequence[str]) -> Iterator[str]:
    """Say what a head writes, any of the model's, and over which samples."""
    name, layer, head = _named_head(run, table, wanted)

    def of(rows: pd.DataFrame) -> pd.DataFrame:
        own = (rows["layer"] == layer) & (rows["head"] == head)
        return rows[own].drop(columns=["layer", "head"])

    yield f"{name} {head_name(layer, head)}"
    path = run.name("specialists/{decomposition}.csv", name)
    ranks = run.csv(path, ["layer", "head"])
    yield f"  among {len(ranks)} heads ({path}):"
    yield from _facts(run, of(ranks).iloc[0])
    path = run.name("decompositions/{decomposition}.parquet", name)
    null = run.name("specialists/{decomposition}.null.parquet", name)
    atoms = of(run.parquet(path, ["layer", "head", "step", "token", "explained"]))
    means = of(run.parquet(null, ["layer", "head", "step", "mean"]))
    atoms = atoms.merge(means.rename(columns={"mean": "random"}), on="step", how="left")
    atoms["token"] = atoms["token"].map(run.cover)
    yield f"  atoms ({path}): {len(atoms)}, variance explained so far, and by random sets:"
    yield from _lines(atoms.sort_values("step").head(run.top))
    path = run.name("lens/{lens}.parquet", name)
    lens = of(run.parquet(path, ["layer", "head", "place", "token"])).sort_values("place")
    yield f"  logit lens ({path}): {' '.join(map(run.cover, lens['token']))}"
    shown = run.csv(table, ["experiment", "published", "published_source", "overlap"])
    for row in of(shown[shown["experiment"] == name]).dropna(subset="published").itertuples():
        yield (
            f"  published, {row.method} ({row.published_source}): {row.published}; "
            f"{row.overlap} among the head's own"
        )
    yield from _farthest(run, name, layer, head)


def _named_head(run: Run, table: str, wanted: Sequence[str]) -> tuple[str, int, int]:
    """Return experiment, layer and head; they need not be in the table."""
    if len(wanted) == 2 and wanted[0] in run.config["tables"][Path(table).stem]:
        ranks = run.csv(run.name("specialists/{decomposition}.csv", wanted[0]), ["layer", "head"])
        if wanted[1] in map(head_name, ranks["layer"], ranks["head"]):
            return wanted[0], *head_of(wanted[1])
        last = head_name(ranks["layer"].max(), ranks["head"].max())
        raise UserError(f"{plain(wanted[1])} is no head of the model: they are L0.H0 to {last}.")
    row = _row(run, table, "heads", wanted)  # says what rows there are
    return row["experiment"], row["layer"], row["head"]


def _farthest(run: Run, name: str, layer: int, head: int) -> Iterator[str]:
    """Say of which samples the head's cached inputs are, and which are farthest from their mean."""
    path = run.name("activations/{activations}.parquet", name)
    facts = parquet_metadata(run.path(path))
    table = run.parquet(path, ["sample_id", "z"], layer=layer)
    z = np.stack(table["z"]).reshape(len(table), facts["heads"], -1)[:, head]
    table["distance"] = np.linalg.norm(z - z.mean(0), axis=1)
    yield (
        f"  samples ({path}): {len(table)}, averaged over the positions: {facts['positions']}; "
        "those whose input to this head is farthest from the mean:"
    )
    far = table.sort_values("distance", ascending=False, kind="stable").head(run.top)
    samples = far["sample_id"].str.split("/").str[0]
    sources = _sources(run, name, samples) if len(far) else {}
    for place, sample, distance in zip(far["sample_id"], samples, far["distance"], strict=True):
        yield f"    {place}  {distance:.3f}  {sources[sample]}"


def _overlap(run: Run, row: pd.Series) -> Iterator[str]:
    yield from _facts(run, row)
    both, rankings, tops = (row["one"], row["other"]), {}, {}
    for name in both:
        own, path = run.experiment(name), run.name("rankings/{rankings}.csv", name)
        rankings[name] = read_ranking(run.path(path), own["methods"][0])
        layers = candidate_layers(own, run.config["models"][own["model"]])
        tops[name] = top_heads(rankings[name], row["heads"], *layers)
        yield f"  {name}: {own['methods'][0]} ({path}), layers {layers[0]} to {layers[1]}"
    shared = [head for head in tops[both[0]] if head in tops[both[1]]]
    alone = {name: [head for head in own if head not in shared] for name, own in tops.items()}
    shown = [(f"shared heads, as {name} ranks them", name, shared) for name in both]
    for name, other in (both, both[::-1]):
        shown.append((f"heads of {name} alone, as {other} ranks them", other, alone[name]))
    for title, name, heads in shown:
        yield f"  {title}:"
        yield from _ranked(run, rankings[name], heads, is_offensive(run.config, name))
    if len(shared) != row["shared"]:
        raise ValueError(f"rankings share {len(shared)} heads, and the table says {row['shared']}")
    yield f"\nThis adds up to the table's {row['shared']} shared heads."


def _published(run: Run, row: pd.Series) -> Iterator[str]:
    """Set a published value beside the run's, and trace that."""
    yield from _facts(run, row)
    if pd.notna(row["own"]):
        tokens = row["measure"] == "tokens"
        tables = tables_of(run.config, "heads" if tokens else "ratios").items()
        own = next(name for name, experiments in tables if row["experiment"] in experiments)
        yield ""
        if tokens:
            yield from _head(run, f"tables/{own}.csv", [row["experiment"], row["head"]])
            return
        wanted = (*row[["experiment", "method", "own_heads", "alpha"]], "all", row["measure"])
        rows = run.csv(f"tables/{own}.csv", list(ROWS["ratios"]))
        yield from _ratio(run, rows[(rows[list(ROWS["ratios"])] == wanted).all(axis=1)].iloc[0])
