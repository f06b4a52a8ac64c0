"""A Hugging Face Hub on the loopback: the REST paths a download uses, over real HTTP.

    with serve({"org/model": Repo(files={"config.json": b"{}"})}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

``hub.faults`` holds what goes wrong, each entry for its number of requests; ``hub.requests`` what
was asked.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/(refs/pr/\d+|[^/]+))?$")
RESOLVE = re.compile(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)$")


@dataclass
class Repo:
    """A repository; files over ``lfs_from`` bytes are in LFS, as on the Hub."""

    files: dict[str, bytes]
    commit: str = "c" * 40
    branches: tuple[str, ...] = ("main",)
    gated: bool = False
    private: bool = False
    token: str | None = None  # the one token that may read a gated or private repository
    lfs_from: int = 1000
    sizes: dict[str, int] = field(default_factory=dict)  # to be told instead of the real ones
    earlier: dict[str, dict[str, bytes]] = field(default_factory=dict)  # files of other commits

    def at(self, revision: str) -> "Repo":
        """Return the repository as it was at an earlier commit; as it is at any other revision."""
        if revision not in self.earlier:
            return self
        return replace(self, files=self.earlier[revision], commit=revision)


@dataclass
class Fault:
    """What happens to a request whose method and path match, ``times`` times over."""

    method: str
    path: str  # regular expression
    status: int | None = None  # answer this status, or with None:
    send: int = 0  # send so many bytes of the file, then drop the connection
    body: bytes | None = None  # or send this instead of the file
    headers: dict[str, str] = field(default_factory=dict)  # with a status
    hold: threading.Event | None = None  # or, before dropping it, wait for this
    times: int = 10**6


@dataclass
class Hub:
    url: str
    repos: dict[str, Repo]
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def asked(self, method: str, part: str) -> list[str]:
        """Return the paths of the requests by this method that hold ``part``."""
        return [path for how, path, _ in self.requests if how == method and part in path]

    def fault(self, method: str, path: str) -> Fault | None:
        """Return the fault that this request meets, and count it."""
        for fault in self.faults:
            if fault.method == method and fault.times and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None


@contextmanager
def serve(repos: dict[str, Repo]) -> Iterator[Hub]:
    """Serve repositories on a free port of 127.0.0.1 until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}", repos)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, dict(self.headers)))
        fault = hub.fault(self.command, path)
        if fault and fault.status:
            self.reply(fault.status, fault.headers)
        elif found := API.match(path):
            self.info(hub.repos.get(found[2]), found[2], found[4] or "main", found[3] == "tree")
        elif found := RESOLVE.match(path):
            self.file(hub.repos.get(found[1]), found[2], found[3], fault)
        else:
            self.reply(404)

    def readable(self, repo: Repo) -> bool:
        bearer = self.headers.get("authorization", "")
        return repo.token is not None and bearer == f"Bearer {repo.token}"

    def info(self, repo: Repo | None, name: str, revision: str, tree: bool) -> None:
        if repo is None or (repo.private and not self.readable(repo)):
            self.reply(401, {"X-Error-Code": "RepoNotFound"})  # so the Hub answers strangers
        elif revision not in (*repo.branches, repo.commit, *repo.earlier):
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            repo = repo.at(revision)
            files = [_listed(repo, path) for path in repo.files]
            body = {"id": name, "sha": repo.commit, "siblings": files, "gated": repo.gated}
            shown = json.dumps(files if tree else body).encode()
            self.reply(200, {"Content-Type": "application/json"}, shown)

    def file(self, repo: Repo | None, revision: str, path: str, fault: Fault | None) -> None:
        if repo is None:
            return self.reply(401, {"X-Error-Code": "RepoNotFound"})
        if repo.gated and not self.readable(repo):
            known = "authorization" in self.headers
            return self.reply(403 if known else 401, {"X-Error-Code": "GatedRepo"})
        repo = repo.at(revision)
        if path not in repo.files:
            return self.reply(404, {"X-Error-Code": "EntryNotFound"})
        found, content = _listed(repo, path), repo.files[path]
        etag = found["lfs"]["sha256"] if "lfs" in found else found["blobId"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit}
        if fault and fault.body is not None:
            content = fault.body
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0")))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = fault.send if fault and fault.body is None else None
        self.reply(206 if start else 200, headers, content[start:], cut)
        if fault and fault.hold:
            fault.hold.wait(300)
        return None

    def reply(
        self,
        status: int,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def reached(monkeypatch: Any, repos: dict[str, Repo]) -> Iterator[Hub]:
    """Serve repositories to the client of this process, which has no token and waits for nobody."""
    with serve(repos) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setattr("headpursuit.run.retry.FIRST_WAIT", 0.01)
        yield hub


def _listed(repo: Repo, path: str) -> dict[str, Any]:
    """Describe a file in both forms: that of a repository's siblings, and that of its tree."""
    content = repo.files[path]
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    found: dict[str, Any] = {"size": repo.sizes.get(path, len(content))}
    found |= {"rfilename": path, "blobId": blob, "type": "file", "path": path, "oid": blob}
    if len(content) > repo.lfs_from:
        digest = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"size": len(content), "sha256": digest, "oid": digest, "pointerSize": 130}
    return found
