"""The manifest of a run: what each file is, and how it came about."""

import hashlib
import json
import os
import re
import subprocess
from base64 import urlsafe_b64decode
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headpursuit.run.contracts import contract_of
from headpursuit.run.files import ROOT, UserError, read_json, sha256
from headpursuit.run.lineage import code_hash, modules
from headpursuit.run.rule import MADE_BY, describe_host
from headpursuit.run.tables import read_cells

# Where Snakemake keeps its records of files.
RECORDS = Path(".snakemake/metadata")
# Files that record how a run went (logs, benchmarks), as opposed to its results.
ASIDE = ("audit", "logs", "benchmarks", "report", "report.html", "estimate.json", "estimate.md")


def build_manifest(
    results: Path, started_in: Path, made: Iterable[str], snakemake: str
) -> dict[str, Any]:
    """Describe every file of a run and of the downloads that it stands on.

    Args:
        results: the run's folder.
        started_in: the folder that Snakemake ran in; its records are there, and the paths in the
            manifest are relative to it.
        made: files that rules of this run make.
        snakemake: the version of Snakemake that runs.

    Returns:
        What two runs of the same workflow share, and ``circumstances``, which they do not: dates,
        hosts and times. docs/audit.md says what is in it.

    Raises:
        UserError: if Snakemake's records do not say how a file was made.
    """
    records = snakemake_records(started_in)
    _check_records(made, records, started_in)
    own = [_name(path, started_in) for path in run_files(results)]
    names = {*own, *_upstream(own, records, started_in)}
    held = {name: owner for owner in names for name in _held(owner, started_in)}
    jobs_of = {name: _made(records[name], started_in) for name in names if name in records}
    files, changing = {}, {}
    for name in sorted(names | set(held)):
        facts = describe_file(place(name, started_in))
        if (content := _content(place(name, started_in))) is not None:
            changing[name] = {key: facts.pop(key) for key in ("sha256", "bytes")}
            facts = {"content": content, **facts}
        files[name] = facts
    environments, hosts, jobs = {}, {}, {}
    for name, (facts, where, times) in jobs_of.items():
        software = where.pop("software", None)
        files[name] |= facts | {"software": _kept(software, environments)}
        jobs[name] = times | {"host": _kept(where or None, hosts)}
    for name, owner in held.items():
        files[name] |= {"listed_in": owner}
    for facts in files.values():
        if "inputs" in facts:
            facts["inputs"] = {name: _identity(files[name]) for name in facts["inputs"]}
    rules = {facts["rule"]: facts["script"] for facts in files.values() if facts.get("script")}
    return {
        "results": _name(results, started_in),
        "workflow": describe_workflow(),
        "rules": {rule: describe_rule(script) for rule, script in sorted(rules.items())},
        "software": environments,
        "files": files,
        "circumstances": {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "snakemake": snakemake,
            "host": describe_host(),
            "hosts": hosts,
            "jobs": jobs,
            "files": changing,
        },
    }


def _check_records(made: Iterable[str], records: Mapping[str, Any], started_in: Path) -> None:
    if unknown := [name for name in made if _name(name, started_in) not in records]:
        raise UserError(
            f"{started_in / RECORDS} does not say how {unknown[0]} was made (and so of "
            f"{len(unknown)} files), so there is no manifest. Snakemake keeps its records there "
            "unless it runs with --persistence-backend db or --drop-metadata, or they were "
            "deleted. Delete those files and run again without these options."
        )


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
    """Read what Snakemake noted of each output file: rule, params, input, log, times."""
    folder = started_in / RECORDS
    records = {}
    for path in folder.rglob("*"):
        if path.is_file():
            # Long names are split over folders that begin with @.
            encoded = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
            records[urlsafe_b64decode(encoded).decode()] = read_json(path)
    return records


def _name(path: str | Path, started_in: Path) -> str:
    """Return a path as the manifest has it: below where Snakemake ran, or the workflow is."""
    path = Path(os.path.normpath(started_in / path))
    for folder, before in ((started_in, ""), (ROOT, "<workflow>/")):
        if path.is_relative_to(folder):
            return before + path.relative_to(folder).as_posix()
    return path.as_posix()


def place(name: str, started_in: Path) -> Path:
    """Return where a file of the manifest is."""
    inside = name.removeprefix("<workflow>/")
    return ROOT / inside if inside != name else started_in / name


def _upstream(paths: Iterable[str], records: Mapping[str, Any], started_in: Path) -> set[str]:
    """Return the inputs of files, and theirs."""
    waiting, seen = deque(paths), set()
    while waiting:
        for path in records.get(waiting.popleft(), {}).get("input") or []:
            name = _name(path, started_in)
            # A folder of the user's own is an input of its record, which lists its files.
            if name not in seen and place(name, started_in).is_file():
                seen.add(name)
                waiting.append(name)
    return seen


def _held(name: str, started_in: Path) -> list[str]:
    """Return the files that a provenance.json lists."""
    path = place(name, started_in)
    if path.name != "provenance.json":
        return []
    record = read_json(path)
    # A user's own files stay where they are; others lie beside their record.
    folder = started_in / record["root"] if record["kind"] == "local" else path.parent
    paths = [folder / listed["path"] for listed in record["files"]]
    return [_name(path, started_in) for path in paths if path.is_file()]


def _made(
    record: Mapping[str, Any], started_in: Path
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return how a file came about: the rule and all it was given, on what, and when."""
    began, ended = record.get("starttime"), record.get("endtime")
    said = _said_in_log(record, started_in)
    params = said.pop("params", None)
    facts = {
        "rule": record["rule"],
        "script": _script(record),
        "code": (params or {}).get("code"),
        # Snakemake's own record has the values alone.
        "params": record["params"] if params is None else params,
        "inputs": sorted(
            name
            for name in {_name(path, started_in) for path in record["input"]}
            if place(name, started_in).is_file()
        ),
    }
    times = {
        "ended": ended and datetime.fromtimestamp(ended, UTC).isoformat(timespec="seconds"),
        "seconds": round(ended - began, 1) if began and ended else None,
    }
    return facts, said, times


def _script(record: Mapping[str, Any]) -> str | None:
    """Return a rule's script: where the rule is another's with other inputs, that one's.

    None for a rule of a workflow that this one is a module of.
    """
    named = re.search(r"scripts/\w+\.py", record["code"] or "")
    return named[0] if named and (ROOT / named[0]).exists() else None


def _said_in_log(record: Mapping[str, Any], started_in: Path) -> dict[str, Any]:
    """Return what a job wrote into its log of itself; nothing where the log is gone."""
    for path in record.get("log") or []:
        try:
            lines = (started_in / path).read_text(encoding="utf-8", errors="replace").splitlines()
            return json.loads([line for line in lines if MADE_BY in line][-1].split(MADE_BY, 1)[1])
        except (OSError, IndexError, ValueError):
            continue
    return {}


def _kept(value: Any, values: dict[str, Any]) -> str | None:
    """Keep a value that many files share once, and return its name."""
    if value is None:
        return None
    name = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
    values[name] = value
    return name


def _identity(facts: Mapping[str, Any]) -> str:
    return facts.get("content") or facts.get("sha256") or ""


# Of records, what says when, where and with what they were made.
_PASSING = ("date", "root", "tools", "tokens_per_second")
_WHOLLY_PASSING = ("preflight.json", ".journal.jsonl")


def _content(path: Path) -> str | None:
    """Return the hash of what a file holds besides times, hosts and folders.

    None for a file that holds nothing of the kind, empty for one that holds nothing else.
    """
    if path.name.endswith(_WHOLLY_PASSING):
        return ""
    if path.name == "provenance.json" or path.name.endswith(".summary.json"):
        record = read_json(path)
        passing = (*_PASSING, "path", "url") if record.get("kind") == "local" else _PASSING
        kept: Any = {key: value for key, value in record.items() if key not in passing}
    elif contract_of(path, ()) is contract_of("labels/x.parquet", ()):
        kept = pq.read_table(path).to_pylist()  # its metadata say how long the labeller took
    else:
        return None
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


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
            cells = read_cells(path)
            types = (contract_of(path, cells.column_names) or {}).get("columns", {})
            facts |= {"rows": len(cells)}
            facts |= {
                "columns": {
                    name: types.get(name, {}).get("type", "string") for name in cells.column_names
                }
            }
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        facts["unreadable"] = " ".join(str(error).split())  # of one line
    return facts


def describe_rule(script: str) -> dict[str, Any]:
    """Return a script, the library modules that it reaches, and the hash of their code."""
    name = Path(script).stem
    reached = sorted(path.relative_to(ROOT).as_posix() for path in modules(name))
    return {"script": script, "code": code_hash(name), "modules": reached}


def describe_workflow() -> dict[str, Any]:
    """Return the workflow's commit, where it is a checkout, and the hashes of its files.

    The commit of another repository that it lies in is not recorded.
    """
    names = ("Snakefile", "config.yaml", "requirements.txt")
    parts = [ROOT / name for name in names if (ROOT / name).exists()]
    for folder in ("rules", "scripts", "schemas", "envs", "data"):
        parts += sorted(
            path for path in (ROOT / folder).rglob("*") if path.suffix not in ("", ".pyc")
        )

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    own = top is not None and Path(top).resolve() == ROOT.resolve()
    changed = git("status", "--porcelain", "--untracked-files=no") if own else None
    return {
        "commit": git("rev-parse", "HEAD") if own else None,
        "changed": (changed or "").splitlines(),
        "files": {path.relative_to(ROOT).as_posix(): sha256(path) for path in parts},
    }
