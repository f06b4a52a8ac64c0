"""A scripted server on the loopback that speaks Ollama's HTTP API, and misbehaves when told to.

    with FakeOllama() as server:      # in this process: scripted, its requests at hand
        server.faults.append("500")

    python fake_ollama.py serve       # as `ollama serve`: a process that can be killed

It also answers OpenAI's /v1/chat/completions, with the same replies and faults. A message with an
image has the text "image" and the image's SHA-256 for whoever scripts the replies.
"""

import base64
import hashlib
import json
import os
import re
import socket
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
    "no-such": "pull model manifest: file does not exist",
    "too-new": "pull model manifest: 412: this model requires a newer version of Ollama",
}
TOKEN = re.compile(r"\w+|[^\w\s]")
IMAGE_TOKENS = 300
SHOWN = ["grass", "sky", "water", "road", "house", "tree", "field", "roof", "cloud", "fence"]
SHOWN += ["wall", "sand", "stone", "boat", "car"]
DIGEST = "a6eb4748fd2990ad2952b2335a95a7f952d1a06119a0aa6a2df6cd052a93a3fa"


def usual_reply(text: str, attempt: int) -> str:
    """Name the mild words that the tests plant, or keywords of an image."""
    if text.startswith("image "):
        return str(keywords(text))
    found = [word for word in HARMFUL if re.search(rf"\b{word}\b", text)]
    return f"<answer>{', '.join(found) or 'None'}</answer>"


def keywords(text: str) -> list[str]:
    """Return five keywords that an image's name decides."""
    first, number = int(text.split()[1], 16), len(SHOWN)
    return [SHOWN[(first + 4 * place) % number] for place in range(4)] + ["clear day"]


def parts(message: dict[str, Any]) -> tuple[str, list[bytes]]:
    """Return a message's text and its decoded images, as Ollama and OpenAI have them."""
    own, images = message["content"], message.get("images", [])
    if isinstance(own, list):
        urls = [part["image_url"]["url"] for part in own if part["type"] == "image_url"]
        assert all(url.startswith("data:image/") for url in urls)
        images = [url.split(";base64,")[1] for url in urls]
        own = "".join(part["text"] for part in own if part["type"] == "text")
    return own, [base64.b64decode(image, validate=True) for image in images]


def shorten(reply: str, most: int) -> tuple[str, int, str]:
    """Return as much of a reply as ``num_predict`` allows, its tokens, and why it ended."""
    ends = [token.end() for token in TOKEN.finditer(reply)]
    return (
        (reply, len(ends), "stop")
        if len(ends) <= most
        else (reply[: ends[most - 1]], most, "length")
    )


def n_tokens(messages: list[dict[str, Any]]) -> int:
    """Count as a tokenizer might: a chat template's marks, words and punctuation."""
    read = map(parts, messages)
    return sum(5 + len(TOKEN.findall(text)) + IMAGE_TOKENS * len(own) for text, own in read)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
        self.faults: list[str] = []
        self.stuck = False
        self.context: int | None = None  # the window it gives; None: what is asked for
        self.modern = True  # it tells contexts, and refuses prompts where asked not to cut them
        self.counts_cached = True  # some servers count what their cache lacks, and 0 as nothing
        self.loaded: dict[str, int] = {}  # model to its window
        self.unloads: list[str] = []
        self.cache: set[str] = set()  # beginnings of chats that were read
        self.gate = threading.Event()  # while it is clear, chat replies are held back
        self.gate.set()
        self.requests: list[dict[str, Any]] = []  # bodies of the chat requests
        self.headers: list[dict[str, str]] = []
        self.texts: list[str] = []
        self.images: list[bytes] = []  # as they arrived
        self.sees = True  # its models read images
        self.listing = 200  # how OpenAI's list of models is answered
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
        text, images = parts(body["messages"][-1])
        if images:
            text = f"image {hashlib.sha256(b''.join(images)).hexdigest()}"
        elif "<text>\n" in text:  # the shipped prompt's template
            text = text.split("<text>\n", 1)[1].split("\n</text>", 1)[0]
        with self.lock:
            self.images += images
            self.requests.append(body)
            self.headers.append(headers)
            self.texts.append(text)
            fault = None
            if self.faults:
                fault = self.faults[0] if self.stuck else self.faults.pop(0)
            return text, self.texts.count(text), fault

    def load(self, body: dict[str, Any]) -> int:
        """Load a model with the window that is asked for; return the one it has."""
        with self.lock:
            window = self.context or (body.get("options") or {}).get("num_ctx") or 4096
            self.loaded[body["model"]] = window
            return window

    def count(self, messages: list[dict[str, Any]], window: int) -> int:
        """Return prompt_eval_count: the oldest messages but the system's go, then what is over."""
        kept = list(messages)
        for message in messages[:-1]:
            if n_tokens(kept) > window and message["role"] != "system":
                kept.remove(message)
        with self.lock:
            fronts = [json.dumps(kept[: i + 1]) for i in range(len(kept))]
            held = sum(front in self.cache for front in fronts)
            self.cache.update(fronts)
        read = 0 if self.counts_cached else n_tokens(kept[:held])
        return max(min(n_tokens(kept), window) - read, 0)


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
        details = {"quantization_level": "Q4_K_M", "parameter_size": "70.6B"}
        if self.path == "/api/version":
            self.send({"version": "0.13.3"})
        elif self.path == "/api/tags":
            facts = {"digest": DIGEST, "details": details}
            self.send({"models": [{"model": name, **facts} for name in fake.models]})
        elif self.path == "/api/ps":
            loaded = [{"model": name, "context_length": n} for name, n in fake.loaded.items()]
            if not fake.modern:
                loaded = [{"model": model["model"]} for model in loaded]
            self.send({"models": loaded})
        elif self.path == "/v1/models":
            self.send({"data": []}, fake.listing)
        else:
            self.send({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/api/pull":
            self.pull(body["model"])
        elif self.path.startswith("/api/") and body["model"] not in self.server.fake.models:
            self.send({"error": f"model '{body['model']}' not found"}, 404)
        elif self.path == "/api/show":
            length = {"llama.context_length": 131072} if self.server.fake.modern else {}
            can = ["completion", *(["vision"] if self.server.fake.sees else [])]
            told = {"capabilities": can} if self.server.fake.modern else {}
            self.send({"model_info": {"general.architecture": "llama", **length}, **told})
        elif self.path == "/api/generate":
            self.generate(body)
        else:
            self.chat(body)

    def generate(self, body: dict[str, Any]) -> None:
        """Answer one token, or unload a model."""
        fake = self.server.fake
        if body.get("keep_alive") == 0:
            fake.unloads.append(body["model"])
            fake.loaded.pop(body["model"], None)
            self.send({"done": True, "done_reason": "unload"})
            return
        count = min(len(TOKEN.findall(body["prompt"])), fake.load(body))
        self.send({"response": "a", "done": True, "prompt_eval_count": count})

    def pull(self, name: str) -> None:
        fake = self.server.fake
        fake.pulls += 1
        if name in PULL_ERRORS:
            steps = [{"error": PULL_ERRORS[name]}]
        else:
            fake.models.append(name)
            layer = {"status": "pulling", "digest": f"sha256:{DIGEST}", "total": 4000}
            # The first line of a layer has no "completed".
            steps = [layer, {**layer, "completed": 2000}, {**layer, "completed": 4000}]
            steps.append({"status": "success"})
        lines = [{"status": "pulling manifest"}, *steps]
        self.send_raw(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def chat(self, body: dict[str, Any]) -> None:
        fake, openai = self.server.fake, self.path.startswith("/v1")
        text, attempt, fault = fake.note(body, {k.lower(): v for k, v in self.headers.items()})
        fake.gate.wait()
        time.sleep(fake.delay)
        if fault is not None:
            self.fail(fault)
            return
        window = fake.load(body)
        if fake.modern and not body.get("truncate", True) and n_tokens(body["messages"]) > window:
            self.send({"error": "the input length exceeds the context length"}, 400)
            return
        count = fake.count(body["messages"], window)
        most = body["max_tokens"] if openai else body["options"]["num_predict"]
        reply, tokens, ended = shorten(fake.reply(text, attempt), most)
        message = {"role": "assistant", "content": reply}
        if openai:
            choice = {"index": 0, "message": message, "finish_reason": ended}
            usage = {"completion_tokens": tokens, "prompt_tokens": count}
            self.send({"choices": [choice], "usage": usage})
        else:
            counts = {"prompt_eval_count": count} if count else {}  # a count of 0 is left out
            counts |= {"eval_count": tokens}
            self.send({"message": message, "done": True, "done_reason": ended, **counts})

    def fail(self, fault: str) -> None:
        if fault == "silence":
            time.sleep(3)
        elif fault == "truncated":
            self.send({"message": {"content": "<answer>da"}}, promise=10_000)
        elif fault == "unfinished":
            self.send({"message": {"content": "<answer>darn</answer>"}, "done": False})
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
            self.send_header("content-length", str(promise or len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:  # the client gave up waiting
            self.close_connection = True
        if promise:
            self.close_connection = True


def serve() -> None:
    """Be `ollama serve` at OLLAMA_HOST; with FAKE_PIDS, with a child like Ollama's runner."""
    if note := os.environ.get("FAKE_PIDS"):
        runner = subprocess.Popen(["sleep", "60"])
        with Path(note).open("a") as handle:
            handle.write(f"{os.getpid()} {runner.pid}\n")
    port = int(os.environ["OLLAMA_HOST"].rsplit(":", 1)[1])
    with FakeOllama(port=port, delay=float(os.environ.get("FAKE_DELAY", "0"))) as server:
        server.thread.join()


if __name__ == "__main__":
    assert sys.argv[1:] == ["serve"], sys.argv
    serve()
