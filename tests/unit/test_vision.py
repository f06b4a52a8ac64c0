"""Image-text models of every family, tiny and random: where heads are, what is edited, batches."""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from headpursuit.data.tower import assemble
from headpursuit.method import vision
from headpursuit.method.activations import read_layer, write_cache
from headpursuit.method.answers import judge, normalise_answer
from headpursuit.method.batches import PartFile, Room
from headpursuit.method.decoder import Decoder, collected
from headpursuit.method.heads import Condition
from headpursuit.method.models import load_model
from headpursuit.method.responses import SCHEMA, write_responses
from headpursuit.method.sampling import GumbelMax, greedy
from headpursuit.method.words import unrelated_tokens
from headpursuit.method.writing import Writing, respond, room_of
from headpursuit.method.writing import ask as begin
from headpursuit.run.config import load_config
from headpursuit.run.files import UserError, read_responses, sha256
from naive import PLACES, acting, exponential, multiplied, next_token
from PIL import Image
from tiny import WORDS, make_model, make_tokenizer
from tiny_vision import FAMILIES, HEADS, LAYERS, MARKS, SIDE
from tokenizers.processors import TemplateProcessing

families = pytest.mark.parametrize("family", FAMILIES)
TEMPLATE = "{image} What {object} is it? One of {classes}. Answer:"
STREAMS = range(30, 33)  # by which no image token is written: a plain pass would want an image
CHOSEN = [(1, 2), (2, 0)]
GENERATION = {"max_new_tokens": 5, "samples": 1, "temperature": 0.0, "top_p": 1.0, "seed": 0}


@pytest.fixture(scope="module")
def vlm(model_path):
    """Give a family's model and processor, loaded once; loading proves it by the self-check."""

    @cache
    def load(family: str) -> tuple[Decoder, object]:
        folder = model_path(family)
        return load_model(folder, "float32", "cpu", (LAYERS, HEADS)), vision.load_processor(folder)

    return load


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Give three images of different shapes, which are cut up differently."""
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 255, (high, wide, 3), dtype=np.uint8))
        for high, wide in ((16, 16), (8, 30), (20, 9))
    ]


def ask(loaded, images, chat: bool = False) -> dict:
    decoder, processor = loaded
    question = vision.render_question(processor, TEMPLATE, "fruit", ["apple", "stone"], chat)
    return vision.encode(decoder, processor, question, images)


def logits(decoder: Decoder, encoded: dict) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.model(**encoded, use_cache=False).logits


@families
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("appends", [False, True])
def test_a_question_begins_as_the_model_was_trained(
    vlm, pictures, family: str, chat: bool, appends: bool
) -> None:
    """With one BOS (none for Qwen), whether the template writes it (Gemma's) or not; no EOS."""
    decoder, processor = vlm(family)
    backend = processor.tokenizer.backend_tokenizer
    own = backend.post_processor
    if appends and family != "qwen2_5_vl":
        backend.post_processor = TemplateProcessing(
            single="<|begin|> $A <|end|>",
            special_tokens=[(name, backend.token_to_id(name)) for name in ("<|begin|>", "<|end|>")],
        )
    try:
        encoded = ask((decoder, processor), pictures, chat)
    finally:
        backend.post_processor = own
    begin = [] if family == "qwen2_5_vl" else ["<|begin|>"]
    assert len({encoded[key].shape for key in ("input_ids", "attention_mask")}) == 1
    for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True):
        tokens = processor.tokenizer.convert_ids_to_tokens(ids[mask.bool()])
        mark = {"qwen2_5_vl": "<|vision_start|>", "gemma3": "Ċ"}.get(family, "<image>")
        assert tokens[: len(begin) + 1] == [*begin, "<|start|>" if chat else mark]
        assert tokens.count("<|begin|>") == len(begin)
        assert tokens[-1] == ("Ċ" if chat else ":")


@families
@pytest.mark.parametrize("chat", [False, True])
def test_a_class_may_have_the_name_of_a_field_but_not_of_an_image(
    vlm, family: str, chat: bool
) -> None:
    _, processor = vlm(family)
    names = ["{image}", "{object}", "{classes}", "\\1"]
    question = vision.render_question(processor, TEMPLATE, "{classes}", names, chat)
    asked = "What {classes} is it? One of {image}, {object}, {classes}, \\1. Answer:"
    assert asked in question
    for mark in set(MARKS[family]) - {"<|vision_start|>", "<|vision_end|>"}:
        for template, name in ((TEMPLATE, f"a {mark}"), (f"{mark}{TEMPLATE}", "apple")):
            with pytest.raises(UserError, match="which the model takes for an image"):
                vision.render_question(processor, template, "fruit", [name], chat)


def test_an_assembled_model_has_no_random_row(tmp_path: Path) -> None:
    """Whether embeddings and unembedding are tied (SmolLM2's are) or not."""
    folder, tower = make_model(tmp_path), {"image_size": 4, "patch_size": 2, "hidden_size": 8}
    mark = len(make_tokenizer())
    model = assemble(folder, tower | {"layers": 1, "heads": 2}, mark)
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert part.weight.shape[0] == mark + 1
        assert not part.weight[mark].any() and part.weight[:mark].any(1).all()


def longer(asked: dict, new: list[int]) -> dict:
    """Return what the model takes for a question with an answer so far behind it."""
    longer = {name: own for name, own in asked.items() if name != "position_ids"}
    for name, own in list(longer.items()):
        follows = {"input_ids": new, "attention_mask": [1] * len(new)}.get(name, [0] * len(new))
        if own.shape == asked["input_ids"].shape:
            longer[name] = torch.cat([own, torch.tensor([follows], dtype=own.dtype)], dim=1)
    return longer


@pytest.mark.parametrize(
    ("family", "sampled"), [*((family, False) for family in FAMILIES), ("gemma3", True)]
)
@torch.inference_mode()
def test_heads_are_scaled_at_their_places_alone(vlm, pictures, family: str, sampled: bool) -> None:
    """As a whole pass for each token and image alone gives it, with a mask of positions.

    Images of other shapes and conditions of all places share batches.
    """
    decoder, _ = vlm(family)
    conditions = {"baseline": Condition(), "same": Condition(CHOSEN, 1.0)}
    conditions |= {
        f"{alpha}{at}": Condition(CHOSEN, alpha, at) for alpha in (-1, 9) for at in PLACES
    }
    encoded, pick = ask(vlm(family), pictures), greedy
    if sampled:
        pick = GumbelMax(STREAMS, 1.0, 0.9)
    asked = [(begin(decoder, encoded, conditions), list(conditions))]
    (found,) = respond(decoder, asked, Writing(5, [-1], pick), 10_000)

    def answered(number: int, heads: list, alpha: float, at: str) -> list[int]:
        asked = ask(vlm(family), [pictures[number]])
        image = (asked["input_ids"][0] == decoder.model.config.image_token_id).tolist()
        new: list[int] = []
        while len(new) < 5:
            where = acting(at, image, len(new))
            with multiplied(decoder.layers, heads, decoder.head_dim, alpha, where):
                given = longer(asked, new)
                last = logits(decoder, given)[0, -1].double()
                drawn = exponential(STREAMS[number], len(new), len(last)) if sampled else None
                new.append(next_token(last, drawn, 0.9))
        return new

    for name, own in conditions.items():
        expected = [answered(number, *own[:3]) for number in range(3)]
        assert [tokens for tokens, _ in found[name]] == expected
    assert len(set(map(str, found.values()))) > (5 if sampled else 3)


def test_llava_next_reads_its_own_tiling(vlm, pictures) -> None:
    """Images of different shapes have different numbers of image tokens, newlines included."""
    decoder, _ = vlm("llava_next")
    counts = decoder.image_positions(ask(vlm("llava_next"), pictures)["input_ids"]).sum(1)
    tokens = (SIDE // 4) ** 2
    assert counts[0] == tokens + 4 * tokens + 4  # a 2 x 2 tiling, a newline for each of 4 rows
    assert len(set(counts.tolist())) == 3


def reader(loaded, path: Path, size: int) -> vision.Images:
    question = vision.render_question(loaded[1], TEMPLATE, "fruit", ["apple"], False)
    return vision.Images(*loaded, question, path, size)


@families
def test_lengths_are_known_before_images_are_read(vlm, pictures, tmp_path: Path, family: str):
    """Loops are planned by them."""
    images = reader(vlm(family), store(tmp_path, pictures), 2)
    rows = [row for batch in images.batches() for row in batch]
    for some in (rows[:1], rows[1:2], rows[2:], rows):
        assert images.longest(some) == images.encode(some)["input_ids"].shape[1]


@families
def test_answers_that_are_read_apart_are_written_together(
    vlm, pictures, tmp_path: Path, family: str
) -> None:
    """Images of other shapes, in one loop, answer as they do alone."""
    images = reader(vlm(family), store(tmp_path, pictures), 1)
    generation = GENERATION | {"temperature": 1.0, "top_p": 0.9}
    conditions = {"baseline": Condition(), "edited": Condition(CHOSEN, 9.0, "image")}
    tables = []
    for name, room in (("apart", Room(1)), ("some", Room(4, 0, 1)), ("together", Room(9, 0, 1))):
        file = PartFile(tmp_path / name, {"generation": generation, "seed": 0}, 99, room=room)
        write_responses(file, images.decoder, images, conditions)
        tables.append(read_responses([file.path], SCHEMA.names).to_pylist())
    assert tables[0] == tables[1] == tables[2]
    assert len({str(row["token_ids"]) for row in tables[0]}) > 2


@families
def test_room_is_what_weights_and_reading_leave(vlm, pictures, family: str) -> None:
    """Of the model's own numbers: what keys and values take is what the cache holds."""
    decoder, _ = vlm(family)
    encoded = ask(vlm(family), pictures)
    with torch.inference_mode():
        cache = decoder.model(**encoded, use_cache=True).past_key_values
    room = room_of(decoder, 100, 2.0)
    held = sum(own.nbytes for layer in cache.layers for own in (layer.keys, layer.values))
    rows, tokens = encoded["input_ids"].shape
    whole = rows * tokens * len(decoder.layers) * 2 * 2 * decoder.head_dim * 4  # two heads of keys
    assert held <= whole < rows * tokens * room.token < 3 * whole
    if not any(layer.is_sliding for layer in cache.layers):
        assert held == whole
    weights = sum(own.nbytes for own in decoder.model.parameters())
    assert 0.85 * 2 * 2**30 - weights < room.whole < 2 * 2**30 - weights
    assert room_of(decoder, 100, 1e-6).whole == 100 * room.token
    assert room_of(decoder, 100, None) == Room(100)  # of a processor


@families
def test_cache_is_the_mean_over_image_tokens(vlm, pictures, tmp_path: Path, family: str) -> None:
    images = reader(vlm(family), store(tmp_path, pictures, "selection"), 2)
    path = tmp_path / "cache.parquet"
    write_cache(path, images.pooled_inputs(), ["a", "b", "c"], "float32", {"heads": HEADS})
    encoded = vision.encode(*vlm(family), images.question, [pictures[1]])
    scaled = images.decoder.frozen_scale

    def keep(layer: int, args: tuple, output: torch.Tensor) -> torch.Tensor:
        scale = scaled(layer, output)
        return args[0] if scale is None else args[0] * scale[..., None]

    with collected(images.decoder.projections, keep) as inputs:
        logits(images.decoder, encoded)
    where = images.decoder.image_positions(encoded["input_ids"])[0]
    names, z = read_layer(path, 1)
    assert names == ["a", "b", "c"]
    np.testing.assert_allclose(z[1].ravel(), inputs[1][0, where].mean(0).numpy(), atol=1e-5)


def test_images_are_taken_by_halves_where_memory_does_not_suffice(
    vlm, pictures, tmp_path: Path, monkeypatch
) -> None:
    evaluated = store(tmp_path, pictures)
    selected = store(tmp_path, pictures, "selection")
    encode, tried = vision.encode, []

    def answers(name: str) -> list[dict]:
        images = reader(vlm("llava_next"), evaluated, 3)
        file = PartFile(tmp_path / name, {"generation": GENERATION, "seed": 0}, 99)
        write_responses(file, images.decoder, images, {"edited": Condition(CHOSEN)})
        return read_responses([file.path], SCHEMA.names).to_pylist()

    def starved(*given) -> dict:
        tried.append(len(given[-1]))
        if len(given[-1]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encode(*given)

    def means() -> list[tuple[int, int]]:
        pooled = reader(vlm("llava_next"), selected, 3).pooled_inputs()
        return sorted((i, layer) for own, layer, z in pooled for i, _ in zip(own, z, strict=True))

    plain, places = answers("plain"), means()
    assert [row["sample_id"] for row in plain] == ["x-0", "x-1", "x-2"]
    monkeypatch.setattr(vision, "encode", starved)
    assert answers("starved") == plain
    assert means() == places == [(i, layer) for i in range(3) for layer in range(LAYERS)]
    assert {3, 2} <= set(tried)


def test_no_image_tokens_is_refused(vlm, pictures) -> None:
    decoder, processor = vlm("llava")
    with pytest.raises((UserError, ValueError), match="image"):
        vision.encode(decoder, processor, "no image here", pictures[:1])


def store(folder: Path, images: list[Image.Image], part: str = "evaluation") -> Path:
    """Write images as a prepared data set's file."""
    path = folder / f"{part}.parquet"
    pq.write_table(pa.table({
        "sample_id": [f"x-{i}" for i in range(len(images))], "part": [part] * len(images),
        "source": ["x:1"] * len(images), "label": [0] * len(images),
        "class_name": ["apple"] * len(images), "references": [[""]] * len(images),
        "image": [png(image) for image in images],
    }), path)  # fmt: skip
    return path


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# Answers


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("seven", (0, 0, "class")),
        (" Seven.\n", (0, 0, "class")),
        ("seven seven seven", (-1, 0, "class")),
        ("It is seven", (-1, -1, "class")),
        ("seven or eight", (-1, 0, "several")),
        ("eighty", (-1, -1, "none")),
        ("permanent crop", (3, 3, "class")),
        ("crop", (2, 2, "class")),
        ("", (-1, -1, "none")),
    ],
)
def test_judge(answer: str, expected: tuple[int, int, str]) -> None:
    classes = ["seven", "eight", "crop", "permanent crop"]
    assert judge(answer, classes, ("case", "space", "punctuation")) == expected


def test_normalisation_is_a_choice() -> None:
    assert normalise_answer('  "Sea  Lake".') == "sea lake"
    assert normalise_answer("Seven.", ["punctuation"]) == "Seven"
    assert normalise_answer("Seven.", ["case"]) == "seven."
    assert judge("Seven", ["seven"], [])[0] == -1


# Controls


def test_unrelated_tokens(tokenizer, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(WORDS[20:]) + "\n")
    taken = tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in WORDS[15:25]])
    drawn = unrelated_tokens(words, tokenizer, taken, ["written"], [True], 0, "x")
    assert len(set(drawn)) == len(taken)
    assert not set(drawn) & set(taken)
    assert set(tokenizer.convert_ids_to_tokens(drawn)) <= {f"Ġ{word}" for word in WORDS[25:]}
    assert unrelated_tokens(words, tokenizer, range(100), ["written"], [True], 0, "x") == []


def test_the_demo_tower_is_the_one_of_its_record(demo: dict) -> None:
    config, data = load_config(demo), Path(__file__).parents[2] / "data"
    build = config["models"]["smollm2-digits"]["build"]
    record = json.loads((data / "digits-tower.json").read_text(encoding="utf-8"))
    assert sha256(data / "digits-tower.safetensors") == record["sha256"]
    samples = json.loads(json.dumps(config["samples"][build["samples"]]))  # whose keys are text
    assert record["samples"] == samples
    assert {**record["build"], "trained": build["trained"]} == build
    assert record["seed"] == config["seed"]
