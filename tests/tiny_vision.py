"""Tiny random image-text models of the exact architectures, their processors, and images."""

import gzip
from pathlib import Path

import numpy as np
import torch
from headpursuit.method.vision import QwenImages
from tiny import make_tokenizer
from tokenizers.processors import ByteLevel
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3Processor,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "gemma3")
LAYERS, HEADS, SIDE, PATCH = 3, 4, 8, 4
MARKS = {
    "llava": ["<image>"],
    "llava_next": ["<image>"],
    "qwen2_5_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "gemma3": ["<start_of_image>", "<end_of_image>", "<image_soft_token>"],
}
CHAT = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}MARK"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def make_vlm(folder: str | Path, family: str, seed: int = 0) -> Path:
    """Save a random model of a family and its processor into ``folder``, always the same."""
    folder = Path(folder)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS[family]})
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in MARKS[family]}
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(_config(family, tokenizer, ids))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and gains, which would all be 0 or 1
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    _processor(family, tokenizer).save_pretrained(folder)
    return folder


def _config(family: str, tokenizer: PreTrainedTokenizerFast, ids: dict) -> PreTrainedConfig:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.2,  # so large that heads make a difference
    }
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH}
    vision |= {"initializer_range": 0.5}
    both = {"initializer_range": 0.2}
    if family == "qwen2_5_vl":
        deep = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
        deep |= {"patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
        deep |= {"window_size": 4 * PATCH, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
        text["rope_parameters"] = {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]
        }  # fmt: skip
        return Qwen2_5_VLConfig(
            text_config=text,
            vision_config=deep,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            **both,
        )
    if family == "gemma3":
        text |= {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
        text["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
        return Gemma3Config(
            text_config=text,
            vision_config=vision | {"model_type": "siglip_vision_model"},
            mm_tokens_per_image=4,
            boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"],
            image_token_index=ids["<image_soft_token>"],
            **both,
        )
    kinds = {"llava": LlavaConfig, "llava_next": LlavaNextConfig}
    more = {"image_grid_pinpoints": PINPOINTS} if family == "llava_next" else {}
    mistral = {"model_type": "mistral", "sliding_window": 8}
    return kinds[family](
        text_config=text | (mistral if family == "llava_next" else {"model_type": "llama"}),
        vision_config=CLIPVisionConfig(**vision),
        image_token_index=ids["<image>"],
        vision_feature_layer=-2,
        **both,
        **more,
    )


PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE]]


def _processor(family: str, tokenizer: PreTrainedTokenizerFast):
    square = {"height": SIDE, "width": SIDE}
    clip = {"patch_size": PATCH, "vision_feature_select_strategy": "default"}
    clip |= {"num_additional_image_tokens": 1}
    if family == "qwen2_5_vl":
        images = Qwen2VLImageProcessorPil(
            patch_size=PATCH, merge_size=2, temporal_patch_size=2,
            size={"shortest_edge": 64, "longest_edge": 1024},
        )  # fmt: skip
        mark = "<|vision_start|><|image_pad|><|vision_end|>"
        chat = CHAT.replace("MARK", mark)
        tokenizer.chat_template = chat
        tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)  # adds no BOS
        return QwenImages(images, tokenizer, chat_template=chat)
    if family == "gemma3":
        names = dict(zip(["boi_token", "eoi_token", "image_token"], MARKS[family], strict=True))
        tokenizer._set_model_specific_special_tokens(special_tokens=names)
        tokenizer.init_kwargs |= names
        chat = "{{ bos_token }}" + CHAT.replace("MARK", "<start_of_image>")
        return Gemma3Processor(
            Gemma3ImageProcessorPil(size=square), tokenizer, chat_template=chat, image_seq_length=4
        )
    chat = CHAT.replace("MARK", "<image>")
    if family == "llava_next":
        images = LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=PINPOINTS
        )
        return LlavaNextProcessor(images, tokenizer, chat_template=chat, **clip)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    return LlavaProcessor(images, tokenizer, chat_template=chat, **clip)


def write_pixels(path: Path, rng: np.random.Generator, n: int) -> None:
    """Write images of 4 x 4 pixels whose class is the row that is bright."""
    lines = []
    for number in range(n):
        label = number % 3
        pixels = rng.integers(0, 6, (4, 4))
        pixels[label] += 10
        lines.append(",".join(map(str, [*pixels.ravel(), label])))
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), mtime=0))  # no date within
