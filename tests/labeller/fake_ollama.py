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
PULL_ERRORS = {
    "no-such:latest": "pull model manifest: file does not exist",
    "too-new:latest": "pull model manifest: 412: this model requires a newer version of Ollama",
}
TIMES = {"total_duration": 3 * 10**8, "load_duration": 10**7}  # nanoseconds
TIMES |= {"prompt_eval_duration": 10**8, "eval_duration": 10**8}
TOKEN = re.compile(r"\w+|[^\w\s]")
NOW = "2026-11-26T12:00:00.123456789Z"
DIGEST = "a6eb4748fd2990ad2952b2335a95a7f952d1a06119a0aa6a2df6cd052a93a3fa"


def usual_reply(text: str, attempt: int) -> str:
    """Name the mild words that the tests plant."""
    found = [word for word in HARMFUL if re.search(rf"\b{word}\b", text)]
    return f"<answer>{', '.join(found) or 'None'}</answer>"


def shorten(reply: str, most: int | None) -> tuple[str, int, str]:
    """Return as much of a reply as ``num_predict`` allows, its tokens, and why it ended."""
    ends = [token.end() for token in TOKEN.finditer(reply)]
    if most is None or len(ends) <= most:
        return reply, len(ends), "stop"
    return reply[: ends[most - 1]], most, "length"


def n_tokens(messages: list[dict[str, Any]]) -> int:
    """Count as a tokenizer might: a chat template's marks, words and punctuation."""
    return sum(5 + len(TOKEN.findall(message["content"])) for message in messages)


class FakeOllama:
    """The server; ``faults`` are taken one a chat request, the last one for ever if ``stuck``."""

    def __init__(
        self,
        reply: Callable[[str, int], str] = usual_reply,
        models: tuple[str, ...] = ("llama3.3:70b",),
        delay: float = 0.0,
        port: int = 0,
        address: str = "127.0.0.1",
    ):
        self.reply, self.models, self.delay = reply, list(models), delay
        self.prompt_ones = float("inf")  # chat requests beyond these are held for a minute
        self.faults: list[str] = []
        self.stuck = False
        self.trained_context: int | None = 131072  # what /api/show tells
        self.context: int | None = None  # the window it gives; None: what is asked for
        self.tells_context = True  # in /api/ps; older servers don't
        self.knows_truncate = True  # older servers cut prompts whatever the request says
        self.counts_cached = True  # some servers count what their cache lacks, and 0 as nothing
        self.loaded: dict[str, int] = {}  # model to its window
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.cache: set[str] = set()  # beginnings of chats that were read
        self.gate = threading.Event()  # while it is clear, chat replies are held back
        self.gate.set()
        self.requests: list[dict[str, Any]] = []  # bodies of the chat requests
        self.headers: list[dict[str, str]] = []
        self.texts: list[str] = []
        self.pulls = 0
        self.lock = threading.Lock()
        self.http = _Server((address, port), _Handler)
        self.http.fake = self
        self.host = f"{address}:{self.http.server_address[1]}"

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
        text = body["messages"][-1]["content"]
        if "<text>\n" in text:  # the shipped prompt's template
            text = text.split("<text>\n", 1)[1].split("\n</text>", 1)[0]
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

    def load(self, body: dict[str, Any]) -> int:
        """Load a model with the window that is asked for; return the one it has."""
        with self.lock:
            window = self.context or (body.get("options") or {}).get("num_ctx") or 4096
            if self.loaded.get(body["model"]) != window:
                self.loads.append(body["model"])
            self.loaded[body["model"]] = window
            return window

    def unload(self, name: str) -> None:
        with self.lock:
            self.unloads.append(name)
            self.loaded.pop(name, None)

    def count(self, messages: list[dict[str, Any]], window: int) -> int:
        """Return prompt_eval_count: the oldest messages but the system's go, then what is over."""
        kept = list(messages)
        for message in messages[:-1]:
            if n_tokens(kept) > window and message["role"] != "system":
                kept.remove(message)
        whole = min(n_tokens(kept), window)
        with self.lock:
            fronts = [json.dumps(kept[: i + 1]) for i in range(len(kept))]
            held = sum(front in self.cache for front in fronts)
            self.cache.update(fronts)
        return whole if self.counts_cached else max(whole - n_tokens(kept[:held]), 0)


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
            self.send({"models": [self.running(name) for name in list(fake.loaded)]})
        else:
            self.send({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        route = {
            "/api/show": self.show,
            "/api/generate": self.generate,
            "/api/pull": self.pull,
            "/api/chat": self.chat,
            "/v1/chat/completions": self.chat,
        }.get(self.path)
        if route is None:
            self.send({"error": "not found"}, 404)
        else:
            route(body)

    def model(self, name: str) -> dict[str, Any]:
        details = {"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"]}
        details |= {"quantization_level": "Q4_K_M", "parameter_size": "70.6B"}
        facts = {"model": name, "name": name, "digest": DIGEST, "size": 42, "details": details}
        return {**facts, "modified_at": "2026-11-01T12:00:00.123456789Z"}

    def running(self, name: str) -> dict[str, Any]:
        fake, facts = self.server.fake, self.model(name)
        del facts["modified_at"]
        facts |= {"expires_at": "2026-11-26T12:05:00.123456789Z", "size_vram": 42}
        return facts | ({"context_length": fake.loaded[name]} if fake.tells_context else {})

    def lacks(self, body: dict[str, Any]) -> bool:
        if body["model"] in self.server.fake.models:
            return False
        self.send({"error": f"model '{body['model']}' not found"}, 404)
        return True

    def show(self, body: dict[str, Any]) -> None:
        if self.lacks(body):
            return
        facts = self.model(body["model"])
        info = {"general.architecture": "llama", "general.parameter_count": 70553706560}
        if self.server.fake.trained_context:
            info["llama.context_length"] = self.server.fake.trained_context
        facts = {key: facts[key] for key in ("details", "modified_at")}
        texts = {"license": "", "modelfile": "", "template": "{{ .Prompt }}"}
        self.send({**texts, **facts, "model_info": info, "capabilities": ["completion"]})

    def generate(self, body: dict[str, Any]) -> None:
        """Answer one token; or load or unload a model, as a request without a prompt does."""
        if self.lacks(body):
            return
        told = {"model": body["model"], "created_at": NOW, "done": True}
        if not body.get("prompt") and body.get("keep_alive") == 0:
            self.server.fake.unload(body["model"])
            self.send({**told, "response": "", "done_reason": "unload"})
            return
        window = self.server.fake.load(body)
        if not body.get("prompt"):
            self.send({**told, "response": "", "done_reason": "load"})
            return
        count = min(len(TOKEN.findall(body["prompt"])), window)
        counts = {"prompt_eval_count": count, "eval_count": 1}
        self.send({**told, "response": "a", "done_reason": "length", **TIMES, **counts})

    def pull(self, body: dict[str, Any]) -> None:
        fake = self.server.fake
        fake.pulls += 1
        if error := PULL_ERRORS.get(body["model"]):
            self.send_lines([{"status": "pulling manifest"}, {"error": error}])
            return
        fake.models.append(body["model"])
        step = {"status": f"pulling {DIGEST[:12]}", "digest": f"sha256:{DIGEST}", "total": 4000}
        # The first line of a layer has no "completed".
        steps = [step, *({**step, "completed": done} for done in (2000, 4000))]
        ends = ["verifying sha256 digest", "writing manifest", "success"]
        statuses = [{"status": status} for status in ends]
        self.send_lines([{"status": "pulling manifest"}, *steps, *statuses])

    def chat(self, body: dict[str, Any]) -> None:
        fake = self.server.fake
        text, attempt, fault = fake.note(body, dict(self.headers))
        fake.gate.wait()
        time.sleep(fake.delay if len(fake.requests) <= fake.prompt_ones else 60)
        if fault is not None:
            self.fail(fault)
            return
        openai = self.path.startswith("/v1")
        if not openai and self.lacks(body):
            return
        window = fake.load(body)
        strict = fake.knows_truncate and not body.get("truncate", True)
        if strict and n_tokens(body["messages"]) > window:
            self.send({"error": "the input length exceeds the context length"}, 400)
            return
        count = fake.count(body["messages"], window)
        options = body if openai else body.get("options") or {}
        reply, tokens, ended = shorten(
            fake.reply(text, attempt), options.get("max_tokens" if openai else "num_predict")
        )
        if openai:
            choice = {"index": 0, "message": {"role": "assistant", "content": reply}}
            usage = {"completion_tokens": tokens, "prompt_tokens": count}
            self.send({"choices": [{**choice, "finish_reason": ended}], "usage": usage})
        else:
            self.send(self.answer(body["model"], reply, tokens, count, ended))

    def answer(
        self, model: str, reply: str, tokens: int, count: int, ended: str | None
    ) -> dict[str, Any]:
        told: dict[str, Any] = {"model": model, "created_at": NOW}
        told |= {"message": {"role": "assistant", "content": reply}, "done": ended is not None}
        if ended is None:
            return told
        counts = {"prompt_eval_count": count} if count else {}  # a count of 0 is left out
        return {**told, "done_reason": ended, **counts, **TIMES, "eval_count": tokens}

    def fail(self, fault: str) -> None:
        if fault == "silence":
            time.sleep(3)
        elif fault == "truncated":
            self.send({"message": {"content": "<answer>da"}}, promise=10_000)
        elif fault == "unfinished":
            self.send(self.answer("m", "<answer>darn</answer>", 7, 99, None))
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
