"""What a labelling backend is, and what those share that ask a chat model over HTTP.

A backend names the harmful words of one text at a time, or the keywords of one image (``bytes``, as
encoded). ``open_backend`` in label.py makes it out of the config's ``labeller``. It has

- ``ask(asked, attempt)``: returns an :class:`Answer`; a later attempt (they count from 1) differs.
  Raises Busy if asking again may help, UserError if it will not.
- ``slots``: how many of them it is asked about at once.
- ``mode``: how its replies are read, ``tags``, ``json`` or ``list``.
- ``per_image``: how many keywords of an image count; None where it is asked about texts.
- ``room``: the longest text it can take, in UTF-8 bytes; None is any.
- ``identity``: all that a reply depends on beside the text; another identity asks anew.
- ``facts``: what produced the labels, for the table's metadata.
"""

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from headpursuit.labelling.prompt import fewest_tokens, fit_window, load_prompt
from headpursuit.run.files import UserError
from headpursuit.run.retry import TRANSIENT, Busy, asked_to_wait

# Hosts for which no proxy of the environment is meant.
LOOPBACK = {"127.0.0.1", "localhost", "::1", "0.0.0.0"}
# How much warmer each further attempt is asked: at temperature 0 another seed changes nothing.
STEP = 0.2


@dataclass(frozen=True)
class Answer:
    """A raw reply, what it cost, in tokens as the server counted them, and why it ended."""

    reply: str
    tokens: int | None = None
    prompt_tokens: int | None = None
    ended: str | None = None  # "stop", or "length" where the longest reply was reached


class Refused(UserError):
    """A server refused a request, and will again."""

    def __init__(self, reason: str, status: int):
        """Keep the reason, for people, and the HTTP status."""
        super().__init__(reason)
        self.status = status


def connection(key_variable: str, timeout: float) -> dict[str, Any]:
    """Return what clients of labellers' servers have in common: arguments of ``httpx.Client``.

    The key, read from an environment variable, goes along no redirect to another host. No proxy is
    taken to this machine. An answer that refuses raises Busy if asking again may help, else
    Refused.

    Raises:
        UserError: if the key is none that a header can hold.
    """
    given = os.environ.get(key_variable, "")
    key = given.strip()
    blank = given and not key  # Ollama's client would send it
    if blank or not (key.isascii() and key.isprintable()):  # HTTP's errors would quote it
        raise UserError(f"${key_variable}: a key is one line of ASCII characters.")

    def refuse(response: httpx.Response) -> None:
        status = response.status_code
        if response.is_success or response.has_redirect_location:
            return
        reason = f"{response.request.url.netloc.decode()}: HTTP {status}"
        if status in (401, 403):  # such bodies may quote a part of the key
            reason += f"; the key in ${key_variable} {'was refused' if key else 'is not set'}."
        else:
            body = response.read().decode(errors="replace")
            reason += f": {(body.replace(key, '***') if key else body)[:300]}"
        if status in TRANSIENT:
            raise Busy(reason, after=asked_to_wait(response.headers))
        raise Refused(reason, status)

    return {
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": timeout,
        "follow_redirects": True,
        "mounts": {f"all://{f'[{host}]' if ':' in host else host}": None for host in LOOPBACK},
        "event_hooks": {"response": [refuse]},
    }


@contextmanager
def opening(key: str) -> Iterator[None]:
    """Name the config's key, or a proxy, where either keeps a client from being opened."""
    try:
        yield
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise UserError(f"{key}, or a proxy of the environment: {error}") from None


@contextmanager
def telling(name: str) -> Iterator[None]:
    """Raise Busy where a server is out of reach, or what it says is not what was asked for."""
    try:
        yield
    except (httpx.RequestError, ConnectionError) as error:
        # Ollama's client says how to install Ollama; behind it stands what happened.
        raise Busy(f"{name}: {error.__context__ or type(error).__name__}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Busy(f"{name}: a garbled answer ({type(error).__name__})") from error


class ChatBackend(ABC):
    """Asks a chat model with the labelling prompt."""

    longest: str  # the server's name of the option that limits a reply
    frame_tokens = 0  # those of the prompt without a text, at the least

    def __init__(self, settings: dict, asked: list[str | bytes], model: dict, limit: int):
        """Ask for the context that the longest of ``asked`` needs, at most ``limit`` tokens.

        ``model`` is the model's ``model``, its name, and what else tells it from others.
        """
        self.model = model["model"]
        self.per_image = settings["per_image"]
        self.prompt = load_prompt(settings["prompt"], self.per_image)
        self.mode = self.prompt.mode
        self.slots = settings["slots"]
        self.num_ctx, self.room = fit_window(self.prompt, asked, settings["num_predict"], limit)
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

    def ask(self, asked: str | bytes, attempt: int) -> Answer:
        """Ask once; a later attempt has a reminder, another seed and a little temperature.

        A server that cuts prompts is found out by its own count of the prompt's tokens. A few leave
        out what their cache holds, so a low count is taken again, of the same prompt behind a word
        that no cache can hold.
        """
        chat = self.prompt.messages(asked, attempt)
        options = {
            **self.options,
            "seed": self.options["seed"] + attempt - 1,
            "temperature": self.options["temperature"] + STEP * (attempt - 1),
        }
        answer = self._chat(chat, options)
        contents = [message["content"] for message in chat]
        own = fewest_tokens(asked) if isinstance(asked, str) else 0
        fewest = max(fewest_tokens(*contents), self.frame_tokens + own)
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
            return self._answer(chat, options)
        except Refused as error:
            raise UserError(f"{error} {self.remedy(error)}".rstrip()) from error

    @abstractmethod
    def _answer(self, chat: list[dict], options: dict) -> Answer:
        """Ask for one reply; Busy if asking again may help, Refused if not."""

    def remedy(self, error: Refused) -> str:
        """Say what to do about a request that was refused, if that is known."""
        return self.longer_context() if "context" in str(error) else ""

    def longer_context(self) -> str:
        """Say what to do about a server whose context is too short."""
        return (
            f"Give it a context of {self.num_ctx} tokens (Ollama: OLLAMA_CONTEXT_LENGTH, vLLM: "
            "--max-model-len, llama.cpp: --ctx-size), or set labeller.max_ctx to what it has; "
            "longer responses are then cut at a sentence and marked."
        )
