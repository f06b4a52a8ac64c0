"""The paper's claims, and what a run says of each: data/claims.yaml, docs/statistics.md."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from headpursuit.publish.against import Key
from headpursuit.publish.answer import tally
from headpursuit.publish.published import paper_heads
from headpursuit.publish.statistics import quantile, tail
from headpursuit.publish.texts import MEASURE_NAMES, METHOD_NAMES, interval, number
from headpursuit.run.tables import lay_out

Claim = Mapping[str, Any]
# Of fewer random draws one cannot tell how much they differ.
LEAST_DRAWS = 5


@dataclass
class Run:
    """What of a run decides: its tables' rows, once each, with what is known of their experiments.

    ``tests`` are the rows of ``tables/{table}.tests.csv``, ``overlaps`` those of
    ``tables/{table}.overlap.csv``, of all tables; ``experiments`` says of each its ``samples``,
    ``concept``, ``reads`` (prompts or images), whether its concept has words ``held_out`` and
    whether its heads are ``signed``; ``published_heads`` which of the paper's numbers of heads
    stands beside one of the run's.
    """

    tests: pd.DataFrame
    overlaps: pd.DataFrame
    experiments: Mapping[str, Mapping[str, Any]]
    published_heads: Mapping[Any, int] | None
    confidence: float

    def __post_init__(self) -> None:
        """Leave out the rows of experiments that stand in another table, too, and variants.

        Each variant that is judged makes all verdicts harder; their own tables show them.
        """
        if len(rows := self.overlaps):
            self.overlaps = rows.drop_duplicates(["heads", "one", "other"])
        if len(rows := self.tests):
            variants = rows["experiment"][rows["against"] == "original"]
            keys = ["experiment", *Key._fields, "against", "against_heads"]
            self.tests = rows[~rows["experiment"].isin(variants)].drop_duplicates(keys)
        self.published_heads = paper_heads(self.published_heads)


def read_claims(path: str | Path) -> dict[str, Claim]:
    """Read data/claims.yaml: a claim's name to what it says, where, and its test."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def judge(claims: Mapping[str, Claim], run: Run) -> pd.DataFrame:
    """Return a row for each claim and each experiment and measure that it is tested on.

    A claim is supported where every test says so, contradicted where one says the opposite, and
    else undecided. The p of all rows together are Holm's, so that chance alone supports anything in
    at most one less ``confidence`` of runs.
    """
    rows = []
    for name, claim in claims.items():
        same = {"claim": name, "says": claim["claim"], "place": claim["place"]}
        tests, why = _tests(claim, run)
        groups = tests.groupby(["experiment", "measure"], sort=False) if len(tests) else ()
        rows += [same | _group(claim, run, *key, own) for key, own in groups]
        if tests.empty:
            rows.append(same | {"verdict": "untested", "remarks": why})
    tested = [row for row in rows if row["verdict"] != "untested"]
    level, running = 1 - run.confidence, 0.0
    for place, row in enumerate(sorted(tested, key=lambda row: row["p"])):
        running = max(running, min(1.0, row["p"] * (len(tested) - place)))
        row["p"] = running
        if running > level:
            row["verdict"] = "undecided"
    z = quantile(1 - level / max(len(tested), 1) / 2, inf)
    for row in tested:
        if row["verdict"] == "undecided" and row["hopeful"]:
            row |= _deciding(row, z)
    return lay_out("tables/claims.csv", rows)


def _deciding(row: Mapping[str, Any], z: float) -> dict[str, Any]:
    """Return about how many samples would decide a test at z, if its ratio stayed what it is."""
    left = (row["z"] / z) ** 2 - row["of_draws"]
    if left <= 0:
        far = "no number of samples would decide: random draws differ as much"
        return {"remarks": "; ".join(filter(None, [row["remarks"], far]))}
    n = row["n"] * max(1.0, (1 - row["of_draws"]) / left)
    return {"samples": int(min(n, 1e9)) + 1}


def _tests(claim: Claim, run: Run) -> tuple[pd.DataFrame, str]:
    """Return the tests of a claim, and if there are none why so."""
    if said := claim.get("untested"):
        return pd.DataFrame(), said
    if "pairs" in claim:
        return _shared(claim, run)
    if run.tests.empty:
        return run.tests, "this run has no table of ratios"
    facts = pd.DataFrame.from_dict(run.experiments, orient="index")
    rows = run.tests.drop(columns=facts.columns, errors="ignore").join(facts, on="experiment")
    rows = rows.assign(paper_heads=rows["heads"].replace(run.published_heads))
    wanted, other = {"at": "all", "signed": False, **claim["where"]}, claim["against"]
    fewer = rows["against"].eq(rows["method"])
    if other == "fewer":
        rows = rows[fewer & rows["against_heads"].replace(run.published_heads).eq(claim["fewer"])]
    else:
        rows = rows[rows["against"].eq(other) & ~fewer]
    named = f"{claim['fewer'] if other == 'fewer' else METHOD_NAMES.get(other, other)} heads"
    if rows.empty:
        return rows, f"no row is compared with {named}"
    pairs = [tuple(pair) for pair in claim.get("crossed", ())]
    source = facts.reindex(rows["heads_from"].fillna(rows["experiment"])).set_index(rows.index)
    if pairs:
        chosen = [own in pairs for own in zip(rows["samples"], source["samples"], strict=True)]
    elif claim.get("heads_of") == "concept":
        chosen = source["concept"].eq(rows["concept"])
    else:
        chosen = rows["heads_from"].isna()
    rows = rows[chosen]
    if rows.empty:
        return rows, f"no such heads of another experiment are compared with {named}"
    for key, value in wanted.items():
        rows = rows[_has(rows, key, value)]
        if rows.empty:
            return rows, f"none of its experiments {_lacks(key, value)}"
    if left_out := claim.get("except"):
        apart = [_has(rows, key, value) for key, value in left_out.items()]
        rows = rows[~pd.concat(apart, axis=1).all(axis=1)]
    bound, sign = claim.get("than", 1), -1 if claim["is"] == "lower" else 1
    rows = rows.assign(z=[sign * _z(row, bound, run.confidence) for row in rows.to_dict("records")])
    # Beyond every random draw, beside what the interval says.
    passed = rows["below"].where(sign * rows["z"] > 0, rows["above"])
    beyond = passed.eq(rows["draws"]) | (other != "random")
    few = rows["draws"].lt(LEAST_DRAWS) & (rows["method"].eq("random") | (other == "random"))
    rows = rows.assign(z=rows["z"].mask(few, 0.0))
    rows = rows.assign(beyond=beyond, p=[2 * tail(abs(z), inf) for z in rows["z"]])
    rows = rows.assign(said=(rows["z"] > 0) & beyond)
    return (_joined(rows, also, claim, run) if (also := claim.get("also")) else rows), ""


def _joined(rows: pd.DataFrame, also: Claim, claim: Claim, run: Run) -> pd.DataFrame:
    """Return tests that hold only where the same heads do something else, too."""
    measure = {"measure": also["measure"]} if "measure" in also else {}
    keys = ["experiment", "method", "heads", "alpha", "at", *([] if measure else ["measure"])]
    of = {"heads_of": claim.get("heads_of")}
    other, _ = _tests({**of, **also, "where": {**claim["where"], **measure}}, run)
    weak = ["said", "p", "z", "of_draws"]
    other = other.reindex(columns=[*keys, *weak, "draws"])
    both = rows.merge(other, on=keys, how="left", suffixes=("", "_also"))
    so = both["said_also"].eq(True)
    both = both.assign(said=both["said"] & so, so=so)
    # The weaker of the two counts; what says the opposite does so by itself.
    weaker = so & (both["z_also"] < both["z"])
    return both.assign(**{key: both[key].mask(weaker, both[f"{key}_also"]) for key in weak[1:]})


def _lacks(key: str, value: Any) -> str:
    if key == "held_out":
        return "has held-out words"
    values = [
        MEASURE_NAMES.get(own, own) for own in (value if isinstance(value, list) else [value])
    ]
    verb = {"reads": "reads", "measure": "measures"}.get(key, f"has {key}")
    return f"{verb} {' or '.join(map(str, values))}"


def _has(rows: pd.DataFrame, key: str, value: Any) -> pd.Series:
    values = value if isinstance(value, list) else [value]
    return rows["paper_heads" if key == "heads" else key].isin(values)


def _z(row: Mapping[str, Any], bound: float, confidence: float) -> float:
    """Return how many standard errors a ratio lies above a bound, as the normal one has them."""
    if pd.isna(row["value"]) or row["flag"] in ("baseline is 0", "baseline no better than chance"):
        return 0.0
    if bound == 1:
        size = quantile(1 - max(row["p"], 1e-15) / 2, inf)
        return size if row["value"] > 1 else -size
    if row["value"] == 0:
        return -inf
    # The interval is about symmetric in the logarithm.
    end = row["low"] if row["value"] > bound else row["high"]
    return (
        quantile((1 + confidence) / 2, inf)
        * log(row["value"] / bound)
        / abs(log(end / row["value"]))
    )


def _shared(claim: Claim, run: Run) -> tuple[pd.DataFrame, str]:
    """Return as tests how many heads pairs of experiments share."""
    samples = {name: own["samples"] for name, own in run.experiments.items()}
    pairs = {frozenset(pair) for pair in claim["pairs"]}
    found = [
        {
            "experiment": f"{row['one']}, {row['other']}", "measure": "jaccard",
            "heads": row["heads"], "alpha": None, "value": row["jaccard"], "low": None,
            "high": None, "p": row["p"], "z": -quantile(min(row["p"], 0.5), inf),  # 1 - p may be 1
            "said": row["jaccard"] > row["chance"], "beyond": True, "draws": 0, "n": None,
            "flag": None, "of_draws": None,
        }
        for row in run.overlaps.to_dict("records")
        if frozenset([samples[row["one"]], samples[row["other"]]]) in pairs
        and run.published_heads.get(row["heads"], row["heads"]) in claim["heads"]
    ]  # fmt: skip
    return pd.DataFrame(found), "no two of its experiments are such a pair"


def _group(
    claim: Claim, run: Run, experiment: str, measure: str, tests: pd.DataFrame
) -> dict[str, Any]:
    """Return what an experiment and a measure say of a claim, before Holm's correction."""
    against = tests[(tests["z"] < 0) & tests["beyond"]]
    wrong = min(1.0, against["p"].min() * len(tests)) if len(against) else 1.0
    right = tests["p"].max() if tests["said"].all() else 1.0
    # First those that do not agree: however far beyond its bound, one keeps the claim undecided.
    weakest = tests.sort_values(["said", "z"], kind="stable").iloc[0].to_dict()
    return {
        **{"experiment": experiment, "measure": measure, "p": min(right, wrong)},
        "verdict": "supported" if right <= wrong and tests["said"].all() else "contradicted",
        **{"tests": len(tests), "agreeing": int(tests["said"].sum())},
        **{name: weakest[name] for name in ("heads", "alpha", "value", "low", "high", "n")},
        **{name: weakest[name] for name in ("z", "of_draws")},
        # More of the same samples may decide what they already say, if faintly.
        "hopeful": bool(weakest["said"] and weakest["n"]),
        "remarks": "; ".join(_remarks(claim, weakest)),
    }


def _remarks(claim: Claim, row: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(row["flag"], str) and row["flag"]:
        yield row["flag"]
    if 1 <= row["draws"] < LEAST_DRAWS and "random" in (claim.get("against"), row.get("method")):
        yield _few(row["draws"])
    if not row.get("so", True):
        drawn = row["draws_also"]
        if pd.isna(drawn):
            yield "these heads are not compared with random ones"
        elif drawn < LEAST_DRAWS:
            yield _few(drawn)
        else:
            yield "random heads do as much, or nearly"
    if claim.get("against") == "random":
        side = "below" if claim["is"] == "lower" else "above"
        if row[side]:
            yield f"{int(row[side])} of {row['draws']} random draws lie {side}"


def _few(draws: int) -> str:
    return f"too few random draws: {draws:g}, and {LEAST_DRAWS} are needed"


def display(table: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Return the verdicts as text cells for Markdown and LaTeX."""

    def cells(row: Mapping[str, Any]) -> dict[str, str]:
        tested = row["verdict"] != "untested"
        at = [f"{row['heads']:g} heads"] if tested else []
        at += [f"alpha {row['alpha']:g}"] if pd.notna(row["alpha"]) else []
        return {
            "claim": row["says"],
            "in the paper": row["place"],
            "verdict": row["verdict"],
            "experiment": row["experiment"] if tested else "",
            "measure": MEASURE_NAMES.get(row["measure"], row["measure"]) if tested else "",
            "tests that agree": f"{row['agreeing']:g} of {row['tests']:g}" if tested else "",
            f"the weakest [{100 * confidence:g}%]": interval(row, "value", "low", "high"),
            "at": ", ".join(at),
            "p, of all": number(row["p"], ".2g"),
            "samples": number(row["n"], ".0f"),
            "samples that would decide": number(row["samples"], ",.0f"),
            "note": row["remarks"] if isinstance(row["remarks"], str) else "",
        }

    return pd.DataFrame(list(map(cells, table.to_dict("records"))))


def notes(table: pd.DataFrame, run: str, model: Sequence[str], confidence: float) -> Iterator[str]:
    """Yield what a reader of the verdicts has to know."""
    yield (
        f"Run {run}, of {' and '.join(model) or 'no model'}: {tally(table)}. The verdicts are on "
        "these models; of the paper's they say nothing where they are others."
    )
    yield (
        "A ratio is after over before, or over what it is compared with, on the same samples. "
        "Supported: every test of the experiment says so. Contradicted: a test says the "
        "opposite. Against random heads, either needs a ratio beyond every draw. Undecided: "
        "neither, which is no evidence. The p of all rows together are Holm's: chance alone, of "
        f"samples and draws, supports anything in at most {100 * (1 - confidence):.2g}% of runs."
    )
    yield (
        "Variants of an experiment are not judged; their table shows them all. "
        "Samples that would decide: about how many, if the weakest test's ratio stayed what it is. "
        "The tests stand in data/claims.yaml and were written before any run was judged by them."
    )
