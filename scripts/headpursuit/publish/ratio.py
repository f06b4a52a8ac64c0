"""Ratios: a measure after the heads were scaled over the same before.

One row has one layout whatever was measured: occurrences of words, their expected probability, or
right answers about images.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from headpursuit.publish.against import Key, Measured, comparisons, measured
from headpursuit.publish.statistics import ratio
from headpursuit.publish.texts import (
    MEASURE_NAMES,
    METHOD_NAMES,
    by_text,
    interval,
    limits,
    number,
    ratio_text,
)
from headpursuit.run.experiments import alpha_name, condition_name, scalings
from headpursuit.run.files import parquet_metadata, read_parquet
from headpursuit.run.tables import lay_out

KEPT = ("kept_5", "kept_10", "kept_20")
# Whole numbers, of which the smaller say less.
COUNTS = ("occurrences", "toxicity")
WITH_LENGTH = (*COUNTS, "cider")
# Where heads are scaled.
PLACES = {
    "all": "at all positions",
    "prompt": "in what is read before the response",
    "image": "in the image tokens",
    "response": "in the response",
}
# Right answers are shown as a share of the samples, and so are other means over them.
ANSWERS = ("exact_match", "first_word")
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
    scores: Scores, experiments: Experiments, score: Mapping[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return a row for each experiment, method, number of heads, alpha, place and measure.

    Beside them stand the single draws, and how sets of heads compare with each other:
    :func:`headpursuit.publish.against.comparisons`.

    Args:
        scores: experiment to its scores and their metadata: ``coverage`` (share of the measured
            words that `expected` sees), ``classes`` (how many an image may have) and
            ``classifier`` (what called responses toxic).
        experiments: of each its samples, model, alpha, at, heads_from, signed, methods, k, draws
            and family (the experiment that it is a further split of, or itself).
        score: the config's ``score``.
    """
    rows, draws = [], []
    sets: dict[str, dict[Key, Measured]] = {name: {} for name in experiments}
    flags = {}
    for name, own in experiments.items():
        table, facts = scores[name]
        parts = dict(list(table.groupby(["condition", "measure"], sort=False)))
        same = {key: own[key] for key in ("samples", "model", "concept", "heads_from", "signed")}
        methods = [*own["methods"], "random"]
        every = product(methods, own["k"], scalings(own), MEASURE_NAMES)
        for method, k, (alpha, at), measure in every:
            several = range(own["draws"]) if method == "random" else [None]
            conditions = [condition_name(method, k, draw, alpha, at) for draw in several]
            # Some draws write no responses.
            if not (own_draws := [one for one in conditions if (one, measure) in parts]):
                continue
            key = Key(method, k, alpha, at, measure)
            found = sets[name][key] = measured(parts, own_draws, measure)
            row, values = _ratio(parts, found, measure, facts, score)
            flags[name, measure] = row["flag"]
            named = {"experiment": name, **key._asdict()}
            rows.append(named | same | row)
            draws += [{**named, "draw": draw, "value": value} for draw, value in enumerate(values)]
    table = put_splits(lay_out("tables/{table}.csv", rows), experiments)
    compared = comparisons(sets, experiments, flags, score["confidence"])
    return table, lay_out("tables/{table}.draws.csv", draws), compared


def _ratio(
    parts: Mapping[tuple[str, str], pd.DataFrame],
    own: Measured,
    measure: str,
    facts: Mapping[str, Any],
    score: Mapping[str, Any],
) -> tuple[dict[str, Any], np.ndarray]:
    """Return what a row says of a set of heads, or of random draws of it, and each draw's ratio."""

    def total(name: str, when: str) -> float:
        return pd.concat([parts[condition, name][when] for condition in own.conditions]).sum()

    before, after = own.before[None], own.after
    values = np.array([over(each.sum(), before.sum()) for each in after])
    over_samples = ratio(before, after, score["confidence"])
    row = {
        **{"value": values.mean(), "ci_low": over_samples.low, "ci_high": over_samples.high},
        **{"draws": len(values), "before": before.sum(), "after": after.sum(axis=1).mean()},
        **{"n": len(own.before), "coverage": 1.0},
        "flag": _flag(own.before, measure, facts, score),
    }
    if len(values) > 1:
        q25, q75 = np.quantile(values, [0.25, 0.75])
        row |= {"sd": values.std(ddof=1), "median": np.median(values), "q25": q25, "q75": q75}
        over_both = ratio(before, after, score["confidence"], "mean")
        row |= {"both_low": over_both.low, "both_high": over_both.high}
    if measure == "expected":
        rise = total("nll", "after") - total("nll", "before")
        row["nats_per_token"] = over(rise, total("positions", "before"))
        row["coverage"] = facts["coverage"]
    elif measure in ANSWERS:
        n = own.after.size
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


def put_splits(table: pd.DataFrame, experiments: Experiments) -> pd.DataFrame:
    """Return rows of ratios with their mean and standard deviation over splits of the words."""
    family = table["experiment"].map({name: own["family"] for name, own in experiments.items()})
    keys = [table[key] for key in ("method", "heads", "alpha", "at", "measure")]
    values = table.groupby([family, *keys], dropna=False)["value"]
    n = values.transform("size")
    mean, sd = (values.transform(what).where(n > 1) for what in ("mean", "std"))
    return table.assign(splits=n, splits_mean=mean, splits_sd=sd)


# Texts


def share(value: Any) -> str:
    """Return what stands behind a number of responses; nothing where it is missing."""
    return "" if pd.isna(value) else f" ({value:.1%})"


def _beside_draws(row: Mapping[str, Any] | None) -> str:
    """Return a ratio over random heads, and its rank among the draws."""
    if row is None or pd.isna(row["value"]):
        return ""
    rank = f"rank {row['below'] + 1} of {row['draws'] + 1}"
    return f"{interval(row, 'value', 'low', 'high')}, {rank}"


def display(
    table: pd.DataFrame, compared: pd.DataFrame, spread: str, confidence: float
) -> pd.DataFrame:
    """Return the rows as text cells for Markdown and LaTeX; what no row has is left out.

    ``compared`` are the comparisons of :func:`ratio_rows`; those with random heads are shown.
    """
    level = f"[{100 * confidence:g}%]"
    with_random = compared[compared["against"] == "random"].set_index(["experiment", *Key._fields])
    over_random = with_random.to_dict("index")
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
            f"after / before {level}": ratio_text(row),
            f"and draws {level}": limits(row, "both_low", "both_high"),
            f"over random {level}": _beside_draws(
                over_random.get((row["experiment"], *(row[key] for key in Key._fields)))
            ),
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
            "opposed": number(row["opposed"], ".0f"),
            "kept at 5, 10, 20": ", ".join(kept),
            "published": interval(row, "published", "published_low", "published_high"),
            "note": "" if pd.isna(row["flag"]) else row["flag"],
        }

    shown = pd.DataFrame(list(map(cells, table.to_dict("records"))))
    always = {among_draws, "published", "note"}
    left_out = [name for name in shown if (shown[name] == "").all() and name not in always]
    left_out += [key for key in ("alpha", "at") if shown[key].nunique() < 2]  # notes say which
    return shown.drop(columns=left_out)


def notes(
    table: pd.DataFrame,
    scores: Scores,
    experiments: Experiments,
    score: Mapping[str, Any],
) -> Iterator[str]:
    """Yield what a reader of the rows has to know: see :func:`ratio_rows`."""
    has = set(table["measure"])
    facts = {name: own for name, (_, own) in scores.items()}
    classes = {name: own["classes"] for name, own in facts.items() if "classes" in own}
    kinds = {name: f"images of {n} classes" for name, n in classes.items()}
    kinds |= {name: "images" for name, own in experiments.items() if own.get("captions")}
    n = {name: own["sample_id"].nunique() for name, (own, _) in scores.items()}
    read = by_text({name: f"{n[name]} {kinds.get(name, 'prompts')}" for name in experiments})
    models = ", ".join(dict.fromkeys(own["model"] for own in experiments.values()))
    alphas = ", ".join(map(alpha_name, dict.fromkeys(table["alpha"])))
    places = " or ".join(map(PLACES.get, dict.fromkeys(table["at"])))
    yield f"Model {models}; heads' writes times {alphas} {places}; {read}."
    yield "Ratios are sums over all samples after the intervention over sums before it."
    if "occurrences" in has:
        yield ("Occurrences: of held-out words in responses (of all words where none is held out).")
    if "toxicity" in has:
        judges = ((name, own["classifier"]) for name, own in facts.items() if "classifier" in own)
        said = "; ".join(
            f"{own['name']} for {name}, from a probability of {own['label']} of "
            f"{own['threshold']:g} on ({own['responses']} responses a condition; of all "
            f"conditions' {own['cut']} were cut at {own['limit']} tokens, {own['empty']} are empty)"
            for name, own in judges
        )
        yield f"Toxicity: responses that a classifier, which sees them alone, calls toxic: {said}."
    if has & set(WITH_LENGTH):
        yield (
            "Length and repetition (repeated pairs of tokens, for each token): relative to the "
            "baseline."
        )
    if "expected" in has:
        seen = {name: own["coverage"] for name, own in facts.items() if "coverage" in own}
        shares = by_text({name: f"{share:.0%}" for name, share in seen.items()})
        yield (
            "Expected: the probability of the same words' one-token forms at the positions of the "
            f"baseline's responses, teacher-forced; it sees {shares} of these words. nats/token: "
            "rise of the baseline responses' negative log-likelihood."
        )
    if has & set(ANSWERS):
        yield (
            "Exact match: the answer is the class name; first word: it begins with it; before and "
            "after: share of right answers. Several classes and no class: shares of answers after "
            "the intervention."
        )
    if "f1" in has:
        groups = table[table["measure"] == "f1"].groupby("experiment")["n"].first()
        counts = by_text({name: f"{count} of {n[name]}" for name, count in groups.items()})
        yield (
            "F1: SQuAD's, mean over samples that a word of the concept answers, in "
            f"any spelling listed, {counts}; F1, others: over all others."
        )
    if "cider" in has:
        ends = {name: own["references"] for name, own in facts.items() if "references" in own}
        spans = {name: " to ".join(dict.fromkeys(map(str, own))) for name, own in ends.items()}
        counts = by_text(spans)
        yield (
            "CIDEr: CIDEr-D, mean over samples, document frequencies over these samples' "
            f"references; references of a sample: {counts}."
        )
    level = f"{100 * score['confidence']:g}%"
    yield (
        f"Brackets: {level} score intervals over samples (docs/statistics.md); for random heads of "
        'the mean of these draws, and under "and draws" of the mean of all there might be. Over '
        "random: the ratio to the random draws' mean, against the chance of samples and of one "
        "more random draw, and where it ranks among the draws from the lowest up. Random heads are "
        "of the same layers (a crowded layer's from its neighbours) and none of the first method's."
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
