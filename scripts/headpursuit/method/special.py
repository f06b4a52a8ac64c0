"""Special tokens: which they are, and those around a text, by the tokenizer and by chat."""

from collections.abc import Sequence
from typing import Any

from headpursuit.run.files import UserError


def special_tokens(tokenizer) -> set[int]:
    """Return the ids of the tokens that stand for no text: BOS, EOS, padding, <unk>, roles, images.

    Tokens of single bytes (``<0x0A>``) and added tokens of plain text are not among them.
    """
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}


def added_tokens(tokenizer) -> tuple[list[int], list[int]]:
    """Return the token ids that a tokenizer by itself puts before and behind a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def opened(tokenizer, texts: Sequence[list[int]]) -> list[list[int]]:
    """Put before each text the token ids that the model expects there.

    They are those that the tokenizer puts there by itself (most often BOS, none for Qwen), but
    for a text that begins with them already: a chat template may write BOS (Mistral, Gemma) or
    not (LLaVA-NeXT). What a tokenizer puts behind a text (EOS) would end a prompt, and is left
    out. Texts are token ids, tokenised without added tokens.
    """
    before, _ = added_tokens(tokenizer)
    return [text if text[:1] == before[:1] else before + text for text in texts]


def as_user(reader: Any, content: str | Sequence[dict[str, str]]) -> str:
    """Return a user's message as the chat template renders it, up to where the answer begins.

    The reader is a tokenizer, with a text as content, or a processor, with the message's parts.

    Raises:
        UserError: if there is no chat template, or it does not take such a message.
    """
    if not reader.chat_template:
        raise UserError("models.*.chat is true, but the model's folder has no chat template.")
    try:
        return reader.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # whatever a template of others raises
        raise UserError(
            f"models.*.chat is true, but the chat template fails with a user's message alone: "
            f"{error}. Correct the template, or set chat to false."
        ) from error
