"""The files of a finished run by its experiments' stages, and what names a row of a table."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from headpursuit.publish.masking import Cover, offensive_words
from headpursuit.publish.table1 import head_name
from headpursuit.run.experiments import of_images, owners
from headpursuit.run.files import UserError, read_parquet
from headpursuit.run.tables import read_csv

# What names a row, by the kind of its table. In a table of ratios the measure may be left out.
ROWS = {
    "ratios": ("experiment", "method", "heads", "measure"),
    "heads": ("experiment", "head"),
    "overlaps": ("one", "other", "heads"),
    "published": ("artefact", "dataset", "method", "heads"),
}


def run_folder(path: Path) -> Path:
    """Return the folder of the run that a path is, or lies in; a UserError if it is in none."""
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


class Run:
    """A run's files, and its texts with offensive words masked."""

    def __init__(self, results: Path, top: int, unmasked: bool) -> None:
        """Read the config; ``top`` is how many of anything are shown."""
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
        """Return a file that has to be there."""
        if not (self.results / name).exists():
            raise UserError(f"{self.results / name} is not there.")
        return self.results / name

    def csv(self, name: str, columns: list[str]) -> pd.DataFrame:
        """Read a CSV table."""
        return read_csv(self.path(name), columns)

    def parquet(self, name: str, columns: list[str], **equal: Any) -> pd.DataFrame:
        """Read rows of a table, or of all its parts (``*``), whose columns have these values."""
        numbers = range(1, 1 + (self.config["compute"]["parts"] if "*" in name else 1))
        paths = [self.path(name.replace("*", str(number))) for number in numbers]
        filters = [(key, "in" if isinstance(own, list) else "=", own) for key, own in equal.items()]
        parts = [read_parquet(path, columns, filters or None).to_pandas() for path in paths]
        return pd.concat(parts, ignore_index=True)

    def experiment(self, name: str) -> dict[str, Any]:
        """Return what the config says of an experiment."""
        return self.config["experiments"][name]

    def has_images(self, name: str) -> bool:
        """Say whether an experiment's samples are images."""
        return of_images(self.config["samples"][self.experiment(name)["samples"]])
