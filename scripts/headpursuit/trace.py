"""The way from a cell of table 2 back to heads, words, responses and prompts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import yaml

from headpursuit.config import condition_name
from headpursuit.files import UserError, read_parquet
from headpursuit.labellers.audit import mask
from headpursuit.tables import plain, read_csv
from headpursuit.words import normalise, word_pattern


def trace(
    results: Path, dataset: str, method: str, k: int, metric: str, top: int, unmasked: bool
) -> Iterator[str]:
    """Say, line by line, what a row of table 2 stands on.

    Args:
        results: the run's folder.
        dataset: of the row.
        method: ``somp``, ``logit_lens`` or ``random``.
        k: number of heads.
        metric: ``count`` or ``expected``.
        top: how many words and prompts are shown; their sums are over all.
        unmasked: print offensive words in full.

    Raises:
        UserError: if the table has no such row.
    """
    table = read_csv(results / "tables/table2.csv", ["dataset", "method", "heads", "metric"])
    row = _row(table, dataset, method, k, metric)
    config = yaml.safe_load((results / "config.yaml").read_text(encoding="utf-8"))
    hide = _shown if unmasked else mask
    yield f"{dataset}, {method}, {k} heads, {metric}: {row['value']:.4f}"
    yield f"  held-out words before: {row['baseline_count']:g}, after: {row['count']:g}"
    conditions = [condition_name(method, k)]
    if method == "random":
        conditions = [condition_name("random", k, draw) for draw in range(int(row["draws"]))]
        yield f"  mean over {len(conditions)} draws"
    for condition in conditions:
        yield f"\n{condition}"
        yield from _heads(results, dataset, method, condition, hide)
        yield from _words(results, dataset, condition, metric, top, hide)
        yield from _prompts(results, dataset, condition, metric, top, config, unmasked)


def _row(table: pd.DataFrame, dataset: str, method: str, k: int, metric: str) -> pd.Series:
    wanted = {"dataset": dataset, "method": method, "heads": k, "metric": metric}
    same = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    if same.empty:
        there = table[list(wanted)].drop_duplicates().to_string(index=False)
        asked = " ".join(map(str, wanted.values()))
        raise UserError(f"Table 2 has no row {asked}. It has\n{there}")
    return same.iloc[0]


def _shown(word: str) -> str:
    return word


def _heads(
    results: Path, dataset: str, method: str, condition: str, hide: Callable[[str], str]
) -> Iterator[str]:
    path = f"heads/{dataset}/{condition}.csv"
    heads = read_csv(results / path, ["layer", "head"])
    yield f"  heads ({path}):"
    if method == "random":
        yield "    " + ", ".join(f"L{layer}.H{head}" for layer, head in heads.values)
        return
    ranking = read_csv(results / f"rankings/{dataset}/{method}.csv", ["score", "rank", "atoms"])
    ranking["atoms"] = ranking["atoms"].fillna("")  # of a head that writes nothing
    for own in heads.merge(ranking, on=["layer", "head"], how="left").itertuples():
        # The marks that tokenizers write for a space before a word are no letters of it.
        atoms = " ".join(hide(plain(atom).lstrip("Ġ▁") or atom) for atom in own.atoms.split()[:5])
        yield f"    L{own.layer}.H{own.head}  rank {own.rank}  score {own.score:.4f}  {atoms}"


def _words(
    results: Path, dataset: str, condition: str, metric: str, top: int, hide: Callable[[str], str]
) -> Iterator[str]:
    path = f"scores/{dataset}.parquet"
    keys = ["metric", "condition", "word", "split", "before", "after"]
    scores = read_parquet(results / path, keys).to_pandas()
    chosen = (scores["metric"] == metric) & (scores["condition"] == condition)
    own = scores[chosen & (scores["split"] == "heldout")]
    yield f"  held-out words ({path}): {own['before'].sum():g} before, {own['after'].sum():g} after"
    changed = own[(own["before"] > 0) | (own["after"] > 0)].sort_values("before", ascending=False)
    for word in changed.head(top).itertuples():
        yield f"    {hide(word.word)}: {word.before:g} -> {word.after:g}"
    if len(changed) > top:
        rest = changed.iloc[top:]
        yield f"    {len(rest)} more: {rest['before'].sum():g} -> {rest['after'].sum():g}"


def _prompts(
    results: Path,
    dataset: str,
    condition: str,
    metric: str,
    top: int,
    config: dict,
    unmasked: bool,
) -> Iterator[str]:
    path = f"scores/{dataset}.per_prompt.parquet"
    before, after = f"{metric}_before", f"{metric}_after"
    scores = read_parquet(results / path, ["condition", "prompt_id", before, after]).to_pandas()
    own = scores[scores["condition"] == condition]
    own = own.assign(change=own[after] - own[before])
    gained, lost = (own["change"] > 0).sum(), (own["change"] < 0).sum()
    yield f"  prompts ({path}): {len(own)}; {gained} gained, {lost} lost"
    most = own[own["change"] != 0].sort_values("change", key=abs, ascending=False, kind="stable")
    cover = _Cover(results, dataset, config, unmasked)
    prompts = cover.texts("prompts", dataset, "text")
    baseline = cover.texts("generations", f"{dataset}/baseline", "response")
    responses = baseline
    if metric == "count":
        responses = cover.texts("generations", f"{dataset}/{condition}", "response")
    for prompt in most.head(top).itertuples():
        name = prompt.prompt_id
        yield f"    {name}: {getattr(prompt, before):g} -> {getattr(prompt, after):g}"
        yield f"      prompt: {prompts[name]}"
        yield f"      before: {baseline[name]}"
        if metric == "count":
            yield f"      after:  {responses[name]}"


class _Cover:
    """Texts of a run, with the run's words masked."""

    def __init__(self, results: Path, dataset: str, config: dict, unmasked: bool) -> None:
        words = read_csv(results / f"words/{dataset}.csv", ["word"])["word"]
        matching = config["words"]
        self.results, self.unmasked = results, unmasked
        self.case_sensitive = matching["case_sensitive"]
        self.patterns = [
            word_pattern(normalise(word, self.case_sensitive), matching["inflections"])
            for word in sorted(words, key=len, reverse=True)
        ]

    def texts(self, kind: str, name: str, column: str) -> dict[str, str]:
        """Return each prompt's text, its samples joined, on one line and masked."""
        table = read_parquet(self.results / kind / f"{name}.parquet", ["prompt_id", column])
        joined = table.to_pandas().groupby("prompt_id", sort=False)[column].agg(" | ".join)
        return {name: self.cover(text) for name, text in joined.items()}

    def cover(self, text: str) -> str:
        """Return a text on one line; a text that holds one of the words is shown normalised."""
        text = plain(text)
        if self.unmasked:
            return text
        folded = normalise(text, self.case_sensitive)
        masked = folded
        for pattern in self.patterns:
            masked = pattern.sub(lambda match: mask(match.group()), masked)
        return text if masked == folded else masked
