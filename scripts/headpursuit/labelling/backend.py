"""What a labelling backend is, and what those share that ask a chat model over HTTP.

A backend names the harmful words of one text at a time. ``open_backend`` in label.py makes it out
of the config's ``labeller``. It has

- ``ask(text, attempt)``: returns an :class:`Answer`; a later attempt (they count from 1) differs.
  Raises Busy if asking again may help, UserError if it will not.
- ``slots``: how many texts it is asked about at once.
- ``mode``: how its replies are read, ``tags`` or ``json``.
- ``room``: the longest text it can take, in UTF-8 bytes; None is any.
- ``identity``: all that a reply depends on beside the text; another identity asks anew.
- ``facts``: what produced the labels, for the table's metadata.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from headpursuit.labelling import LOOPBACK
from headpursuit.labelling.prompt import fewest_tokens, fit_window, load_prompt
from headpursuit.run.files import UserError
from headpursuit.run.retry import TRANSIENT, Busy, asked_to_wait

# How much warmer each further attempt is asked: at temperature 0 another seed changes nothing.
STEP = 0.2


@dataclass(frozen=True)
class Answer:
    """A raw reply, what it cost, in tokens as the server counted them, and why it ended."""

    reply: str
    tokens: int | None = None
    prompt_tokens: int | None = None
    ended: str | None = None  # "stop", or "length" where the longest reply was reached


class Server:
    """A server that speaks JSON over HTTP; its key is read from an environment variable."""

    def __init__(self, url: str | httpx.URL, key_variable: str, timeout: float):
        """Make a client, which takes no proxy to a server of this machine.

        Raises:
            UserError: if the key is none that a header can hold.
        """
        self.url = httpx.URL(url)
        self.name = f"{self.url.host}:{self.url.port or 'default'}"
        self.here = self.url.host in LOOPBACK
        self.key_variable = key_variable
        self.key = os.environ.get(key_variable, "").strip()
        if not (self.key.isascii() and self.key.isprintable()):  # HTTP's errors would quote it
            raise UserError(f"${key_variable}: a key is one line of ASCII characters.")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout,
            trust_env=not self.here,
            follow_redirects=True,  # to another server without the key
        )

    def call(
        self,
        path: str,
        body: dict | None = None,
        read: Callable[[Any], Any] = lambda answer: answer,
        timeout: float | None = None,
    ) -> Any:
        """Return what ``read`` makes of the JSON that answers a GET, or a POST of ``body``.

        Raises:
            Busy: if asking again may help.
            UserError: if it will not.
        """
        with self.request(path, body, timeout) as response:
            response.read()
            return read(response.json())

    @contextmanager
    def request(
        self, path: str, body: dict | None = None, timeout: float | None = None
    ) -> Iterator[httpx.Response]:
        """Yield the answer before its body has come; it fails as :meth:`call` does."""
        method = "POST" if body else "GET"
        timeout = timeout or self.http.timeout
        try:
            with self.http.stream(method, path, json=body, timeout=timeout) as response:
                if not response.is_success:
                    self._fail(response)
                yield response
        except httpx.RequestError as error:
            raise Busy(f"{self.name}: {error or type(error).__name__}") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Busy(f"{self.name}: a garbled answer ({type(error).__name__})") from error

    def _fail(self, response: httpx.Response) -> None:
        reason = f"{self.name}: HTTP {response.status_code}"
        if response.status_code in (401, 403):  # such bodies may quote a part of the key
            known = "was refused" if self.key else "is not set"
            raise UserError(f"{reason}; the key in ${self.key_variable} {known}.")
        body = response.read().decode(errors="replace")
        reason = f"{reason}: {(body.replace(self.key, '***') if self.key else body)[:300]}"
        if response.status_code in TRANSIENT:
            raise Busy(reason, after=asked_to_wait(response.headers))
        raise UserError(reason)


class ChatBackend:
    """Asks a chat model with the labelling prompt.

    Each kind of server has ``path``, where it takes chats, ``longest``, its name of the option that
    limits a reply, and its way to write a request and to read the answer.
    """

    path: str
    longest: str
    frame_tokens = 0  # those of the prompt without a text, at the least

    def __init__(self, server: Server, settings: dict, texts: list[str], model: dict, limit: int):
        """Ask for the context that the longest of ``texts`` needs, at most ``limit`` tokens.

        ``model`` is the model's ``model``, its name, and what else tells it from others.
        """
        self.server = server
        self.model = model["model"]
        self.prompt = load_prompt(settings["prompt"])
        self.mode = self.prompt.mode
        self.slots = settings["slots"]
        self.num_ctx, self.room = fit_window(self.prompt, texts, settings["num_predict"], limit)
        self.options = {
            "temperature": settings["temperature"],
            "seed": settings["seed"],
            self.longest: settings["num_predict"],
        }
        # The window is no part of it: one that holds the whole prompt changes no reply. Nor is the
        # address: a batch job serves the same model from another node.
        self.identity = {
            "backend": settings["backend"],
            **model,
            "mode": self.mode,
            "prompt": self.prompt.digest,
            "options": self.options,
        }
        self.facts = {**self.identity, "slots": self.slots}

    def ask(self, text: str, attempt: int) -> Answer:
        """Ask once; a later attempt has a reminder, another seed and a little temperature.

        A server that cuts prompts is found out by its own count of the prompt's tokens. A few leave
        out what their cache holds, so a low count is taken again, of the same prompt behind a word
        that no cache can hold.
        """
        chat = self.prompt.messages(text, attempt)
        options = {
            **self.options,
            "seed": self.options["seed"] + attempt - 1,
            "temperature": self.options["temperature"] + STEP * (attempt - 1),
        }
        answer = self._chat(chat, options)
        contents = [message["content"] for message in chat]
        fewest = max(fewest_tokens(*contents), self.frame_tokens + fewest_tokens(text))
        if 0 < (answer.prompt_tokens or 0) < fewest:
            chat[0]["content"] = f"{uuid.uuid4().hex}\n{contents[0]}"
            count = self._chat(chat, {**options, self.longest: 1}).prompt_tokens
            if 0 < (count or 0) < fewest:
                raise UserError(
                    f"The server read {count} tokens of a prompt that has {fewest} or more: it "
                    f"cuts prompts without a word. {self.longer_context()}"
                )
        return answer

    def _chat(self, chat: list[dict], options: dict) -> Answer:
        try:
            answer = self.server.call(self.path, self._body(chat, options), self._read)
        except UserError as error:
            raise UserError(f"{error} {self.remedy(str(error))}".rstrip()) from error
        match answer:
            case Answer(str(), int() | None, int() | None, str() | None):
                return answer
        raise Busy(f"{self.server.name}: a reply or a count of an unknown form")

    def remedy(self, error: str) -> str:
        """Say what to do about a request that was refused, if that is known."""
        return self.longer_context() if "context" in error else ""

    def longer_context(self) -> str:
        """Say what to do about a server whose context is too short."""
        return (
            f"Give it a context of {self.num_ctx} tokens (Ollama: OLLAMA_CONTEXT_LENGTH, vLLM: "
            "--max-model-len, llama.cpp: --ctx-size), or set labeller.max_ctx to what it has; "
            "longer responses are then cut at a sentence and marked."
        )
