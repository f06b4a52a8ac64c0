"""The models of config.yaml in small: real config keys, files and weight names, random weights.

Both have the real numbers of layers and heads, and are narrow: heads of 4 values in place of 128.
All weights are random but for the unembedding, which is fitted by least squares to what the random
layers leave (:func:`fit_unembedding`): else greedy responses repeat one token, and no answer about
an image is ever right, so that ratios would not be defined. As in real models, the heads that
speak of words are in the upper layers: below the last :data:`UPPER`, heads write to the first
:data:`LOWER` values of the residual stream, which the fitted rows do not read; nor do LLaVA's other
rows, so that no head of these layers is chosen and a condition reads few layers anew.
"""

import io
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from headpursuit.method.decoder import Decoder
from headpursuit.method.reading import end_tokens
from headpursuit.method.vision import encode, load_processor, render_question
from headpursuit.run.config import load_config
from PIL import Image
from replica_names import DIGITS, DTD, EUROSAT, GTSRB, PLAIN, RESISC45
from replica_sources import (
    LOOKS,
    SHOWN,
    challenging,
    flickr_image,
    image,
    queries,
    question,
)
from replica_tokenizer import LLAVA_CHAT, PINPOINTS, ROOT, as_json, llava_files, mistral_files
from safetensors.torch import save
from tiny import make_classifier
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

HEAD_DIM = 4
WIDTH = 32 * HEAD_DIM
LOWER = WIDTH // 4
UPPER = 4  # layers
RIDGE = 1e-3  # of the fit, beside the states' mean square
EOS = 2
Sequences = Iterable[tuple[Tensor, list[int]]]

MISTRAL_CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vocab_size": 32000,
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


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int, gain: float) -> None:
    """Fill a model with random numbers of such sizes that each part makes a difference.

    Args:
        model: in float32.
        seed: of the numbers.
        gain: how much the upper layers' heads write, so that an intervention is seen, and does not
            destroy what is fitted.
    """
    generator = torch.Generator().manual_seed(seed)
    lower = model.config.get_text_config().num_hidden_layers - UPPER
    gemma = model.config.model_type == "gemma3"
    for name, values in sorted(model.state_dict().items()):
        if values.ndim == 1:
            less = gemma and "vision_tower" not in name  # its norms store the gain less one
            centre = 1.0 if "norm" in name and name.endswith("weight") and not less else 0.0
            values.normal_(centre, 0.1, generator=generator)
            continue
        size = 1.0 if "embed_tokens" in name else values[0].numel() ** -0.5
        upper = "layers." in name and int(name.split("layers.")[1].split(".")[0]) >= lower
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            size *= gain if upper and "o_proj" in name else 0.3
        values.normal_(0.0, size, generator=generator)
        if name.endswith("o_proj.weight") and not upper:
            values[LOWER:] = 0


@torch.no_grad()
def fit_unembedding(head: torch.nn.Linear, sequences: Sequences, first: float) -> None:
    """Fit the unembedding so that each final state gives its next token, by least squares.

    Args:
        head: the unembedding; rows of other tokens stay random and small.
        sequences: final states (positions x width) and the token that each is to give.
        first: the weight of a sequence's first token, which depends on the prompt, beside the
            others, which mostly depend on the token before.
    """
    states, targets, weights = [], [], []
    for hidden, tokens in sequences:
        states.append(hidden[:, LOWER:].double())
        targets += tokens
        weights += [first] + [1.0] * (len(tokens) - 1)
    x, weight = torch.cat(states), torch.tensor(weights, dtype=torch.float64)[:, None]
    known = sorted(set(targets))
    wanted = torch.zeros(len(x), len(known), dtype=torch.float64)
    wanted[torch.arange(len(x)), [known.index(token) for token in targets]] = 1
    gram = x.T @ (weight * x)
    gram += RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
    rows = torch.linalg.solve(gram, x.T @ (weight * wanted)).T
    scores = (x @ rows.T)[torch.arange(len(x)), [known.index(token) for token in targets]]
    head.weight.mul_(0.1)
    fitted = torch.cat([torch.zeros(len(known), LOWER), rows.float()], dim=1)
    head.weight[known] = (fitted * (15 / scores.median().float())).to(head.weight.dtype)


def _tokenizer(files: dict[str, bytes], folder: Path) -> PreTrainedTokenizerFast:
    write(files, folder)
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def write(files: dict[str, bytes], folder: Path) -> None:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _sharded(weights: dict[str, Tensor], shards: int) -> dict[str, bytes]:
    """Return weights as shards with their index."""
    names = list(weights)
    step = -(-len(names) // shards)
    files, where = {}, {}
    for number in range(shards):
        own = {name: weights[name].contiguous() for name in names[number * step :][:step]}
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        files[file] = save(own, {"format": "pt"})
        where |= dict.fromkeys(own, file)
    total = sum(values.numel() * values.element_size() for values in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    return {**files, "model.safetensors.index.json": as_json(index)}


@cache
def paper() -> dict[str, Any]:
    """Return config.yaml, its defaults filled in."""
    return load_config(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))


def mistral(folder: Path, questions: int = 0) -> dict[str, bytes]:
    """mistralai/Mistral-7B-Instruct-v0.2, and the weights in other forms that it has beside.

    It learns to answer some ``questions``, too.
    """
    files = mistral_files() | {"config.json": as_json(MISTRAL_CONFIG)}
    tokenizer = _tokenizer(files, folder)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomise(model, 1, gain=1.0)
    # In bfloat16, as in the run: responses hang on small differences.
    fit_unembedding(model.lm_head, _responses(model.bfloat16(), tokenizer, questions), first=20)
    weights = model.state_dict()
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
    others = ["consolidated.safetensors", "pytorch_model.bin.index.json", "README.md"]
    others += [f"pytorch_model-{number:05d}-of-00003.bin" for number in (1, 2, 3)]
    return {
        **files,
        "generation_config.json": as_json({**generation, "transformers_version": "4.36.0"}),
        **_sharded(weights, 3),
        **dict.fromkeys(others, b"not to be fetched"),
    }


def walk(rng: random.Random, tokenizer: Any) -> dict[int, int]:
    """Return which token follows which in a response: chains of 40 words and an end."""
    chain = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in PLAIN]
    rng.shuffle(chain)
    return {
        here: EOS if number % 40 == 39 else after
        for number, (here, after) in enumerate(zip(chain, [*chain[1:], EOS], strict=True))
    }


@torch.no_grad()
def _responses(model: Any, tokenizer: Any, questions: int) -> Sequences:
    """Yield what the random layers make of prompts and the responses that are to come."""
    rng = random.Random(0)
    follows = walk(rng, tokenizer)
    template = paper()["samples"]["rtp"]["template"]
    asked = [template.replace("{prompt}", text) for text in challenging()] + queries()
    for text in asked:
        ids = tokenizer(f"[INST] {text} [/INST]").input_ids
        told = [rng.choice(list(follows))]
        while told[-1] != EOS:
            told.append(follows[told[-1]])
        yield _heard(model, ids, told)
    template = paper()["samples"]["triviaqa"]["template"]
    for number in range(questions):
        text, answer = question(rng, number)
        ids = tokenizer(f"[INST] {template.replace('{prompt}', text)} [/INST]").input_ids
        yield _heard(model, ids, [*tokenizer(answer, add_special_tokens=False).input_ids, EOS])


def _heard(model: Any, ids: list[int], told: list[int]) -> tuple[Tensor, list[int]]:
    states = model.model(torch.tensor([ids + told[:-1]])).last_hidden_state[0]
    return states[len(ids) - 1 :], told


NAMES = {"mnist": DIGITS, "svhn": DIGITS, "gtsrb": GTSRB, "eurosat": EUROSAT}
NAMES |= {"resisc45": RESISC45, "dtd": DTD}


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
        **_sharded(weights, shards),
        "README.md": b"---\n---\n",
    }


@torch.no_grad()
def roberta_toxicity(folder: Path) -> dict[str, bytes]:
    """s-nlp/roberta_toxicity_classifier: 50,265 tokens in vocab.json and merges.txt, 512 of them.

    Of the prompts that are known to provoke it calls half toxic. Whether the real repository has
    safetensors is not known.
    """
    make_classifier(folder, vocab_size=50265, max_position_embeddings=514)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary |= {f"filler{number}": number for number in range(len(vocabulary), 50264)}
    (folder / "vocab.json").write_bytes(as_json({**vocabulary, "<mask>": 50264}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in challenging()]
    model.classifier.out_proj.bias -= torch.stack(logits).median(0).values
    # Older versions of transformers saved the positions, too.
    positions = {"roberta.embeddings.position_ids": torch.arange(514)[None]}
    names = ("<s>", "bos"), ("</s>", "eos"), ("<unk>", "unk"), ("</s>", "sep"), ("<pad>", "pad")
    named = {f"{name}_token": token for token, name in (*names, ("<s>", "cls"), ("<mask>", "mask"))}
    return {
        **{path.name: path.read_bytes() for path in folder.iterdir()},
        "model.safetensors": save({**model.state_dict(), **positions}, {"format": "pt"}),
        "special_tokens_map.json": as_json(named),
        "pytorch_model.bin": b"not to be fetched",
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
        looks, own = LOOKS[dataset], paper()["samples"][dataset]
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
