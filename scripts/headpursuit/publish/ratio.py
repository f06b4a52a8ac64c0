"""Ratios: a measure after the heads were scaled over the same before.

One row has one layout whatever was measured: occurrences of words, their expected probability, or
right answers about images.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from headpursuit.run.experiments import alpha_name, condition_name, scalings
from headpursuit.run.files import parquet_metadata, read_parquet, seed_for
from headpursuit.run.tables import lay_out

METHOD_NAMES = {
    "somp": "SOMP",
    "logit_lens": "logit lens",
    "unrelated": "unrelated words",
    "size": "size of write",
    "random": "random",
}
# The measures that have a ratio, in the order of the tables' rows; the others stand beside them.
MEASURE_NAMES = {
    "count": "occurrences",
    "expected": "expected",
    "toxicity": "toxic responses",
    "strict": "strict",
    "first_word": "first word",
    "f1": "F1, concept",
    "f1_others": "F1, others",
    "cider": "CIDEr",
}
KEPT = ("kept_5", "kept_10", "kept_20")
# Whole numbers, of which the smaller say less.
COUNTS = ("count", "toxicity")
WITH_LENGTH = (*COUNTS, "cider")
# Where heads are scaled.
PLACES = {
    "all": "at all positions",
    "prompt": "in what is read before the response",
    "image": "in the image tokens",
    "response": "in the response",
}
# Right answers are shown as a share of the samples, and so are other means over them.
ANSWERS = ("strict", "first_word")
MEANS = (*ANSWERS, "f1", "f1_others", "cider")

Experiments = Mapping[str, Mapping[str, Any]]
Scores = Mapping[str, tuple[pd.DataFrame, Mapping[str, Any]]]


def read_scores(paths: Sequence[str], experiments: Experiments) -> Scores:
    """Read each experiment's scores and their file's metadata."""
    columns = ["condition", "sample_id", "measure", "before", "after"]
    return {
        name: (read_parquet(path, columns).to_pandas(), parquet_metadata(path))
        for name, path in zip(experiments, paths, strict=True)
    }


def ratio_rows(
    scores: Scores, experiments: Experiments, score: Mapping[str, Any], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row for each experiment, method, number of heads, alpha, place and measure.

    Beside them stand the single draws.

    Args:
        scores: experiment to its scores and their metadata: ``coverage`` (share of the measured
            words that `expected` sees), ``classes`` (how many an image may have) and
            ``classifier`` (what called responses toxic).
        experiments: of each its samples, model, alpha, at, heads_from, signed, methods, k, draws
            and family (the experiment that it is a further split of, or itself).
        score: the config's ``score``.
        seed: the config's seed.
    """
    rows, draws = [], []
    for name, own in experiments.items():
        table, facts = scores[name]
        measured = dict(list(table.groupby(["condition", "measure"], sort=False)))
        same = {key: own[key] for key in ("samples", "model", "concept", "heads_from", "signed")}
        own_seed = seed_for(seed, own["samples"], "bootstrap")
        methods = [*own["methods"], "random"]
        every = product(methods, own["k"], scalings(own), MEASURE_NAMES)
        for method, k, (alpha, at), measure in every:
            several = range(own["draws"]) if method == "random" else [None]
            conditions = [condition_name(method, k, draw, alpha, at) for draw in several]
            # Some draws write no responses.
            if not (own_draws := [one for one in conditions if (one, measure) in measured]):
                continue
            key = {"experiment": name, "method": method, "heads": k, "alpha": alpha, "at": at}
            key["measure"] = measure
            row, values = _ratio(measured, own_draws, measure, facts, score, own_seed)
            rows.append(key | same | row)
            draws += [{**key, "draw": draw, "value": value} for draw, value in enumerate(values)]
    table = put_splits(lay_out("tables/{table}.csv", rows), experiments)
    return table, lay_out("tables/{table}.draws.csv", draws)


def _ratio(
    measured: Mapping[tuple[str, str], pd.DataFrame],
    conditions: Sequence[str],
    measure: str,
    facts: Mapping[str, Any],
    score: Mapping[str, Any],
    seed: int,
) -> tuple[dict[str, Any], np.ndarray]:
    """Return what a row says of a set of heads, or of random draws of it, and each draw's ratio."""

    def total(name: str, when: str) -> float:
        return pd.concat([measured[condition, name][when] for condition in conditions]).sum()

    draws = [measured[condition, measure] for condition in conditions]
    before = draws[0]["before"].to_numpy()
    after = np.stack([table["after"].to_numpy() for table in draws])
    values, low, high = bootstrap_ratio(
        before, after, score["resamples"], score["confidence"], seed
    )
    row = {
        **{"value": values.mean(), "ci_low": low, "ci_high": high, "draws": len(values)},
        **{"before": before.sum(), "after": after.sum(axis=1).mean(), "n": len(before)},
        **{"coverage": 1.0, "flag": _flag(before, measure, facts, score)},
    }
    if len(values) > 1:
        q25, q75 = np.quantile(values, [0.25, 0.75])
        row |= {"sd": values.std(ddof=1), "median": np.median(values), "q25": q25, "q75": q75}
    if measure == "expected":
        rise = total("nll", "after") - total("nll", "before")
        row["nats_per_token"] = over(rise, total("positions", "before"))
        row["coverage"] = facts["coverage"]
    elif measure in ANSWERS:
        n = sum(map(len, draws))
        row |= {name: total(name, "after") / n for name in ("several", "none")}
    elif measure in WITH_LENGTH:
        length, repeated = (
            [total(name, when) for when in ("after", "before")] for name in ("tokens", "repeated")
        )
        row["length_ratio"] = over(*length)
        # Repeated pairs for each token, not for each response.
        row["repetition_ratio"] = over(*map(over, repeated, length))
    if measure == "toxicity":
        n = facts["classifier"]["responses"]
        row |= {f"share_{when}": row[when] / n for when in ("before", "after")}
    return row, values


def _flag(
    before: np.ndarray, measure: str, facts: Mapping[str, Any], score: Mapping[str, Any]
) -> str:
    if before.sum() == 0:
        return "baseline is 0"
    if measure in COUNTS and before.sum() < score["min_count"]:
        return f"baseline count below {score['min_count']}"
    if measure in ("f1", "f1_others") and len(before) < score["min_count"]:
        return f"fewer than {score['min_count']} samples"
    if measure in ANSWERS and before.mean() <= 1 / facts["classes"]:
        return "baseline no better than chance"
    return ""


def over(after: float, before: float) -> float:
    """Return a ratio; missing where there is nothing before."""
    return after / before if before else np.nan


def bootstrap_ratio(
    before: np.ndarray, after: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[np.ndarray, float, float]:
    """Return the ratio of sums of each draw, and a paired bootstrap interval of their mean.

    Samples are resampled together with both their values, and every draw of a random control
    sees the same resampled ones. A resample whose sum before is 0 has no ratio and is left out.

    Args:
        before: values of each prompt or image without the intervention, samples.
        after: values with it, draws x samples (one draw for a selected set).
        resamples: number of resamples.
        confidence: of the interval, 0 to 1.
        seed: of the resampling.
    """
    total = before.sum()
    if total == 0:
        return np.full(len(after), np.nan), np.nan, np.nan
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(len(before), size=len(before)), minlength=len(before))
        denominator = before @ weights
        if denominator > 0:
            means.append((after @ weights).mean() / denominator)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return after.sum(axis=1) / total, float(low), float(high)


def put_splits(table: pd.DataFrame, experiments: Experiments) -> pd.DataFrame:
    """Return rows of ratios with their mean and standard deviation over splits of the words."""
    family = table["experiment"].map({name: own["family"] for name, own in experiments.items()})
    keys = [table[key] for key in ("method", "heads", "alpha", "at", "measure")]
    values = table.groupby([family, *keys], dropna=False)["value"]
    n = values.transform("size")
    mean, sd = (values.transform(what).where(n > 1) for what in ("mean", "std"))
    return table.assign(splits=n, splits_mean=mean, splits_sd=sd)


def put_published(
    table: pd.DataFrame,
    published: pd.DataFrame,
    models: Mapping[str, str],
    published_heads: Mapping[Any, int] | None,
) -> pd.DataFrame:
    """Return rows of ratios with the published value of each, its range and source.

    Of several artefacts that print a value the first counts. A model of the paper's has its own
    values, and another those of the first model that has any.

    Args:
        table: rows of ratios.
        published: ``data/published.csv``.
        models: the config's names of models to their Hub ids, where they have one.
        published_heads: which published k stands beside a k of this run.
    """
    theirs = {int(k): int(other) for k, other in (published_heads or {}).items()}
    keys = ["model", "dataset", "concept", "method", "heads", "alpha", "at", "measure"]
    known = published.dropna(subset="value").assign(
        at="all",
        published=published["value"],
        published_low=published["low"],
        published_high=published["high"],
        published_source=published["source"] + ", " + published["heads"].astype(str) + " heads",
    )
    # Heads that other samples chose have no counterpart.
    own = table.assign(
        model=table["model"].map(models),
        dataset=table["samples"].where(table["heads_from"].isna() & ~table["signed"]),
        heads=[theirs.get(k, k) for k in table["heads"]],
    )
    others = set(own["model"]) - set(known["model"])
    known = pd.concat([known, *(known.assign(model=name) for name in others)])
    found = own[keys].merge(known.drop_duplicates(keys), how="left", on=keys)
    return table.assign(**{name: found[name] for name in known if name.startswith("published")})


# Texts


def number(value: Any, form: str = ".2f") -> str:
    """Return a number as text; empty where it is missing."""
    return "" if pd.isna(value) else format(value, form)


def share(value: Any) -> str:
    """Return what stands behind a number of responses; nothing where it is missing."""
    return "" if pd.isna(value) else f" ({value:.1%})"


def interval(row: Mapping[str, Any], centre: str, low: str, high: str, form: str = ".2f") -> str:
    """Return a number with its limits as text; empty where it is missing."""
    limits = f" [{number(row[low], form)}, {number(row[high], form)}]" if pd.notna(row[low]) else ""
    return number(row[centre], form) + limits if pd.notna(row[centre]) else ""


def display(table: pd.DataFrame, spread: str, confidence: float) -> pd.DataFrame:
    """Return the rows as text cells for Markdown and LaTeX; what no row has is left out."""
    ratio = f"after / before [{100 * confidence:g}%]"
    among_draws = "median [quartiles]" if spread == "iqr" else "sd of draws"

    def cells(row: Mapping[str, Any]) -> dict[str, str]:
        if spread == "iqr":
            among = interval(row, "median", "q25", "q75")
        else:
            among = f"± {number(row['sd'])}" if pd.notna(row["sd"]) else ""
        among_splits = f"{number(row['splits_mean'])} ± {number(row['splits_sd'])}"
        kept = [number(row[name], ".0f") for name in KEPT if pd.notna(row[name])]
        scale = row["n"] if row["measure"] in MEANS else 1
        forms = (".0f", ".1f") if row["measure"] in COUNTS else (".2f", ".2f")
        return {
            "experiment": row["experiment"],
            "measure": MEASURE_NAMES[row["measure"]],
            "heads": str(row["heads"]),
            "alpha": alpha_name(row["alpha"]),
            "at": row["at"],
            "chosen by": METHOD_NAMES[row["method"]],
            ratio: interval(row, "value", "ci_low", "ci_high") or "not defined",
            "draws": str(row["draws"]),
            among_draws: among,
            "mean of splits": among_splits if row["splits"] > 1 else "",
            "before": number(row["before"] / scale, forms[0]) + share(row["share_before"]),
            "after": number(row["after"] / scale, forms[1]) + share(row["share_after"]),
            "length": number(row["length_ratio"]),
            "repetition": number(row["repetition_ratio"]),
            "nats/token": number(row["nats_per_token"], "+.2f"),
            "several classes": number(row["several"]),
            "no class": number(row["none"]),
            "against": number(row["against"], ".0f"),
            "kept at 5, 10, 20": ", ".join(kept),
            "published": interval(row, "published", "published_low", "published_high"),
            "note": "" if pd.isna(row["flag"]) else row["flag"],
        }

    shown = pd.DataFrame(list(map(cells, table.to_dict("records"))))
    optional = ["mean of splits", "length", "repetition", "nats/token"]
    optional += ["several classes", "no class", "against", "kept at 5, 10, 20"]
    left_out = [name for name in optional if (shown[name] == "").all()]
    left_out += [key for key in ("alpha", "at") if shown[key].nunique() < 2]  # notes say which
    return shown.drop(columns=left_out)


def notes(
    table: pd.DataFrame,
    scores: Scores,
    experiments: Experiments,
    score: Mapping[str, Any],
    seed: int,
) -> Iterator[str]:
    """Yield what a reader of the rows has to know: see :func:`ratio_rows`."""
    has = set(table["measure"])
    facts = {name: own for name, (_, own) in scores.items()}
    classes = {name: own["classes"] for name, own in facts.items() if "classes" in own}
    kinds = {name: f"images of {n} classes" for name, n in classes.items()}
    kinds |= {name: "images" for name, own in experiments.items() if own.get("captions")}
    n = {name: own["sample_id"].nunique() for name, (own, _) in scores.items()}
    read = ", ".join(f"{n[name]} {kinds.get(name, 'prompts')} ({name})" for name in experiments)
    models = ", ".join(dict.fromkeys(own["model"] for own in experiments.values()))
    alphas = ", ".join(map(alpha_name, dict.fromkeys(table["alpha"])))
    places = " or ".join(map(PLACES.get, dict.fromkeys(table["at"])))
    yield f"Model {models}; heads' writes times {alphas} {places}; {read}."
    yield "Ratios are sums over all samples after the intervention over sums before it."
    if "count" in has:
        yield ("Occurrences: of held-out words in responses (of all words where none is held out).")
    if "toxicity" in has:
        judges = ((name, own["classifier"]) for name, own in facts.items() if "classifier" in own)
        said = "; ".join(
            f"{own['name']} for {name}, from a probability of {own['label']} of "
            f"{own['threshold']:g} on ({own['responses']} responses a condition; of all "
            f"conditions' {own['cut']} were cut at {own['limit']} tokens, {own['empty']} are empty)"
            for name, own in judges
        )
        yield f"Toxic responses: those that a classifier, which sees them alone, calls so: {said}."
    if has & set(WITH_LENGTH):
        yield (
            "Length and repetition (repeated pairs of tokens, for each token): relative to the "
            "baseline."
        )
    if "expected" in has:
        shares = ", ".join(
            f"{own['coverage']:.0%} ({name})" for name, own in facts.items() if "coverage" in own
        )
        yield (
            "Expected: the probability of the same words' one-token forms at the positions of the "
            f"baseline's responses, teacher-forced; it sees {shares} of these words. nats/token: "
            "rise of the baseline responses' negative log-likelihood."
        )
    if has & set(ANSWERS):
        yield (
            "Strict: the answer is the class name; first word: it begins with it; before and "
            "after: share of right answers. Several classes and no class: shares of answers after "
            "the intervention."
        )
    if "f1" in has:
        groups = table[table["measure"] == "f1"].groupby("experiment")["n"].first()
        counts = ", ".join(f"{count} of {n[name]} ({name})" for name, count in groups.items())
        yield (
            "F1: SQuAD's, mean over samples; concept: those that a word of the concept answers, in "
            f"any spelling listed, {counts}; others: all others."
        )
    if "cider" in has:
        ends = {name: own["references"] for name, own in facts.items() if "references" in own}
        spans = {name: " to ".join(dict.fromkeys(map(str, own))) for name, own in ends.items()}
        counts = ", ".join(f"{span} ({name})" for name, span in spans.items())
        yield (
            "CIDEr: CIDEr-D, mean over samples, document frequencies over these samples' "
            f"references; references of a sample: {counts}."
        )
    yield (
        f"Brackets: {100 * score['confidence']:g}% paired bootstrap over samples, "
        f"{score['resamples']} resamples, seed {seed}; for random heads, of the mean over draws. "
        "Random heads are matched by layer and disjoint from the first method's."
    )
    if (table["splits"] > 1).any():
        yield (
            "Mean of splits: of the ratio over splits of the words (NAME, NAME-split1, ...), ± "
            "their standard deviation. Each has its own heads and held-out words; prompts and "
            "responses before are the same. Brackets hold the spread between samples alone."
        )
    if {"unrelated", "size"} & set(table["method"]):
        yield (
            "Controls: unrelated words are ranked by the same method over as many tokens of other "
            "words; size ranks by the size of the write alone."
        )


# The figure


def plot(table: pd.DataFrame, draws: pd.DataFrame, colours: Mapping[str, str]):
    """Draw the rows as bars, a row and a column of panels, a group of bars, a bar a method.

    Right answers are comparable between experiments: a panel for each measure and scaling (k, and
    alpha and place where there are several) has a group for each experiment. Otherwise a panel for
    each experiment and measure has a group for each scaling. Bars are ratios with their bootstrap
    interval; dots are single random draws; a black mark is the published value.
    """
    from matplotlib.figure import Figure

    varied = [key for key in ("alpha", "at") if table[key].nunique() > 1]
    table, draws = (own.assign(scaling=_scaling(own, varied)) for own in (table, draws))
    answers = table["measure"].isin(ANSWERS).all()
    keys = ["measure", "scaling", "experiment"] if answers else ["experiment", "measure", "scaling"]
    down, across, groups = (_values(table, key) for key in keys)
    size = (max(4.2, 1.5 * len(groups)) * len(across), 3.1 * len(down))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(down), len(across), squeeze=False, sharey=bool(answers))
    for axis, panel in zip(axes.flat, product(down, across), strict=True):
        own = [part[(part[keys[:2]] == panel).all(axis=1)] for part in (table, draws)]
        _bars(axis, *own, colours, keys[2])
        title = [MEASURE_NAMES.get(value, value) for value in panel]
        axis.set_title(": ".join(reversed(title) if answers else title), fontsize=10)
    for axis in axes[:, 0]:
        worded = table["measure"].isin(["count", "expected"]).all()
        what = "accuracy" if answers else "words" if worded else "measure"
        axis.set_ylabel(f"{what}, after / before")
    handles, labels = axes[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique), fontsize=8
    )
    return figure


def _scaling(table: pd.DataFrame, varied: Sequence[str]) -> pd.Series:
    """Return how many heads each row scales, and of alpha and place those that are varied."""
    said = table["heads"].astype(str) + " heads"
    if "alpha" in varied:
        said += "\nalpha " + table["alpha"].map(alpha_name)
    return said + "\n" + table["at"] if "at" in varied else said


def _values(table: pd.DataFrame, key: str) -> list[str]:
    """Return a column's values in their order, scalings by k and alpha."""
    ordered = table.sort_values(["heads", "alpha"], kind="stable") if key == "scaling" else table
    return list(dict.fromkeys(ordered[key]))


def _bars(axis, table: pd.DataFrame, draws: pd.DataFrame, colours, group: str) -> None:
    """Draw a group of bars, a bar a method, for each value of ``scaling`` or ``experiment``."""
    groups, methods = (_values(table, name) for name in (group, "method"))
    width = 0.8 / len(methods)
    for row in table.itertuples():
        at = getattr(row, group)
        x = groups.index(at) + (methods.index(row.method) - (len(methods) - 1) / 2) * width
        name = METHOD_NAMES[row.method]
        axis.bar(x, row.value, 0.9 * width, color=colours[row.method], label=name, zorder=1)
        limits = [[max(row.value - row.ci_low, 0)], [max(row.ci_high - row.value, 0)]]
        axis.errorbar(x, row.value, limits, color="black", lw=1, capsize=2, zorder=3)
        if row.draws > 1:
            own = draws[(draws["method"] == row.method) & (draws[group] == at)]["value"]
            # Spread evenly from left to right, so that equal draws can be told apart.
            spread = x + np.linspace(-0.3, 0.3, len(own)) * width
            axis.plot(
                spread, own, "o", ms=3, mfc="white", mec="black", mew=0.6, label="random draw"
            )
        if pd.notna(row.published):
            mark = {"color": colours["published"], "marker": "D", "ms": 5, "ls": "none"}
            axis.plot(x, row.published, **mark, mec="white", label="published", zorder=4)
    axis.axhline(1, color="black", lw=0.8, ls=":")
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
