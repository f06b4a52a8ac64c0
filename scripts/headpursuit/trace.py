"""The way from a number in a table back to heads, words, responses, images and prompts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from headpursuit.activations import read_layer
from headpursuit.experiments import (
    candidate_layers,
    condition_name,
    head_of,
    kind_of,
    of_images,
    owners,
    tables_of,
)
from headpursuit.files import UserError, parquet_metadata, plain, read_parquet
from headpursuit.heads import read_conditions, read_ranking, top_heads
from headpursuit.masking import Cover, offensive_words
from headpursuit.published import ARTEFACTS
from headpursuit.ratio import ANSWERS
from headpursuit.table1 import head_name
from headpursuit.tables import read_csv
from headpursuit.words import count_words, measured_words

# What names a row, by the kind of its table. In a table of ratios the measure may be left out.
ROWS = {
    "ratios": ("experiment", "method", "heads", "measure"),
    "heads": ("experiment", "head"),
    "overlaps": ("one", "other", "heads"),
    "published": ("artefact", "dataset", "method", "heads"),
}
# Words that move most, for one sample.
WORDS = 3


def trace(path: Path, row: Sequence[str], top: int, unmasked: bool) -> Iterator[str]:
    """Say, line by line, what a row of a table stands on.

    Args:
        path: the table, ``results/<run>/tables/table2.csv``; the run's folder stands for its first
            table of ratios.
        row: what names the row, as in :data:`ROWS`.
        top: how many words, samples or atoms are shown; what is not shown is summed up.
        unmasked: print offensive words in full.

    Raises:
        UserError: if there is no such table or row, or the files do not add up to it.
    """
    run = _Run(run_folder(path), top, unmasked)
    ratios = [f"{name}.csv" for name in tables_of(run.config, "ratios")]
    if path.parent.name != "tables" and not ratios:
        raise UserError(f"{run.results} has no table of ratios; name the table to trace.")
    table = f"tables/{path.name if path.parent.name == 'tables' else ratios[0]}"
    steps = {"ratios": _ratio, "heads": _head, "overlaps": _overlap, "published": _published}
    yield from steps[run.kind(table)](run, table, row)


def run_folder(path: Path) -> Path:
    """Return the folder of the run that a path is, or lies in.

    Raises:
        UserError: if it is in none.
    """
    for folder in (path, *path.absolute().parents):
        if (folder / "config.yaml").is_file() and not (folder / "Snakefile").exists():
            return folder
    raise UserError(
        f"{path} is no run's folder and lies in none: there is no config.yaml above it."
    )


def row_names(table: pd.DataFrame, kind: str) -> list[tuple[str, ...]]:
    """Return what names each row of a table."""
    if kind == "heads":
        table = table.assign(head=list(map(head_name, table["layer"], table["head"])))
    return list(table[list(ROWS[kind])].astype(str).itertuples(index=False, name=None))


class _Run:
    """A run's files, and its texts with offensive words masked."""

    def __init__(self, results: Path, top: int, unmasked: bool) -> None:
        self.results, self.top = results, top
        self.config = yaml.safe_load((results / "config.yaml").read_text(encoding="utf-8"))
        if "experiments" not in self.config:
            raise UserError(f"{results}/config.yaml is of an older version: it has no experiments.")
        self.owners = owners(self.config)
        self.cover = Cover([] if unmasked else offensive_words(self.config, results))

    def name(self, pattern: str, experiment: str) -> str:
        """Return the file of an experiment's stage, relative to the run's folder."""
        return pattern.format(**self.owners[experiment])

    def path(self, name: str) -> Path:
        if not (self.results / name).exists():
            raise UserError(f"{self.results / name} is not there.")
        return self.results / name

    def csv(self, name: str, columns: list[str]) -> pd.DataFrame:
        return read_csv(self.path(name), columns)

    def parquet(self, name: str, columns: list[str], **equal: Any) -> pd.DataFrame:
        """Read the rows of a table, or of all its parts, whose columns have these values."""
        paths = sorted(self.results.glob(name)) or [self.path(name)]
        filters = [(key, "in" if isinstance(own, list) else "=", own) for key, own in equal.items()]
        parts = [read_parquet(path, columns, filters or None).to_pandas() for path in paths]
        return pd.concat(parts, ignore_index=True)

    def experiment(self, name: str) -> dict[str, Any]:
        return self.config["experiments"][name]

    def kind(self, table: str) -> str:
        """Return the kind of a table, a key of :data:`ROWS`."""
        name, *part = Path(table).stem.split(".")
        own = self.config["tables"].get(name)
        if own and not part:
            return kind_of(self.config, own)
        if own and part == ["overlap"]:
            return "overlaps"
        if name == "published" and not part:
            return "published"
        there = sorted(path.name for path in self.results.glob("tables/*.csv"))
        can = [own for own in there if not own.endswith(".draws.csv")]
        raise UserError(
            f"{self.results / table}: of the tables, {', '.join(can) or 'none'} can be traced."
        )

    def row(self, table: str, wanted: Sequence[str]) -> pd.Series:
        """Return the first row of a table that the words name."""
        kind = self.kind(table)
        keys = ROWS[kind]
        columns = ["experiment", "layer", "head"] if kind == "heads" else list(keys)
        rows = self.csv(f"{table.removesuffix('.md').removesuffix('.csv')}.csv", columns)
        names = row_names(rows, kind)
        enough = len(wanted) >= len(keys) - (kind == "ratios")
        for number, own in enumerate(names):
            if enough and own[: len(wanted)] == tuple(wanted):
                return rows.iloc[number]
        there = "\n".join(map(" ".join, dict.fromkeys(names)))
        raise UserError(
            f"{self.results / table} has no row {plain(' '.join(wanted)) or '(none named)'}. A row "
            f"is named by {' '.join(keys)}; there are\n{there}"
        )


def _adds_up(where: str, found: Sequence[float], row: Sequence[float]) -> None:
    if not np.allclose(found, row, rtol=1e-9, atol=1e-9):
        said = [" before and ".join(f"{own:g}" for own in both) for both in (found, row)]
        raise UserError(
            f"{where} add up to {said[0]} after, and the table says {said[1]}: one of them is not "
            "of this run (verify names it)."
        )


# Ratios


def _ratio(run: _Run, table: str, wanted: Sequence[str]) -> Iterator[str]:
    row = run.row(table, wanted)
    name, measure = row["experiment"], row["measure"]
    yield (
        f"{name}, {row['method']}, {row['heads']} heads, {measure}: {row['value']:.4f} "
        f"[{row['ci_low']:.4f}, {row['ci_high']:.4f}]"
    )
    if row["draws"] > 1:
        yield f"  mean over {row['draws']} draws, sd {row['sd']:.4f}"
    if pd.notna(row["published"]):
        yield f"  published: {row['published']:g} ({row['published_source']}; see published.csv)"
    if pd.notna(row["flag"]):
        yield f"  note: {row['flag']}"
    yield f"  before: {row['before']:g}, after: {row['after']:g}; {row['n']} samples"
    yield from _asked(run, name)
    wanted_sums, sums = (row["before"], row["after"]), {}
    random = row["method"] == "random"
    for draw in range(row["draws"]) if random else [None]:
        condition = condition_name(row["method"], row["heads"], draw)
        yield f"\n{condition}"
        yield from _condition_heads(run, name, row["method"], condition)
        where = dict(condition=condition, measure=measure)
        samples = run.name("scores/{scores}.parquet", name)
        columns = ["condition", "sample_id", "measure", "before", "after"]
        by_sample = run.parquet(samples, columns, **where)
        yield from _parts(run, name, by_sample, where, sums)
        sums.setdefault(samples, []).append(by_sample[["before", "after"]].sum().to_numpy())
        yield from _samples(run, name, condition, measure, by_sample, samples)
    for path, own in sums.items():
        _adds_up(path, np.mean(own, axis=0), wanted_sums)
    yield f"\nThis adds up to the table's {row['before']:g} before and {row['after']:g} after."


def _asked(run: _Run, name: str) -> Iterator[str]:
    """Say what is asked about images, and which tokens the class names became."""
    if not _images(run, name):
        return
    first = run.path(run.name("responses/{baseline}/baseline/part-1.parquet", name))
    if question := parquet_metadata(first).get("question"):
        yield f"  asked of each: {run.cover(question)}"
    path = run.name("dictionaries/{dictionary}.csv", name)
    yield f"  words and their tokens ({path}):"
    for word, own in run.csv(path, ["word", "token"]).groupby("word", sort=False)["token"]:
        yield f"    {run.cover(word)}: {' '.join(map(run.cover, own))}"


def _images(run: _Run, name: str) -> bool:
    return of_images(run.config["samples"][run.experiment(name)["samples"]])


def _condition_heads(run: _Run, name: str, method: str, condition: str) -> Iterator[str]:
    random = method == "random"
    path = run.name(
        "heads/{random}/random.csv" if random else "heads/{selected}/selected.csv", name
    )
    heads = read_conditions([run.path(path)], [condition])[condition]
    yield f"  heads ({path}):"
    if random:
        yield "    " + ", ".join(head_name(*own) for own in heads)
        return
    ranking = run.name("rankings/{rankings}.csv", name)
    yield f"    rank, score and atoms ({ranking}):"
    yield from _ranked(run, read_ranking(run.path(ranking), method), heads)


def _ranked(run: _Run, ranking: pd.DataFrame, heads: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Say how a ranking places heads; the marks of a space before an atom are left out."""
    ranking = ranking.set_index(["layer", "head"])
    for head in heads:
        own = ranking.loc[head]
        atoms = [] if pd.isna(own["atoms"]) else own["atoms"].split()[:5]
        bare = [run.cover(plain(atom).lstrip("Ġ▁") or atom) for atom in atoms]
        yield f"    {head_name(*head)}  {own['rank']}  {own['score']:.4f}  {' '.join(bare)}"


def _parts(
    run: _Run, name: str, by_sample: pd.DataFrame, where: dict[str, str], sums: dict[str, list]
) -> Iterator[str]:
    """Say what a measure is made of: words, or the images' classes."""
    if where["measure"] in ANSWERS:
        path, what = run.name("samples/{samples}.parquet", name), "right answers by class"
        classes = run.parquet(path, ["sample_id", "class_name"])
        own = by_sample.merge(classes, on="sample_id").groupby("class_name", sort=False)
        own = own[["before", "after"]].sum().reset_index(names="part")
    else:
        path, what = run.name("scores/{scores}.words.parquet", name), "words"
        columns = ["measure", "condition", "word", "split", "before", "after"]
        own = run.parquet(path, columns, **where)
        own = own[measured_words(own)].rename(columns={"word": "part"})
    total = own[["before", "after"]].sum()
    sums.setdefault(path, []).append(total.to_numpy())
    yield f"  {what} ({path}): {total['before']:g} before, {total['after']:g} after"
    own = own[(own["before"] > 0) | (own["after"] > 0)]
    own = own.sort_values("before", ascending=False, kind="stable")
    for part in own.head(run.top).itertuples():
        yield f"    {run.cover(part.part)}: {part.before:g} -> {part.after:g}"
    yield from _rest(own[run.top :], what)


def _rest(rest: pd.DataFrame, what: str) -> Iterator[str]:
    if len(rest):
        sums = rest[["before", "after"]].sum()
        yield f"    {len(rest)} more {what}: {sums['before']:g} -> {sums['after']:g}"


def _samples(
    run: _Run, name: str, condition: str, measure: str, own: pd.DataFrame, path: str
) -> Iterator[str]:
    """Say which samples gained and lost most, with their texts."""
    change = own["after"] - own["before"]
    gained, lost = (change > 0).sum(), (change < 0).sum()
    yield (
        f"  samples ({path}): {len(own)}; {gained} gained, {lost} lost, "
        f"{len(own) - gained - lost} as before"
    )
    order = change.abs().sort_values(ascending=False, kind="stable").index
    shown = own.loc[[at for at in order if change[at]][: run.top]]
    texts = _Texts(run, name, condition, measure, list(shown["sample_id"]))
    for sample in shown.itertuples():
        yield f"    {sample.sample_id}: {sample.before:g} -> {sample.after:g}"
        yield from texts.lines(sample.sample_id)
    yield from _rest(own.drop(shown.index), "samples")


class _Texts:
    """What some samples are, what was written for them, and the words that moved."""

    def __init__(self, run: _Run, name: str, condition: str, measure: str, ids: list[str]) -> None:
        self.run, self.sources = run, _sources(run, name, ids)
        keys = ["sample_id", "condition", "response"]
        self.responses = {
            kind: run.parquet(
                run.name(f"responses/{{{kind}}}/{where}/part-*.parquet", name),
                keys,
                sample_id=ids,
                condition=own,
            )
            .groupby("sample_id")["response"]
            .agg(list)
            for kind, where, own in (
                ("baseline", "baseline", "baseline"),
                *([] if measure == "expected" else [("scaled", "scaled", condition)]),
            )
        }
        self.words: list[str] = []
        if measure in ANSWERS:
            return
        words = run.csv(run.name("words/{words}.csv", name), ["word", "split"])
        measured = measured_words(words)
        self.words = list(words["word"][measured])
        concept = run.config["concepts"][run.experiment(name)["concept"]]
        self.matching = {key: concept[key] for key in ("case_sensitive", "inflections")}
        if measure == "expected":
            parts = run.name("expected/{expected}/part-*.parquet", name)
            mass = run.parquet(parts, ["sample_id", "condition", "mass"], sample_id=ids)
            self.mass = {
                key: np.stack(rows).sum(0)[measured]
                for key, rows in mass.groupby(["sample_id", "condition"])["mass"]
                if key[1] in ("baseline", condition)
            }
            self.condition = condition

    def lines(self, sample: str) -> Iterator[str]:
        """Yield what a sample's change is made of."""
        if self.words:
            before, after = self._amounts(sample)
            order = np.argsort(-np.abs(after - before), kind="stable")
            moved = [i for i in order if after[i] != before[i]]
            said = [
                f"{self.run.cover(self.words[i])} {before[i]:.3g} -> {after[i]:.3g}" for i in moved
            ]
            rest = f" and {len(said) - WORDS} more" if len(said) > WORDS else ""
            yield f"      words:  {', '.join(said[:WORDS])}{rest}"
        yield f"      {self.sources[sample]}"
        names = {"baseline": "before", "scaled": "after"}
        for kind, own in self.responses.items():
            label = names[kind] if len(self.responses) > 1 else "read"
            yield f"      {f'{label}:':<7} {' | '.join(map(self.run.cover, own[sample]))}"

    def _amounts(self, sample: str) -> tuple[np.ndarray, np.ndarray]:
        if "scaled" not in self.responses:
            return self.mass[sample, "baseline"], self.mass[sample, self.condition]
        before, after = (
            count_words(own[sample], self.words, **self.matching).sum(0)
            for own in self.responses.values()
        )
        return before, after


def _sources(run: _Run, name: str, ids: Sequence[str]) -> dict[str, str]:
    """Return a line for each of some samples: the prompt, or the image's file, row and class."""
    said, kind = ("class_name", "image") if _images(run, name) else ("text", "prompt")
    path = run.name("samples/{samples}.parquet", name)
    table = run.parquet(path, ["sample_id", "source", said], sample_id=list(ids))
    return {
        row.sample_id: f"{f'{kind}:':<7} {run.cover(getattr(row, said))} ({plain(row.source)})"
        for row in table.itertuples()
    }


# Heads


def _head(run: _Run, table: str, wanted: Sequence[str]) -> Iterator[str]:
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


def _named_head(run: _Run, table: str, wanted: Sequence[str]) -> tuple[str, int, int]:
    """Return a head of a table; heads beside those shown have their files, too."""
    try:
        row = run.row(table, wanted)
        return row["experiment"], row["layer"], row["head"]
    except UserError:
        experiments = run.config["tables"][Path(table).stem]
        if len(wanted) != 2 or wanted[0] not in experiments:
            raise
        path = run.name("specialists/{decomposition}.csv", wanted[0])
        ranked = run.csv(path, ["layer", "head"])
        if wanted[1] not in map(head_name, ranked["layer"], ranked["head"]):
            raise
        return wanted[0], *head_of(wanted[1])


def _farthest(run: _Run, name: str, layer: int, head: int) -> Iterator[str]:
    """Say of which samples the head's cached inputs are, and which are farthest from their mean."""
    path = run.name("activations/{activations}.parquet", name)
    names, z = read_layer(run.path(path), layer)
    positions = parquet_metadata(run.path(path)).get("positions")
    distance = np.linalg.norm(z[:, head] - z[:, head].mean(0), axis=1)
    yield (
        f"  samples ({path}): {len(names)}, averaged over the positions: {positions}; "
        "those whose input to this head is farthest from the mean:"
    )
    places = np.argsort(-distance, kind="stable")[: run.top]
    ids = [names[place].split("/")[0] for place in places]
    sources = _sources(run, name, ids)
    for place, sample in zip(places, ids, strict=True):
        yield f"    {names[place]}  {distance[place]:.3f}  {sources[sample]}"


# Heads that two experiments share, and published values


def _overlap(run: _Run, table: str, wanted: Sequence[str]) -> Iterator[str]:
    row = run.row(table, wanted)
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
    shared = [head for head in tops[both[0]] if head in tops[both[1]]]
    for name in both:
        yield f"  shared heads, rank, score and atoms in {name}:"
        yield from _ranked(run, rankings[name], shared)
    for name, other in (both, both[::-1]):
        yield f"  heads of {name} alone, as {other} ranks them:"
        alone = [head for head in tops[name] if head not in shared]
        yield from _ranked(run, rankings[other], alone)
    if len(shared) != row["shared"]:
        raise UserError(
            f"The rankings share {len(shared)} heads, and the table says {row['shared']}: one of "
            "them is not of this run (verify names it)."
        )
    yield f"\nThis adds up to the table's {row['shared']} shared heads."


def _published(run: _Run, table: str, wanted: Sequence[str]) -> Iterator[str]:
    row = run.row(table, wanted)
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
