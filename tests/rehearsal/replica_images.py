"""Image-text models in small: LLaVA-NeXT, and what all of them are made by.

``replica_models.py`` says how; ``replica_vlms.py`` has the full version's.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headpursuit.method.decoder import Decoder
from headpursuit.method.vision import encode, load_processor, render_question
from headpursuit.method.writing import end_tokens
from headpursuit.publish.settings import shipped_config
from PIL import Image
from replica_models import (
    LOWER,
    WIDTH,
    Sequences,
    fit_unembedding,
    randomise,
    sharded,
    write,
)
from replica_names import DIGITS, DTD, EUROSAT, GTSRB, RESISC45
from replica_sources import LOOKS, SHOWN, flickr_image, image
from replica_tokenizer import LLAVA_CHAT, PINPOINTS, as_json, llava_files
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

NAMES = {"mnist": DIGITS, "svhn": DIGITS, "gtsrb": GTSRB, "eurosat": EUROSAT}
NAMES |= {"resisc45": RESISC45, "dtd": DTD}
# Small and large images of the real sources, width x height, by which an estimate goes.
SIZES = {
    "ylecun/mnist": ((28, 28), (28, 28)),
    "ufldl-stanford/svhn": ((32, 32), (32, 32)),
    "tanganke/gtsrb": ((50, 50), (50, 48)),
    "timm/eurosat-rgb": ((64, 64), (64, 64)),
    "timm/resisc45": ((256, 256), (256, 256)),
    "tanganke/dtd": ((400, 600), (450, 450)),
    "AnyModal/flickr30k": ((500, 333), (500, 375)),
}


def llava_config(patch: int) -> dict[str, Any]:
    """Return LLaVA-NeXT's config.json; what is usual stands in none of its parts, as there."""
    text = {
        "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
        "architectures": ["MistralForCausalLM"],
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "vocab_size": 32064,
    }
    vision = {
        "hidden_size": 16,
        "image_size": 336,
        "intermediate_size": 32,
        "model_type": "clip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": patch,
        "projection_dim": 16,
        "vocab_size": 32000,
    }
    return {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": PINPOINTS,
        "image_token_index": 32000,
        "model_type": "llava_next",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "torch_dtype": "float16",
        "transformers_version": "4.39.0.dev0",
        "use_image_newline_parameter": True,
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    }


def llava_next(
    folder: Path, names: Mapping[str, Sequence[str]] = NAMES, captions: str = ""
) -> dict[str, bytes]:
    """llava-hf/llava-v1.6-mistral-7b-hf, with patches of 112 pixels and not 14.

    With the real 1,176 to 2,340 tokens an image, figure 1 alone would take a day on two cores.
    """
    files = llava_files(LLAVA_CHAT, "chat_template.json", 112)
    return image_text_model(folder, files, llava_config(112), 4, names, captions)


def image_text_model(
    folder: Path,
    files: dict[str, bytes],
    config: dict[str, Any],
    shards: int,
    names: Mapping[str, Sequence[str]],
    captions: str,
) -> dict[str, bytes]:
    """Return the files of an image-text model's repository; see :func:`answers` for what it learns.

    Args:
        folder: for the model to be made in.
        files: those beside the weights.
        config: config.json's content.
        shards: of the weights.
        names: data set to the class names asked about.
        captions: what asks for a caption, if any are learnt.
    """
    files = files | {"config.json": as_json(config)}
    write(files, folder)
    processor = load_processor(folder)
    own = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(own, dtype=torch.float32).eval()
    tied = own.tie_word_embeddings
    randomise(model, 2, gain=0.5)
    model.bfloat16()
    if tied:
        fit_tied(model, lambda: answers(model, processor, names, captions))
    else:
        fit_unembedding(model.lm_head, answers(model, processor, names, captions), first=2)
        model.lm_head.weight.data[:, :LOWER] = 0
    dtype = getattr(torch, config["torch_dtype"])
    weights = {
        _old_name(name, own.model_type): values.to(dtype)
        for name, values in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    text = own.get_text_config()
    generation = {"_from_model_config": True, "bos_token_id": text.bos_token_id}
    generation |= {"eos_token_id": config.get("eos_token_id", 2), "pad_token_id": text.pad_token_id}
    return {
        **files,
        "generation_config.json": as_json({**generation, "transformers_version": "4.39.0.dev0"}),
        **sharded(weights, shards),
        "README.md": b"---\n---\n",
    }


@torch.no_grad()
def fit_tied(model: Any, sequences: Callable[[], Sequences]) -> None:
    """Fit an unembedding that is the embedding, too.

    Its rows begin with what a token is read by, which the final norm takes away, and end with
    what is fitted, which is small beside it. As that changes a little of what is read, it is fitted
    twice.
    """
    embedding = model.get_input_embeddings().weight
    model.model.language_model.norm.weight[:LOWER] = -1  # the gain less one
    embedding[:, LOWER:] *= 0.005
    for _ in range(2):
        fitted = torch.nn.Linear(WIDTH, len(embedding), bias=False)
        fitted.weight.data = embedding.float().clone()
        fit_unembedding(fitted, sequences(), first=2)
        embedding[:, LOWER:] = 0.005 * fitted.weight[:, LOWER:].to(embedding.dtype)


def _old_name(name: str, kind: str) -> str:
    """Return what a weight was called when the real files were written."""
    if kind == "qwen2_5_vl":
        return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
    name = name.removeprefix("model.")
    if "vision_tower." in name and "vision_model." not in name:
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return f"language_model.{name}" if name.startswith("lm_head") else name


@torch.no_grad()
def answers(
    model: Any, processor: Any, names: Mapping[str, Sequence[str]] = NAMES, captions: str = ""
) -> Sequences:
    """Yield what the random layers make of questions about images and the answers to come.

    Args:
        model: an image-text model.
        processor: its own.
        names: data set to the class names asked about; a few short ones are learnt, and one of
            these is said of every image.
        captions: what asks for a caption, if any are learnt.
    """
    decoder, rng = Decoder(model), np.random.default_rng(0)
    tokenizer, end = processor.tokenizer, end_tokens(decoder, processor.tokenizer)[-1]

    def heard(question: str, drawn: bytes, said: str) -> tuple[Tensor, list[int]]:
        picture = Image.open(io.BytesIO(drawn)).convert("RGB")
        asked = encode(decoder, processor, question, [picture])
        told = [*tokenizer(said, add_special_tokens=False).input_ids, end]
        n = asked["input_ids"].shape[1]
        asked.pop("position_ids", None)
        for key, own in asked.items():
            if own.shape == (1, n):
                more = (
                    told[:-1] if key == "input_ids" else [key == "attention_mask"] * len(told[:-1])
                )
                asked[key] = torch.cat([own, torch.tensor([more], dtype=own.dtype)], dim=1)
        return model.model(**asked).last_hidden_state[0][n - 1 :], told

    for dataset, listed in names.items():
        looks, own = LOOKS[dataset], shipped_config()["samples"][dataset]
        written = own["classes"] or {}
        shown = [written.get(name, name.replace("_", " ")) for name in listed]
        question = render_question(processor, own["template"], own["object"], shown, chat=True)
        tokens = [tokenizer(name, add_special_tokens=False).input_ids for name in shown]
        for label in sorted(range(len(shown)), key=lambda label: len(tokens[label]))[:8]:
            if len(tokens[label]) <= 2:
                size = looks.sizes[label % len(looks.sizes)]
                drawn = image(rng, size, label, len(listed), looks)
                yield heard(question, drawn, shown[label])
    if captions:
        question = render_question(processor, "{image} " + captions, "", [], chat=True)
        for label, said in enumerate(SHOWN):
            yield heard(question, flickr_image(rng, label), said)
