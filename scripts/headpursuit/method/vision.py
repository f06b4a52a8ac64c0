"""Image-text models: what they read, where its image tokens are, and answers under interventions.

The model's own forward pass puts an image's features in the place of its tokens, however it cuts
the image up. What it then hands to its language model is kept, and from there on an image-text
model is a decoder like any other: the same layers, heads, cache and scaling as for text.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, Qwen2_5_VLProcessor

from headpursuit.data.images import open_image, stream_images
from headpursuit.method.activations import Pooled, averaged
from headpursuit.method.decoder import Decoder, family_of
from headpursuit.method.models import (
    LOCAL,
    load_tokenizer,
    loading,
    model_folder,
    open_model,
    read_config,
)
from headpursuit.method.special import added_tokens, as_user, opened
from headpursuit.run.files import UserError, parquet_metadata


class QwenImages(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its part for videos, which takes torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the parts that it has."""
        return ["image_processor", "tokenizer"]


def load_processor(folder: str | Path) -> Any:
    """Load a folder's processor (images through Pillow, padding on the left), or UserError."""
    tokenizer = load_tokenizer(folder)
    with loading(folder, "processor"):
        if read_config(folder)["model_type"] == "qwen2_5_vl":
            images = AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL)
            own = QwenImages.get_processor_dict(folder, **LOCAL)[0]  # chat_template.json or .jinja
            chat = own.get("chat_template", tokenizer.chat_template)
            processor = QwenImages(images, tokenizer, chat_template=chat)
        else:
            processor = AutoProcessor.from_pretrained(folder, backend="pil", **LOCAL)
    processor.tokenizer.padding_side = "left"
    processor.tokenizer.pad_token = tokenizer.pad_token
    return processor


def render_question(
    processor: Any, template: str, thing: str, classes: Sequence[str], chat: bool
) -> str:
    """Return the text that is asked of every image of a data set (v2, table 4).

    Args:
        processor: of :func:`load_processor`.
        template: holds ``{image}``, ``{object}`` (for ``thing``) and ``{classes}``.
        thing: what the images show.
        classes: class names.
        chat: whether it goes through the chat template as a user's message.

    Raises:
        UserError: if the chat template is missing, or the text spells a token that stands for
            images in this model.
    """
    values = {"{object}": thing, "{classes}": ", ".join(classes)}
    before, after = (
        # At once: what is put in may itself hold braces.
        re.sub("{object}|{classes}", lambda found: values[found[0]], part)
        for part in template.split("{image}")
    )
    of = product((processor, processor.tokenizer), ("image", "boi", "eoi", "video"))
    marks = {getattr(part, f"{name}_token", None) for part, name in of} - {None}
    if spelled := sorted(mark for mark in marks if mark in before + after):
        raise UserError(
            f"The question spells {', '.join(spelled)}, which the model takes for an image. Leave "
            "it out of the samples' template, whose {image} is an image's place, and of object and "
            "classes."
        )
    if not chat:
        return f"{before}{_image_mark(processor)}{after}"
    parts = [
        *([{"type": "text", "text": before.strip()}] if before.strip() else []),
        {"type": "image"},
        {"type": "text", "text": after.strip()},
    ]
    return as_user(processor, parts)


def _image_mark(processor: Any) -> str:
    """Return what stands for an image in a text, before the processor expands it."""
    if hasattr(processor, "boi_token"):  # Gemma 3
        return processor.boi_token
    if isinstance(processor, Qwen2_5_VLProcessor):
        return f"<|vision_start|>{processor.image_token}<|vision_end|>"
    return processor.image_token


def encode(
    decoder: Decoder, processor: Any, question: str, images: Sequence[Any]
) -> dict[str, Tensor]:
    """Return what the model's forward pass takes for one question about several RGB images.

    Raises:
        UserError: if the processor makes no image tokens.
    """
    tokenizer, model = processor.tokenizer, decoder.model
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    adds = opened(tokenizer, [ids]) != [ids]
    encoded = processor(
        text=[question] * len(images),
        images=[[image] for image in images],
        padding=True,
        add_special_tokens=adds,
        return_tensors="pt",
    )
    if adds and (behind := added_tokens(tokenizer)[1]):
        shape = encoded["input_ids"].shape
        for key, value in list(encoded.items()):
            encoded[key] = value[:, : -len(behind)] if value.shape == shape else value
    encoded = dict(encoded.to(decoder.device, dtype=model.get_input_embeddings().weight.dtype))
    if not decoder.image_positions(encoded["input_ids"]).any(1).all():
        raise UserError(
            f"The processor made no image tokens (id {model.config.image_token_id}) of the "
            "question and an image: is {image} in the template, and the processor this model's?"
        )
    if model.config.model_type != "qwen2_5_vl":  # which has positions of its own
        encoded["position_ids"] = (encoded["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return encoded


class Images:
    """Images of a prepared file under one question, read as :class:`.responses.Prompts` are."""

    def __init__(
        self, decoder: Decoder, processor: Any, question: str, path: str | Path, size: int
    ):
        """Take the model, its processor, the question, the file, and the images of a batch."""
        self.decoder, self.processor, self.question = decoder, processor, question
        self.tokenizer, self.path, self.size = processor.tokenizer, path, size
        self.beside: int | None = None  # tokens of the question beside the image's

    def batches(self, part: str = "evaluation") -> Iterator[list[tuple]]:
        """Yield (place, sample_id, 0, image, source) of each image of a part."""
        place = count()
        for rows in stream_images(self.path, part, self.size):
            yield [(next(place), row["sample_id"], 0, row["image"], row["source"]) for row in rows]

    def name(self, row: tuple) -> str:
        """Say which image."""
        return f"image {row[4]}"

    def longest(self, rows: Sequence[tuple]) -> int:
        """Return the tokens of the question about the image that takes most."""
        sizes = [open_image(image, source).size[::-1] for *_, image, source in rows]
        counted = self.processor._get_num_multimodal_tokens(image_sizes=sizes)
        if self.beside is None:
            ids = self.encode(rows[:1])["input_ids"]
            self.beside = int((~self.decoder.image_positions(ids)).sum())
        return self.beside + max(counted.num_image_tokens)

    def encode(self, rows: Sequence[tuple]) -> Mapping[str, Tensor]:
        """Return what the model's forward pass takes for the question about these images."""
        images = [open_image(image, source) for *_, image, source in rows]
        return encode(self.decoder, self.processor, self.question, images)

    def pooled_inputs(self) -> Iterator[Pooled]:
        """Run the model on the selection images and average over the image tokens."""

        def read(rows: Sequence[tuple]) -> tuple[Mapping[str, Tensor], Tensor]:
            encoded = self.encode(rows)
            weights = self.decoder.image_positions(encoded["input_ids"]).float()
            return encoded, weights / weights.sum(1, keepdim=True)

        for rows, layer, z in averaged(self.decoder, self.batches("selection"), read, self.name):
            yield [row[0] for row in rows], layer, z


def open_images(
    path: str | Path,
    spec: Mapping[str, Any],
    provenance: str | Path,
    model: Mapping[str, Any],
    device: str,
    batch_images: int,
) -> tuple[Images, dict[str, Any]]:
    """Load a config's image-text model and put a question to it about each image of a file.

    The file is of :func:`headpursuit.data.images.prepare_images`, ``spec`` its entry in the
    config's ``samples``, and the model as :func:`headpursuit.method.models.open_model` takes it.
    Returns the images, and what identifies the model; UserError if it reads none.
    """
    folder = model_folder(provenance, model)
    if not family_of(read_config(folder).get("model_type")).reads_images:
        raise UserError(f"{folder}: this model reads no images, as far as its config.json says.")
    processor = load_processor(folder)
    names = parquet_metadata(path, ["classes"])["classes"]
    thing = spec.get("object", "")  # images with references have none, and no classes
    question = render_question(processor, spec["template"], thing, names, model["chat"])
    decoder, _, identity = open_model(provenance, model, device)
    return Images(decoder, processor, question, path, batch_images), identity
