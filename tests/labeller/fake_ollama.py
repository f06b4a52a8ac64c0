"""A scripted server on the loopback that speaks Ollama's HTTP API, and misbehaves when told to.

    with FakeOllama() as server:      # in this process: scripted, its requests at hand
        server.faults.append("500")

    python fake_ollama.py serve       # as `ollama serve`: a process that can be killed

It also answers OpenAI's /v1/chat/completions, with the same replies and faults.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

HARMFUL = ("darn", "dunce")
DIGEST = "a6eb4748fd2990ad2952b2335a95a7f952d1a06119a0aa6a2df6cd052a93a3fa"


def usual_reply(text: str, attempt: int) -> str:
    """Name the mild words that the tests plant."""
    found = [word for word in HARMFUL if re.search(rf"\b{word}\b", text)]
    return f"<answer>{', '.join(found) or 'None'}</answer>"


class FakeOllama:
    """The server; ``faults`` are taken one a chat request, the last one for ever if ``stuck``."""

    def __init__(
        self,
        reply: Callable[[str, int], str] = usual_reply,
        models: tuple[str, ...] = ("llama3.3:70b",),
        delay: float = 0.0,
        port: int = 0,
    ):
        self.reply, self.models, self.delay = reply, list(models), delay
        self.prompt_ones = float("inf")  # chat requests beyond these are held for a minute
        self.faults: list[str] = []
        self.stuck = False
        self.context: int | None = 131072  # what /api/ps tells
        self.gate = threading.Event()  # while it is clear, chat replies are held back
        self.gate.set()
        self.requests: list[dict[str, Any]] = []  # bodies of the chat requests
        self.headers: list[dict[str, str]] = []
        self.texts: list[str] = []
        self.pulls = 0
        self.lock = threading.Lock()
        self.http = _Server(("127.0.0.1", port), _Handler)
        self.http.fake = self
        self.host = f"127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self.http.shutdown()
        self.http.server_close()

    def note(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[str, int, str | None]:
        """Write a chat request down; return its text, how often it came, and the fault due."""
        question = body["messages"][-1]["content"]
        text = question.split("<text>\n", 1)[1].split("\n</text>", 1)[0]
        with self.lock:
            self.requests.append(body)
            self.headers.append(headers)
            self.texts.append(text)
            if seen := os.environ.get("FAKE_SEEN"):
                with Path(seen).open("a") as handle:
                    handle.write(json.dumps(text) + "\n")
            fault = None
            if self.faults:
                fault = self.faults[0] if self.stuck else self.faults.pop(0)
            return text, self.texts.count(text), fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    fake: FakeOllama


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    # Without these, headers and body travel in two packets and the second waits 40 ms.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.server.fake
        if self.path == "/api/version":
            self.send({"version": "0.13.3"})
        elif self.path == "/api/tags":
            self.send({"models": [self.model(name) for name in fake.models]})
        elif self.path == "/api/ps":
            loaded = [{**self.model(n), "context_length": fake.context} for n in fake.models]
            self.send({"models": loaded})
        else:
            self.send({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        route = {
            "/api/show": self.show,
            "/api/generate": self.load,
            "/api/pull": self.pull,
            "/api/chat": self.chat,
            "/v1/chat/completions": self.chat,
        }.get(self.path)
        if route is None:
            self.send({"error": "not found"}, 404)
        else:
            route(body)

    def model(self, name: str) -> dict[str, Any]:
        details = {"quantization_level": "Q4_K_M", "parameter_size": "70.6B"}
        return {"model": name, "name": name, "digest": DIGEST, "size": 42, "details": details}

    def show(self, body: dict[str, Any]) -> None:
        info = {"general.architecture": "llama", "llama.context_length": 131072}
        self.send({"details": self.model("")["details"], "model_info": info})

    def load(self, body: dict[str, Any]) -> None:
        if body["model"] not in self.server.fake.models:
            self.send({"error": f"model '{body['model']}' not found"}, 404)
        else:
            self.send({"model": body["model"], "response": "", "done": True})

    def pull(self, body: dict[str, Any]) -> None:
        fake = self.server.fake
        fake.pulls += 1
        if body["model"].startswith("no-such"):
            self.send_lines([{"error": "pull model manifest: file does not exist"}])
            return
        fake.models.append(body["model"])
        step = {"status": "pulling", "digest": f"sha256:{DIGEST}", "total": 4000}
        parts = [{**step, "completed": done} for done in (0, 2000, 4000)]
        self.send_lines([{"status": "pulling manifest"}, *parts, {"status": "success"}])

    def chat(self, body: dict[str, Any]) -> None:
        fake = self.server.fake
        text, attempt, fault = fake.note(body, dict(self.headers))
        fake.gate.wait()
        time.sleep(fake.delay if len(fake.requests) <= fake.prompt_ones else 60)
        if fault is not None:
            self.fail(fault)
            return
        reply = fake.reply(text, attempt)
        if self.path.startswith("/v1"):
            message = {"message": {"role": "assistant", "content": reply}}
            usage = {"completion_tokens": 7, "prompt_tokens": 99}
            self.send({"choices": [message], "usage": usage})
        else:
            self.send(self.answer(body, reply))

    def answer(self, body: dict[str, Any], reply: str, done: bool = True) -> dict[str, Any]:
        message = {"role": "assistant", "content": reply}
        counts = {"prompt_eval_count": 99, "eval_count": 7, "eval_duration": 10**8}
        return {"model": body["model"], "message": message, "done": done, **counts}

    def fail(self, fault: str) -> None:
        if fault == "silence":
            time.sleep(3)
        elif fault == "truncated":
            self.send({"message": {"content": "<answer>da"}}, promise=10_000)
        elif fault == "unfinished":
            self.send(self.answer({"model": "m"}, "<answer>darn</answer>", done=False))
        elif fault == "garbled":
            self.send_raw(b'{"message": {"role": "assi')
        elif fault == "dropped":
            self.close_connection = True
        else:
            self.send({"error": f"scripted fault {fault}"}, int(fault))

    def send(self, value: Any, status: int = 200, promise: int = 0) -> None:
        self.send_raw(json.dumps(value).encode(), status, promise)

    def send_raw(self, data: bytes, status: int = 200, promise: int = 0) -> None:
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(promise or len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:  # the client gave up waiting
            self.close_connection = True
        if promise:
            self.close_connection = True

    def send_lines(self, values: list[Any]) -> None:
        self.send_raw(b"".join(json.dumps(value).encode() + b"\n" for value in values))


def serve() -> None:
    """Be `ollama serve` at OLLAMA_HOST; with FAKE_PIDS, with a child like Ollama's runner."""
    if note := os.environ.get("FAKE_PIDS"):
        runner = subprocess.Popen(["sleep", "60"])
        with Path(note).open("a") as handle:
            handle.write(f"{os.getpid()} {runner.pid}\n")
    port = int(os.environ["OLLAMA_HOST"].rsplit(":", 1)[1])
    with FakeOllama(port=port, delay=float(os.environ.get("FAKE_DELAY", "0"))) as server:
        server.prompt_ones = float(os.environ.get("FAKE_PROMPT_ONES", "inf"))
        server.thread.join()


if __name__ == "__main__":
    assert sys.argv[1:] == ["serve"], sys.argv
    serve()
