"""The files of a finished run by its experiments' stages, and what names a row of a table."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from headpursuit.method.heads import Condition, Head, read_conditions
from headpursuit.publish.masking import Cover, lexicon_words, offensive_words
from headpursuit.publish.texts import MEASURE_NAMES, METHOD_NAMES
from headpursuit.run.expand import expand
from headpursuit.run.experiments import (
    alpha_name,
    candidate_layers,
    conditions,
    head_name,
    heads_of,
    model_record,
    of_images,
    owners,
    running,
)
from headpursuit.run.files import LOADER, UserError, plain, read_json, read_parquet
from headpursuit.run.schema import described, validator
from headpursuit.run.tables import read_csv
from headpursuit.run.uses import used_sources

# What names a row, by the kind of its table. Of ratios, alpha and place (at) are left out where all
# rows have the same.
ROWS = {
    "ratios": ("experiment", "method", "heads", "alpha", "at", "measure"),
    "heads": ("experiment", "head"),
    "overlaps": ("one", "other", "heads"),
    "published": (
        *("artefact", "dataset", "method", "heads"),
        *("concept", "measure", "alpha", "model", "source"),
    ),
}
# How many of these may be left out, from the end.
OPTIONAL = {"ratios": 1, "published": 5}


def run_folder(path: Path) -> Path:
    """Return the folder of the run that a path is, or lies in; a UserError if it is in none."""
    for folder in (path, *path.absolute().parents):
        if (folder / "config.yaml").is_file() and not (folder / "Snakefile").exists():
            return folder
    here = sorted(own.parent.as_posix() for own in Path("results").glob("*/config.yaml"))
    raise UserError(
        f"{path} is no run's folder and lies in none: a run's folder, results/<run>, has a "
        f"config.yaml. Here there are {', '.join(here) or 'none in results/'}."
    )


def row_keys(table: pd.DataFrame, kind: str) -> list[str]:
    """Return the columns that name the rows of a table."""
    same = [key for key in ("alpha", "at") if kind == "ratios" and table[key].nunique() < 2]
    return [key for key in ROWS[kind] if key not in same]


def row_names(table: pd.DataFrame, kind: str) -> list[tuple[str, ...]]:
    """Return what names each row of a table."""
    if kind == "heads":
        table = table.assign(head=list(map(head_name, table["layer"], table["head"])))
    if kind == "ratios":
        table = table.assign(alpha=table["alpha"].map(alpha_name))
    if kind == "published":  # of tokens, those of one head
        heads = table["head"].fillna(table["heads"].astype(float).map("{:g}".format))
        table = table.assign(heads=heads, alpha=table["alpha"].map("{:g}".format)).fillna("")
    return list(table[row_keys(table, kind)].astype(str).itertuples(index=False, name=None))


def as_in_files(wanted: Sequence[str], names: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return what names a row as the rows have it, of what tables show (SOMP, exact match)."""
    shown = {shown.casefold(): own for own, shown in (METHOD_NAMES | MEASURE_NAMES).items()}
    known = {part for own in names for part in own}
    return tuple(one if one in known else shown.get(one.casefold(), one) for one in wanted)


def _config_of(results: Path) -> dict[str, Any]:
    """Return a run's config, keys that are newer than the run filled in.

    Raises:
        UserError: if it is no config, or one of another version with other keys.
    """
    path = results / "config.yaml"
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), LOADER)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not readable YAML: {plain(error)}.") from error
    config = expand(config) if isinstance(config, dict) else config
    strange = sorted(
        found for error in validator().iter_errors(config) for found in described(error)
    )
    if strange:
        listed = "; ".join(f"{key}: {said}" for key, said in strange[:3])
        raise UserError(
            f"{path} is of another version, or no run's: {listed} Read the run with the version "
            "that made it, or run it again with this one."
        )
    return config


class Run:
    """A run's files, and its texts with offensive words masked."""

    def __init__(self, results: Path, top: int = 10, unmasked: bool = False) -> None:
        """Read the config; ``top`` is how many of anything are shown."""
        self.results, self.top, self.unmasked = results, top, unmasked
        self.config = _config_of(results)
        self.owners = owners(self.config)

    @cached_property
    def cover(self) -> Cover:
        """What masks offensive words."""
        own = self.config, self.results
        return Cover([] if self.unmasked else offensive_words(*own) | lexicon_words(*own))

    def name(self, pattern: str, experiment: str) -> str:
        """Return the file of an experiment's stage, relative to the run's folder."""
        return pattern.format(**self.owners[experiment])

    def written(self, experiment: str, condition: str) -> str:
        """Return the files (``*``) of the responses under a condition, or of the baseline's."""
        kind = "baseline" if condition == "baseline" else "scaled"
        return self.name(f"responses/{{{kind}}}/{kind}/part-*.parquet", experiment)

    def path(self, name: str) -> Path:
        """Return a file that has to be there."""
        if not (self.results / name).exists():
            raise UserError(f"{self.results / name} is not there.")
        return self.results / name

    def csv(self, name: str, columns: list[str]) -> pd.DataFrame:
        """Read a CSV table."""
        return read_csv(self.path(name), columns)

    def parquet(self, name: str, columns: list[str] | None = None, **equal: Any) -> pd.DataFrame:
        """Read rows of a table, or of all its parts (``*``), whose columns have these values."""
        numbers = range(1, 1 + (self.config["compute"]["parts"] if "*" in name else 1))
        paths = [self.path(name.replace("*", str(number))) for number in numbers]
        filters = [(key, "in" if isinstance(own, list) else "=", own) for key, own in equal.items()]
        parts = [read_parquet(path, columns, filters or None).to_pandas() for path in paths]
        return pd.concat(parts, ignore_index=True)

    def experiment(self, name: str) -> dict[str, Any]:
        """Return what the config says of an experiment; UserError if it has none of that name."""
        if name not in running(self.config):
            there = ", ".join(running(self.config))
            raise UserError(f"{self.results} has no experiment {plain(name)}; there are {there}.")
        return self.config["experiments"][name]

    def condition(self, name: str, condition: str) -> Condition:
        """Return what a condition of an experiment scales; UserError if there is none."""
        self.experiment(name)
        known = conditions(self.config, name, "expected")  # which has all draws
        if condition not in known:
            raise UserError(
                f"{name} has no condition {plain(condition)}; there are {', '.join(known)}."
            )
        kind = "random" if condition.startswith("random-") else "selected"
        path = self.path(self.name(f"heads/{{{kind}}}/{kind}.csv", name))
        signed = [self.path(self.name("rankings/{rankings}.csv", name))]
        signed = signed if self.experiment(name)["signed"] else []
        return read_conditions([path], {condition: known[condition]}, signed)[condition]

    def heads(self, name: str, condition: str) -> Sequence[Head]:
        """Return the heads that a condition of an experiment scales; UserError without any."""
        return self.condition(name, condition).heads

    def model_record(self, model: str) -> Path:
        """Return the record of a model's files."""
        return self._resource(model_record(self.config, model))

    def _resource(self, name: str) -> Path:
        """Return a file of resources/, which lies beside results/; UserError if it is not there."""
        path = self.results.absolute().parents[1] / "resources" / name
        if not path.exists():
            raise UserError(
                f"{path} is not there: downloads are in resources/ beside results/. Work where "
                "the run was made, or make the file with Snakemake."
            )
        return path

    def revisions(self) -> dict[str, Any]:
        """Return as an overlay the commit that each of the run's downloads from the Hub is of.

        Raises:
            UserError: if one is not downloaded, or another repository's lies in its place.
        """
        found = {}
        for name, spec in used_sources(self.config).items():
            if spec["kind"] == "hub":
                found[name] = {"revision": self.source_record(name)["commit"]}
        return {"sources": found}

    def source_record(self, name: str) -> dict[str, Any]:
        """Return what is recorded of a download; UserError if it is not there, or of another."""
        record = read_json(path := self._resource(f"{name}/provenance.json"))
        wanted = self.config["sources"][name].get("id")
        if record.get("id") != wanted:
            raise UserError(f"{path} is of {record.get('id')}, and the run of {wanted}.")
        return record

    def page(self, name: str | None = None) -> Path:
        """Return a page of the report, its first by default, or another file of the run.

        Raises:
            UserError: if it is not there.
        """
        folder = self.results / "report"
        wanted = [folder / f"{name}.html", self.results / name] if name else []
        for path in wanted or [self.results / "report.html", folder / "answer.html"]:
            if path.is_file():
                return path
        pages = ", ".join(sorted(path.stem for path in folder.glob("*.html")))
        raise UserError(
            f"{self.results} has no page {plain(name)}; there are {pages}."
            if name and pages
            else f"{folder} is not there: run Snakemake again, which makes the report's pages."
        )

    def has_images(self, name: str) -> bool:
        """Say whether an experiment's samples are images."""
        return of_images(self.config["samples"][self.experiment(name)["samples"]])

    def table(self, name: str) -> pd.DataFrame:
        """Return a published table, such as ``table2`` or ``concepts.overlap``."""
        return self.csv(f"tables/{name}.csv", [])

    def samples(self, name: str) -> pd.DataFrame:
        """Return an experiment's samples: sample_id, text, rendered, token_ids and others."""
        return self._frame("samples/{samples}.parquet", name)

    def responses(self, name: str, condition: str = "baseline") -> pd.DataFrame:
        """Return the responses of the model as it is, or under a condition."""
        self.experiment(name)
        table = self.parquet(self.written(name, condition))
        found = table[table["condition"] == condition]
        if found.empty:
            there = ", ".join(table["condition"].unique())
            raise UserError(f"{self.results}: no responses under {condition}; there are {there}.")
        return found.sort_values(["sample_id", "repeat"], ignore_index=True)

    def words(self, name: str) -> pd.DataFrame:
        """Return an experiment's words and their split, ``selection`` or ``heldout``."""
        return self._frame("words/{words}.csv", name)

    def rankings(self, name: str) -> pd.DataFrame:
        """Return every head's score, rank and atoms, by each method."""
        return self._frame("rankings/{rankings}.csv", name)

    def scores(self, name: str) -> pd.DataFrame:
        """Return each measure before and after: condition, sample_id, measure, before, after."""
        return self._frame("scores/{scores}.parquet", name)

    def _frame(self, pattern: str, experiment: str) -> pd.DataFrame:
        self.experiment(experiment)
        name = self.name(pattern, experiment)
        return self.csv(name, []) if name.endswith(".csv") else self.parquet(name)


def read_run(folder: str | Path) -> Run:
    """Return a finished run, whose methods give its files as data frames.

    ``table("table2")``, and of an experiment ``samples``, ``responses``, ``words``, ``rankings``,
    ``scores`` and ``heads``; ``config`` is the config in force. Texts are as they are, unmasked.

    Raises:
        UserError: if the folder is no run's, or of another version.
    """
    return Run(run_folder(Path(folder)))


def left_out(run: Run, name: str, ranking: pd.DataFrame, heads: Sequence[Head]) -> Iterator[str]:
    """Say which heads rank before the last of these, but lie outside the candidate layers."""
    chooser = run.experiment(heads_of(run.config, name))
    first, last = candidate_layers(chooser, run.config["models"][chooser["model"]])
    lowest = ranking.set_index(["layer", "head"]).loc[list(heads), "rank"].max()
    rows = ranking[(ranking["rank"] < lowest) & ~ranking["layer"].between(first, last)]
    shown = [f"{row.rank}: {head_name(row.layer, row.head)}" for row in rows.itertuples()]
    if shown:
        more = f" and {len(shown) - run.top} more" if len(shown) > run.top else ""
        yield f"  left out, as candidates are layers {first} to {last} (first_layer, last_layer):"
        yield f"    ranks {', '.join(shown[: run.top])}{more}"
