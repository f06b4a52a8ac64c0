"""The demo's vision-language model: a small vision tower trained through a frozen language model.

The tower (CLIP's architecture) first learns the labels by itself; then tower and LLaVA's projector
learn to make the language model answer with the class name and stop. Only they are trained and
kept; with the language model they make a ``LlavaForConditionalGeneration`` like any other.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm import trange
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    get_cosine_schedule_with_warmup,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from headpursuit.data.images import PARTS, class_names, open_image, read_images
from headpursuit.data.sources import source_files
from headpursuit.method.models import LOCAL, loading
from headpursuit.method.vision import render_question
from headpursuit.run.files import UserError, atomic

TRAINED = ("model.vision_tower.", "model.multi_modal_projector.")


def make_processor(language_folder: str | Path, tower: Mapping[str, Any]) -> LlavaProcessor:
    """Return the language model's tokenizer with an image token, and the tower's image sizes."""
    with loading(language_folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(language_folder, **LOCAL)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.padding_side = "left"
    side = tower["image_size"]
    images = CLIPImageProcessorPil(
        size={"height": side, "width": side},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=tower["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )


def assemble(
    language_folder: str | Path,
    tower: Mapping[str, Any],
    image_token_id: int,
    dtype: torch.dtype = torch.float32,
) -> LlavaForConditionalGeneration:
    """Put a language model, in ``dtype``, behind an untrained tower and projector, in float32.

    Its embeddings and unembedding gain a row of zeros for the image token.
    """
    with loading(language_folder, "model"):
        causal = AutoModelForCausalLM.from_pretrained(
            language_folder, dtype=dtype, use_safetensors=True, **LOCAL
        )
    causal.resize_token_embeddings(image_token_id + 1, mean_resizing=False)
    with torch.no_grad():
        causal.get_input_embeddings().weight[image_token_id:] = 0
        causal.get_output_embeddings().weight[image_token_id:] = 0  # of its own where not tied
    vision = CLIPVisionConfig(
        image_size=tower["image_size"],
        patch_size=tower["patch_size"],
        hidden_size=tower["hidden_size"],
        intermediate_size=4 * tower["hidden_size"],
        num_hidden_layers=tower["layers"],
        num_attention_heads=tower["heads"],
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=causal.config,
        image_token_index=image_token_id,
        image_seq_length=(tower["image_size"] // tower["patch_size"]) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=causal.config.tie_word_embeddings,
    )
    model = AutoModelForImageTextToText.from_config(config)
    # Loaded, and not put in its place, so that its attention is set up as in any such model.
    model.model.language_model.load_state_dict(causal.model.state_dict())
    model.lm_head.load_state_dict(causal.lm_head.state_dict())
    model.model.language_model.to(dtype)
    model.lm_head.to(dtype)
    model.tie_weights()
    model.generation_config = causal.generation_config
    for module in model.model.multi_modal_projector.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
    return model


Images = tuple[Tensor, Tensor]  # pixels (n x 3 x side x side) and class numbers (n)
Question = tuple[str, Tensor, Tensor]  # its text and token ids (1 x n), and answers (classes x 2)


def read_parts(
    data: str | Path, samples: Mapping[str, Any], processor: LlavaProcessor
) -> tuple[list[str], dict[str, Images]]:
    """Return class names and each part's images, from the record of the source of ``samples``.

    Raises:
        UserError: if an evaluation image is among those to be learned.
    """
    files = {part: source_files(data, samples[part]["files"]) for part in PARTS}
    rows = {part: list(read_images(files[part], samples, part, True)) for part in PARTS}
    places = [{where for where, _, _ in own} for own in rows.values()]
    if shared := set.intersection(*places):
        raise UserError(
            f"models.*.build.samples: {len(shared)} images are in both parts, so accuracy would be "
            "measured on images that the tower has learned. Give its parts rows or files apart."
        )
    labels = {label for own in rows.values() for _, label, _ in own}
    names = class_names(samples, labels, [file for own in files.values() for file in own])
    numbers = {label: number for number, label in enumerate(names)}
    parts = {}
    for part, own in rows.items():
        images = [open_image(image, f"{path}:{row}") for (path, row), _, image in own]
        pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        parts[part] = pixels, torch.tensor([numbers[label] for _, label, _ in own])
    return list(names.values()), parts


def ask(processor: LlavaProcessor, samples: Mapping[str, Any], classes: list[str]) -> Question:
    """Return the question, and each class's answer: its name and the end token.

    Raises:
        UserError: if a class name is not one token behind a space.
    """
    tokenizer = processor.tokenizer
    rows = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in classes]
    if long := [name for name, row in zip(classes, rows, strict=True) if len(row) != 1]:
        raise UserError(f"The demo model answers in one token, and these have more: {long}.")
    answers = torch.tensor([[*row, tokenizer.eos_token_id] for row in rows])
    text = render_question(processor, samples["template"], samples["object"], classes, chat=False)
    blank = Image.new("RGB", (8, 8))  # the question is the same whatever the image
    return text, processor(text=[text], images=[blank], return_tensors="pt")["input_ids"], answers


def train(
    model: LlavaForConditionalGeneration,
    images: Images,
    question: Question,
    training: Mapping[str, Any],
    seed: int,
) -> None:
    """Train a model's tower and projector; its language model stays as it is.

    ``training`` is the config's ``models.*.build.training``; everything random goes by the seed.
    """
    torch.manual_seed(seed)
    model.requires_grad_(False)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    tower.requires_grad_(True)
    projector.requires_grad_(True)
    pixels, labels = images
    readout = nn.Linear(tower.config.hidden_size, len(question[2]))
    n, size = len(pixels), training["batch_size"]

    def alone(images: Tensor, chosen: Tensor) -> Tensor:
        """Teach the tower the labels through a linear layer on the mean of its patches."""
        features = tower(images).last_hidden_state[:, 1:]
        return cross_entropy(readout(features.mean(1)), chosen)

    def through(images: Tensor, chosen: Tensor) -> Tensor:
        """Teach tower and projector to make the language model answer and stop."""
        logits, own = _answer_logits(model, question, images, chosen)
        answer, end = (cross_entropy(logits[:, at].float(), own[:, at]) for at in (0, 1))
        return answer + training["end_weight"] * end

    def fit(what: str, groups: list, steps: int, loss_of, next_at: int, clip: float) -> None:
        """Take an epoch's batches from its front (0) or end (-1), as the committed tower did."""
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(groups)
        schedule = get_cosine_schedule_with_warmup(optimiser, steps // 20, steps)
        trained = [own for group in optimiser.param_groups for own in group["params"]]
        batches: list[Tensor] = []
        for _ in trange(steps, desc=what, unit="batch"):
            batches = batches or list(torch.randperm(n, generator=generator).split(size))
            batch = batches.pop(next_at)
            loss = loss_of(_shifted(pixels[batch], generator), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, clip)
            optimiser.step()
            schedule.step()

    groups = [{"params": [*tower.parameters(), *readout.parameters()], "lr": 1e-3}]
    fit("tower", groups, training["tower_epochs"] * -(-n // size), alone, 0, math.inf)
    spread = model.get_input_embeddings().weight.float().std()
    with torch.no_grad():  # features as large as the words beside them
        features = projector(tower(pixels[:256]).last_hidden_state[:, 1:])
        projector.linear_2.weight.mul_(spread / features.std())
    groups = [
        {"params": list(tower.parameters()), "lr": training["tower_rate"]},
        {"params": list(projector.parameters()), "lr": training["projector_rate"]},
    ]
    steps = round(training["epochs"] * n / size)
    fit("through the language model", groups, steps, through, -1, 1.0)
    model.eval().requires_grad_(False)


def _shifted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return a batch of images (batch x 3 x side x side), each moved by up to a pixel."""
    side = pixels.shape[-1]
    framed = pad(pixels, (1, 1, 1, 1), value=float(pixels.min()))
    moves = torch.randint(0, 3, (len(pixels), 2), generator=generator).tolist()
    return torch.stack(
        [image[:, y : y + side, x : x + side] for image, (y, x) in zip(framed, moves, strict=True)]
    )


def _answer_logits(model, question: Question, pixels: Tensor, labels: Tensor) -> tuple:
    """Return the logits in the places of answer and end, n x 2 x vocabulary, and the right ones."""
    _, ids, answers = question
    own = answers[labels]
    ids = torch.cat([ids.expand(len(own), -1), own[:, :1]], dim=1)
    output = model(input_ids=ids, pixel_values=pixels, logits_to_keep=2, use_cache=False)
    return output.logits, own


@torch.inference_mode()
def accuracy(model, images: Images, question: Question) -> dict[str, float | int]:
    """Return how often the class name is the likeliest next token, and the end the one after it."""
    right = torch.zeros(2)
    for pixels, labels in zip(*(part.split(32) for part in images), strict=True):
        logits, own = _answer_logits(model, question, pixels, labels)
        right += (logits.argmax(-1) == own).sum(0)
    n = len(images[1])
    answer, end = (right / n).tolist()
    return {"images": n, "answer": round(answer, 4), "end": round(end, 4)}


def _learned(samples: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides which images a tower learns and which it does not."""
    return {
        part: {key: value for key, value in samples[part].items() if value is not None}
        for part in PARTS
    }


def save_trained(model: nn.Module, path: str | Path, samples: Mapping[str, Any]) -> None:
    """Write what was trained as float16 safetensors, with the images it was trained on."""
    tensors = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(TRAINED)
    }
    with atomic(path) as part:
        save_file(tensors, part, metadata={"dataset": json.dumps(_learned(samples))})


def load_trained(model: nn.Module, path: str | Path, samples: Mapping[str, Any]) -> None:
    """Load what :func:`save_trained` wrote.

    Raises:
        UserError: if the file is not of this tower, or it learned other images.
    """
    try:
        with safe_open(path, "pt") as file:
            learned = json.loads(file.metadata()["dataset"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for part in TRAINED:
            own = {name.removeprefix(part): tensors[name] for name in tensors if part in name}
            model.get_submodule(part[:-1]).load_state_dict(own)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path}: not the tower of models.*.build.tower ({why}).") from error
    if learned != _learned(samples):
        raise UserError(
            f"{path} learned {learned['selection']} and was to be measured on "
            f"{learned['evaluation']}; the config's samples have other parts, so the two may "
            "share images. Set models.*.build.trained to null, to train it anew."
        )
