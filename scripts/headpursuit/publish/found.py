"""What a run found, for a terminal: its ratios in a few lines, its verdicts claim by claim."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten

import pandas as pd

from headpursuit.publish.answer import drawn_interval, headline, tally, weakest
from headpursuit.publish.claims import display
from headpursuit.publish.texts import MEASURE_NAMES, number, ratio_text
from headpursuit.run.experiments import alpha_name, ratio_tables
from headpursuit.run.files import plain
from headpursuit.run.finished import Run, row_names
from headpursuit.run.tables import read_csv

SHOWN = 8  # experiments; with what stands around them, 15 lines
WIDTH = 100


def summary(run: Run) -> Iterator[str]:
    """Say in at most 15 lines what a run found: ratios, random heads, price, and open claims.

    An experiment is a line: the most heads of its first method, its first alpha, and the first
    measure with enough samples.
    """
    paths = [run.results / f"tables/{name}.csv" for name in ratio_tables(run.config)]
    found = [(path, read_csv(path)) for path in paths if path.exists()]
    rows: dict[str, dict[str, str]] = {}
    for _, table in found:
        for name, own in table.groupby("experiment", sort=False):
            rows.setdefault(name, _line(own))
    models = ", ".join(dict.fromkeys(own for _, table in found for own in table["model"]))
    yield f"What {run.results} found" + (f", of {models}:" if rows else ": no ratios.")
    if rows:
        shown = pd.DataFrame(list(rows.values())[:SHOWN])
        shown = shown.loc[:, (shown != "").any()]
        how = {"tablefmt": "plain", "disable_numparse": True}
        yield from shown.to_markdown(index=False, **how).splitlines()
    if len(rows) > SHOWN:
        yield f"and {len(rows) - SHOWN} more experiments in {run.results}/tables"
    if (path := run.results / "tables/claims.csv").exists():
        yield from _counted(read_csv(path))
    yield f"The report: {_command()} open {run.results}"
    if found:
        path, table = found[0]
        row = " ".join(row_names(table, "ratios")[headline(table).index[0]])
        yield f"Behind a number: {_command()} trace {path} {row}"


def _command() -> str:
    """Return how the command is called from here."""
    own = Path(sys.executable).with_name("headpursuit")
    if shutil.which("headpursuit") or not own.exists():
        return "headpursuit"
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)


def _line(table: pd.DataFrame) -> dict[str, str]:
    """Return an experiment's rows of ratios as one line of text cells."""
    rows = headline(table)
    row, random = rows.iloc[0].to_dict(), rows[rows["method"] == "random"]
    same = ["method", "heads", "alpha", "at"]
    price = table["nats_per_token"][(table[same] == rows.iloc[0][same]).all(axis=1)].dropna()
    place = "" if row["at"] == "all" else f", {row['at']}"
    return {
        "experiment": row["experiment"],
        "heads": f"{row['heads']} times {alpha_name(row['alpha'])}{place}",
        "measure": MEASURE_NAMES[row["measure"]],
        "after / before": ratio_text(row),
        "random heads": drawn_interval(random.iloc[0].to_dict()) if len(random) else "",
        "nats/token": number(price.iloc[0], "+.2f") if len(price) else "",
        "note": "" if pd.isna(row["flag"]) else row["flag"],
    }


def _counted(table: pd.DataFrame) -> Iterator[str]:
    """Yield how many verdicts there are of each kind, and what is undecided."""
    yield f"{tally(table)}."
    undecided = table[table["verdict"] == "undecided"]
    open_ones = undecided.groupby("claim", sort=False)["experiment"].unique()
    if len(open_ones):
        said = ", ".join(f"{claim} ({', '.join(own)})" for claim, own in open_ones.items())
        yield shorten(f"Undecided: {said}", WIDTH, placeholder=" ...")


def verdicts(run: Run) -> Iterator[str]:
    """Say of each claim of the paper what a run says of it, the untested ones last.

    Raises:
        UserError: if the run has no verdicts.
    """
    table = read_csv(run.path("tables/claims.csv"))
    cells = display(table, run.config["score"]["confidence"]).assign(name=table["claim"])
    untested = cells["verdict"] == "untested"
    for name, own in cells[~untested].groupby("name", sort=False):
        yield f"\n{name}: {own['claim'].iloc[0]} ({own['in the paper'].iloc[0]})"
        yield from (_verdict(row) for row in own.to_dict("records"))
    if untested.any():
        yield "\nuntested:"
    for row in cells[untested].to_dict("records"):
        yield f"  {row['name']}: {row['claim']} ({row['note']})"


def _verdict(row: Mapping[str, str]) -> str:
    """Return what an experiment and a measure say of a claim."""
    said = [f"{row['tests that agree']} tests agree"]
    said.append(f"the weakest {row[weakest(row)]}, {row['at']}")
    said.append(f"p {row['p, of all']}")
    if row["samples that would decide"]:
        said.append(f"about {row['samples that would decide']} samples would decide")
    said += [row["note"]] if row["note"] else []
    return f"  {row['verdict']}: {row['experiment']}, {row['measure']}: {plain('; '.join(said))}"
