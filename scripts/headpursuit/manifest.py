"""The manifest of a run: what each file is, how it came about, and whether it is still the same."""

import os
import platform
import subprocess
from base64 import urlsafe_b64decode
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from headpursuit.files import UserError, read_json, sha256
from headpursuit.lineage import SCRIPTS

# Where a run keeps what says how it went, and not what came out.
ASIDE = ("audit", "logs", "benchmarks")
# What a reader is told to stand on a changed file.
PUBLISHED = ("tables", "figures")


def build_manifest(results: Path, started_in: Path) -> dict[str, Any]:
    """Describe every file of a run and of the downloads that it stands on.

    Args:
        results: the run's folder.
        started_in: the folder that Snakemake ran in; its records are there, and the paths in the
            manifest are relative to it.

    Returns:
        results (the run's folder), date, host, software, workflow (commit and the hashes of its
        files) and files: for each path its sha256, bytes, rows and columns (of tables), and how
        it was made: rule, params, inputs, and when.
    """
    made = snakemake_records(started_in)
    own = [path.relative_to(started_in).as_posix() for path in run_files(results)]
    return {
        "results": results.relative_to(started_in).as_posix(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": describe_host(),
        "software": {dist.name: dist.version for dist in sorted(distributions(), key=_name)},
        "workflow": describe_workflow(),
        "files": {
            path: {**describe_file(started_in / path), **_made_by(made.get(path))}
            for path in sorted({*own, *_upstream(own, made)})
        },
    }


def run_files(results: Path) -> list[Path]:
    """Return the files of a run that hold results."""
    return [
        path
        for path in sorted(results.rglob("*"))
        if path.is_file()
        and not path.name.startswith(".")
        and path.relative_to(results).parts[0] not in ASIDE
    ]


def snakemake_records(started_in: Path) -> dict[str, dict[str, Any]]:
    """Read what Snakemake noted of each output file: rule, params, input, times."""
    folder = started_in / ".snakemake" / "metadata"
    records = {}
    for path in folder.rglob("*"):
        if path.is_file():
            # Long names are split over folders that begin with @.
            encoded = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
            records[urlsafe_b64decode(encoded).decode()] = read_json(path)
    return records


def _upstream(paths: Iterable[str], made: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the inputs of files, and theirs, as far as Snakemake made them."""
    waiting, seen = deque(paths), set()
    while waiting:
        for name in made.get(waiting.popleft(), {}).get("input") or []:
            if name in made and name not in seen:
                seen.add(name)
                waiting.append(name)
    return seen


def _made_by(record: Mapping[str, Any] | None) -> dict[str, Any]:
    if record is None:
        return {}
    began, ended = record.get("starttime"), record.get("endtime")
    return {
        "rule": record["rule"],
        "params": record["params"],
        "inputs": sorted(set(record["input"])),
        "ended": ended and datetime.fromtimestamp(ended, UTC).isoformat(timespec="seconds"),
        "seconds": round(ended - began, 1) if began and ended else None,
    }


def describe_file(path: Path) -> dict[str, Any]:
    """Return a file's sha256 and size and, of a table, its rows and columns with their types."""
    facts: dict[str, Any] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    try:
        if path.suffix == ".parquet":
            table = pq.read_metadata(path)
            schema = table.schema.to_arrow_schema()
            facts |= {"rows": table.num_rows}
            facts |= {"columns": {field.name: str(field.type) for field in schema}}
        elif path.suffix == ".csv":
            # As text: a type guessed from one table's cells is none of the file's.
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
            facts |= {"rows": len(frame), "columns": dict.fromkeys(frame.columns, "text")}
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        facts["unreadable"] = str(error)
    return facts


def describe_host() -> dict[str, Any]:
    """Return the hardware and operating system of this machine."""
    return {
        "name": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def describe_workflow() -> dict[str, Any]:
    """Return the workflow's commit, where it is a checkout, and the hashes of its files."""
    root = SCRIPTS.parent
    names = ("Snakefile", "config.yaml", "requirements.txt")
    parts = [root / name for name in names if (root / name).exists()]
    for folder in ("rules", "scripts", "schemas", "envs", "data"):
        parts += sorted(
            path for path in (root / folder).rglob("*") if path.suffix not in ("", ".pyc")
        )

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": (git("status", "--porcelain", "--untracked-files=no") or "").splitlines(),
        "files": {path.relative_to(root).as_posix(): sha256(path) for path in parts},
    }


def _name(distribution: Any) -> str:
    return distribution.name.lower()


def load_manifest(results: Path) -> dict[str, Any]:
    """Read a run's manifest.

    Raises:
        UserError: if the run has none.
    """
    path = results / "audit" / "manifest.json"
    if not path.exists():
        raise UserError(
            f"{path} does not exist. Write it first: snakemake --cores 1 audit, with the run's "
            "--configfile."
        )
    return read_json(path)


def verify(results: Path) -> list[str]:
    """Compare a run's files with its manifest.

    Returns:
        A line for each file that changed, is missing or is not in the manifest, with the tables
        and figures that stand on it; empty if all is as it was.

    Raises:
        UserError: if there is no manifest.
    """
    results = results.resolve()
    manifest = load_manifest(results)
    files = manifest["files"]
    started_in = results.parents[len(Path(manifest["results"]).parts) - 1]
    problems = []
    for name, facts in files.items():
        path = started_in / name
        if not path.exists():
            problems.append(f"{name}: missing{_standing_on(name, files)}")
        elif sha256(path) != facts["sha256"]:
            difference = _difference(facts, describe_file(path))
            problems.append(f"{name}: changed ({difference}){_standing_on(name, files)}")
    present = {path.relative_to(started_in).as_posix() for path in run_files(results)}
    return problems + [f"{name}: not in the manifest" for name in sorted(present - set(files))]


def _standing_on(name: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which tables and figures come, directly or not, from a file."""
    standing, waiting = set(), deque([name])
    while waiting:
        source = waiting.popleft()
        for path, facts in files.items():
            if path not in standing and source in facts.get("inputs", []):
                standing.add(path)
                waiting.append(path)
    ends = sorted(path for path in standing if Path(path).parent.name in PUBLISHED)
    return f"; {', '.join(ends)} stand on it" if ends else ""


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Say in what two descriptions of a file differ."""
    if "unreadable" in after:
        return f"no longer readable: {after['unreadable']}"
    said = []
    for key in ("rows", "bytes"):
        if before.get(key) != after.get(key):
            said.append(f"{before.get(key)} {key} are now {after.get(key)}")
    old, new = list(before.get("columns", [])), list(after.get("columns", []))
    if old != new:
        how = "in another order" if sorted(old) == sorted(new) else "others"
        said.append(f"columns are {how}: {', '.join(new)}")
    return "; ".join(said) or "content"
