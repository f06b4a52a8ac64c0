"""The way from a number in a table back to heads, words, responses, images and prompts."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from headpursuit.config import condition_name, head_of
from headpursuit.files import UserError, parquet_metadata, read_parquet
from headpursuit.labellers import used_labellers
from headpursuit.labellers.audit import mask
from headpursuit.published import ARTEFACTS
from headpursuit.table1 import head_name
from headpursuit.tables import plain, read_csv
from headpursuit.words import count_words, normalise, word_pattern

ROWS = {
    "table1": ("dataset", "head"),
    "table2": ("dataset", "method", "heads", "metric"),
    "figure1": ("dataset", "method", "heads", "metric"),
    "published": ("artefact", "dataset", "method", "heads"),
}
# What is meant where the metric is not named.
METRIC = {"table2": "count", "figure1": "strict"}
# Words that move most, for one prompt.
WORDS = 3


def trace(path: Path, row: Sequence[str], top: int, unmasked: bool) -> Iterator[str]:
    """Say, line by line, what a row of a table stands on.

    Args:
        path: the table, ``results/<run>/tables/table2.csv``; the run's folder stands for it.
        row: what names the row, as in :data:`ROWS`; a metric may be left out.
        top: how many words, prompts or images are shown; what is not shown is summed up.
        unmasked: print offensive words in full.

    Raises:
        UserError: if there is no such table or row, or the files do not add up to it.
    """
    results = run_folder(path)
    name = path.name.split(".")[0] if path.parent.name == "tables" else "table2"
    if name not in ROWS:
        raise UserError(f"{path}: of the tables, {', '.join(ROWS)} can be traced.")
    run = _Run(results, top, unmasked)
    yield from {
        "table1": _table1,
        "table2": _table2,
        "figure1": _figure1,
        "published": _published,
    }[name](run, row)


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


class _Run:
    """A run's files, and its texts with offensive words masked."""

    def __init__(self, results: Path, top: int, unmasked: bool) -> None:
        self.results, self.top, self.unmasked = results, top, unmasked
        self.config = yaml.safe_load((results / "config.yaml").read_text(encoding="utf-8"))

    def csv(self, name: str, columns: list[str]) -> pd.DataFrame:
        return read_csv(self._there(name), columns)

    def parquet(self, name: str, columns: list[str]) -> pd.DataFrame:
        return read_parquet(self._there(name), columns).to_pandas()

    def parts(self, folder: str) -> list[str]:
        """Return the names of the parts that the run's work was divided into."""
        return [f"{folder}/part-{n}.parquet" for n in range(1, self.config["score"]["parts"] + 1)]

    def labels(self, dataset: str) -> list[str]:
        """Return the names of the files in which the run's labellers named a data set's words."""
        files = [f"labels/{dataset}.parquet", f"labels/second/{dataset}.parquet"]
        return files[: len(used_labellers(self.config))]

    def _there(self, name: str) -> Path:
        if not (self.results / name).exists():
            raise UserError(f"{self.results / name} is not there.")
        return self.results / name

    def row(self, table: str, wanted: Sequence[str]) -> pd.Series:
        """Return the row of a table that the words name."""
        keys = list(ROWS[table])
        rows = self.csv(f"tables/{table}.csv", keys)
        if table in METRIC and len(wanted) == len(keys) - 1:
            wanted = [*wanted, METRIC[table]]
        named = rows[keys].astype(str)
        same = (named == list(wanted)).all(axis=1) if len(wanted) == len(keys) else []
        if not np.any(same):
            raise UserError(
                _no_row(self, table, wanted) + named.drop_duplicates().to_string(index=False)
            )
        return rows[same].iloc[0]

    @cached_property
    def _patterns(self) -> list[tuple[str, Any]]:
        words: set[str] = set()
        for dataset in self.config["text"]["datasets"]:
            if (
                self.results / f"words/{dataset}.csv"
            ).exists():  # not where figure 1 alone was made
                words |= set(self.csv(f"words/{dataset}.csv", ["word"])["word"])
                for name in self.labels(dataset):
                    words |= {
                        word for own in self.parquet(name, ["words"])["words"] for word in own
                    }
        longest = sorted({normalise(word) for word in words}, key=len, reverse=True)
        return [(word.split()[0], word_pattern(word, inflections=True)) for word in longest]

    def cover(self, text: Any) -> str:
        """Return a text on one line, masked; where it holds a word it is shown normalised."""
        text = plain(text)
        if self.unmasked:
            return text
        folded = masked = normalise(text)
        for first, pattern in self._patterns:
            if first in masked:
                masked = pattern.sub(lambda match: mask(match.group()), masked)
        return text if masked == folded else masked

    def word(self, word: str) -> str:
        """Return one of the run's words, masked."""
        return plain(word) if self.unmasked else plain(mask(plain(word)))

    def atoms(self, atoms: Any, offensive: bool) -> str:
        """Return the first tokens of a ranking; the marks of a space before a word are left out."""
        own = [] if pd.isna(atoms) else atoms.split()[:5]
        bare = [plain(atom).lstrip("Ġ▁") or atom for atom in own]
        return " ".join(map(self.word if offensive else self.cover, bare))


def _no_row(run: _Run, table: str, wanted: Sequence[str]) -> str:
    asked = plain(" ".join(wanted)) or "(none named)"
    keys = " ".join(ROWS[table])
    path = f"{run.results}/tables/{table}.csv"
    return f"{path} has no row {asked}. A row is named by {keys}; there are\n"


def _conditions(row: pd.Series) -> list[str]:
    if row["method"] == "random":
        return [condition_name("random", row["heads"], draw) for draw in range(row["draws"])]
    return [condition_name(row["method"], row["heads"])]


def _cell(row: pd.Series, metric: str) -> Iterator[str]:
    interval = f"[{row['ci_low']:.4f}, {row['ci_high']:.4f}]"
    yield (
        f"{row['dataset']}, {row['method']}, {row['heads']} heads, {metric}: "
        f"{row['value']:.4f} {interval}"
    )
    if row["draws"] > 1:
        yield f"  mean over {row['draws']} draws, sd {row['sd']:.4f}"
    if pd.notna(row["published"]):
        yield f"  published: {row['published']:g} ({row['published_source']}; see published.csv)"
    if pd.notna(row["flag"]):
        yield f"  note: {row['flag']}"


def _heads(
    run: _Run, heads: pd.DataFrame, path: str, ranking: str, method: str, offensive: bool
) -> Iterator[str]:
    yield f"  heads ({path}):"
    if method == "random":
        yield "    " + ", ".join(head_name(*own) for own in heads[["layer", "head"]].values)
        return
    ranked = run.csv(ranking, ["method", "layer", "head", "score", "rank", "atoms"])
    ranked = ranked[ranked["method"] == method]
    yield f"    rank, score and atoms ({ranking}):"
    for own in heads.merge(ranked, on=["layer", "head"], how="left").itertuples():
        atoms = run.atoms(own.atoms, offensive)
        yield f"    {head_name(own.layer, own.head)}  {own.rank}  {own.score:.4f}  {atoms}"


def _adds_up(before: float, after: float, row_before: float, row_after: float) -> str:
    if not np.allclose([before, after], [row_before, row_after], rtol=1e-9, atol=1e-9):
        raise UserError(
            f"The files add up to {before:g} before and {after:g} after, and the table says "
            f"{row_before:g} and {row_after:g}: one of them is not of this run (verify names it)."
        )
    return f"\nThis adds up to the table's {row_before:g} before and {row_after:g} after."


# Table 2


def _table2(run: _Run, wanted: Sequence[str]) -> Iterator[str]:
    row = run.row("table2", wanted)
    yield from _cell(row, row["metric"])
    yield (
        f"  held-out words before: {row['baseline_count']:g}, after: {row['count']:g}; "
        f"{row['prompts']} prompts"
    )
    totals = []
    for condition in _conditions(row):
        yield f"\n{condition}"
        path = f"heads/{row['dataset']}/{condition}.csv"
        heads = run.csv(path, ["layer", "head"])
        ranking = f"rankings/{row['dataset']}.csv"
        yield from _heads(run, heads, path, ranking, row["method"], row["method"] != "unrelated")
        words = _word_scores(run, row["dataset"], condition, row["metric"])
        totals.append((words["before"].sum(), words["after"].sum()))
        yield from _words(run, row["dataset"], words)
        yield from _prompts(run, row["dataset"], condition, row["metric"])
    before, after = np.mean(totals, axis=0)
    yield _adds_up(before, after, row["baseline_count"], row["count"])


def _word_scores(run: _Run, dataset: str, condition: str, metric: str) -> pd.DataFrame:
    keys = ["metric", "condition", "word", "split", "before", "after"]
    scores = run.parquet(f"scores/{dataset}.parquet", keys)
    chosen = (scores["metric"] == metric) & (scores["condition"] == condition)
    return scores[chosen & (scores["split"] == "heldout")]


def _words(run: _Run, dataset: str, own: pd.DataFrame) -> Iterator[str]:
    sums = f"{own['before'].sum():g} before, {own['after'].sum():g} after"
    yield f"  held-out words (scores/{dataset}.parquet): {sums}"
    changed = own[(own["before"] > 0) | (own["after"] > 0)].sort_values("before", ascending=False)
    for word in changed.head(run.top).itertuples():
        yield f"    {run.word(word.word)}: {word.before:g} -> {word.after:g}"
    yield from _rest(changed[run.top :], "before", "after", "words")


def _rest(rest: pd.DataFrame, before: str, after: str, what: str) -> Iterator[str]:
    if len(rest):
        yield f"    {len(rest)} more {what}: {rest[before].sum():g} -> {rest[after].sum():g}"


def _prompts(run: _Run, dataset: str, condition: str, metric: str) -> Iterator[str]:
    path = f"scores/{dataset}.per_prompt.parquet"
    before, after = f"{metric}_before", f"{metric}_after"
    scores = run.parquet(path, ["condition", "prompt_id", before, after])
    own = scores[scores["condition"] == condition]
    own = own.assign(change=own[after] - own[before])
    gained, lost = (own["change"] > 0).sum(), (own["change"] < 0).sum()
    yield (
        f"  prompts ({path}): {len(own)}; {gained} gained, {lost} lost, "
        f"{len(own) - gained - lost} as before"
    )
    order = own.sort_values("change", key=abs, ascending=False, kind="stable")
    shown = order[order["change"] != 0].head(run.top)
    texts = _Texts(run, dataset, condition, metric, set(shown["prompt_id"]))
    for prompt in shown.itertuples():
        name = prompt.prompt_id
        yield f"    {name}: {getattr(prompt, before):g} -> {getattr(prompt, after):g}"
        yield from texts.lines(name)
    yield from _rest(order[~order.index.isin(shown.index)], before, after, "prompts")


class _Texts:
    """The prompts, responses and words behind some prompts' scores."""

    def __init__(
        self, run: _Run, dataset: str, condition: str, metric: str, names: set[str]
    ) -> None:
        self.run, self.metric = run, metric

        def texts(path: str, column: str) -> dict[str, list[str]]:
            table = run.parquet(path, ["prompt_id", column])
            table = table[table["prompt_id"].isin(names)]
            return table.groupby("prompt_id", sort=False)[column].agg(list).to_dict()

        self.prompts = texts(f"prompts/{dataset}.parquet", "text")
        self.before = texts(f"generations/{dataset}/baseline.parquet", "response")
        words = run.csv(f"words/{dataset}.csv", ["word", "split"])
        heldout = words["split"] == "heldout"
        self.words = list(words[heldout]["word"])
        if metric == "count":
            self.after = texts(f"generations/{dataset}/{condition}.parquet", "response")
            return
        self.mass: dict[tuple[str, str], np.ndarray] = {}
        for path in run.parts(f"expected/{dataset}"):
            table = run.parquet(path, ["condition", "prompt_id", "mass"])
            for row in table[table["prompt_id"].isin(names)].itertuples():
                key = (row.prompt_id, "before" if row.condition == "baseline" else row.condition)
                self.mass[key] = self.mass.get(key, 0) + row.mass[heldout.to_numpy()]
        self.condition = condition

    def lines(self, name: str) -> Iterator[str]:
        """Yield what a prompt's change is made of."""
        before, after = self._amounts(name)
        changes = sorted(range(len(self.words)), key=lambda i: -abs(after[i] - before[i]))
        moved = [i for i in changes if after[i] != before[i]]
        said = ", ".join(
            f"{self.run.word(self.words[i])} {before[i]:.3g} -> {after[i]:.3g}"
            for i in moved[:WORDS]
        )
        rest = len(moved) - WORDS
        yield f"      words:  {said}{f' and {rest} more' if rest > 0 else ''}"
        yield f"      prompt: {self._shown(self.prompts[name])}"
        if self.metric == "count":
            yield f"      before: {self._shown(self.before[name])}"
            yield f"      after:  {self._shown(self.after[name])}"
        else:
            yield f"      read:   {self._shown(self.before[name])}"

    def _amounts(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        if self.metric == "expected":
            return self.mass[name, "before"], self.mass[name, self.condition]
        matching = {key: self.run.config["words"][key] for key in ("case_sensitive", "inflections")}
        both = (self.before[name], self.after[name])
        before, after = (count_words(texts, self.words, **matching).sum(0) for texts in both)
        return before, after

    def _shown(self, texts: list[str]) -> str:
        return " | ".join(map(self.run.cover, texts))


# Figure 1


def _figure1(run: _Run, wanted: Sequence[str]) -> Iterator[str]:
    row = run.row("figure1", wanted)
    dataset, metric = row["dataset"], row["metric"]
    yield from _cell(row, metric)
    right = [round(row[name] * row["images"], 6) for name in ("baseline_accuracy", "accuracy")]
    yield f"  right answers before: {right[0]:g}, after: {right[1]:g}; {row['images']} images"
    asked = parquet_metadata(run.results / f"answers/{dataset}/part-1.parquet")["question"]
    yield f"  asked of each: {run.cover(asked)}"
    rows = run.csv(f"class_dictionaries/{dataset}.csv", ["class_name", "token"])
    classes = run.csv(f"classes/{dataset}.csv", ["label", "class_name"])
    yield f"  class words and their tokens (class_dictionaries/{dataset}.csv):"
    for name, own in rows.groupby("class_name", sort=False)["token"]:
        yield f"    {run.cover(name)}: {' '.join(map(run.cover, own))}"
    columns = ["condition", "image_id", "label", metric]
    scores = run.parquet(f"image_scores/{dataset}.parquet", columns)
    heads = run.csv(f"image_heads/{dataset}.csv", ["condition", "layer", "head"])
    names = dict(zip(classes["label"], classes["class_name"], strict=True))
    totals = []
    for condition in _conditions(row):
        yield f"\n{condition}"
        own = heads[heads["condition"] == condition]
        ranking = f"image_rankings/{dataset}.csv"
        yield from _heads(run, own, f"image_heads/{dataset}.csv", ranking, row["method"], False)
        both = scores[scores["condition"] == "baseline"].merge(
            scores[scores["condition"] == condition],
            on=["image_id", "label"],
            suffixes=("_before", "_after"),
        )
        both = both.rename(columns={f"{metric}_before": "before", f"{metric}_after": "after"})
        totals.append((both["before"].sum(), both["after"].sum()))
        yield from _classes(run, dataset, both, names)
        yield from _images(run, dataset, condition, both, names)
    yield _adds_up(*np.mean(totals, axis=0), *right)


def _classes(run: _Run, dataset: str, both: pd.DataFrame, names: dict[int, str]) -> Iterator[str]:
    sums = f"{both['before'].sum()} before, {both['after'].sum()} after"
    yield f"  right answers (image_scores/{dataset}.parquet): {sums}"
    for label, own in both.groupby("label")[["before", "after"]].sum().iterrows():
        yield f"    {run.cover(names[label])}: {own['before']} -> {own['after']}"


def _images(
    run: _Run, dataset: str, condition: str, both: pd.DataFrame, names: dict[int, str]
) -> Iterator[str]:
    lost, gained = both[both["before"] & ~both["after"]], both[both["after"] & ~both["before"]]
    yield f"  images: {len(both)}; {len(gained)} gained, {len(lost)} lost, the others as before"
    shown = pd.concat([gained, lost]).head(run.top)
    sources = run.parquet(f"images/{dataset}.parquet", ["image_id", "source"])
    where = dict(zip(sources["image_id"], sources["source"], strict=True))
    answers: dict[tuple[str, str], str] = {}
    for path in run.parts(f"answers/{dataset}"):
        table = run.parquet(path, ["condition", "image_id", "answer"])
        keys = zip(table["image_id"], table["condition"], strict=True)
        answers |= dict(zip(keys, table["answer"], strict=True))
    for image in shown.itertuples():
        name = image.image_id
        both_answers = [run.cover(answers[name, it]) for it in ("baseline", condition)]
        yield (
            f"    {name} ({plain(where[name])}), {run.cover(names[image.label])}: "
            f'"{both_answers[0]}" -> "{both_answers[1]}"'
        )
    if len(gained) + len(lost) > len(shown):
        yield f"    {len(gained) + len(lost) - len(shown)} more images gained or lost"


# Table 1


def _table1(run: _Run, wanted: Sequence[str]) -> Iterator[str]:
    table = run.csv("tables/table1.csv", ["dataset", "layer", "head", "method", "tokens"])
    dataset, layer, head = _named_head(run, table, wanted)
    yield f"{dataset}, {head_name(layer, head)}"

    def of(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[(rows["layer"] == layer) & (rows["head"] == head)]

    path = f"specialists/{dataset}.csv"
    specialists = run.csv(path, ["layer", "head", "score", "rank"])
    own = of(specialists).iloc[0]
    yield f"  {path}: rank {own['rank']:g} of {len(specialists)}, score {own['score']:.4f}"
    for name in ("explained", "coherence"):
        numbers = (f"{own[key]:.4f}" for key in (name, f"{name}_null", f"{name}_high"))
        yield "    {}: {}; random sets: mean {}, 95th percentile {}".format(name, *numbers)
    path = f"decompositions/{dataset}.parquet"
    atoms = of(run.parquet(path, ["layer", "head", "step", "token_id", "token", "explained"]))
    null = of(run.parquet(f"specialists/{dataset}.null.parquet", ["layer", "head", "step", "mean"]))
    both = atoms.merge(null[["step", "mean"]], on="step", how="left").sort_values("step")
    yield f"  atoms ({path}), variance explained so far, random sets':"
    for atom in both.head(run.top).itertuples():
        token = run.cover(atom.token)
        yield f"    {atom.step}  {token}  {atom.explained:.4f}  {atom.mean:.4f}"
    if len(both) > run.top:
        yield f"    {len(both) - run.top} more: {both['explained'].iloc[-1]:.4f}"
    path = f"lens/{dataset}.parquet"
    lens = of(run.parquet(path, ["layer", "head", "place", "token"])).sort_values("place")
    yield f"  logit lens ({path}): {' '.join(map(run.cover, lens['token']))}"
    shown = of(table[table["dataset"] == dataset])
    for text in shown.dropna(subset="published").itertuples():
        yield (
            f"  published, {text.method} ({text.published_source}): {text.published}; "
            f"{text.overlap} among the head's own"
        )
    yield from _samples(run, dataset, layer, head)


def _named_head(run: _Run, table: pd.DataFrame, wanted: Sequence[str]) -> tuple[str, int, int]:
    names = [
        (row.dataset, head_name(row.layer, row.head))
        for row in table.drop_duplicates(["dataset", "layer", "head"]).itertuples()
    ]
    if tuple(wanted) in names:
        return wanted[0], *head_of(wanted[1])
    # Heads beside those of the table have their files too.
    datasets = {dataset for dataset, _ in names}
    if len(wanted) == 2 and wanted[0] in datasets:
        ranked = run.csv(f"specialists/{wanted[0]}.csv", ["layer", "head"])
        if wanted[1] in {head_name(*own) for own in ranked[["layer", "head"]].values}:
            return wanted[0], *head_of(wanted[1])
    raise UserError(_no_row(run, "table1", wanted) + "\n".join(" ".join(own) for own in names))


def _samples(run: _Run, dataset: str, layer: int, head: int) -> Iterator[str]:
    """Say of which prompts the head's cached inputs are, and which are farthest from their mean."""
    path = f"activations/{dataset}/layer-{layer:02d}.parquet"
    metadata = parquet_metadata(run.results / path)
    table = run.parquet(path, ["sample_id", "z"])
    z = np.stack(table["z"]).reshape(len(table), metadata["heads"], -1)[:, head]
    distance = np.linalg.norm(z - z.mean(0), axis=1)
    yield (
        f"  samples ({path}): {len(table)}, averaged over the positions: {metadata['positions']}; "
        "those whose input to this head is farthest from the mean:"
    )
    prompts = run.parquet(f"prompts/{dataset}.parquet", ["prompt_id", "text", "source"])
    prompts = prompts.set_index("prompt_id")
    for place in np.argsort(-distance, kind="stable")[: run.top]:
        sample = table["sample_id"].iloc[place]
        prompt = prompts.loc[sample.split("/")[0]]
        text = run.cover(prompt["text"])
        yield f"    {sample}  {distance[place]:.3f}  ({plain(prompt['source'])})  {text}"


# Published values


def _published(run: _Run, wanted: Sequence[str]) -> Iterator[str]:
    row = run.row("published", wanted)
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
        f"the published value is {inside}"
    )
    table, metric = ARTEFACTS[row["artefact"]]
    own = [row["dataset"], row["method"], f"{row['own_heads']:g}", metric]
    yield ""
    yield from (_table2 if table == "table2" else _figure1)(run, own)
