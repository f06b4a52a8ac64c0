"""Backend ``openai``: any server with OpenAI's chat API (vLLM, llama.cpp, a hosted model).

It is asked one thing, so httpx does. The package ``openai`` would not make this file shorter: it
needs an HTTP client of its own for the proxies (httpx2, where Ollama's has httpx) and has errors of
its own to be told apart; and it brings four packages.
"""

from typing import Any

import httpx

from headpursuit.labelling.backend import Answer, ChatBackend, connection, telling
from headpursuit.labelling.prompt import SCHEMA


def open_http(own: dict, timeout: float) -> httpx.Client:
    """Open a client of the server that ``own``, the config's ``labeller.openai``, names."""
    return httpx.Client(base_url=own["base_url"], **connection(own["key_variable"], timeout))


class OpenAI(ChatBackend):
    """Asks for one completion of a chat."""

    longest = "max_tokens"

    def __init__(self, settings: dict, texts: list[str]):
        """Take the server and model that ``settings`` (the config's ``labeller``) names."""
        own = settings["openai"]
        super().__init__(settings, texts, {"model": own["model"]}, settings["max_ctx"])
        self.http = open_http(own, settings["timeout"])
        self.facts["server"] = self.http.base_url.netloc.decode()

    def _answer(self, chat: list[dict], options: dict) -> Answer:
        body: dict[str, Any] = {"model": self.model, "messages": chat, **options}
        if self.mode == "json":
            schema = {"name": "words", "schema": SCHEMA, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        with telling(self.facts["server"]):
            said = self.http.post("chat/completions", json=body).json()
            choice, usage = said["choices"][0], said.get("usage") or {}
            reply = choice["message"]["content"] or ""
            cost = usage.get("completion_tokens"), usage.get("prompt_tokens")
            match answer := Answer(reply, *cost, choice.get("finish_reason")):
                case Answer(str(), int() | None, int() | None, str() | None):
                    return answer
            raise TypeError("a reply or a count of another form")
