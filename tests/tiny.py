"""Tiny random models with a real tokenizer: what a test loads in place of a downloaded model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    ByteLevelBPETokenizer,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    RobertaTokenizer,
)

FAMILIES = ["llama", "mistral", "qwen2", "gemma", "gemma2", "gpt2"]
LAYERS, HEADS, HEAD_DIM, WIDTH, LONGEST = 3, 4, 16, 32, 256
WINDOW = 6  # tokens that a sliding layer looks back on; most prompts of the tests are longer

# Every word is one token, in each case, with and without a space before it.
_LISTED = """apple river stone cloud maple candle ladder basket pebble meadow lantern copper window
garden feather harbour pepper saddle turnip velvet willow anchor button carpet dragon ember falcon
ginger hammer island jacket kettle lemon mirror needle orchid pillow quartz ribbon silver"""
WORDS = _LISTED.split()

CHAT = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

# How real families ask: Mistral's and Gemma's template writes BOS, LLaVA-NeXT's leaves it to the
# tokenizer, Qwen has none. Gemma's strips the message; Qwen's has a system message of its own.
_INSTRUCTED = "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"
TEMPLATES = {
    "mistral": "{{ bos_token }}" + _INSTRUCTED,
    "llava_next": _INSTRUCTED,
    "gemma": "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "qwen": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}
_TURNS = {"gemma": ["<start_of_turn>", "<end_of_turn>"], "qwen": ["<|im_start|>", "<|im_end|>"]}


def make_model(folder: str | Path, family: str = "llama", seed: int = 0) -> Path:
    """Save a random model of a family and a tokenizer into ``folder``, always the same.

    It has 3 layers of 4 heads. All families but gpt2 have a chat template.
    """
    folder = Path(folder)
    tokenizer = make_tokenizer(chat=family != "gpt2")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(family, tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and gains, which would all be 0 or 1
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


ASKED = ["the apple and the lemon", "a turnip", "lemon lemon and the apple of the turnip"]


def said(decoder: Any, folder: Path) -> tuple:
    """Return what a model gives for some texts, in every way that a run asks."""
    import headpursuit as hp
    from headpursuit.method.models import load_tokenizer

    model = hp.load(decoder.model, load_tokenizer(folder))
    writes = hp.cache(model, ASKED)
    ranked = hp.rank(writes, ["apple", "lemon", "turnip"])
    heads = ranked["name"].head(3)
    before = model.generate(ASKED, max_new_tokens=6)
    with hp.scaled(model, heads, alpha=-1):
        after = model.generate(ASKED, max_new_tokens=6)
    return ranked.to_csv(), before, after


def make_classifier(
    folder: str | Path,
    labels: Sequence[str] = ("neutral", "toxic"),
    family: str = "roberta",
    **more,
) -> Path:
    """Save a random classifier of texts into ``folder``, as the Hub's are: RoBERTa's, or another's.

    RoBERTa's tokenizer is a byte-level BPE in vocab.json and merges.txt. ``more`` are keys of its
    config.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe = ByteLevelBPETokenizer()
    texts = [f"{word} {word.title()}, {word.upper()}!" for word in WORDS]
    bpe.train_from_iterator(texts, vocab_size=500, min_frequency=1, special_tokens=special)
    bpe.save_model(str(folder))
    tokenizer = (
        RobertaTokenizer.from_pretrained(folder) if family == "roberta" else make_tokenizer()
    )
    shape = {
        **{"vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 48},
        **{"num_hidden_layers": 2, "num_attention_heads": HEADS, "initializer_range": 0.5},
        "max_position_embeddings": 40,
        "id2label": dict(enumerate(labels)),
    }
    configs = {"roberta": RobertaConfig, "bert": BertConfig, "llama": LlamaConfig}
    torch.manual_seed(1)
    config = configs[family](**(shape | more))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    if family == "roberta":
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    else:
        tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer whose vocabulary is the bytes and :data:`WORDS`."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    for word in WORDS:
        tokens += [mark + form for mark in ("Ġ", "") for form in (word, word.title(), word.upper())]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # Without merges: a piece is either a whole token or falls into its bytes.
    backend = Tokenizer(BPE(vocabulary, [], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|start|>"]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    begin = backend.token_to_id("<|begin|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>"
    )
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


def make_asking(family: str, appends: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the special tokens and the chat template of a real family.

    Args:
        family: of :data:`TEMPLATES`. Qwen's is byte-level and adds nothing; the others are built
            like Llama's SentencePiece one and add BOS.
        appends: whether it also adds EOS behind a text.
    """
    tokenizer = make_tokenizer() if family == "qwen" else make_sentencepiece()
    backend = tokenizer.backend_tokenizer
    backend.add_special_tokens(_TURNS.get(family, []))
    if family == "qwen":
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if appends else "<s> $A",
            special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)],
        )
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer


def make_sentencepiece(byte_fallback: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer in which apple, river and stone are tokens, built like Llama's."""
    tokens = ["<unk>", "<s>", "</s>"]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    tokens += [*sorted(set("appleriverstone")), "▁"]
    merges = []
    for word in ("apple", "river", "stone"):
        merges += [(word[:i], word[i]) for i in range(1, len(word))] + [("▁", word)]
    tokens += dict.fromkeys(left + right for left, right in merges)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=byte_fallback))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _config(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    ends = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.2,  # so large that heads make a difference
    }
    if family == "gpt2":
        return GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=LONGEST, **ends)
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": LONGEST,
    }
    if family.startswith("gemma"):
        shape["head_dim"] = HEAD_DIM  # wider than hidden_size / heads
    if family in ("mistral", "gemma2"):
        shape["sliding_window"] = WINDOW  # Mistral's in every layer, Gemma 2's in every other one
    configs = {
        "llama": LlamaConfig,
        "mistral": MistralConfig,
        "qwen2": Qwen2Config,
        "gemma": GemmaConfig,
        "gemma2": Gemma2Config,
    }
    return configs[family](**shape, **ends)
