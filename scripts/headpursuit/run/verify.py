"""Whether a run's files are as its manifest says, and in what two runs differ."""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headpursuit.run.contracts import contract_of, violations
from headpursuit.run.files import ROOT, UserError, read_json
from headpursuit.run.lineage import code_hash
from headpursuit.run.manifest import describe_file, place, run_files
from headpursuit.run.tables import read_cells

# What a reader is told to stand on a changed file.
PUBLISHED = ("tables", "figures")


def load_manifest(results: Path) -> dict[str, Any]:
    """Read a run's manifest.

    Raises:
        UserError: if the run has none, or what is there is none.
    """
    path = results / "audit" / "manifest.json"
    if not path.exists():
        raise UserError(
            f"{path} does not exist. Write it first: snakemake --cores 1 audit, with the run's "
            "--configfile."
        )
    manifest = read_json(path)
    parts = {"results", "workflow", "rules", "software", "files", "circumstances"}
    if not isinstance(manifest, dict) or set(manifest) != parts:
        raise UserError(
            f"{path} is no manifest of this version: it should hold {', '.join(sorted(parts))}. "
            "Delete it and write it again: snakemake --cores 1 audit, with the run's --configfile."
        )
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
    problems, missing, found = [], [], 0
    for name, facts in files.items():
        own = name.startswith(inside)
        path = results / name.removeprefix(inside) if own else place(name, started_in)
        if not path.exists():
            (problems if own else missing).append(f"{name}: missing{_standing_on(name, files)}")
            continue
        found += not (own or name.startswith(("/", "<workflow>")))
        wanted, now = facts | manifest["circumstances"]["files"].get(name, {}), describe_file(path)
        if now["sha256"] != wanted["sha256"]:
            said = f"changed ({_difference(wanted, now)})"
            problems.append(f"{name}: {said}{_standing_on(name, files)}")
        problems += [f"{name}: {broken}" for broken in _broken(path)]
    here = {inside + path.relative_to(results).as_posix() for path in run_files(results)}
    problems += [f"{name}: not in the manifest" for name in sorted(here - set(files))]
    notes = list(_newer_code(manifest))
    if found or not missing:
        problems += missing
    else:
        notes.append(
            f"{len(missing)} files that the run stands on, downloads and the like, are not beside "
            "it and were not compared."
        )
    return problems, notes


def _broken(path: Path) -> list[str]:
    """Return in what a table breaks its contract; nothing of one that is not readable."""
    if contract_of(path, ()) is None:
        return []
    try:
        table = read_cells(path) if path.suffix == ".csv" else pq.read_table(path)
    except (pa.ArrowInvalid, OSError, ValueError):
        return []
    return violations(path, table)


def _newer_code(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Say which rules' code is no longer what made the files."""
    made_by = {rule: {facts["code"]} for rule, facts in manifest["rules"].items()}
    for facts in manifest["files"].values():
        if facts.get("script") and facts["code"]:
            made_by[facts["rule"]].add(facts["code"])
    changed = []
    for rule, facts in manifest["rules"].items():
        here = ROOT / facts["script"]
        if not here.exists() or made_by[rule] != {code_hash(here.stem)}:
            changed.append(rule)
    if changed:
        yield f"Files were made by other code than is here now, of the rules {', '.join(changed)}."


def _standing_on(name: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which tables and figures come, directly or not, from a file."""
    standing, waiting = set(), deque([name])
    while waiting:
        source = waiting.popleft()
        # What stands on a download has its record as input.
        own = {files[source]["listed_in"]} if "listed_in" in files[source] else set()
        own |= {path for path, facts in files.items() if source in facts.get("inputs", {})}
        waiting += own - standing
        standing |= own
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


def differences(one: Path, other: Path) -> list[str]:
    """Compare the manifests of two runs, dates, hosts and times aside.

    Returns:
        A line for each part, file or rule that differs, saying in what.

    Raises:
        UserError: if either has no manifest.
    """
    a, b = (_flat(load_manifest(results)) for results in (one, other))
    said = []
    for key in sorted({*a, *b}):
        if key not in a or key not in b:
            said.append(f"{' '.join(key)}: only in {one if key in a else other}")
        elif a[key] != b[key]:
            parts = _parts(a[key], b[key]) if isinstance(a[key], dict) else []
            said.append(f"{' '.join(key)}: {', '.join(parts) or 'differs'}")
    return said


def _parts(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    names = sorted({*mine, *theirs})
    return [name for name in names if mine.get(name) != theirs.get(name)]


def _flat(manifest: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return the parts of a manifest that two equal runs share, a run's own folder left out."""
    text = json.dumps({key: own for key, own in manifest.items() if key != "circumstances"})
    shared = json.loads(text.replace(f'"{manifest["results"]}/', '"<results>/'))
    flat = {("workflow", key): own for key, own in shared.pop("workflow").items()}
    flat |= {
        (key, name): own
        for key in ("rules", "software", "files")
        for name, own in shared[key].items()
    }
    return flat
