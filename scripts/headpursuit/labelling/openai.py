"""Backend ``openai``: any server with OpenAI's chat API (vLLM, llama.cpp, a hosted model).

It is asked one thing, so httpx does. The package ``openai`` would not make this file shorter: it
needs an HTTP client of its own for the proxies (httpx2, where Ollama's has httpx) and has errors of
its own to be told apart; and it brings four packages.
"""

from base64 import b64encode
from typing import Any

import httpx

from headpursuit.labelling.backend import Answer, ChatBackend, connection, opening, telling
from headpursuit.labelling.prompt import SCHEMA

# The first bytes of encoded images, and what a data URL calls their kind.
BEGINNINGS = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def open_http(own: dict, timeout: float) -> httpx.Client:
    """Open a client of the server that ``own``, the config's ``labeller.openai``, names."""
    shared = connection(own["key_variable"], timeout)
    with opening("labeller.openai.base_url"):
        return httpx.Client(base_url=own["base_url"], **shared)


class OpenAI(ChatBackend):
    """Asks for one completion of a chat."""

    longest = "max_tokens"

    def __init__(self, settings: dict, asked: list[str | bytes]):
        """Take the server and model that ``settings`` (the config's ``labeller``) names."""
        own = settings["openai"]
        super().__init__(settings, asked, {"model": own["model"]}, settings["max_ctx"])
        self.http = open_http(own, settings["timeout"])
        self.facts["server"] = self.http.base_url.netloc.decode()

    def _answer(self, chat: list[dict], options: dict) -> Answer:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(map(_in_parts, chat)),
            **options,
        }
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


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as the API has it: images, as data URLs, before the text."""
    if "images" not in message:
        return message
    urls = [{"url": _data_url(image)} for image in message["images"]]
    images = [{"type": "image_url", "image_url": url} for url in urls]
    text = {"type": "text", "text": message["content"]}
    return {"role": message["role"], "content": [*images, text]}


def _data_url(image: bytes) -> str:
    kinds = (kind for begins, kind in BEGINNINGS.items() if image.startswith(begins))
    return f"data:image/{next(kinds, 'png')};base64,{b64encode(image).decode()}"
