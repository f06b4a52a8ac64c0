"""Backend ``ollama``: a running Ollama server, or one that is started and ended here."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from ollama._client import _parse_host
from tqdm import tqdm

from headpursuit.labelling.backend import Answer, ChatBackend, Server
from headpursuit.labelling.prompt import SCHEMA
from headpursuit.run.files import UserError
from headpursuit.run.retry import Busy, persist

START_SECONDS = 60
UNLOAD_SECONDS = 10
# Starts a server that died anew. On SIGTERM all of its process group is ended.
SERVE = """
trap 'trap "" TERM; kill 0; wait; exit' TERM
while :; do ollama serve & wait; sleep 1; done
"""


@contextmanager
def open_ollama(settings: dict, texts: list[str], log: Path | None) -> Iterator["Ollama"]:
    """Yield the backend; a server that is started for it writes into ``log``.

    At the end the model is unloaded: it takes 43 GB of a GPU that the next job needs.
    """
    with find_server(settings, log) as (server, started):
        model = {**prepare_model(server, settings), "started": started}
        name = model["model"]
        # What a server on another machine had loaded before may be in use by others.
        stays = started or (not server.here and _loaded(server, name))
        with nullcontext() if stays else at_end(lambda: unload(server, name)):
            yield Ollama(server, settings, texts, model)


class Ollama(ChatBackend):
    """Asks Ollama's own API, which is told the context length."""

    path = "api/chat"
    longest = "num_predict"

    def __init__(self, server: Server, settings: dict, texts: list[str], model: dict):
        """Load the model with the context length that the longest of ``texts`` needs."""
        limit = min(settings["max_ctx"], model["context_length"] or settings["max_ctx"])
        named = {key: model[key] for key in ("model", "digest")}
        super().__init__(server, settings, texts, named, limit)
        patience = settings["patience"]
        loaded = persist(lambda: self._load(patience), patience)
        self.facts |= {**model, "num_ctx": self.num_ctx, "num_ctx_loaded": loaded}

    def _body(self, chat: list[dict], options: dict) -> dict:
        return {
            "model": self.model,
            "messages": chat,
            "options": {**options, "num_ctx": self.num_ctx},
            "stream": False,
            "truncate": False,  # servers since the end of 2025 then refuse what they would cut
            **({"format": SCHEMA} if self.mode == "json" else {}),
        }

    def _read(self, answer: Any) -> Answer:
        if not answer["done"]:
            raise Busy("Ollama: the reply ended before it was done")
        cost = answer.get("eval_count"), answer.get("prompt_eval_count")
        return Answer(answer["message"]["content"] or "", *cost, answer.get("done_reason"))

    def _load(self, patience: float) -> int | None:
        """Load the model; return the context length that it has, None if the server tells none.

        The request is the labelling prompt without a text, so that its tokens are counted too.
        """
        frame = [message["content"] for message in self.prompt.messages("")]
        body = {"model": self.model, "prompt": "\n".join(frame), "raw": True, "stream": False}
        body["options"] = {"num_ctx": self.num_ctx, "num_predict": 1}

        def read(answer: Any) -> int:
            # Line ends in between, and what merges with them, make two tokens a message at most.
            return max((answer.get("prompt_eval_count") or 0) - 2 * len(frame), 0)

        self.frame_tokens = self.server.call("api/generate", body, read, patience)
        context = _loaded(self.server, self.model).get("context_length")
        if context and context < self.num_ctx:
            raise UserError(
                f"Ollama gives {self.model} {context} tokens of context, and would cut prompts "
                f"without a word. {self.longer_context()}"
            )
        return context

    def remedy(self, error: str) -> str:
        """Say how to bring back a model that is gone."""
        return _pull_it(self.model) if "HTTP 404" in error else super().remedy(error)


def prepare_model(server: Server, settings: dict) -> dict:
    """Pull the model unless the server has it, and return what the server says of it.

    Raises:
        UserError: if it is missing and may not, or cannot, be pulled.
    """
    name, patience = settings["ollama"]["model"].removesuffix(":latest"), settings["patience"]
    name = name.removeprefix("registry.ollama.ai/").removeprefix("library/")  # lists have neither
    models = persist(lambda: _models(server, "api/tags"), patience)
    if name not in models and settings["ollama"]["pull"]:
        persist(lambda: _pull(server, name, patience), patience)
        models = persist(lambda: _models(server, "api/tags"), patience)
    if name not in models:
        choice = "" if settings["ollama"]["pull"] else " Or set labeller.ollama.pull: true."
        raise UserError(f"The Ollama server does not have {name}. {_pull_it(name)}{choice}")

    def length(answer: Any) -> int | None:
        info = answer["model_info"].items()
        return next((int(value) for key, value in info if key.endswith(".context_length")), None)

    return {
        **models[name],
        "context_length": _if_known(lambda: server.call("api/show", {"model": name}, length)),
        "version": _version(server),
    }


def _pull_it(name: str) -> str:
    return f"On its machine run `ollama pull {name}`."


def _pull(server: Server, name: str, patience: float) -> None:
    with server.request("api/pull", {"model": name}, patience) as response:
        steps = map(json.loads, response.iter_lines())
        for layer, progress in groupby(steps, key=lambda step: step.get("digest", "")):
            desc = f"pull {layer[7:19]}"
            with tqdm(desc=desc, unit="B", unit_scale=True, disable=not layer) as bar:
                for step in progress:
                    if error := step.get("error"):
                        lasts = re.search("does not exist|not found|newer version", error)
                        kind = UserError if lasts else Busy
                        raise kind(f"Ollama cannot pull {name}: {error}")
                    bar.total = step.get("total")
                    bar.update(step.get("completed", 0) - bar.n)


@contextmanager
def find_server(settings: dict, log: Path | None) -> Iterator[tuple[Server, bool]]:
    """Yield a server and whether it was started here.

    One that the config names, or OLLAMA_HOST on another machine, is waited for. Otherwise that of
    this machine is used, and one started where none answers.
    """
    host = settings["ollama"]["host"]
    server = _server(host, settings["timeout"])
    if host or not server.here:
        step = (
            "Start it there (`ollama serve`), or correct labeller.ollama.host (null, and no "
            "OLLAMA_HOST: one is started on this machine). Then run the same command again."
        )
        _wait_for(server, settings["patience"], step)
    elif _version(server) is None:
        with own_server(settings, log) as server:
            yield server, True
        return
    yield server, False


@contextmanager
def own_server(settings: dict, log: Path | None) -> Iterator[Server]:
    """Run ``ollama serve`` on a free loopback port until the block, or this process, ends.

    Raises:
        UserError: if there is no ``ollama`` on the PATH, or it does not answer.
    """
    if shutil.which("ollama") is None:
        raise UserError(
            "No Ollama server is running and no `ollama` is installed. Install it from "
            "https://ollama.com/download (or `conda install -c conda-forge ollama`), start one "
            "elsewhere and set labeller.ollama.host to its address, or choose another "
            "labeller.backend."
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    own = {"OLLAMA_HOST": host, "OLLAMA_NUM_PARALLEL": str(settings["slots"])}
    # Linux sends the shell SIGTERM should this process be killed outright.
    leash = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
    log = log or Path(os.devnull)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as said:
        process = subprocess.Popen(
            [*leash, "sh", "-c", SERVE],
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )

    def stop() -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(10)

    with at_end(stop):
        server = _server(host, settings["timeout"])
        deadline = time.monotonic() + START_SECONDS
        while _version(server) is None:
            if time.monotonic() > deadline:
                raise UserError(
                    f"`ollama serve` did not answer within {START_SECONDS} s; its log is {log}."
                )
            time.sleep(0.1)
        yield server


def unload(server: Server, name: str) -> None:
    """Have the server free the memory that a model takes, which it else keeps for minutes."""
    # With a client of its own: a signal may come while another holds its locks.
    own = Server(server.url, server.key_variable, UNLOAD_SECONDS)
    body = {"model": name, "keep_alive": 0, "stream": False}
    _if_known(lambda: own.call("api/generate", body))


@contextmanager
def at_end(finish: Callable[[], None]) -> Iterator[None]:
    """Call ``finish`` after the block; on SIGTERM at once, so that no request holds it up."""

    def end(number: int, frame: object) -> None:
        finish()
        signal.signal(number, previous)
        os.kill(os.getpid(), number)

    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, end) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, previous)
        finish()


def _server(host: str | None, timeout: float) -> Server:
    # The official client knows the forms that an address, and OLLAMA_HOST, may have.
    url = _parse_host(host or os.environ.get("OLLAMA_HOST"))
    return Server(url, "OLLAMA_API_KEY", timeout)


def _wait_for(server: Server, patience: float, step: str) -> None:
    def answers() -> None:
        if _version(server) is None:
            raise Busy(f"no Ollama server answers at {server.name}")

    try:
        persist(answers, patience)
    except UserError as error:
        raise UserError(f"{error}. {step}") from None


def _version(server: Server) -> str | None:
    """Return the server's version, or None where nothing answers like an Ollama server."""
    return _if_known(lambda: server.call("api/version", None, itemgetter("version"), 5))


def _models(server: Server, path: str) -> dict[str, dict]:
    """Return what a server says of its models (api/tags), or of those loaded (api/ps)."""

    def facts(model: dict) -> dict:
        details = model.get("details") or {}
        return {
            "model": model["model"],
            "digest": model.get("digest"),
            "quantisation": details.get("quantization_level"),
            "parameters": details.get("parameter_size"),
            "context_length": int(model.get("context_length") or 0) or None,  # of a loaded one
        }

    def read(answer: Any) -> dict[str, dict]:
        models = map(facts, answer["models"])
        return {model["model"].removesuffix(":latest"): model for model in models}

    return server.call(path, read=read)


def _loaded(server: Server, name: str) -> dict:
    """Return the same of one model, nothing where it is not loaded or the server does not tell."""
    models = _if_known(lambda: _models(server, "api/ps")) or {}
    return models.get(name.removesuffix(":latest"), {})


def _if_known(call: Callable[[], Any]) -> Any:
    """Return what a server may not know (older ones, stand-ins), else None."""
    with suppress(Busy, UserError):
        return call()
