"""Backend ``openai``: any server with OpenAI's chat API (vLLM, llama.cpp, a hosted model)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from headpursuit.labelling import LOOPBACK
from headpursuit.labelling.backend import Reply, vary
from headpursuit.labelling.prompt import SCHEMA, fit_window, load_prompt, refuse_cut
from headpursuit.run.files import UserError
from headpursuit.run.retry import TRANSIENT, Busy, asked_to_wait


@contextmanager
def connect(
    settings: Mapping[str, Any], texts: Sequence[str], terms: Sequence[str], log: Path | None
) -> Iterator["OpenAI"]:
    """Yield the backend that ``settings`` (the config's ``labeller``) describes."""
    own = settings["openai"]
    key = os.environ.get(own["key_variable"], "").strip()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = httpx.URL(own["base_url"].rstrip("/") + "/")
    proxied = url.host not in LOOPBACK
    with httpx.Client(
        base_url=url, headers=headers, timeout=settings["timeout"], trust_env=proxied
    ) as client:
        yield OpenAI(client, settings, texts, key)


class OpenAI:
    """Asks over HTTP; the key is in the client's header and nowhere else."""

    def __init__(
        self, client: httpx.Client, settings: Mapping[str, Any], texts: Sequence[str], key: str
    ):
        """Prepare the requests."""
        own = settings["openai"]
        self.client = client
        self.prompt = load_prompt(settings["prompt"])
        self.slots = settings["slots"]
        self.mode = self.prompt.mode
        self.model = own["model"]
        self.key = key
        self.key_variable = own["key_variable"]
        _, self.room = fit_window(self.prompt, texts, settings["num_predict"], settings["max_ctx"])
        self.options = {
            "temperature": settings["temperature"],
            "seed": settings["seed"],
            "max_tokens": settings["num_predict"],
        }
        self.server = f"{client.base_url.host}:{client.base_url.port or 'default'}"
        # The address is no part of it: a batch job serves the same model from another node.
        self.identity = {
            "backend": "openai",
            "model": self.model,
            "mode": self.mode,
            "prompt": self.prompt.digest,
            "options": self.options,
        }

    def ask(self, text: str, attempt: int) -> Reply:
        """Ask once; a later attempt has a reminder, another seed and a little temperature."""
        chat = self.prompt.messages(text, attempt)
        options = vary(self.options, attempt)
        reply = self._chat(chat, options)
        refuse_cut(
            chat,
            reply.prompt_tokens,
            lambda again: self._chat(again, {**options, "max_tokens": 1}).prompt_tokens,
            "Give it a longer context (vLLM: --max-model-len, llama.cpp: --ctx-size)",
        )
        return reply

    def _chat(self, messages: Sequence[Mapping[str, str]], options: dict[str, Any]) -> Reply:
        body: dict[str, Any] = {"model": self.model, "messages": messages, **options}
        if self.mode == "json":
            schema = {"name": "words", "schema": SCHEMA, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        try:
            response = self.client.post("chat/completions", json=body)
        except httpx.RequestError as error:
            raise Busy(f"{self.server}: {error or type(error).__name__}") from error
        self._check(response)
        return self._read(response)

    def describe(self) -> dict[str, Any]:
        """Return the server, the model, the options and the prompt's hash."""
        return {**self.identity, "server": self.server, "slots": self.slots}

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status < 300:
            return
        if status in (401, 403):  # such bodies may quote a part of the key
            known = "was refused" if self.key else "is not set"
            raise UserError(
                f"{self.server}: HTTP {status}; the key in ${self.key_variable} {known}."
            )
        body = response.text[:300]
        body = body.replace(self.key, "***") if self.key else body
        reason = f"{self.server}: HTTP {status}: {body}"
        if status in TRANSIENT:
            raise Busy(reason, after=asked_to_wait(response.headers))
        raise UserError(reason)

    def _read(self, response: httpx.Response) -> Reply:
        try:
            body = response.json()
            choice, usage = body["choices"][0], body.get("usage") or {}
            return Reply(
                choice["message"]["content"] or "",
                usage.get("completion_tokens"),
                usage.get("prompt_tokens"),
                choice.get("finish_reason"),
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Busy(f"{self.server}: a garbled answer ({type(error).__name__})") from error
