"""The manifest of a run: what each file is, and how it came about."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Iterator, Mapping
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
ASIDE = ("audit", "logs", "benchmarks", "report", "report.html", "revisions.yaml")
# The workflow's own files, as far as a checkout has them.
CODE = ("Snakefile", "config.yaml", "requirements.txt", "CITATION.cff", "LICENSE", "README.md")
CODE += ("configs", "data", "envs", "profiles", "prompts", "report", "rules", "schemas", "scripts")
# Files of nothing but times and hosts, and what says when, where and with what others were made.
PASSING_FILES = ("preflight.json", ".journal.jsonl")
PASSING_KEYS = {"date", "root", "tools", "tokens_per_second"}


def build_manifest(
    results: Path, started_in: Path, made: Iterable[str], snakemake: str
) -> dict[str, Any]:
    """Describe every file of a run and of the downloads that it stands on: docs/audit.md.

    Args:
        results: the run's folder.
        started_in: the folder that Snakemake ran in, to which the manifest's paths are relative.
        made: files that rules of this run make.
        snakemake: the version of Snakemake that runs.

    Raises:
        UserError: if Snakemake's records do not say how a file was made.
    """
    records = _records(started_in)
    if unknown := [name for name in made if _name(name, started_in) not in records]:
        raise UserError(
            f"{started_in / RECORDS} does not say how {unknown[0]} was made (and so of "
            f"{len(unknown)} files), so there is no manifest. Snakemake keeps its records there "
            "unless it runs with --persistence-backend db or --drop-metadata, or they were "
            "deleted. Delete those files and run again without these options."
        )
    names = {_name(path, started_in) for path in run_files(results)}
    waiting = list(names)
    while waiting:
        upstream = set(records.get(waiting.pop(), {}).get("inputs", ())) - names
        names |= upstream
        waiting += upstream
    listed_in = {own: name for name in sorted(names) for own in _listed(name, started_in)}

    files, software, hosts, jobs, changing = {}, {}, {}, {}, {}
    for name in sorted(names | set(listed_in)):
        path = place(name, started_in)
        files[name] = facts = describe_file(path)
        if (content := _content(path)) is not None:
            changing[name] = {key: facts.pop(key) for key in ("sha256", "bytes")}
            facts["content"] = content
        if name in records:
            made_by, when, where = _origin(records[name], started_in)
            packages = _short(where.pop("software", None), software)
            facts |= made_by | {"software": packages}
            jobs[name] = when | {"host": _short(where, hosts)}
        if name in listed_in:
            facts["listed_in"] = listed_in[name]
    for facts in files.values():
        for name in facts.get("inputs", ()):
            facts["inputs"][name] = files[name].get("content", files[name].get("sha256"))
    scripts = {facts["rule"]: facts["script"] for facts in files.values() if facts.get("script")}
    return {
        "results": _name(results, started_in),
        "workflow": describe_workflow(),
        "rules": {rule: _describe_rule(script) for rule, script in sorted(scripts.items())},
        "software": software,
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


def run_files(results: Path) -> list[Path]:
    """Return the files of a run that hold results."""
    return [
        path
        for path in sorted(results.rglob("*"))
        if path.is_file()
        and not path.name.startswith(".")
        and path.relative_to(results).parts[0] not in ASIDE
    ]


def _records(started_in: Path) -> dict[str, dict[str, Any]]:
    """Read what Snakemake noted of each output file; ``inputs`` are those that are files."""
    folder, records = started_in / RECORDS, {}
    for path in folder.rglob("*"):
        if path.is_file():
            # Long names are split over folders that begin with @.
            encoded = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
            record = read_json(path)
            inputs = sorted({_name(own, started_in) for own in record.get("input") or ()})
            # A folder of the user's own is an input of its record, which lists its files.
            record["inputs"] = [own for own in inputs if place(own, started_in).is_file()]
            records[_name(urlsafe_b64decode(encoded).decode(), started_in)] = record
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


def _listed(name: str, started_in: Path) -> Iterator[str]:
    """Yield the files that a provenance.json lists."""
    path = place(name, started_in)
    if path.name == "provenance.json":
        record = read_json(path)
        # A user's own files stay where they are; others lie beside their record.
        folder = started_in / record["root"] if record["kind"] == "local" else path.parent
        for listed in record["files"]:
            if (folder / listed["path"]).is_file():
                yield _name(folder / listed["path"], started_in)


def _origin(record: Mapping[str, Any], started_in: Path) -> tuple[dict, dict, dict]:
    """Return how a file came about: the rule and all it was given, when, and on what."""
    where = _said_in_log(record, started_in)
    # Snakemake's own record has the parameters' values alone.
    params = where.pop("params", record["params"])
    # Where the rule is another's with other inputs, it is that one's script; a rule of a workflow
    # that this one is a module of has none here.
    script = re.search(r"scripts/\w+\.py", record["code"] or "")
    made_by = {
        "rule": record["rule"],
        "script": script[0] if script and (ROOT / script[0]).exists() else None,
        "code": params.get("code") if isinstance(params, dict) else None,
        "params": params,
        "inputs": dict.fromkeys(record["inputs"]),
    }
    began, ended = record.get("starttime"), record.get("endtime")
    when = {
        "ended": ended and datetime.fromtimestamp(ended, UTC).isoformat(timespec="seconds"),
        "seconds": round(ended - began, 1) if began and ended else None,
    }
    return made_by, when, where


def _said_in_log(record: Mapping[str, Any], started_in: Path) -> dict[str, Any]:
    """Return what a job wrote into its log of itself; nothing where the log is gone."""
    for path in record.get("log") or []:
        try:
            text = (started_in / path).read_text(encoding="utf-8", errors="replace")
            last = [line for line in text.splitlines() if MADE_BY in line][-1]
            return json.loads(last.split(MADE_BY, 1)[1])
        except (OSError, IndexError, ValueError):
            continue
    return {}


def _short(value: Any, values: dict[str, Any]) -> str | None:
    """Keep a value that many files share once, and return its name; None for nothing."""
    if not value:
        return None
    name = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
    values[name] = value
    return name


def _content(path: Path) -> str | None:
    """Return the hash of what a file holds besides times, hosts and folders.

    None for a file that holds nothing of the kind, empty for one that holds nothing else.
    """
    if path.name.endswith(PASSING_FILES):
        return ""
    if path.name == "provenance.json" or path.name.endswith(".summary.json"):
        record = read_json(path)
        passing = PASSING_KEYS | ({"path", "url"} if record.get("kind") == "local" else set())
        kept: Any = {key: value for key, value in record.items() if key not in passing}
    elif path.match("labels/*.parquet") or path.match("labels/second/*.parquet"):
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
            columns = {own.name: str(own.type) for own in table.schema.to_arrow_schema()}
            facts |= {"rows": table.num_rows, "columns": columns}
        elif path.suffix == ".csv":
            cells = read_cells(path)
            known = (contract_of(path, cells.column_names) or {"columns": {}})["columns"]
            columns = {
                own: known.get(own, {"type": "string"})["type"] for own in cells.column_names
            }
            facts |= {"rows": len(cells), "columns": columns}
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        facts["unreadable"] = " ".join(str(error).split())
    return facts


def _describe_rule(script: str) -> dict[str, Any]:
    """Return a script, the library modules that it reaches, and the hash of their code."""
    name = Path(script).stem
    reached = sorted(path.relative_to(ROOT).as_posix() for path in modules(name))
    return {"script": script, "code": code_hash(name), "modules": reached}


def describe_workflow() -> dict[str, Any]:
    """Return the workflow's commit, where it is a checkout of its own, and its files' hashes."""
    found = (path for name in CODE for path in [ROOT / name, *(ROOT / name).rglob("*")])
    files = sorted(path for path in found if path.is_file() and path.suffix != ".pyc")
    commit = _git("rev-parse", "--verify", "HEAD")
    return {
        "commit": commit[0] if commit else None,
        "changed": _git("status", "--porcelain", "--untracked-files=no"),
        "files": {path.relative_to(ROOT).as_posix(): sha256(path) for path in files},
    }


def _git(*arguments: str) -> list[str]:
    """Return the lines that git prints; none where the workflow is no checkout of its own."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        return []
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()
