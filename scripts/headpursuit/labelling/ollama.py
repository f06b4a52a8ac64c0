"""Backend ``ollama``: a running Ollama server, or one that is started and ended here."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import ollama
from tqdm import tqdm

from headpursuit.labelling.backend import (
    LOOPBACK,
    Answer,
    ChatBackend,
    Refused,
    connection,
    opening,
    telling,
)
from headpursuit.labelling.prompt import SCHEMA
from headpursuit.run.files import UserError
from headpursuit.run.retry import Busy, persist

START_SECONDS = 60
ANSWER_SECONDS = 5
UNLOAD_SECONDS = 10
# Starts a server that died anew. On SIGTERM all of its process group is ended.
SERVE = """
trap 'trap "" TERM; kill 0; wait; exit' TERM
while :; do ollama serve & wait; sleep 1; done
"""


class Server(ollama.Client):
    """The official client; what it asks raises Busy if asking again may help, else Refused."""

    def __init__(self, host: str | None, timeout: float):
        """Take an address in any form that OLLAMA_HOST may have; None is that of OLLAMA_HOST."""
        shared = connection("OLLAMA_API_KEY", timeout)
        with opening("labeller.ollama.host or OLLAMA_HOST"):
            super().__init__(host, **shared)
        url = self._client.base_url
        self.host, self.name, self.here = str(url), url.netloc.decode(), url.host in LOOPBACK

    def _request(self, *args: Any, **kwargs: Any) -> Any:
        with telling(self.name):
            return super()._request(*args, **kwargs)

    def chat_whole(self, **body: Any) -> ollama.ChatResponse:
        """Chat, and have servers since the end of 2025 refuse what they would cut."""
        body |= {"stream": False, "truncate": False}
        return self._request(ollama.ChatResponse, "POST", "/api/chat", json=body)

    def version(self) -> str | None:
        """Return the server's version, or None where nothing answers like an Ollama server."""
        with suppress(Busy, UserError), telling(self.name):
            said = self._request_raw("GET", "/api/version", timeout=ANSWER_SECONDS)
            return said.json()["version"]

    def models(self) -> dict[str, Any]:
        """Return what the server says of each model that it has, by its plain name."""
        return {plain_name(own.model): own for own in self.list().models}

    def loaded(self, name: str) -> Any:
        """Return the same of a loaded model; None if it is not loaded, or the server says not."""
        with suppress(Busy, UserError):
            return next((own for own in self.ps().models if own.model == name), None)

    def abilities(self, name: str) -> tuple[int | None, bool]:
        """Return the longest context that a model can have, None if the server does not say it.

        And whether it sees images; it may where the server does not say it.
        """
        with suppress(Busy, UserError):
            said = self.show(name)
            facts = (said.modelinfo or {}).items()
            sizes = [size for key, size in facts if key.endswith(".context_length")]
            longest = next((size for size in sizes if isinstance(size, int)), None)
            return longest, "vision" in (said.capabilities or ["vision"])
        return None, True


def plain_name(name: str | None) -> str:
    """Return a model's name as servers list it, and without the tag that goes without saying."""
    name = (name or "").removesuffix(":latest")
    return name.removeprefix("registry.ollama.ai/").removeprefix("library/")


@contextmanager
def open_ollama(settings: dict, asked: list[str | bytes], log: Path | None) -> Iterator["Ollama"]:
    """Yield the backend; a server that is started for it writes into ``log``.

    At the end the model is unloaded: it takes 43 GB of a GPU that the next job needs.
    """
    with find_server(settings, log) as (server, started):
        model = {**prepare_model(server, settings), "started": started}
        name = model["model"]
        # What a server on another machine had loaded before may be in use by others.
        stays = started or (not server.here and server.loaded(name))
        with nullcontext() if stays else at_end(lambda: unload(server, name)):
            yield Ollama(server, settings, asked, model)


class Ollama(ChatBackend):
    """Asks Ollama's own API, which is told the context length."""

    longest = "num_predict"

    def __init__(self, server: Server, settings: dict, asked: list[str | bytes], model: dict):
        """Load the model with the context length that the longest of ``asked`` needs."""
        self.server = server
        limit = min(settings["max_ctx"], model["context_length"] or settings["max_ctx"])
        named = {key: model[key] for key in ("model", "digest")}
        super().__init__(settings, asked, named, limit)
        patience = settings["patience"]
        loaded = persist(lambda: self._load(patience), patience)
        self.facts |= {**model, "num_ctx": self.num_ctx, "num_ctx_loaded": loaded}

    def _answer(self, chat: list[dict], options: dict) -> Answer:
        said = self.server.chat_whole(
            model=self.model,
            messages=list(map(_as_sent, chat)),
            options={**options, "num_ctx": self.num_ctx},
            **({"format": SCHEMA} if self.mode == "json" else {}),
        )
        if not said.done:
            raise Busy(f"{self.server.name}: the reply ended before it was done")
        cost = said.eval_count, said.prompt_eval_count
        return Answer(said.message.content or "", *cost, said.done_reason)

    def _load(self, patience: float) -> int | None:
        """Load the model; return the context length that it has, None if the server tells none.

        The request is the labelling prompt without a text, so that its tokens are counted too.
        """
        frame = [message["content"] for message in self.prompt.messages("")]
        options = {"num_ctx": self.num_ctx, "num_predict": 1}
        patient = Server(self.server.host, patience)
        said = patient.generate(self.model, "\n".join(frame), raw=True, options=options)
        # Line ends in between, and what merges with them, make two tokens a message at most.
        self.frame_tokens = max((said.prompt_eval_count or 0) - 2 * len(frame), 0)
        loaded = self.server.loaded(self.model)
        context = loaded and loaded.context_length
        if context and context < self.num_ctx:
            raise UserError(
                f"Ollama gives {self.model} {context} tokens of context, and would cut prompts "
                f"without a word. {self.longer_context()}"
            )
        return context or None

    def remedy(self, error: Refused) -> str:
        """Say how to bring back a model that is gone."""
        return _pull_it(self.model) if error.status == 404 else super().remedy(error)


def _as_sent(message: dict[str, Any]) -> dict[str, Any]:
    images = [b64encode(image).decode() for image in message.get("images", ())]
    return message | ({"images": images} if images else {})


def prepare_model(server: Server, settings: dict) -> dict:
    """Pull the model unless the server has it, and return what the server says of it.

    Raises:
        UserError: if it is missing and may not, or cannot, be pulled.
    """
    name, patience = plain_name(settings["ollama"]["model"]), settings["patience"]
    models = persist(server.models, patience)
    if name not in models and settings["ollama"]["pull"]:
        persist(lambda: _pull(Server(server.host, patience), name), patience)
        models = persist(server.models, patience)
    if name not in models:
        choice = "" if settings["ollama"]["pull"] else " Or set labeller.ollama.pull: true."
        raise UserError(f"The Ollama server does not have {name}. {_pull_it(name)}{choice}")
    own, details = models[name], models[name].details
    longest, sees = server.abilities(name)
    if settings["per_image"] and not sees:
        raise UserError(
            f"labeller.keywords.ollama.model: {name} sees no images. Take one that does."
        )
    return {
        "model": own.model,
        "digest": own.digest,
        "quantisation": details and details.quantization_level,
        "parameters": details and details.parameter_size,
        "context_length": longest,
        "version": server.version(),
    }


def _pull_it(name: str) -> str:
    return f"On its machine run `ollama pull {name}`."


def _pull(server: Server, name: str) -> None:
    try:
        with telling(server.name):
            steps = server.pull(name, stream=True)
            for layer, progress in groupby(steps, key=lambda step: step.digest or ""):
                desc = f"pull {layer[7:19]}"
                with tqdm(desc=desc, unit="B", unit_scale=True, disable=not layer) as bar:
                    for step in progress:
                        bar.total = step.total
                        bar.update((step.completed or 0) - bar.n)
    except ollama.ResponseError as error:  # the server says it in a line of its own
        lasts = re.search("does not exist|not found|newer version", error.error)
        raise (UserError if lasts else Busy)(f"Ollama cannot pull {name}: {error.error}") from error


@contextmanager
def find_server(settings: dict, log: Path | None) -> Iterator[tuple[Server, bool]]:
    """Yield a server and whether it was started here.

    One that the config names, or OLLAMA_HOST on another machine, is waited for. Otherwise that of
    this machine is used, and one started where none answers.
    """
    host = settings["ollama"]["host"]
    server = Server(host, settings["timeout"])

    def answers() -> None:
        if server.version() is None:
            raise Busy(f"no Ollama server answers at {server.name}")

    if host or not server.here:
        step = (
            "Start it there (`ollama serve`), or correct labeller.ollama.host (null, and no "
            "OLLAMA_HOST: one is started on this machine). Then run the same command again."
        )
        try:
            persist(answers, settings["patience"])
        except UserError as error:
            raise UserError(f"{error}. {step}") from None
    elif server.version() is None:
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
        server = Server(host, settings["timeout"])
        deadline = time.monotonic() + START_SECONDS
        while server.version() is None:
            if time.monotonic() > deadline:
                raise UserError(
                    f"`ollama serve` did not answer within {START_SECONDS} s; its log is {log}."
                )
            time.sleep(0.1)
        yield server


def unload(server: Server, name: str) -> None:
    """Have the server free the memory that a model takes, which it else keeps for minutes."""
    # With a client of its own: a signal may come while another holds its locks.
    with suppress(Busy, UserError):
        Server(server.host, UNLOAD_SECONDS).generate(name, keep_alive=0)


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
