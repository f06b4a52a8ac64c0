"""Files that appear whole or not at all, and seeds that depend on identity alone.

The Snakefile imports this where nothing but Snakemake is installed, so pyarrow is only imported by
what needs it.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import pyarrow as pa


def _root() -> Path:
    """Return the workflow's folder; of a copy that pip installed, what it carries of it."""
    # Rules say it to their jobs: in a container this module lies elsewhere.
    if named := os.environ.get("HEADPURSUIT_ROOT"):
        return Path(named)
    checkout = Path(__file__).parents[3]
    return checkout if (checkout / "Snakefile").exists() else Path(__file__).parents[1] / "shipped"


ROOT = _root()


class UserError(Exception):
    """A mistake or lack that the user can mend; shown as one message, without a traceback."""


# libyaml's, which is far faster, where PyYAML has it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What a disk may refuse, and what to do about it.
REFUSALS = {
    errno.ENOSPC: "no space is left. Free some",
    errno.EDQUOT: "your quota is used up. Free some",
    errno.EROFS: "the file system is read-only. Make it writable",
    errno.EACCES: "access is denied. Set its owner or permissions right",
    errno.EPERM: "access is denied. Set its owner or permissions right",
}


def refusal(error: BaseException | None, where: str | Path) -> str | None:
    """Return what to say of an error by which a disk refuses to be used; None of another.

    The error's causes count too; ``where`` is what was being written, if none of them says it.
    """
    while error is not None:
        # safetensors and others raise errors of their own, with the system's number in their text.
        said = (n for n in REFUSALS if f"(os error {n})" in str(error))
        number = getattr(error, "errno", None) or next(said, None)
        if number in REFUSALS:
            path = getattr(error, "filename", None) or where
            again = "then run the same command again: it goes on from what is finished."
            return f"{path}: {REFUSALS[number]}, {again}"
        error = error.__cause__
    return None


def refuse_braces(*folders: str | Path) -> None:
    """Raise a UserError if a path has braces, which Snakemake would take for wildcards."""
    for folder in map(str, folders):
        if set("{}") & set(folder):
            raise UserError(
                f"{folder}: Snakemake takes braces in a path for wildcards. "
                "Rename the folder, or move the checkout to another."
            )


def refuse_unwritable(*folders: str | Path) -> None:
    """Raise a UserError if a folder, or the one it would be made in, cannot be written."""
    for folder in map(Path, folders):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            read_only = os.statvfs(there).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise UserError(str(refusal(OSError(number, ""), folder)))


def bare_url(url: str) -> str:
    """Return a URL without the user and password it may carry."""
    return re.sub(r"//[^/@\s]*@", "//", url)


# Control characters but tabs and line ends, and changes of direction.
HIDDEN = {*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {9, 10}


def visible(text: str) -> str:
    """Return a text without what a terminal would act on."""
    return text.translate(dict.fromkeys(HIDDEN))


def plain(text: Any) -> str:
    """Return the visible part of a text on one line."""
    return " ".join(visible(" ".join(str(text).split())).split())


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it becomes ``path`` when the block ends well.

    What a killed writer of the same file left beside it is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????{glob.escape(path.suffix)}"):
        left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold a file's lock, once no other process does; of one that ends, however, it is free."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically, keys in the order given."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # What a file's name has that is not UTF-8 is written as JSON escapes it.
    write_text(path, text.encode(errors="backslashreplace").decode())


def read_json(path: str | Path) -> Any:
    """Read JSON; a UserError if the file is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable JSON ({error}). Delete it and run again.") from error


def check_table(path: str | Path, table: pa.Table) -> None:
    """Raise a UserError if a table that is about to be written breaks its contract."""
    from headpursuit.run.contracts import violations

    if broken := violations(path, table):
        listed = "\n  ".join(broken)
        raise UserError(
            f"{path} is not written, it breaks its contract (docs/columns.md):\n  {listed}"
        )


def write_parquet(
    path: str | Path, table: pa.Table, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a table atomically, if it keeps its contract; metadata are JSON in the schema."""
    import pyarrow.parquet as pq

    check_table(path, table)
    if metadata:
        encoded = {key: json.dumps(value) for key, value in metadata.items()}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **encoded})
    with atomic(path) as part:
        pq.write_table(table, part, write_page_checksum=True)


def refuse_unknown(key: str, given: Any, known: Collection[str]) -> None:
    """Raise a UserError unless what is given is among the known."""
    if given not in known:
        raise UserError(f"{key}: {given!r} is none of {', '.join(known)}.")


def refuse_missing(path: str | Path, columns: Collection[str], there: Collection[str]) -> None:
    """Raise a UserError if a file made here lacks columns."""
    if missing := [name for name in columns if name not in there]:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(there)}. "
            "Delete the file and run again to have it rebuilt."
        )


def read_parquet(
    path: str | Path, columns: list[str] | None, filters: list[tuple] | None = None
) -> pa.Table:
    """Read columns (None: all) and the rows that pass filters; a UserError if one is not there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        refuse_missing(path, columns or [], pq.read_schema(path).names)
        return pq.read_table(
            path, columns=columns, filters=filters, page_checksum_verification=True
        )
    except (pa.ArrowException, OSError) as error:
        raise damaged_parquet(path, error) from error


def read_responses(paths: Collection[str | Path], columns: Collection[str]) -> pa.Table:
    """Read the responses of all parts, in one order however many parts there are.

    sample_id and repeat come with the columns.
    """
    import pyarrow as pa

    wanted = list(dict.fromkeys(["sample_id", "repeat", *columns]))
    parts = [read_parquet(path, wanted) for path in paths]
    return pa.concat_tables(parts).sort_by([("sample_id", "ascending"), ("repeat", "ascending")])


def damaged_parquet(path: str | Path, error: Exception) -> UserError:
    """Return what to say of a Parquet file that cannot be read."""
    why = " ".join(str(error).split())
    return UserError(f"{path}: not a readable Parquet file ({why}). Delete it and run again.")


def parquet_metadata(path: str | Path, wanted: Collection[str] = ()) -> dict[str, Any]:
    """Return the metadata that :func:`write_parquet` stored; a UserError if one wanted is not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stored = pq.read_schema(path).metadata or {}
        found = {
            key.decode(): json.loads(value)
            for key, value in stored.items()
            if key not in (b"pandas", b"ARROW:schema")
        }
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged_parquet(path, error) from error
    if missing := [key for key in wanted if key not in found]:
        raise UserError(
            f"{path}: its metadata lack {', '.join(missing)}. Delete the file and run again."
        )
    return found


@cache
def shipped(name: str) -> Any:
    """Return a YAML file that the workflow carries, as it is written."""
    return yaml.load((ROOT / name).read_text(encoding="utf-8"), LOADER)


def beside(path: str | Path) -> Path:
    """Return the path of a file that a config names: in the working directory, or the workflow."""
    own = ROOT / path
    return own if not Path(path).exists() and own.exists() else Path(path)


def sha256(path: str | Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seed_for(seed: int, *identity: str | int) -> int:
    """Return a 63-bit seed from the config's seed and the identity of what is random.

    It depends on nothing else, so neither the order of jobs nor their number moves a result.
    """
    text = json.dumps([seed, *identity])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
