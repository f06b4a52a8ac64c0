"""The demo's vision-language model: a small vision tower trained through a frozen language model.

The tower (CLIP's architecture) first learns the labels by itself; then tower and LLaVA's projector
learn to make the language model answer with the class name and stop. Only they are trained and
kept; with the language model they make a ``LlavaForConditionalGeneration`` like any other.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
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
from headpursuit.data.sources import source_files, write_made_provenance
from headpursuit.method.models import loading
from headpursuit.method.vision import LOCAL, render_question
from headpursuit.run.files import UserError, atomic, read_json, sha256, write_json

log = logging.getLogger(__name__)

IMAGE_TOKEN = "<image>"
TRAINED = ("model.vision_tower.", "model.multi_modal_projector.")


def make_processor(language_folder: str | Path, tower: Mapping[str, Any]) -> LlavaProcessor:
    """Return the processor: the language model's tokenizer with an image token, and image sizes.

    Args:
        language_folder: folder of the language model.
        tower: the model's ``build.tower``.
    """
    with loading(language_folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(language_folder, **LOCAL)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
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
        image_token=IMAGE_TOKEN,
    )


def assemble(
    language_folder: str | Path,
    tower: Mapping[str, Any],
    image_token_id: int,
    dtype: torch.dtype = torch.float32,
) -> LlavaForConditionalGeneration:
    """Put a language model behind an untrained tower and projector, which stay float32.

    Args:
        language_folder: folder of the language model.
        tower: the model's ``build.tower``.
        image_token_id: the row that the language model's embeddings and unembedding gain, zeros.
        dtype: of the language model.
    """
    with loading(language_folder, "model"):
        causal = AutoModelForCausalLM.from_pretrained(
            language_folder, dtype=dtype, use_safetensors=True, **LOCAL
        )
    causal.resize_token_embeddings(image_token_id + 1, mean_resizing=False)
    with torch.no_grad():
        causal.get_input_embeddings().weight[image_token_id:] = 0
        causal.get_output_embeddings().weight[image_token_id:] = 0  # of its own where not tied
    width = tower["hidden_size"]
    vision = CLIPVisionConfig(
        image_size=tower["image_size"],
        patch_size=tower["patch_size"],
        hidden_size=width,
        intermediate_size=4 * width,
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
    for module, loaded in (
        (model.model.language_model, causal.model),
        (model.lm_head, causal.lm_head),
    ):
        module.load_state_dict(loaded.state_dict())
        module.to(dtype)
    model.tie_weights()
    model.generation_config = causal.generation_config
    for module in model.model.multi_modal_projector.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
    return model


def train(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Any],
    labels: Sequence[int],
    classes: Sequence[str],
    prompt: str,
    training: Mapping[str, Any],
    seed: int,
) -> None:
    """Train a model's tower and projector; its language model stays as it is.

    Args:
        model: of :func:`assemble`.
        processor: of :func:`make_processor`.
        images: training images.
        labels: their class numbers.
        classes: class names.
        prompt: the text the model reads, with one image token.
        training: the config's ``vision.build.training``.
        seed: of everything random here.
    """
    torch.manual_seed(seed)
    model.requires_grad_(False)
    pixels = processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
    targets = torch.tensor(labels)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    tower.requires_grad_(True)
    projector.requires_grad_(True)
    _train_tower(tower, pixels, targets, len(classes), training)
    ids = processor(text=[prompt], images=[images[0]], return_tensors="pt")["input_ids"]
    answers = _answer_ids(processor.tokenizer, classes)
    spread = model.get_input_embeddings().weight.float().std()
    with torch.no_grad():  # features as large as the words beside them
        features = projector(tower(pixels[:256]).last_hidden_state[:, 1:])
        projector.linear_2.weight.mul_(spread / features.std())
    _train_through(model, pixels, targets, ids, answers, training)
    model.eval().requires_grad_(False)


def _answer_ids(tokenizer, classes: Sequence[str]) -> Tensor:
    """Return each class's answer and the end token, classes x 2.

    Raises:
        UserError: if a class name is not one token behind a space.
    """
    rows = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in classes]
    if long := [name for name, row in zip(classes, rows, strict=True) if len(row) != 1]:
        raise UserError(f"The demo model answers in one token, and these have more: {long}.")
    return torch.tensor([[*row, tokenizer.eos_token_id] for row in rows])


def _shifted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return a batch of images (batch x 3 x side x side), each moved by up to a pixel."""
    side = pixels.shape[-1]
    framed = pad(pixels, (1, 1, 1, 1), value=float(pixels.min()))
    moves = torch.randint(0, 3, (len(pixels), 2), generator=generator).tolist()
    return torch.stack(
        [image[:, y : y + side, x : x + side] for image, (y, x) in zip(framed, moves, strict=True)]
    )


def _batches(n: int, size: int, generator: torch.Generator) -> list[Tensor]:
    return list(torch.randperm(n, generator=generator).split(size))


def _train_tower(tower: nn.Module, pixels: Tensor, targets: Tensor, n_classes: int, training):
    """Teach the tower the labels through a linear layer on the mean of its patches."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    readout = nn.Linear(tower.config.hidden_size, n_classes)
    optimiser = torch.optim.AdamW([*tower.parameters(), *readout.parameters()], lr=1e-3)
    steps = training["tower_epochs"] * -(-len(pixels) // training["batch_size"])
    schedule = get_cosine_schedule_with_warmup(optimiser, steps // 20, steps)
    for _ in trange(training["tower_epochs"], desc="tower", unit="epoch"):
        right = 0
        for batch in _batches(len(pixels), training["batch_size"], generator):
            features = tower(_shifted(pixels[batch], generator)).last_hidden_state[:, 1:]
            logits = readout(features.mean(1))
            loss = cross_entropy(logits, targets[batch])
            right += int((logits.argmax(1) == targets[batch]).sum())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    log.info("tower alone: %.3f right in its last epoch", right / len(pixels))


def _train_through(model, pixels, targets, ids, answers, training) -> None:
    """Teach tower and projector to make the language model answer and stop."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    trained = [*tower.parameters(), *projector.parameters()]
    optimiser = torch.optim.AdamW(
        [
            {"params": list(tower.parameters()), "lr": training["tower_rate"]},
            {"params": list(projector.parameters()), "lr": training["projector_rate"]},
        ]
    )
    steps = round(training["epochs"] * len(pixels) / training["batch_size"])
    schedule = get_cosine_schedule_with_warmup(optimiser, steps // 20, steps)
    waiting: list[Tensor] = []
    for step in trange(steps, desc="through the language model", unit="batch"):
        waiting = waiting or _batches(len(pixels), training["batch_size"], generator)
        batch = waiting.pop()
        own = answers[targets[batch]]
        logits = model(
            input_ids=torch.cat([ids.expand(len(batch), -1), own[:, :1]], dim=1),
            pixel_values=_shifted(pixels[batch], generator),
            logits_to_keep=2,
            use_cache=False,
        ).logits.float()
        answer = cross_entropy(logits[:, 0], own[:, 0])
        end = cross_entropy(logits[:, 1], own[:, 1])
        optimiser.zero_grad()
        (answer + training["end_weight"] * end).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        right = (logits[:, 0].argmax(1) == own[:, 0]).float().mean()
        if step % 10 == 0 or step == steps - 1:
            said = (step, answer.item(), end.item(), right.item())
            log.info("step %d: loss %.3f, end %.3f, right %.2f", *said)


def held_out_accuracy(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Any],
    labels: Sequence[int],
    classes: Sequence[str],
    prompt: str,
) -> dict[str, float | int]:
    """Return how often the class name is the likeliest next token, and the end the one after it.

    Args:
        model: trained.
        processor: of :func:`make_processor`.
        images: images that training did not see.
        labels: their class numbers.
        classes: class names.
        prompt: the text the model reads, with one image token.
    """
    pixels = processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
    answers = _answer_ids(processor.tokenizer, classes)[torch.tensor(labels)]
    ids = processor(text=[prompt], images=[images[0]], return_tensors="pt")["input_ids"]
    right = torch.zeros(2)
    with torch.inference_mode():
        for own, some in zip(answers.split(32), pixels.split(32), strict=True):
            logits = model(
                input_ids=torch.cat([ids.expand(len(own), -1), own[:, :1]], dim=1),
                pixel_values=some,
                logits_to_keep=2,
                use_cache=False,
            ).logits
            right += (logits.argmax(-1) == own).sum(0)
    answer, end = (right / len(labels)).tolist()
    return {"images": len(labels), "answer": round(answer, 4), "end": round(end, 4)}


def train_tower(
    language_folder: Path,
    data: str | Path,
    dataset: Mapping[str, Any],
    build: Mapping[str, Any],
    seed: int,
    tower_path: str | Path,
    record_path: str | Path,
) -> None:
    """Train a tower on a data set's selection part and write it, and its record.

    Args:
        language_folder: folder of the language model.
        data: provenance.json of the data set's source.
        dataset: its entry in the config's ``samples``.
        build: the model's ``build``.
        seed: the config's seed.
        tower_path: float16 safetensors.
        record_path: JSON: data, seed, accuracy on the evaluation part, checksum, versions.

    Raises:
        UserError: if an evaluation image is among those to be learned.
    """
    parts, places, names = {}, {}, None
    for part in PARTS:
        files = source_files(data, dataset[part]["files"])
        rows = list(read_images(files, dataset, part, True))
        names = names or class_names(dataset, {label for _, label, _ in rows}, files)
        numbers = {label: number for number, label in enumerate(names)}
        places[part] = {where for where, _, _ in rows}
        parts[part] = (
            [open_image(image, f"{path}:{row}") for (path, row), _, image in rows],
            [numbers[label] for _, label, _ in rows],
        )
    if shared := places["selection"] & places["evaluation"]:
        raise UserError(
            f"models.*.build.samples: {len(shared)} images are in both parts, so accuracy would be "
            "measured on images that the tower has learned. Give its parts rows or files apart."
        )
    torch.manual_seed(seed)
    processor = make_processor(language_folder, build["tower"])
    model = assemble(language_folder, build["tower"], processor.image_token_id, torch.bfloat16)
    classes = list(names.values())
    prompt = render_question(processor, dataset["template"], dataset["object"], classes, chat=False)
    train(model, processor, *parts["selection"], classes, prompt, build["training"], seed)
    save_trained(model, tower_path, dataset)
    load_trained(model.float(), tower_path, dataset)  # what is kept is what is measured
    accuracy = held_out_accuracy(model, processor, *parts["evaluation"], classes, prompt)
    log.info("on images it never saw: %s", accuracy)
    source = read_json(data)
    record = {
        "data": {key: source.get(key) for key in ("name", "id", "version", "commit", "licence")},
        "files": [{key: file[key] for key in ("path", "sha256")} for file in source["files"]],
        "dataset": dict(dataset),
        "trained_images": len(parts["selection"][1]),
        "language_model": sha256(language_folder / "model.safetensors"),
        "question": prompt,
        "build": dict(build),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "accuracy": accuracy,
        "sha256": sha256(tower_path),
        "tools": {name: version(name) for name in ("torch", "transformers")},
    }
    write_json(record_path, record)


def assemble_model(
    language_folder: Path,
    language_provenance: str | Path,
    trained: str | Path,
    tower: Mapping[str, Any],
    dataset: Mapping[str, Any],
    provenance: str | Path,
) -> None:
    """Save language model, tower and projector as one image-text model with its processor.

    Args:
        language_folder: folder of the language model.
        language_provenance: its provenance.json.
        trained: file of the trained tower.
        tower: the model's ``build.tower``.
        dataset: the data set that the tower has to have been trained on.
        provenance: written last, beside the model's files.
    """
    folder = Path(provenance).parent
    processor = make_processor(language_folder, tower)
    model = assemble(language_folder, tower, processor.image_token_id)
    load_trained(model, trained, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    origin = {"tower_sha256": sha256(trained)}
    tools = ("torch", "transformers")
    write_made_provenance(Path(provenance), "assembled", language_provenance, origin, tools)


def save_trained(model: nn.Module, path: str | Path, dataset: Mapping[str, Any]) -> None:
    """Write what was trained as float16 safetensors, with the images it was trained on."""
    tensors = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(TRAINED)
    }
    with atomic(path) as part:
        save_file(tensors, part, metadata={"dataset": json.dumps(_learned(dataset))})


def _learned(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides which images a tower learns and which it does not."""
    return {
        part: {key: value for key, value in dataset[part].items() if value is not None}
        for part in PARTS
    }


def load_trained(model: nn.Module, path: str | Path, dataset: Mapping[str, Any]) -> None:
    """Load what :func:`save_trained` wrote.

    Raises:
        UserError: if the file is not of this tower, or it learned other images.
    """
    try:
        with safe_open(path, "pt") as file:
            learned = json.loads(file.metadata()["dataset"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a trained tower ({error}).") from error
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith(TRAINED)}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if shapes != {name: tuple(value.shape) for name, value in wanted.items()}:
        raise UserError(f"{path} does not hold the tower that models.*.build.tower describes.")
    if learned != _learned(dataset):
        raise UserError(
            f"{path} learned {learned['selection']} and was to be measured on "
            f"{learned['evaluation']}; the config's data set has other parts, so the two may "
            "share images. Set models.*.build.trained to null, to train it anew."
        )
    with torch.no_grad():
        for name, value in tensors.items():
            wanted[name].copy_(value)
