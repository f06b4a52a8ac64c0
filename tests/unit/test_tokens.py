"""Tokens as they are printed."""

import pytest
from headpursuit.method.tokens import token_texts, visible


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b" his", "␣his"),
        (b"\n\n", r"\n\n"),
        (b"\t", r"\t"),
        (b"\xe2\x80", r"\xe2\x80"),
        ("…”".encode(), "…”"),
        ("\u200b".encode(), r"\u200b"),
        ("\xa0".encode(), r"\xa0"),
        (b"a\\n", r"a\\n"),
        ("日本".encode(), "日本"),
        (b"", ""),
    ],
)
def test_visible(raw, text):
    assert visible(raw) == text
    assert not set(text) & set(" \t\n\r\x0b\u2028")


def test_every_byte_is_told_apart():
    shown = [visible(bytes([byte])) for byte in range(256)]
    assert len(set(shown)) == 256 and all(len(text.split()) == 1 for text in shown)


def test_token_texts_of_a_byte_level_tokenizer(tokenizer):
    ids = tokenizer("apple River\n", add_special_tokens=False).input_ids
    assert token_texts(tokenizer, ids) == ["apple", "␣River", r"\n"]
    assert token_texts(tokenizer, [tokenizer.eos_token_id]) == ["<|end|>"]
    ids = tokenizer("naïve 日", add_special_tokens=False).input_ids
    assert "".join(token_texts(tokenizer, ids)) == r"na\xc3\xafve␣\xe6\x97\xa5"


class SentencePiece:
    """As much of a SentencePiece tokenizer as printing needs."""

    words = ("▁his", "<0x0A>", "<s>", "▁▁", "é", "Ġ")

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.words[number] for number in ids]


def test_token_texts_of_sentencepiece():
    assert token_texts(SentencePiece(), range(6)) == ["␣his", r"\n", "<s>", "␣␣", "é", "Ġ"]
