"""Whether a run's files are as its manifest says, and in what two runs differ."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headpursuit.run.contracts import contract_of, violations
from headpursuit.run.files import ROOT, UserError, plain, read_json
from headpursuit.run.lineage import SCRIPTS, code_hash
from headpursuit.run.manifest import describe_file, place, run_files
from headpursuit.run.tables import read_cells

# What a reader is told to stand on a changed file.
PUBLISHED = ("tables", "figures")
PARTS = ["circumstances", "files", "results", "rules", "software", "workflow"]


def load_manifest(results: Path) -> dict[str, Any]:
    """Read a run's manifest; UserError if there is none of this version."""
    path = results / "audit" / "manifest.json"
    again = "Write it: snakemake --cores 1 audit, with the run's --configfile."
    if not path.exists():
        raise UserError(f"{path} does not exist. {again}")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or sorted(manifest) != PARTS:
        raise UserError(f"{path} is no manifest of this version. Delete it. {again}")
    return manifest


def verify(results: Path) -> tuple[list[str], list[str]]:
    """Compare a run's files with its manifest and its tables with their contracts.

    Returns:
        A line for each file that changed, is missing, is not in the manifest or breaks its
        contract, with the tables and figures that stand on it, none if all is as it was; and
        notes on what is no change of a result: newer code, and files that are not here.

    Raises:
        UserError: if there is no manifest.
    """
    results = results.resolve()
    manifest = load_manifest(results)
    files, inside = manifest["files"], manifest["results"] + "/"
    started_in = results.joinpath(*[".." for _ in Path(manifest["results"]).parts]).resolve()
    problems, missing, beside = [], [], False
    for name, facts in files.items():
        own = name.startswith(inside)
        path = results / name.removeprefix(inside) if own else place(name, started_in)
        if not path.exists():
            (problems if own else missing).append(f"{name}: missing{_standing_on(name, files)}")
            continue
        beside |= not own and not name.startswith(("/", "<workflow>"))
        wanted, now = facts | manifest["circumstances"]["files"].get(name, {}), describe_file(path)
        if now["sha256"] != wanted["sha256"]:
            said = f"changed ({_difference(wanted, now)})"
            problems.append(f"{name}: {said}{_standing_on(name, files)}")
        problems += [f"{name}: {broken}" for broken in _broken(path)]
    here = {inside + path.relative_to(results).as_posix() for path in run_files(results)}
    problems += [f"{name}: not in the manifest" for name in sorted(here - set(files))]
    notes = []
    if not SCRIPTS.is_dir():
        notes.append("The code was not compared: this copy of headpursuit is no checkout.")
    elif newer := _newer_code(files):
        notes.append(f"Files were made by other code than is here now, of the rules {newer}.")
    if missing and not beside:
        notes.append(
            f"{len(missing)} files that the run stands on, downloads and the like, are not beside "
            "it and were not compared."
        )
        missing = []
    return problems + missing, notes


def _broken(path: Path) -> list[str]:
    """Return in what a table breaks its contract; nothing of one that is not readable."""
    if contract_of(path, ()) is None:
        return []
    try:
        return violations(path, read_cells(path) if path.suffix == ".csv" else pq.read_table(path))
    except (pa.ArrowInvalid, OSError, ValueError):
        return []


def _newer_code(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the rules whose code is no longer what made the files."""
    newer = set()
    for facts in files.values():
        if facts.get("script") and facts["code"]:
            script = ROOT / facts["script"]
            if not script.exists() or code_hash(script.stem) != facts["code"]:
                newer.add(facts["rule"])
    return ", ".join(sorted(newer))


def _standing_on(name: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which tables and figures come, directly or not, from a file."""
    standing, waiting = {name}, [name]
    while waiting:
        source = waiting.pop()
        # What stands on a download has its record as input.
        own = {path for path, facts in files.items() if source in facts.get("inputs", ())}
        own |= {files[source].get("listed_in", source)}
        waiting += own - standing
        standing |= own
    ends = sorted(path for path in standing - {name} if Path(path).parent.name in PUBLISHED)
    return f"; {', '.join(ends)} stand on it" if ends else ""


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Say in what two descriptions of a file differ."""
    if "unreadable" in after:
        return f"no longer readable: {after['unreadable']}"
    keys = [key for key in ("rows", "bytes") if before.get(key) != after.get(key)]
    said = [f"{before.get(key)} {key} are now {after.get(key)}" for key in keys]
    if list(before.get("columns", ())) != list(after.get("columns", ())):
        said.append(f"columns are now {', '.join(after['columns'])}")
    return "; ".join(said) or "content"


def differences(one: Path, other: Path) -> list[str]:
    """Compare the manifests of two runs, dates, hosts and times aside.

    Returns:
        A line for each value of a file, rule or other part that differs, with both values.

    Raises:
        UserError: if either has no manifest.
    """
    return list(_differing(_shared(one), _shared(other), ""))


def _differing(one: Any, other: Any, place: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _differing(one.get(key), other.get(key), f"{place} {key}".strip())
    elif one != other:
        values = ["nothing" if own is None else f"{plain(own):.60}" for own in (one, other)]
        yield f"{place}: {values[0]} / {values[1]}"


def _shared(results: Path) -> dict[str, Any]:
    """Return what equal runs share of their manifests, their own folders left out."""
    manifest = load_manifest(results)
    folder = manifest.pop("results")
    del manifest["circumstances"]
    return json.loads(json.dumps(manifest).replace(f'"{folder}/', '"<results>/'))
