"""Backend ``openai``: any server with OpenAI's chat API (vLLM, llama.cpp, a hosted model)."""

from typing import Any

from headpursuit.labelling.backend import Answer, ChatBackend, Server
from headpursuit.labelling.prompt import SCHEMA


class OpenAI(ChatBackend):
    """Asks for one completion of a chat."""

    path = "chat/completions"
    longest = "max_tokens"

    def __init__(self, settings: dict, texts: list[str]):
        """Take the server and model that ``settings`` (the config's ``labeller``) names."""
        own = settings["openai"]
        server = Server(own["base_url"], own["key_variable"], settings["timeout"])
        super().__init__(server, settings, texts, {"model": own["model"]}, settings["max_ctx"])
        self.facts["server"] = server.name

    def _body(self, chat: list[dict], options: dict) -> dict:
        body = {"model": self.model, "messages": chat, **options}
        if self.mode == "json":
            schema = {"name": "words", "schema": SCHEMA, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _read(self, answer: Any) -> Answer:
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        return Answer(
            choice["message"]["content"] or "",
            usage.get("completion_tokens"),
            usage.get("prompt_tokens"),
            choice.get("finish_reason"),
        )
