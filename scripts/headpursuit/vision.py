"""Image-text models: what they read, where its image tokens are, and answers under interventions.

The model's own forward pass puts an image's features in the place of its tokens, however it cuts
the image up. What it then hands to its language model is kept, and from there on an image-text
model is a decoder like any other: the same layers, heads, cache and scaling as for text.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoProcessor, Qwen2_5_VLProcessor

from headpursuit.activations import averaged_inputs
from headpursuit.batches import Halving, by_condition, journaled
from headpursuit.files import UserError, atomic, check_table
from headpursuit.generate import end_tokens
from headpursuit.heads import Head
from headpursuit.images import open_image, stream_images
from headpursuit.models import (
    Decoder,
    load_tokenizer,
    loading,
    model_folder,
    open_model,
    read_config,
    reads_images,
)
from headpursuit.reading import greedy, respond
from headpursuit.special import added_tokens, as_user, opened
from headpursuit.tables import read_csv


class QwenImages(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its part for videos, which takes torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the parts that it has."""
        return ["image_processor", "tokenizer"]


ANSWERS = pa.schema(
    {
        "condition": pa.string(),
        "image_id": pa.string(),
        "label": pa.int32(),
        "answer": pa.string(),
        "n_tokens": pa.int32(),
        "stop_reason": pa.string(),
    }
)
LOCAL = {"local_files_only": True, "trust_remote_code": False}


def load_processor(folder: str | Path) -> Any:
    """Load the processor of a model's folder: images through Pillow, padding on the left.

    Raises:
        UserError: if the folder holds none.
    """
    tokenizer = load_tokenizer(folder)
    with loading(folder, "processor"):
        if read_config(folder)["model_type"] == "qwen2_5_vl":
            images = AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL)
            template = tokenizer.chat_template
            processor = QwenImages(images, tokenizer, chat_template=template)
        else:
            processor = AutoProcessor.from_pretrained(folder, backend="pil", **LOCAL)
    processor.tokenizer.padding_side = "left"
    processor.tokenizer.pad_token = tokenizer.pad_token
    return processor


def open_vlm(
    provenance: str | Path,
    model: Mapping[str, Any],
    device: str,
    template: str,
    thing: str,
    classes: str | Path,
) -> tuple[Decoder, Any, str, dict[str, Any]]:
    """Load a config's image-text model and render a data set's question for it.

    Args:
        provenance: of the model (see :func:`headpursuit.models.model_folder`).
        model: its entry in the config's ``models``.
        device: the config's ``compute.device``.
        template: the config's ``vision.template``.
        thing: the data set's ``object``.
        classes: table with its class names.

    Returns:
        The model, its processor, the question, and what identifies the model.

    Raises:
        UserError: if the model reads no images.
    """
    folder = model_folder(provenance, model)
    if not reads_images(folder):
        raise UserError(f"{folder}: vision.model reads no images, as far as its config.json says.")
    processor = load_processor(folder)
    names = list(read_csv(classes, ["class_name"])["class_name"])
    question = render_question(processor, template, thing, names, model["chat"])
    decoder, _, identity = open_model(provenance, model, device)
    return decoder, processor, question, identity


def render_question(
    processor: Any, template: str, thing: str, classes: Sequence[str], chat: bool
) -> str:
    """Return the text that is asked of every image of a data set (v2, table 4).

    Args:
        processor: of :func:`load_processor`.
        template: holds ``{image}``, ``{object}`` and ``{classes}``.
        thing: what the images show, in the place of ``{object}``.
        classes: class names, joined with commas.
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
            "it out of vision.template, whose {image} is an image's place, and of object and "
            "classes under image_datasets."
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
    """Return what the model's forward pass takes for one question about several images.

    Args:
        decoder: the image-text model.
        processor: its processor.
        question: of :func:`render_question`.
        images: RGB images.

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
        for key in [key for key, value in encoded.items() if value.shape == shape]:
            encoded[key] = encoded[key][:, : -len(behind)]
    encoded = dict(encoded.to(decoder.device, dtype=model.get_input_embeddings().weight.dtype))
    if not image_positions(decoder, encoded["input_ids"]).any(1).all():
        raise UserError(
            f"The processor made no image tokens (id {model.config.image_token_id}) of the "
            "question and an image: is {image} in vision.template, and the processor this model's?"
        )
    if model.config.model_type != "qwen2_5_vl":  # which has positions of its own
        encoded["position_ids"] = (encoded["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return encoded


def image_positions(decoder: Decoder, ids: Tensor) -> Tensor:
    """Return where the image tokens are, as the processor expanded them, batch x positions."""
    return ids == decoder.model.config.image_token_id


@torch.inference_mode()
def pooled_image_inputs(
    decoder: Decoder,
    processor: Any,
    question: str,
    path: str | Path,
    part: str,
    batch_images: int,
) -> Iterator[tuple[list[int], int, Tensor]]:
    """Run the model on images and average each layer's projection input over the image tokens.

    Args:
        decoder: the image-text model.
        processor: its processor.
        question: of :func:`render_question`.
        path: images of :func:`headpursuit.images.prepare_images`.
        part: ``selection`` or ``evaluation``.
        batch_images: images of a batch.

    Yields:
        As :func:`headpursuit.activations.pooled_inputs`.
    """

    def read(rows: Sequence[dict[str, Any]]) -> tuple[int, dict[int, Tensor]]:
        images = [open_image(row["image"], row["source"]) for row in rows]
        encoded = encode(decoder, processor, question, images)
        weights = image_positions(decoder, encoded["input_ids"]).float()
        weights /= weights.sum(1, keepdim=True)
        return len(rows), averaged_inputs(decoder, weights, **encoded)

    work = _by_images(read)
    seen = 0
    for rows in tqdm(stream_images(path, part, batch_images), unit="batch"):
        for n, averages in work(rows):
            indices = list(range(seen, seen + n))
            seen += n
            for layer, z in averages.items():
                yield indices, layer, z


def _by_images(work: Callable[[Sequence[dict[str, Any]]], Any]) -> Halving:
    """Return work on images that goes on with smaller batches where memory does not suffice."""
    return Halving(
        work,
        "vision.batch_images",
        lambda row: f"image {row['source']}",
        "Take a smaller vision.model or models.*.dtype.",
    )


def write_answers(
    path: str | Path,
    decoder: Decoder,
    processor: Any,
    question: str,
    batches: Iterable[tuple[int, list[dict[str, Any]]]],
    conditions: Mapping[str, Sequence[Head]],
    alpha: float,
    max_new_tokens: int,
    batch_tokens: int,
    metadata: Mapping[str, Any],
    identity: Any,
) -> None:
    """Ask about images and write the answers, batch by batch.

    Finished batches are kept in a journal beside the file until it is there, so that a killed job
    goes on where it was.

    Args:
        path: Parquet file of :data:`ANSWERS`.
        decoder: the image-text model.
        processor: its processor.
        question: of :func:`render_question`.
        batches: numbered, of :func:`headpursuit.images.stream_images`.
        conditions: name to the heads that are scaled.
        alpha: what their writes are multiplied by.
        max_new_tokens: longest answer.
        batch_tokens: see :func:`headpursuit.reading.respond`.
        metadata: stored in the schema as JSON.
        identity: whatever else decides the answers (the images, the model); a journal of another
            identity is not used.
    """
    stops = end_tokens(decoder, processor.tokenizer)
    every = {"baseline": [], **conditions}

    def answer(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[list[int], str]]]:
        images = [open_image(row["image"], row["source"]) for row in rows]
        encoded = encode(decoder, processor, question, images)
        return respond(decoder, encoded, every, alpha, max_new_tokens, stops, batch_tokens, greedy)

    work = _by_images(answer)
    schema = ANSWERS.with_metadata({key: json.dumps(value) for key, value in metadata.items()})
    journal = Path(path).with_name(f".{Path(path).stem}.journal")
    decides = [identity, metadata, question, list(conditions.items()), alpha, max_new_tokens]
    bar = tqdm(batches, unit="batch")
    done = journaled(journal, decides, bar, lambda rows: by_condition(work(rows)))
    with atomic(path) as part, pq.ParquetWriter(part, schema, write_page_checksum=True) as writer:
        for rows, answers in done:
            records = [
                {
                    "condition": name,
                    "image_id": row["image_id"],
                    "label": row["label"],
                    "answer": processor.tokenizer.decode(tokens, skip_special_tokens=True),
                    "n_tokens": len(tokens),
                    "stop_reason": stop,
                }
                for name, own in answers.items()
                for row, (tokens, stop) in zip(rows, own, strict=True)
            ]
            table = pa.Table.from_pylist(records, schema)
            check_table(path, table)
            writer.write_table(table)
    journal.unlink()
