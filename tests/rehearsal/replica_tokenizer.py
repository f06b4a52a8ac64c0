"""Tokenizers in the form of Mistral's and LLaVA-NeXT's, with a vocabulary of our own."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from headpursuit.publish.settings import shipped_config
from replica_names import BROKEN, DTD, EUROSAT, GTSRB, PLAIN, RESISC45
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ROOT = Path(__file__).parents[2]
SIZE = 32000
SPECIAL = ["<unk>", "<s>", "</s>"]

# Mistral's own template: it writes BOS, and wants the roles to alternate.
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)
# LLaVA-NeXT's: no BOS, which the tokenizer adds by itself.
LLAVA_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)


def words() -> list[str]:
    """Return the words that are a single token after a space."""
    config = shipped_config()
    concepts = [word for own in config["concepts"].values() for word in own.get("words") or []]
    lists = ["unrelated_words", "caption_colours", "caption_sentiments", "caption_quantity"]
    files = [(ROOT / f"data/{name}.txt").read_text(encoding="utf-8") for name in lists]
    names = " ".join([*GTSRB, *RESISC45[::2], *DTD[::2], *EUROSAT[::2]]).replace("_", " ").split()
    names += list(config["samples"]["eurosat"]["classes"].values())
    frames = [spec["template"] for spec in config["samples"].values()]
    text = " ".join([*PLAIN, *files, *map(str, concepts), *names, *frames])
    found = re.findall("[A-Za-z]+", text)
    return [word for word in dict.fromkeys(found) if len(word) > 1 and word not in BROKEN]


def word_forms(listed: Iterable[str]) -> list[str]:
    return [form for word in listed for form in (word, word.title(), word.upper())]


@cache
def _trained() -> dict:
    """Train the pieces; digits stay apart, as in the real vocabulary."""
    trainer = trainers.BpeTrainer(vocab_size=SIZE - 300, show_progress=False)
    backend = Tokenizer(models.BPE())
    backend.normalizer = _normalizer()
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    text = " ".join(word_forms(words()))
    # Words without a space before them, as behind a line's end.
    backend.train_from_iterator([text, *word_forms(words()[::3])], trainer)
    return json.loads(backend.to_str())["model"]


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def backend(special: Sequence[str] = SPECIAL, bos: str = "<s>", prefix: bool = True) -> Tokenizer:
    """Return the tokenizer that ``tokenizer.json`` holds: SentencePiece's BPE with bytes.

    Args:
        special: the special tokens, which have the first ids.
        bos: the one of them that a text begins with.
        prefix: whether a space is put before a text, as Llama's does and Gemma's does not.
    """
    trained = _trained()
    merges = [tuple(pair) for pair in trained["merges"]]
    # As in the real one: [INST] begins with ▁[ INST, and a stroke between spaces is one piece.
    merges += [("▁", "["), ("IN", "ST"), ("▁", "/")]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [first + second for first, second in merges]
    # Single signs come last. What a text holds beyond these falls into bytes.
    signs = {"▁", *map(chr, range(33, 127)), *"äöüéàñçß’“”–…"}
    signs |= {sign for sign in trained["vocab"] if len(sign) == 1}
    pieces = list(dict.fromkeys(pieces))
    room = SIZE - len(special) - len(pieces) - len(signs)
    pieces += [f"▁filler{number}" for number in range(room)] + sorted(signs)
    vocabulary = {piece: number for number, piece in enumerate([*special, *pieces])}
    assert len(vocabulary) == SIZE
    made = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = _normalizer() if prefix else normalizers.Replace(" ", "▁")
    bytes_too = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(bytes_too + [decoders.Strip(" ", 1, 0)] * prefix)
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, vocabulary[bos])],
    )
    made.add_special_tokens(list(special))
    return made


def added_tokens(names: Iterable[str]) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {str(number): {"content": name, **flags, "special": True} for number, name in names}


def mistral_files(chat: str | None = MISTRAL_CHAT) -> dict[str, bytes]:
    """Return the tokenizer's files of Mistral-7B-Instruct-v0.2."""
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added_tokens(enumerate(SPECIAL)),
        "additional_special_tokens": [],
        "bos_token": "<s>",
        "chat_template": chat,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": True,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": None,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "tokenizer.json": backend().to_str().encode(),
        "tokenizer.model": b"\x0a\x0e\x0a\x05<unk>",  # SentencePiece's own file, read by nobody
        "tokenizer_config.json": as_json(config),
        "special_tokens_map.json": as_json(named),
    }


def llava_files(chat: str, chat_file: str, patch: int) -> dict[str, bytes]:
    """Return the tokenizer's and the processor's files of llava-v1.6-mistral-7b-hf.

    Args:
        chat: the chat template.
        chat_file: where it stands: ``chat_template.json`` or ``chat_template.jinja``.
        patch: pixels of a patch's side, 14 in the real one.
    """
    made = backend()
    made.add_special_tokens(["<image>", "<pad>"])
    own = [*enumerate(SPECIAL), (SIZE, "<image>"), (SIZE + 1, "<pad>")]
    files = mistral_files(None)
    config = json.loads(files["tokenizer_config.json"])
    config |= {
        "added_tokens_decoder": added_tokens(own),
        "pad_token": "<pad>",
        "padding_side": "left",
    }
    config |= {"processor_class": "LlavaNextProcessor", "trust_remote_code": False}
    del config["chat_template"]
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    processor = {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": patch,
        "processor_class": "LlavaNextProcessor",
        "vision_feature_select_strategy": "default",
    }
    side = {"height": 336, "width": 336}
    images = {
        "aspect_ratio_setting": "anyres",
        "crop_size": side,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": PINPOINTS,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "LlavaNextImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaNextProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 336},
    }
    jinja = chat_file.endswith(".jinja")
    return {
        **files,
        "tokenizer.json": made.to_str().encode(),
        "tokenizer_config.json": as_json(config),
        "special_tokens_map.json": as_json(named),
        "added_tokens.json": as_json({"<image>": SIZE, "<pad>": SIZE + 1}),
        "processor_config.json": as_json(processor),
        "preprocessor_config.json": as_json(images),
        chat_file: chat.encode() if jinja else as_json({"chat_template": chat}),
    }


PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def as_json(value: object) -> bytes:
    """Return a value as the Hub's JSON files have it."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
