"""The way from a ratio back to heads, words or classes, and samples with their responses."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from headpursuit.method.heads import read_conditions, read_ranking
from headpursuit.method.words import count_words, measured_words
from headpursuit.publish.masking import is_offensive
from headpursuit.publish.ratio import ANSWERS
from headpursuit.publish.table1 import head_name
from headpursuit.run.experiments import condition_name
from headpursuit.run.files import UserError, parquet_metadata, plain
from headpursuit.run.finished import Run

# Words that move most, for one sample.
WORDS = 3


def trace_ratio(run: Run, row: pd.Series) -> Iterator[str]:
    """Say what a row of a table of ratios stands on.

    Raises:
        UserError: if the files do not add up to it.
    """
    name, measure = row["experiment"], row["measure"]
    yield (
        f"{name}, {row['method']}, {row['heads']} heads, {measure}: {row['value']:.4f} "
        f"[{row['ci_low']:.4f}, {row['ci_high']:.4f}]"
    )
    if row["draws"] > 1:
        yield f"  mean over {row['draws']} draws, sd {row['sd']:.4f}"
    if pd.notna(row["published"]):
        source = f"{row['published_source']}; see published.csv"
        yield f"  published: {row['published']:g} ({source})"
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
        where = {"condition": condition, "measure": measure}
        samples = run.name("scores/{scores}.parquet", name)
        columns = ["condition", "sample_id", "measure", "before", "after"]
        by_sample = run.parquet(samples, columns, **where)
        yield from _parts(run, name, by_sample, where, sums)
        sums.setdefault(samples, []).append(by_sample[["before", "after"]].sum().to_numpy())
        yield from _samples(run, name, condition, measure, by_sample, samples)
    for path, own in sums.items():
        _adds_up(path, np.mean(own, axis=0), wanted_sums)
    yield f"\nThis adds up to the table's {row['before']:g} before and {row['after']:g} after."


def _asked(run: Run, name: str) -> Iterator[str]:
    """Say what is asked about images, and which tokens the class names became."""
    if not run.has_images(name):
        return
    first = run.path(run.name("responses/{baseline}/baseline/part-1.parquet", name))
    if question := parquet_metadata(first).get("question"):
        yield f"  asked of each: {run.cover(question)}"
    path = run.name("dictionaries/{dictionary}.csv", name)
    yield f"  words and their tokens ({path}):"
    for word, own in run.csv(path, ["word", "token"]).groupby("word", sort=False)["token"]:
        yield f"    {run.cover(word)}: {' '.join(map(run.cover, own))}"


def _condition_heads(run: Run, name: str, method: str, condition: str) -> Iterator[str]:
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
    offensive = is_offensive(run.config, name) and method != "unrelated"
    yield from ranked(run, read_ranking(run.path(ranking), method), heads, offensive)


def ranked(
    run: Run, ranking: pd.DataFrame, heads: Sequence[tuple[int, int]], offensive: bool
) -> Iterator[str]:
    """Say how a ranking places heads, with the first atoms of each.

    Atoms of offensive words are masked each, as they may be pieces of words.
    """
    ranking, show = ranking.set_index(["layer", "head"]), run.cover
    for head in heads:
        own = ranking.loc[head]
        atoms = [] if pd.isna(own["atoms"]) else own["atoms"].split()[:5]
        # The marks of a space before a word are left out.
        bare = [plain(atom).lstrip("Ġ▁") or atom for atom in atoms]
        said = " ".join(map(show.word if offensive else show, bare))
        yield f"    {head_name(*head)}  {own['rank']}  {own['score']:.4f}  {said}"


def _parts(
    run: Run, name: str, by_sample: pd.DataFrame, where: dict[str, str], sums: dict[str, list]
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
    run: Run, name: str, condition: str, measure: str, own: pd.DataFrame, path: str
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
    texts = _texts(run, name, condition, measure, list(shown["sample_id"])) if len(shown) else {}
    for sample in shown.itertuples():
        yield f"    {sample.sample_id}: {sample.before:g} -> {sample.after:g}"
        yield from (f"      {line}" for line in texts[sample.sample_id])
    yield from _rest(own.drop(shown.index), "samples")


def _texts(
    run: Run, name: str, condition: str, measure: str, ids: list[str]
) -> dict[str, list[str]]:
    """Return what each of some samples is, what was written for it, and the words that moved."""
    lines = {sample: [source] for sample, source in sources_of(run, name, ids).items()}
    written = {"read" if measure == "expected" else "before": ("baseline", "baseline")}
    if measure != "expected":
        written["after"] = ("scaled", condition)
    texts = {}
    for label, (stage, own) in written.items():
        parts = run.name(f"responses/{{{stage}}}/{stage}/part-*.parquet", name)
        table = run.parquet(parts, ["sample_id", "response"], condition=own, sample_id=ids)
        texts[label] = table.groupby("sample_id")["response"].agg(list)
        for sample, said in texts[label].items():
            lines[sample].append(f"{f'{label}:':<7} {' | '.join(map(run.cover, said))}")
    if measure not in ANSWERS:
        words = run.csv(run.name("words/{words}.csv", name), ["word", "split"])
        measured = measured_words(words)
        shown = list(words["word"][measured])
        if measure == "expected":
            both = [_masses(run, name, own, ids, measured) for own in ("baseline", condition)]
        else:
            both = [_counts(run, name, own, shown) for own in texts.values()]
        for sample in ids:
            lines[sample].insert(0, _moved(run, shown, *(own[sample] for own in both)))
    return lines


def _counts(run: Run, name: str, texts: pd.Series, words: list[str]) -> dict[str, np.ndarray]:
    concept = run.config["concepts"][run.experiment(name)["concept"]]
    matching = {key: concept[key] for key in ("case_sensitive", "inflections")}
    return {sample: count_words(own, words, **matching).sum(0) for sample, own in texts.items()}


def _masses(
    run: Run, name: str, condition: str, ids: list[str], measured: np.ndarray
) -> dict[str, np.ndarray]:
    parts = run.name("expected/{expected}/part-*.parquet", name)
    table = run.parquet(parts, ["sample_id", "mass"], condition=condition, sample_id=ids)
    return {
        sample: np.stack(own).sum(0)[measured] for sample, own in table.groupby("sample_id")["mass"]
    }


def _moved(run: Run, words: Iterable[str], before: np.ndarray, after: np.ndarray) -> str:
    """Return the words that moved most, of one sample."""
    rows = sorted(zip(words, before, after, strict=True), key=lambda row: -abs(row[2] - row[1]))
    said = [f"{run.cover(word)} {b:.3g} -> {a:.3g}" for word, b, a in rows if a != b]
    rest = f" and {len(said) - WORDS} more" if len(said) > WORDS else ""
    return f"words:  {', '.join(said[:WORDS])}{rest}"


def sources_of(run: Run, name: str, ids: Sequence[str]) -> dict[str, str]:
    """Return a line for each of some samples: the prompt, or the image's file, row and class."""
    said, kind = ("class_name", "image") if run.has_images(name) else ("text", "prompt")
    path = run.name("samples/{samples}.parquet", name)
    table = run.parquet(path, ["sample_id", "source", said], sample_id=list(ids))
    return {
        row.sample_id: f"{f'{kind}:':<7} {run.cover(getattr(row, said))} ({plain(row.source)})"
        for row in table.itertuples()
    }


def _adds_up(where: str, found: Sequence[float], row: Sequence[float]) -> None:
    if not np.allclose(found, row, rtol=1e-9, atol=1e-9):
        said = [" before and ".join(f"{own:g}" for own in both) for both in (found, row)]
        raise UserError(
            f"{where} add up to {said[0]} after, and the table says {said[1]}: one of them is not "
            "of this run (verify names it)."
        )
