"""Backend ``ollama``: a running Ollama server, or one that is started and ended here."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import httpx
from ollama import ChatResponse, Client, ResponseError
from tqdm import tqdm

from headpursuit.labelling import LOOPBACK
from headpursuit.labelling.backend import Reply, vary
from headpursuit.labelling.prompt import SCHEMA, fewest_tokens, fit_window, load_prompt, refuse_cut
from headpursuit.run.files import UserError
from headpursuit.run.retry import TRANSIENT, Busy, persist

DEFAULT_HOST = "127.0.0.1:11434"
START_SECONDS = 60
UNLOAD_SECONDS = 10
INSTALL = (
    "Install it from https://ollama.com/download (or `conda install -c conda-forge ollama`), "
    "start one elsewhere and set labeller.ollama.host to its address, or choose another "
    "labeller.backend."
)


@contextmanager
def connect(
    settings: Mapping[str, Any], texts: Sequence[str], terms: Sequence[str], log: Path | None
) -> Iterator["Ollama"]:
    """Yield the backend that ``settings`` (the config's ``labeller``) describes.

    Args:
        settings: the config's section.
        texts: the texts to come; the context length follows from the longest.
        terms: unused, for word lists.
        log: where a server that is started here writes its log.
    """
    with (
        find_server(settings, log) as (host, started),
        # Loading a model takes longer than any reply, so what prepares it has the whole patience.
        _client(host, settings["patience"]) as admin,
        _client(host, settings["timeout"]) as client,
    ):
        model = {**prepare_model(admin, settings), "started": started}
        # A server that was started here is ended, which frees its memory.
        with nullcontext() if started else released(admin, host, model["model"]):
            yield Ollama(client, admin, settings, model, texts)


class Ollama:
    """Asks through the official client."""

    def __init__(
        self,
        client: Client,
        admin: Client,
        settings: Mapping[str, Any],
        model: dict[str, Any],
        texts: Sequence[str],
    ):
        """Load the model with the context length that the longest of ``texts`` needs."""
        self.client = client
        self.model = model
        self.prompt = load_prompt(settings["prompt"])
        self.slots = settings["slots"]
        self.mode = self.prompt.mode
        limit = min(settings["max_ctx"], model["context_length"] or settings["max_ctx"])
        self.num_ctx, self.room = fit_window(self.prompt, texts, settings["num_predict"], limit)
        self.options = {
            "temperature": settings["temperature"],
            "seed": settings["seed"],
            "num_predict": settings["num_predict"],
        }
        # num_ctx is no part of it: a window that holds the whole prompt changes no reply.
        self.identity = {
            "backend": "ollama",
            "model": model["model"],
            "digest": model["digest"],
            "mode": self.mode,
            "prompt": self.prompt.digest,
            "options": self.options,
        }
        self.loaded_ctx = persist(lambda: self._load(admin), settings["patience"])

    def ask(self, text: str, attempt: int) -> Reply:
        """Ask once; a later attempt has a reminder, another seed and a little temperature."""
        chat = self.prompt.messages(text, attempt)
        options = {**vary(self.options, attempt), "num_ctx": self.num_ctx}
        reply = self._chat(chat, options)
        refuse_cut(
            chat,
            reply.prompt_tokens,
            lambda again: self._chat(again, {**options, "num_predict": 1}).prompt_tokens,
            f"Start it with OLLAMA_CONTEXT_LENGTH={self.num_ctx}",
            self.frame_tokens + fewest_tokens(text),
        )
        return reply

    def _chat(self, messages: Sequence[Mapping[str, str]], options: dict[str, Any]) -> Reply:
        body = {
            "model": self.model["model"],
            "messages": messages,
            "options": options,
            "stream": False,
            # Servers since the end of 2025 then refuse a prompt that they would cut.
            "truncate": False,
            **({"format": SCHEMA} if self.mode == "json" else {}),
        }
        with _translated(self.model["model"]):
            # The client's own chat() does not know truncate.
            answer = self.client._request(ChatResponse, "POST", "/api/chat", json=body)
        if not answer.done:
            raise Busy("Ollama: the reply ended before it was done")
        cost = answer.eval_count, answer.prompt_eval_count
        return Reply(answer.message.content or "", *cost, answer.done_reason)

    def describe(self) -> dict[str, Any]:
        """Return server version, model digest, quantisation, context lengths and options."""
        contexts = {"num_ctx": self.num_ctx, "num_ctx_loaded": self.loaded_ctx}
        return {**self.model, **self.identity, **contexts, "slots": self.slots}

    def _load(self, admin: Client) -> int | None:
        """Load the model and return the context length the server gave it, if it tells.

        The request is the labelling prompt without a text, so that its tokens are counted too.
        """
        name = self.model["model"]
        frame = [message["content"] for message in self.prompt.messages("")]
        with _translated(name):
            answer = admin.generate(
                model=name,
                prompt="\n".join(frame),
                raw=True,
                options={"num_ctx": self.num_ctx, "num_predict": 1},
            )
        # Line ends in between, and what merges with them, make two tokens a message at most.
        self.frame_tokens = max((answer.prompt_eval_count or 0) - 2 * len(frame), 0)
        loaded = _quiet(lambda: [m for m in admin.ps().models if m.model == name])
        context = loaded[0].context_length if loaded else None
        if context and context < self.num_ctx:
            raise UserError(
                f"Ollama gives {name} {context} tokens of context where {self.num_ctx} were asked "
                f"for, and would cut prompts silently. Set labeller.max_ctx: {context}; longer "
                "responses are then cut at a sentence and marked."
            )
        return context


@contextmanager
def released(admin: Client, host: str, name: str) -> Iterator[None]:
    """Have the server unload a model at the end, also of a job that SIGTERM ends.

    A server keeps a model for minutes after the last reply: 43 GB of a GPU that the next job
    needs. A model that another machine's server had loaded before may be in use by others, and
    stays.
    """
    elsewhere = admin._client.base_url.host not in LOOPBACK
    if elsewhere and _quiet(lambda: any(m.model == name for m in admin.ps().models)):
        yield
        return

    def unload() -> None:
        # With a client of its own: a signal may come while another holds its locks.
        with _client(host, UNLOAD_SECONDS) as client:
            _quiet(lambda: client.generate(model=name, prompt="", keep_alive=0))

    def end(number: int, frame: object) -> None:
        unload()
        signal.signal(number, previous)
        os.kill(os.getpid(), number)

    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, end) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, previous)
        unload()


def prepare_model(admin: Client, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Pull the model unless the server has it, and return what the server says of it.

    Raises:
        UserError: if it is missing and may not, or cannot, be pulled.
    """
    name, patience = settings["ollama"]["model"], settings["patience"]
    name = name.removeprefix("registry.ollama.ai/").removeprefix("library/")  # lists have neither
    name = name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"
    found = persist(lambda: _find(admin, name), patience)
    if found is None:
        if not settings["ollama"]["pull"]:
            raise UserError(_missing(name) + " Or set labeller.ollama.pull: true.")
        persist(lambda: _pull(admin, name), patience)
        found = persist(lambda: _find(admin, name), patience)
    if found is None:
        raise UserError(_missing(name))
    shown = _quiet(lambda: admin.show(found.model))
    info = (shown.modelinfo or {}) if shown else {}
    lengths = [v for k, v in info.items() if k.endswith(".context_length")]
    return {
        "model": found.model,
        "digest": found.digest,
        "quantisation": found.details.quantization_level if found.details else None,
        "parameters": found.details.parameter_size if found.details else None,
        "context_length": int(lengths[0]) if lengths else None,
        "version": server_version(admin),
    }


def server_version(client: Client) -> str | None:
    """Return the server's version, or None where nothing answers like an Ollama server.

    The official client has no call for it, hence its inner one.
    """
    try:
        return client._client.get("/api/version", timeout=5).json()["version"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return None


@contextmanager
def find_server(settings: Mapping[str, Any], log: Path | None) -> Iterator[tuple[str, bool]]:
    """Yield a server's address and whether it was started here, to be ended on leaving.

    An address in the config, or one in OLLAMA_HOST on another machine, is waited for and never
    replaced. Otherwise a server on this machine is used if it runs, and started if not.
    """
    given = settings["ollama"]["host"] or os.environ.get("OLLAMA_HOST")
    host = given or DEFAULT_HOST
    with _client(host, 5) as client:
        address = client._client.base_url
        if server_version(client) is not None:
            yield host, False
            return
        if settings["ollama"]["host"] or address.host not in LOOPBACK:
            _wait_for(client, settings["patience"], f"{address.host}:{address.port}")
            yield host, False
            return
    with OwnServer(settings["slots"], log) as host:
        yield host, True


def _wait_for(client: Client, patience: float, name: str) -> None:
    def answers() -> None:
        if server_version(client) is None:
            raise Busy(f"no Ollama server answers at {name}")

    try:
        persist(answers, patience)
    except UserError as error:
        raise UserError(
            f"{error}. Start it there (`ollama serve`), or correct "
            "labeller.ollama.host (null, and no OLLAMA_HOST: one is started on this machine). "
            "Then run the same command again."
        ) from None


class OwnServer:
    """``ollama serve`` on a free loopback port: restarted if it dies, ended with this process."""

    def __init__(self, slots: int, log: Path | None):
        """Find the binary and a port.

        Raises:
            UserError: if there is no ``ollama`` on the PATH.
        """
        binary = shutil.which("ollama")
        if binary is None:
            raise UserError(f"No Ollama server is running and no `ollama` is installed. {INSTALL}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{probe.getsockname()[1]}"
        # Linux ends the server should this process be killed outright (see _keep).
        setpriv = shutil.which("setpriv")
        leash = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
        self.command = [*leash, binary, "serve"]
        self.env = {**os.environ, "OLLAMA_HOST": self.host, "OLLAMA_NUM_PARALLEL": str(slots)}
        self.log = log
        self.process: subprocess.Popen | None = None
        self._stopping = threading.Event()
        self._lock = threading.RLock()  # the signal handler may come while it is held
        # The signal comes when the thread that started the server ends: this one lasts.
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._previous: Any = None

    def __enter__(self) -> str:
        """Start it, and return its address once it answers."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._terminate)
        self._keeper.start()
        try:
            with _client(self.host, 5) as client:
                self._await_start(client)
        except BaseException:
            self.__exit__()
            raise
        return self.host

    def __exit__(self, *_: object) -> None:
        """End it and all its children."""
        self.stop()
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def stop(self) -> None:
        """End the server's process group, by force after ten seconds."""
        self._stopping.set()
        with self._lock:
            process = self.process
        if process is None:
            return
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        _signal_group(process, signal.SIGKILL)
        process.wait()

    def _keep(self) -> None:
        with self._open_log() as log:
            while True:
                with self._lock:
                    if self._stopping.is_set():
                        return
                    self.process = subprocess.Popen(
                        self.command,
                        env=self.env,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                self.process.wait()
                self._stopping.wait(1)

    def _open_log(self):
        if self.log is None:
            return Path(os.devnull).open("ab")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        return self.log.open("ab")

    def _await_start(self, client: Client) -> None:
        deadline = time.monotonic() + START_SECONDS
        while server_version(client) is None:
            if time.monotonic() > deadline:
                where = f"; its log is {self.log}" if self.log else ""
                raise UserError(f"`ollama serve` did not answer within {START_SECONDS} s{where}.")
            time.sleep(0.1)

    def _terminate(self, *_: object) -> None:
        # The server goes first, so that no request in flight holds this process up.
        self.stop()
        raise SystemExit(128 + signal.SIGTERM)


def _signal_group(process: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _client(host: str, timeout: float) -> Client:
    client = Client(host=host, timeout=timeout)
    if client._client.base_url.host in LOOPBACK:
        client.close()
        client = Client(host=host, timeout=timeout, trust_env=False)
    return client


def _find(admin: Client, name: str) -> Any:
    with _translated(name):
        models = admin.list().models
    return next((m for m in models if m.model in (name, name.removesuffix(":latest"))), None)


def _pull(admin: Client, name: str) -> None:
    bars: dict[str, tqdm] = {}
    try:
        with _translated(name):
            for progress in admin.pull(name, stream=True):
                if progress.digest and progress.total:
                    if progress.digest not in bars:
                        bars[progress.digest] = tqdm(
                            desc=f"pull {progress.digest[7:19]}", unit="B", unit_scale=True
                        )
                    bar = bars[progress.digest]
                    bar.total = progress.total
                    bar.update((progress.completed or 0) - bar.n)
    except Busy as error:
        # An error in the stream has no status; these are for good.
        if any(text in str(error) for text in ("does not exist", "not found", "newer version")):
            raise UserError(f"Ollama cannot pull {name}: {error}") from error
        raise
    finally:
        for bar in bars.values():
            bar.close()


def _missing(name: str) -> str:
    return f"The Ollama server does not have {name}. On its machine run `ollama pull {name}`."


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn what the client raises into Busy (may pass) or UserError (will not)."""
    try:
        yield
    except (httpx.RequestError, ConnectionError) as error:
        raise Busy(f"Ollama: {error or type(error).__name__}") from error
    except ResponseError as error:
        # Without a status the error came inside a stream: the runner failed, and is restarted.
        if error.status_code in TRANSIENT or error.status_code == -1:
            raise Busy(f"Ollama: {error}") from error
        if error.status_code == 404:
            raise UserError(_missing(name)) from error
        # With truncate false, a prompt that is too long is refused.
        step = "Start the server with a larger OLLAMA_CONTEXT_LENGTH, or lower labeller.max_ctx."
        step = f" {step}" if "context" in str(error) else ""
        raise UserError(f"Ollama refuses the request: {error}{step}") from error
    except ValueError as error:  # JSON that is cut short, or lacks fields
        raise Busy(f"Ollama: a garbled answer ({type(error).__name__})") from error


def _quiet(call: Any) -> Any:
    """Return what a server may not know (older ones, stand-ins), else None."""
    try:
        return call()
    except (ResponseError, httpx.HTTPError, ConnectionError, ValueError):
        return None
