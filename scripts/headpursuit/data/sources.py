"""What a run reads from elsewhere, as its ``provenance.json`` records it.

:mod:`headpursuit.data.download` writes the record last, so where there is one, every file it names
arrived whole.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from headpursuit.run.files import UserError, locked, read_json, sha256, write_json

# States and hashes of models' and the user's files, from when they were last read.
KNOWN = Path(".snakemake/headpursuit.json")
# Said where a model's weights are in no other form.
PICKLED = (
    "Weights are read as safetensors (or GGUF): to unpickle a .bin file can run code. Name a "
    "revision that has safetensors in sources.*.revision (on the Hub a bot offers them as pull "
    "requests, refs/pr/N), or convert them yourself (docs/files.md)."
)


def write_provenance(
    path: Path, origin: dict[str, Any], licence: str | None, root: Path, files: Iterable[str]
) -> dict[str, Any]:
    """Write and return the record of files below ``root``; it comes last."""
    root = root.absolute()
    short = root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root
    record = {
        **origin,
        "root": str(short),
        "licence": licence,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": [
            {"path": name, "size": size_of(root / name), "sha256": sha256(root / name)}
            for name in files
        ],
    }
    write_json(path, record)
    return record


def write_made_provenance(
    path: Path,
    kind: str,
    source_provenance: str | Path,
    origin: dict[str, Any],
    packages: Iterable[str],
) -> None:
    """Write the record of files beside it that were made here, out of a source and ``origin``.

    ``kind`` says how; the versions of ``packages`` are noted.
    """
    source = read_json(source_provenance)
    origin = {
        "name": path.parent.name,
        "kind": kind,
        "from": {key: source.get(key) for key in ("name", "kind", "id", "version", "commit")},
        **origin,
        "tools": {package: version(package) for package in packages},
    }
    files = [name for name in visible_files(path.parent) if name != path.name]
    write_provenance(path, origin, source.get("licence"), path.parent, files)


def source_root(provenance_path: str | Path) -> Path:
    """Return the folder that the recorded paths are relative to.

    Raises:
        UserError: if the record is damaged.
    """
    provenance = read_json(provenance_path)
    # What was downloaded lies beside its record, wherever the two have been moved since.
    if provenance["kind"] == "local":
        return Path(provenance["root"])
    return Path(provenance_path).parent


def source_files(provenance_path: str | Path, pattern: str) -> list[Path]:
    """Return a source's files whose path matches ``pattern`` (:func:`matches`), sorted.

    Raises:
        UserError: if none matches, or if one is gone or has another size than recorded.
    """
    root, records = source_root(provenance_path), read_json(provenance_path)["files"]
    chosen = [record for record in records if matches(record["path"], pattern)]
    if not chosen:
        raise UserError(
            f"{provenance_path}: no file of this source matches {pattern!r}. "
            f"It has {listed(record['path'] for record in records)}."
        )
    _refuse_changed(provenance_path, chosen, with_hash=False)
    return [root / record["path"] for record in chosen]


def verify(provenance_path: str | Path) -> None:
    """Compare each file's SHA-256 (:func:`checksums`) with the recorded one.

    Raises:
        UserError: if a file is gone or has changed; it names them all.
    """
    _refuse_changed(provenance_path, read_json(provenance_path)["files"], with_hash=True)


def _refuse_changed(provenance_path: str | Path, records: list[dict], with_hash: bool) -> None:
    root = source_root(provenance_path)
    expected = {root / own["path"]: own for own in records}
    whole = {path for path, own in expected.items() if size_of(path) == own["size"]}
    if with_hash:
        whole = {path for path, sha in checksums(whole).items() if sha == expected[path]["sha256"]}
    changed = [own["path"] for path, own in expected.items() if path not in whole]
    if changed:
        raise UserError(
            f"{provenance_path}: since this record was made these files have gone or changed: "
            f"{listed(changed)}. Delete {provenance_path} and run again to have them fetched and "
            "recorded anew."
        )


def matches(path: str, pattern: str) -> bool:
    """Say whether a path matches a glob; ``*`` stays within a folder, ``**`` crosses folders."""
    return _match(path.split("/"), pattern.split("/"))


def _match(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    first, rest = patterns[0], patterns[1:]
    if first == "**":
        return any(_match(parts[start:], rest or ["*"]) for start in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], first) and _match(parts[1:], rest)


def content(path: str | Path) -> str | None:
    """Return a hash of a user's file, or of a folder's files and their names; None without any."""
    path = Path(path)
    try:
        names = visible_files(path) if path.is_dir() else [""]
        sums = checksums(path / name for name in names)
    except OSError:
        return None  # what reads the file says what is wrong with it
    named = [[name, sums[path / name]] for name in names]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest() if named else None


def checksums(paths: Iterable[Path]) -> dict[Path, str]:
    """Return files' SHA-256; a file is read again only when its size, inode or times differ.

    One of these times (ctime) is set by the system alone, so it differs even if a file is edited
    and given its old date back. :data:`KNOWN` keeps what was found; jobs may add to it at once.
    """
    known, found = _known(), {}
    for path in paths:
        stat = path.stat()
        state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
        was = known.get(str(path.absolute()), [])
        found[path] = was if was[:-1] == state else [*state, sha256(path)]
    new = {str(path.absolute()): own for path, own in found.items()}
    if not new.items() <= known.items():
        # Where nothing can be kept, the files are hashed again each time.
        with suppress(OSError), locked(KNOWN.with_suffix(".lock")):
            write_json(KNOWN, _known() | new)
    return {path: own[-1] for path, own in found.items()}


def _known() -> dict[str, list]:
    try:
        return read_json(KNOWN)
    except (OSError, UserError):
        return {}


def visible_files(folder: Path) -> list[str]:
    """List the files below a folder, without hidden ones and those in hidden folders."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)
    )


def size_of(path: Path) -> int | None:
    """Return a file's size; None where there is no file."""
    return path.stat().st_size if path.is_file() else None


def listed(paths: Iterable[str], most: int = 12) -> str:
    """Return the first paths for a message, and how many more there are."""
    paths = sorted(paths)
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return (", ".join(paths[:most]) or "no file") + more
