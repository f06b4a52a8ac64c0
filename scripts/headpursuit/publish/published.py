"""Published against reproduced: every value of the paper beside this run's."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from headpursuit.publish.texts import MEASURE_NAMES, METHOD_NAMES, interval, number
from headpursuit.run.experiments import head_name
from headpursuit.run.tables import lay_out

LABELLER = "ollama: llama3.3:70b"
# What a value is of; another text may print another one.
CELL = ["model", "dataset", "concept", "method", "heads", "alpha", "measure"]
# Settings below this share of the captions' CIDEr are not shown, says v2's appendix D.6.
RUINED = 0.5


def paper_heads(published_heads: Mapping[Any, int] | None) -> dict[int, int]:
    """Return the paper's number of heads for a k of this run, where it is another."""
    return {int(own): int(theirs) for own, theirs in (published_heads or {}).items()}


def _counterparts(
    published: pd.DataFrame,
    ratios: pd.DataFrame,
    models: Mapping[str, str],
    published_heads: Mapping[Any, int] | None,
) -> pd.DataFrame:
    """Return published values, each as often as rows of ratios stand beside it, the nearest first.

    These have the same samples, concept, method, heads, alpha and measure; their heads are scaled
    at all positions, and chosen on their own samples. A model of the paper's stands beside its own
    values only, and another beside all. The paper's model is nearest, and then the experiment that
    is named like its samples. ``number`` is the value's, ``own`` the row's, both from 0.
    """
    own = ratios.assign(
        own=range(len(ratios)),
        dataset=ratios["samples"],
        heads=ratios["heads"].replace(paper_heads(published_heads)),
        reader=ratios["model"].map(models),
    )
    own = own[own["at"].eq("all") & own["heads_from"].isna() & ~own["signed"]]
    keys = [key for key in CELL if key != "model"]
    found = published.assign(number=range(len(published)))
    found = found.merge(own[[*keys, "own", "experiment", "reader"]], on=keys)
    found["other"] = found["reader"] != found["model"]
    found["variant"] = found["experiment"] != found["dataset"]
    found = found[~found["other"] | ~found["reader"].isin(published["model"])]
    return found.sort_values(["other", "variant"], kind="stable")


def put_published(
    table: pd.DataFrame,
    published: pd.DataFrame,
    models: Mapping[str, str],
    published_heads: Mapping[Any, int] | None,
) -> pd.DataFrame:
    """Return rows of ratios with the published value of each, its range and source.

    Of several artefacts or models that have a value the first counts.

    Args:
        table: rows of ratios, numbered from 0.
        published: ``data/published.csv``.
        models: the config's names of models to their Hub ids, where they have one.
        published_heads: which published k stands beside a k of this run.
    """
    known = published.dropna(subset="value")
    found = _counterparts(known, table, models, published_heads)
    found = found.drop_duplicates("own").set_index("own")
    return table.assign(
        published=found["value"],
        published_low=found["low"],
        published_high=found["high"],
        published_source=found["source"] + ", " + found["heads"].astype(str) + " heads",
    )


def compare(
    published: pd.DataFrame,
    ratios: pd.DataFrame,
    models: Mapping[str, str],
    labeller: str,
    settings: Mapping[str, Sequence[str]],
    published_heads: Mapping[Any, int] | None,
) -> pd.DataFrame:
    """Put this run's values beside the published ones, a row for each of these, in their order.

    Beside a published median over draws stand the run's median and quartiles over draws; otherwise
    its ratio with the interval over samples.

    Args:
        published: ``data/published.csv``.
        ratios: the rows of all tables of ratios.
        models: the config's names of models to their Hub ids, where they have one.
        labeller: what named the words that are counted.
        settings: experiment to the keys in which it is not the paper's.
        published_heads: this run's k to the published k that stands beside it.
    """
    nearest = {}
    if len(ratios):
        found = _counterparts(published, ratios, models, published_heads)
        nearest = dict(found.drop_duplicates("number")[["number", "own"]].to_numpy())
    values, own_rows = published.to_dict("records"), ratios.to_dict("records")
    rows, texts = [], defaultdict(list)
    for value in values:
        texts[tuple(value[key] for key in CELL)].append(value)
    for place, value in enumerate(values):
        row = {**value, "published": value["value"]}
        remarks = list(_oddities(value, texts))
        if place not in nearest:
            remarks.append("not in this run")
        else:
            own = own_rows[nearest[place]]
            row |= _beside(own, value)
            row |= {"own_heads": own["heads"], "own_model": models[own["model"]]}
            row["labeller"] = labeller if value["concept"] == "toxic" else None
            row["settings"] = " ".join(settings[own["experiment"]]) or None
            differs = {
                "another model": row["own_model"] != value["model"],
                "words from elsewhere": row["labeller"] not in (None, LABELLER),
                "other settings": row["settings"],
            }
            remarks += [said for said, true in differs.items() if true]
            remarks += [own["flag"]] if isinstance(own["flag"], str) and own["flag"] else []
        rows.append(row | {"remarks": "; ".join(remarks)})
    return lay_out("tables/published.csv", rows)


def compare_tokens(
    published: pd.DataFrame, heads: pd.DataFrame, settings: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Put a head's tokens beside those published, a row for each head, method and text.

    The value is how many different tokens are printed, and the run's how many of them are its own.

    Args:
        published: ``data/published_tokens.csv``.
        heads: the rows of all tables of single heads, where these tokens stand beside the run's.
        settings: experiment to the keys in which it is not the paper's.
    """
    rows, own_rows = [], heads.to_dict("records")
    for text in published.to_dict("records"):
        printed = text["tokens"].split()
        keys = ("layer", "head", "method")
        same = [own for own in own_rows if all(own[key] == text[key] for key in keys)]
        own = next((own for own in same if own["published_source"] == text["source"]), None)
        row = {key: text[key] for key in ("model", "dataset", "method", "source")}
        row |= {"artefact": "table1", "measure": "tokens", "statistic": "tokens"}
        row |= {"head": head_name(text["layer"], text["head"]), "published": len(set(printed))}
        remarks = [f"printed: {text['tokens']}"]
        if len(set(printed)) < len(printed):
            remarks.append("the text prints one of them twice")
        if own is None:
            remarks.append("not in this run")
        else:
            row |= {"experiment": own["experiment"], "own": own["overlap"]}
            row |= {"own_model": text["model"], "difference": own["overlap"] - row["published"]}
            row["inside"] = not row["difference"]
            row["settings"] = " ".join(settings[own["experiment"]]) or None
            remarks += [f"this run: {own['tokens']}", *["other settings"] * bool(row["settings"])]
        rows.append(row | {"remarks": "; ".join(remarks)})
    return lay_out("tables/published.csv", rows)


def _oddities(value: Mapping[str, Any], texts: Mapping[Any, list[dict]]) -> Iterator[str]:
    """Say what is odd about a published value, whatever this run has; ``texts`` by their cell."""
    if isinstance(value["note"], str):
        yield value["note"]
    if value["low"] > value["value"] or value["high"] < value["value"]:
        yield "impossible: the published value lies outside its own interval"

    def printed(**changed: Any) -> list[dict]:
        return texts.get(tuple((value | changed)[key] for key in CELL), [])

    for text in printed():
        same = text["statistic"] == value["statistic"]
        if same and text["source"] != value["source"] and text["value"] != value["value"]:
            yield f"{text['source']} prints {text['value']:.2f}"
    if value["measure"] == "occurrences":
        for price in (text["value"] for text in printed(measure="cider", method="random")):
            if price < RUINED:
                yield (
                    f"{price:.2f} of CIDEr is left with random heads, so what is counted here says "
                    "nothing of the concept alone"
                )


def _beside(own: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    over_draws = value["statistic"] == "median_iqr" and own["draws"] > 1
    keys = ("median", "q25", "q75") if over_draws else ("value", "ci_low", "ci_high")
    centre, low, high = (own[key] for key in keys)
    row = {"experiment": own["experiment"], "own": centre, "own_low": low, "own_high": high}
    row["n"] = own["n"]
    if pd.notna(value["value"]):
        row["difference"] = centre - value["value"]
        row["inside"] = bool(low <= value["value"] <= high)
    return row


def display(table: pd.DataFrame) -> pd.DataFrame:
    """Return the comparison as text cells for Markdown and LaTeX."""

    def cells(row: Mapping[str, Any]) -> dict[str, str]:
        tokens = row["measure"] == "tokens"
        same = pd.isna(row["own_heads"]) or row["own_heads"] == row["heads"]
        here = "" if same else f" (here {row['own_heads']})"
        form = ".0f" if tokens else ".2f"
        return {
            "artefact": row["artefact"],
            "model": row["model"].rpartition("/")[2],
            "data set": row["dataset"],
            "concept": "" if pd.isna(row["concept"]) else row["concept"],
            "measure": MEASURE_NAMES.get(row["measure"], row["measure"]),
            "heads": row["head"] if tokens else f"{row['heads']}{here}",
            "alpha": number(row["alpha"], "g"),
            "chosen by": METHOD_NAMES[row["method"]],
            "published": interval(row, "published", "low", "high", form),
            "source": row["source"],
            "this run": interval(row, "own", "own_low", "own_high", form),
            "difference": number(row["difference"], f"+{form}"),
            "inside": "" if pd.isna(row["inside"]) else "yes" if row["inside"] else "no",
            "n": number(row["n"], "d"),
            "remarks": row["remarks"],
        }

    return pd.DataFrame(list(map(cells, table.to_dict("records"))))


def notes(table: pd.DataFrame, run: str) -> Iterator[str]:
    """Yield what a reader of the comparison has to know."""
    own = table[table["own"].notna()]
    yield f"Run {run}: {len(own)} of {len(table)} published values have a counterpart."
    if own.empty:
        return
    others = own[own["own_model"] != own["model"]]
    if len(others):
        mine, theirs = (sorted(set(others[key])) for key in ("own_model", "model"))
        yield (
            f"This run is of another model than the paper ({', '.join(mine)}, not "
            f"{' and '.join(theirs)}): whether its values are near the published ones "
            "says nothing about the paper's numbers."
        )
    decided = own[own["inside"].notna() & (own["measure"] != "tokens")]
    yield (
        f"{decided['inside'].eq(True).sum()} of the {len(decided)} published values lie in this "
        "run's interval over prompts or images; where the published value is a median "
        "over random draws, median and quartiles over draws. The paper does not say how many "
        "prompts or images it used."
    )
    if "tokens" in set(own["measure"]):
        yield (
            "Tokens: how many different ones the text prints of a head, and how many of them are "
            "among the run's; inside: all are."
        )
    for labeller in own["labeller"].dropna().unique():
        yield f"The paper's words are Llama 3.3 70B's, this run's are of {labeller}."
    if "captions" in set(own["artefact"]):
        yield (
            "The paper's word lists of captions are not printed; configs/v2.yaml says where they "
            "are from, and what is taken in their place."
        )
    for keys, experiments in own.groupby("settings")["experiment"].unique().items():
        yield (
            f"Other settings, {', '.join(experiments)}, than config.yaml and configs/v2.yaml, the "
            "paper's configuration (values in this run's config.yaml, reasons in "
            f"docs/choices.md): {', '.join(keys.split())}."
        )
