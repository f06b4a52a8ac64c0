"""Tokens as a reader can tell them apart: spaces, line ends and odd bytes made visible."""

from collections.abc import Iterable


def token_texts(tokenizer, token_ids: Iterable[int]) -> list[str]:
    """Return each token as :func:`visible` text, of a byte-level or a SentencePiece tokenizer."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = tokenizer.get_vocab()
    # SentencePiece vocabularies spell lone bytes as <0x0A>.
    byte_level = "Ġ" in vocabulary and "<0x0A>" not in vocabulary
    byte_of = {sign: byte for byte, sign in bytes_to_unicode().items()} if byte_level else {}

    def token_bytes(token: str) -> bytes:
        if byte_of:
            known = all(sign in byte_of for sign in token)  # added tokens are plain text
            return bytes(byte_of[sign] for sign in token) if known else token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])
        return token.replace("▁", " ").encode()

    tokens = tokenizer.convert_ids_to_tokens([int(token_id) for token_id in token_ids])
    return [visible(token_bytes(token)) for token in tokens]


def visible(raw: bytes) -> str:
    """Return bytes as text that shows every byte and holds no white space.

    A space is ␣, a backslash is doubled, what does not print is escaped as Python escapes it
    (``\\n``, ``\\u200b``), and bytes that are not UTF-8 are ``\\xe2``.
    """
    return "".join(map(_sign, raw.decode("utf-8", errors="surrogateescape")))


def _sign(sign: str) -> str:
    if sign == " ":
        return "␣"
    if "\udc80" <= sign <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign if sign.isprintable() and sign != "\\" else sign.encode("unicode_escape").decode()
