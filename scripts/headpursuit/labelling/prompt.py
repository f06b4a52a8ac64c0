"""The prompts of labellers: their files, their messages and how much of a text fits beside one."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from headpursuit.run.files import UserError, beside

SLOT, NUMBER = "{response}", "{per_image}"
MODES = ("tags", "json", "list")
SCHEMA = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"type": "string"}}},
    "required": ["words"],
    "additionalProperties": False,
}
# What a chat template may add, in tokens: to each message its role and end, once a date or such.
PER_MESSAGE = 16
PER_CHAT = 64
CTX_STEP = 256
MIN_ROOM = 256
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？\n]")


@dataclass(frozen=True)
class Prompt:
    """A labelling prompt; each example has a response and its words, none of images has any."""

    mode: str
    system: str
    answer: str
    examples: list[dict]
    template: str

    @property
    def digest(self) -> str:
        """SHA-256 of all that is sent; comments and layout of the file do not count."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def messages(self, asked: str | bytes, attempt: int = 1) -> list[dict[str, Any]]:
        """Return the chat that asks about a text, or an image, which is among its ``images``.

        From the second attempt on it has a reminder.
        """
        system = "\n".join(part for part in (self.system.strip(), self.answer.strip()) if part)
        chat = [{"role": "system", "content": system}] if system else []
        for example in self.examples:
            chat.append({"role": "user", "content": self._fill(example["response"])})
            chat.append({"role": "assistant", "content": render(example["words"], self.mode)})
        question = self._fill(asked if isinstance(asked, str) else "")
        if attempt > 1 and self.answer.strip():
            question = f"{question}\n\n{self.answer.strip()}"
        images = {} if isinstance(asked, str) else {"images": [asked]}
        return [*chat, {"role": "user", "content": question, **images}]

    def _fill(self, text: str) -> str:
        return self.template.strip().replace(SLOT, text)


def render(words: Sequence[str], mode: str) -> str:
    """Return the reply that names ``words``."""
    if mode != "tags":
        listed = list(words)
        return json.dumps({"words": listed} if mode == "json" else listed, ensure_ascii=False)
    return f"<answer>{', '.join(words) or 'None'}</answer>"


def load_prompt(path: str | Path, per_image: int | None = None) -> Prompt:
    """Read a prompt file; where it is looked for, :func:`beside` says.

    With ``per_image``, it asks for that many keywords of an image, in the place of
    ``{per_image}``.

    Raises:
        UserError: if it is missing or not a prompt file; the message says which key is wrong.
    """
    key = "labeller.keywords.prompt" if per_image else "labeller.prompt"
    try:
        raw = yaml.safe_load(beside(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{key}: cannot read {path} ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path} is not YAML in UTF-8: {error}") from None
    if problem := _problem(raw, of_images=per_image is not None):
        raise UserError(f"{key}: {path}: {problem}.")
    texts = {**raw, "answer": raw["answer"][raw["mode"]]}
    if per_image:
        for name in ("system", "answer", "template"):
            texts[name] = texts[name].replace(NUMBER, str(per_image))
    return Prompt(**texts)


def _problem(raw: Any, of_images: bool) -> str | None:
    keys = {"mode", "system", "answer", "examples", "template"}
    if not isinstance(raw, dict) or raw.keys() != keys:
        return f"its keys must be {', '.join(sorted(keys))}"
    if raw["mode"] not in MODES:
        return f"mode must be one of {', '.join(MODES)}"
    if not isinstance(raw["system"], str):
        return "system must be a text"
    if not isinstance(raw["answer"], dict) or not isinstance(raw["answer"].get(raw["mode"]), str):
        return f"answer.{raw['mode']} must be a text"
    if not isinstance(raw["examples"], list) or not all(map(_is_example, raw["examples"])):
        return "each of examples must have response, a text, and words, a list of texts"
    if of_images and raw["examples"]:
        return "examples must be [], since none has an image"
    if not isinstance(raw["template"], str) or raw["template"].count(SLOT) != (not of_images):
        return f"template must be a text that holds {SLOT} {'never' if of_images else 'once'}"
    return None


def _is_example(raw: object) -> bool:
    match raw:
        case {"response": str(), "words": list(words)}:
            return len(raw) == 2 and all(isinstance(word, str) for word in words)
    return False


def fit_window(
    prompt: Prompt, asked: Iterable[str | bytes], num_predict: int, limit: int
) -> tuple[int, int]:
    """Return the context length that the longest prompt needs, and the bytes left for a response.

    A token of a byte-level or byte-fallback tokenizer covers at least one byte, so the bytes of a
    text bound its tokens: a prompt that fits by this count fits. Nothing bounds those of an image,
    which gets all of ``limit``.

    Raises:
        UserError: if ``limit`` leaves no room for a response.
    """
    chat = prompt.messages("", attempt=2)
    frame = sum(len(message["content"].encode()) + PER_MESSAGE for message in chat) + PER_CHAT
    sizes = (limit if isinstance(own, bytes) else len(own.encode()) for own in asked)
    longest = max(sizes, default=0)
    needed = frame + max(longest, MIN_ROOM) + num_predict
    num_ctx = min(limit, -(-needed // CTX_STEP) * CTX_STEP)
    room = num_ctx - frame - num_predict
    if room < MIN_ROOM:
        raise UserError(
            f"labeller.max_ctx: {limit} tokens leave no room for a response beside the labelling "
            f"prompt ({frame}) and the reply ({num_predict}); at least "
            f"{frame + num_predict + MIN_ROOM} are needed."
        )
    return num_ctx, room


def fewest_tokens(*texts: str) -> int:
    """Return how many tokens texts have at the least: one for each word between spaces.

    No tokenizer in common use has a token with letters or digits on both sides of a space.
    """
    return sum(any(map(str.isalnum, word)) for text in texts for word in text.split())


def cut(text: str | bytes, room: int | None) -> str | bytes:
    """Return ``text``, cut at its last sentence end (else word, else character) that fits.

    An image stays whole.
    """
    if room is None or isinstance(text, bytes) or len(encoded := text.encode()) <= room:
        return text
    head = encoded[:room].decode(errors="ignore")
    ends = [match.end() for match in _SENTENCE_END.finditer(head)]
    if ends:
        return head[: ends[-1]]
    return head.rsplit(None, 1)[0] if len(head.split()) > 1 else head
