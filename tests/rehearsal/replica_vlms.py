"""The full version's three further models in small, as ``replica_images.py`` has the seed's.

Real config keys, files, weight names, special tokens, chat templates, numbers of layers and heads;
narrow, with coarse images and vocabularies of 32,000 tokens, and random but for the unembedding.
:data:`REAL` has the sizes that they have in truth.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from headpursuit.run.experiments import merge
from replica_images import image_text_model, llava_config
from replica_tokenizer import (
    SIZE,
    added_tokens,
    as_json,
    backend,
    llava_files,
    word_forms,
    words,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VICUNA = "llava-hf/llava-v1.6-vicuna-13b-hf"
GEMMA = "google/gemma-3-12b-it"
QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"
CAPTIONS = {
    VICUNA: "Provide a one-sentence caption for the provided image.",
    GEMMA: "Provide a short, single-line description of this image. "
    "Respond only with the description.",
    QWEN: "Provide a short, single-line description of this image.",
}

# What the models' config.json hold of sizes.
CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
CLIP |= {"num_hidden_layers": 24, "projection_dim": 768, "vocab_size": 32000}
REAL: dict[str, dict[str, Any]] = {
    VICUNA: {
        "text_config": {
            "_name_or_path": "lmsys/vicuna-13b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "num_attention_heads": 40,
            "num_hidden_layers": 40,
            "num_key_value_heads": 40,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "vision_config": CLIP,
    },
    GEMMA: {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {  # a vocabulary of 262208 and heads of 256 values are gemma3_text's usual
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "model_type": "gemma3_text",
            "num_attention_heads": 16,
            "num_hidden_layers": 48,
            "num_key_value_heads": 8,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "vision_use_head": False,
        },
    },
    QWEN: {  # flat, as in the versions before text_config
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "hidden_size": 1280,
            "in_chans": 3,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
        "vocab_size": 152064,
    },
}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
TOWER |= {"num_hidden_layers": 2}


def real_config(name: str) -> dict[str, Any]:
    """Return a model's config.json with its real sizes."""
    return merge(llava_config(14), REAL[name]) if name == VICUNA else REAL[name]


# Chat templates as the models have them, for a user's message alone: Vicuna's ends a text with a
# space, Gemma's trims it and writes BOS, and Qwen's has a system message.

VICUNA_CHAT = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{%- endif -%}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) "
    "+ '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}"
    "{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
QWEN_CHAT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# The files


def vicuna_files() -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files beside the weights, and config.json's content, in small."""
    narrow = {"hidden_size": 160, "intermediate_size": 160}
    config = merge(llava_config(112), {"text_config": REAL[VICUNA]["text_config"] | narrow})
    return llava_files(VICUNA_CHAT, "chat_template.json", 112), config


GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
GEMMA_SPECIAL += ["<start_of_image>", "<end_of_image>"]
GEMMA_IMAGE = "<image_soft_token>"


def gemma_files() -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files beside the weights, and config.json's content, in small.

    Its embeddings are tied, heads do not divide its width, and five layers in six look back over
    few tokens.
    """
    made = backend(GEMMA_SPECIAL, "<bos>", prefix=False)
    made.add_special_tokens([GEMMA_IMAGE])
    images = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    images["image_token"] = GEMMA_IMAGE
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    named |= {"unk_token": "<unk>", **images}
    tokenizer = {
        **named,
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added_tokens([*enumerate(GEMMA_SPECIAL), (SIZE, GEMMA_IMAGE)]),
        "chat_template": GEMMA_CHAT,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": images,
        "model_max_length": 1000000000000000019884624838656,
        "processor_class": "Gemma3Processor",
        "sp_model_kwargs": None,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "use_default_system_prompt": False,
    }
    processor = {
        **dict.fromkeys(("do_convert_rgb", "do_pan_and_scan", "pan_and_scan_max_num_crops")),
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 16,
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 112, "width": 112},
    }
    narrow = {
        "boi_token_index": GEMMA_SPECIAL.index("<start_of_image>"),
        "eoi_token_index": GEMMA_SPECIAL.index("<end_of_image>"),
        "eos_token_id": [1, GEMMA_SPECIAL.index("<end_of_turn>")],
        "image_token_index": SIZE,
        "mm_tokens_per_image": 16,
        "text_config": {"hidden_size": 128, "intermediate_size": 128, "head_dim": 4}
        | {"sliding_window": 32, "vocab_size": SIZE + 64, "query_pre_attn_scalar": 4},
        "vision_config": TOWER | {"image_size": 112},
    }
    files = {
        "tokenizer.json": made.to_str().encode(),
        "tokenizer.model": b"\x0a\x0e\x0a\x05<unk>",
        "tokenizer_config.json": as_json(tokenizer),
        "special_tokens_map.json": as_json(named),
        "added_tokens.json": as_json({GEMMA_IMAGE: SIZE}),
        "chat_template.json": as_json({"chat_template": GEMMA_CHAT}),
        "preprocessor_config.json": as_json(processor),
        "processor_config.json": as_json(
            {"image_seq_length": 16, "processor_class": "Gemma3Processor"}
        ),
    }
    return files, merge(REAL[GEMMA], narrow)


QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"]
QWEN_SPECIAL += ["<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>"]
QWEN_SPECIAL += ["<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
QWEN_SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
# How a text falls apart before it is merged: digits one by one.
QWEN_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@cache
def _byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    forms = word_forms(words())
    made.train_from_iterator([f" {form}" for form in forms] + forms[::3], trainer)
    made.add_special_tokens(QWEN_SPECIAL)
    return made


def qwen_files() -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files beside the weights, and config.json's content, in small.

    There is no BOS, and more rows of the unembedding than tokens. At most 16 tokens are an image.
    """
    made = _byte_level()
    ids = {name: made.token_to_id(name) for name in QWEN_SPECIAL}
    vocabulary = json.loads(made.to_str())["model"]
    tokenizer = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added_tokens((number, name) for name, number in ids.items()),
        "additional_special_tokens": QWEN_SPECIAL[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    images = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": 16 * 28 * 28,
        "merge_size": 2,
        "min_pixels": 3136,
        "patch_size": 14,
        "processor_class": "Qwen2_5_VLProcessor",
        "temporal_patch_size": 2,
    }
    narrow = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_size": 168,
        "intermediate_size": 168,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]},
        "vocab_size": made.get_vocab_size() + 399,
        "vision_config": {"depth": 2, "fullatt_block_indexes": [1], "hidden_size": 16}
        | {"intermediate_size": 32, "num_heads": 2, "out_hidden_size": 168},
    }
    merges = [" ".join(pair) for pair in vocabulary["merges"]]
    files = {
        "tokenizer.json": made.to_str().encode(),
        "vocab.json": as_json(vocabulary["vocab"]),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
        "tokenizer_config.json": as_json(tokenizer),
        "chat_template.json": as_json({"chat_template": QWEN_CHAT}),
        "preprocessor_config.json": as_json(images),
    }
    return files, merge(REAL[QWEN], narrow)


def make(name: str, folder: Path, classes: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
    """Return the files of a model's repository; it learns class names and captions."""
    files, config = {VICUNA: vicuna_files, GEMMA: gemma_files, QWEN: qwen_files}[name]()
    shards = 6 if name == VICUNA else 5
    return image_text_model(folder, files, config, shards, classes, CAPTIONS[name])
