"""What a run takes: tokens, device hours, memory and disk, reckoned from its config.

What no config says is assumed, once low and once high. A finished run's benchmark files say what
it really took.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from headpursuit.run.experiments import (
    Config,
    concept_of,
    conditions,
    labeller_of,
    models_of,
    of_classes,
    of_images,
    positions_of,
    running,
    stage_owners,
)
from headpursuit.run.files import beside
from headpursuit.run.uses import run_labellers, used_models

IMAGE = "tokens of an image (where the config does not build the tower)"
# For the low end of an estimate, and for the high end.
ASSUMED = {
    "prompts of samples taken whole": (3000, 3000),  # the paper's two have fewer
    "classes of images, where the config does not name them": (10, 50),  # the paper's: 10 to 47
    "tokens of a prompt": (15, 200),
    "share of max_new_tokens that a response has": (0.5, 1),
    "share of max_new_tokens that an answer about an image has": (0, 1),  # at least one token
    IMAGE: (1176, 2900),  # LLaVA-NeXT's
    "tokens of a question about an image": (60, 400),  # with every class name
    "share of the labelling prompt that is read for each text": (0, 1),  # servers may keep it
    "tokens of a labeller's reply": (2, 30),
    "words of a concept's file": (100, 100),
    "parameters of a classifier of texts": (1.1e8, 3.5e8),  # RoBERTa's two sizes
    "seconds until a job's model is loaded": (5, 120),  # and its checksums are compared
    # Reading takes many tokens at once; writing, one after the other, is limited by memory. An
    # A100 peaks at 312e12 in bfloat16.
    "operations a second that a GPU reads with": (1.6e14, 5e13),
    "operations a second that a GPU writes with": (3e13, 3e12),
    "operations a second that a core reads with": (6e11, 2e10),
    "operations a second that a core writes with": (8e10, 8e9),
}
LOW, HIGH = ({what: own[end] for what, own in ASSUMED.items()} for end in (0, 1))
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
VOCABULARY = 100_000  # rows of an unembedding; 32,000 to 262,000
# Rules that run a model over tokens, and the stage whose files each makes.
RULES = {"respond": "baseline", "cache_activations": "activations", "label_responses": "labels"}
RULES |= {"label_second": "labels", "intervene": "scaled", "measure_expected": "expected"}
RULES |= {"measure": "scores"}  # where a classifier reads responses
IN_PARTS = ("respond", "intervene", "measure_expected")  # compute.parts jobs a file


def estimate(config: Config, benchmarks: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run takes: rules (:func:`work` and what :func:`measured` found), files, models.

    Of tokens and hours both ends are given.
    """
    low, high = work(config, LOW), work(config, HIGH)
    rules = {
        rule: {"jobs": own["jobs"]}
        | {key: [own[key], high[rule][key]] for key in ("read", "written", "hours")}
        for rule, own in low.items()
    }
    for rule, found in benchmarks.items():
        rules.setdefault(rule, {})["measured"] = found
    return {
        "run": config["run"],
        "device": _device(config),
        "rules": rules,
        "file_bytes": file_bytes(config),
        "models": models(config),
        "assumed": ASSUMED,
    }


# Samples, tokens and time


class Size(NamedTuple):
    """How many samples an experiment has, and how many tokens each."""

    selection: float  # samples whose activations are cached
    responses: float  # under one condition
    asked: float  # tokens of a sample as the model reads it
    answer: float  # tokens of a response


def size_of(config: Config, name: str, given: Mapping[str, float]) -> Size:
    """Return an experiment's size under one end's assumptions."""
    own = config["experiments"][name]
    samples, longest = config["samples"][own["samples"]], own["generation"]["max_new_tokens"]
    if not of_images(samples):
        prompts = samples["sample"] or given["prompts of samples taken whole"]
        responses = prompts * own["generation"]["samples"]
        cached = responses if positions_of(config, own) == "response" else prompts
        answer = longest * given["share of max_new_tokens that a response has"]
        return Size(cached, responses, given["tokens of a prompt"], answer)
    image = given[IMAGE]
    if build := config["models"][own["model"]]["build"]:
        image = (build["tower"]["image_size"] // build["tower"]["patch_size"]) ** 2
    if of_classes(samples):
        named = len(samples["classes"] or ())
        classes = named or given["classes of images, where the config does not name them"]
        drawn = {part: classes * number for part, number in samples["per_class"].items()}
        share = given["share of max_new_tokens that an answer about an image has"]
    else:
        drawn = samples["sample"]
        share = given["share of max_new_tokens that a response has"]
    asked = image + given["tokens of a question about an image"]
    return Size(drawn["selection"], drawn["evaluation"], asked, max(1, longest * share))


def work(config: Config, given: Mapping[str, float]) -> dict[str, Counter]:
    """Return jobs, tokens that are read and written, and hours of each rule in :data:`RULES`."""
    device = _device(config)
    reading, writing = (
        given[f"operations a second that a {device} {does} with"] for does in ("reads", "writes")
    )
    labellers = dict(zip(("label_responses", "label_second"), run_labellers(config), strict=False))
    stages, found = stage_owners(config), {}
    for rule, stage in RULES.items():
        jobs = config["compute"]["parts"] if rule in IN_PARTS else 1
        for name in stages[stage]:
            parameters = config["models"][config["experiments"][name]["model"]]["parameters"]
            if stage == "labels":
                asked = labeller_of(config, concept_of(config, config["experiments"][name]))
                parameters = _labeller_parameters(asked, labellers.get(rule))
            if stage == "scores":
                parameters = given["parameters of a classifier of texts"]
            if parameters is None:
                continue
            read, written = _tokens(config, name, stage, given)
            # A token takes two operations a weight.
            seconds = 2 * parameters * (read / reading + written / writing)
            seconds += jobs * given["seconds until a job's model is loaded"]
            own = found.setdefault(rule, Counter())
            own.update(jobs=jobs, read=read, written=written, hours=seconds / 3600)
    return found


def _tokens(
    config: Config, name: str, stage: str, given: Mapping[str, float]
) -> tuple[float, float]:
    """Return how many tokens are read and written for an experiment's file of a stage."""
    own, size = config["experiments"][name], size_of(config, name, given)
    if stage == "activations":
        answered = positions_of(config, own) == "response"
        return size.selection * (size.asked + (size.answer if answered else 0)), 0
    if stage == "labels":
        concept = concept_of(config, own)
        if "keywords" in concept:
            asked, each = size.selection, given[IMAGE]
        else:
            asked, each = size.responses * len(concept["labelled"]["texts"]), size.answer
        prompt = beside(labeller_of(config, concept)["prompt"]).stat().st_size / 4  # bytes a token
        prompt *= given["share of the labelling prompt that is read for each text"]
        return asked * (each + prompt), asked * given["tokens of a labeller's reply"]
    if stage == "expected":
        rows = size.responses * (1 + len(conditions(config, name, "expected")))
        return rows * (size.asked + size.answer), 0
    if stage == "scores":  # the same text, under another condition, is read once
        return size.responses * (1 + len(conditions(config, name, "occurrences"))) * size.answer, 0
    rows = size.responses * (
        len(conditions(config, name, "occurrences")) if stage == "scaled" else 1
    )
    return rows * size.asked, rows * size.answer


def _labeller_parameters(labeller: Config, backend: str | None) -> float | None:
    """Return the size that an Ollama model's name gives, such as ``llama3.3:70b``."""
    model = labeller.get(backend, {}).get("model") or ""
    found = re.search(r"(\d+(?:\.\d+)?)b\b", model)
    return float(found[1]) * 1e9 if found else None


def _device(config: Config) -> str:
    return "core" if config["compute"]["device"] == "cpu" else "GPU"


# Memory and disk


def models(config: Config) -> dict[str, dict[str, Any]]:
    """Return what each model that an experiment names takes.

    Returns:
        parameters; weight_bytes; work_bytes, of memory when it is at work; experiment, the one that
        takes most; batch, the key that sets its batches.
    """
    compute, found = config["compute"], {}
    for name in running(config):
        own = config["experiments"][name]
        model = config["models"][own["model"]]
        batch, key = compute["batch_tokens"]["responding"], "compute.batch_tokens.responding"
        if of_images(config["samples"][own["samples"]]):
            images = compute["batch_images"] * size_of(config, name, HIGH).asked
            batch, key = max((batch, key), (images, "compute.batch_images"))
        # Keys and values of one batch, where four query heads share each.
        kept = batch * 2 * model["layers"] * _width(model) * BYTES[model["dtype"]] / 4
        work_bytes = int(_weights(model) * 1.2 + kept)
        if work_bytes > found.get(own["model"], {"work_bytes": 0})["work_bytes"]:
            sizes = {"parameters": model["parameters"], "weight_bytes": _weights(model)}
            sizes["work_bytes"] = work_bytes
            found[own["model"]] = {**sizes, "batch": key, "experiment": name}
    return found


def file_bytes(config: Config) -> dict[str, int]:
    """Return what a run writes of each kind, at most; downloads, of no known size, apart."""
    found, stages = Counter(), stage_owners(config)
    for name in stages["activations"]:
        model = config["models"][config["experiments"][name]["model"]]
        row = model["layers"] * _width(model) * BYTES[config["compute"]["cache"]]
        found["activations"] += size_of(config, name, HIGH).selection * row
    for stage in ("baseline", "scaled"):
        for name in stages[stage]:
            found["responses"] += 8 * _tokens(config, name, stage, HIGH)[1]  # its id, and its text
    for name in stages["expected"]:
        concept = concept_of(config, config["experiments"][name])
        words = concept["top"] or len(concept.get("words", ())) or HIGH["words of a concept's file"]
        rows = size_of(config, name, HIGH).responses
        found["expected"] += 8 * words * rows * (1 + len(conditions(config, name, "expected")))
    for name in models_of(config, running(config)):
        model = config["models"][name]  # its output projections and unembedding
        rows = model["layers"] * _width(model) + VOCABULARY
        found["weights"] += rows * _width(model) * BYTES[model["dtype"]]
    for model in map(config["models"].get, used_models(config)):
        if model["gguf"]:
            found["converted models (resources)"] += _weights(model)
        if model["build"]:
            found["assembled models (resources)"] += model["parameters"] * 4
    found["tables, figures, logs and the rest"] = 100 * 2**20
    return {kind: int(size) for kind, size in found.items()}


def _weights(model: Mapping[str, Any]) -> int:
    return model["parameters"] * BYTES[model["dtype"]]


def _width(model: Mapping[str, Any]) -> float:
    # A decoder layer has about 12 d^2 parameters; the config does not carry d itself.
    return sqrt(model["parameters"] / (12 * model["layers"]))


# What a finished run took


def measured(benchmarks: str | Path) -> dict[str, dict[str, float]]:
    """Return jobs, hours and the largest memory of each rule, from a run's benchmark files."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(Path(benchmarks).rglob("*.tsv")):
        rule = path.relative_to(benchmarks).with_suffix("").parts[0]
        own = found.setdefault(rule, {"jobs": 0, "hours": 0, "cpu_hours": 0, "max_rss_mb": 0})
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t"):
            # A job too short to be looked at has NA or -.
            seconds, cpu, memory = (
                float(row[key]) if row[key][0].isdigit() else 0.0
                for key in ("s", "cpu_time", "max_rss")
            )
            own["jobs"] += 1
            own["hours"] += seconds / 3600
            own["cpu_hours"] += cpu / 3600
            own["max_rss_mb"] = max(own["max_rss_mb"], memory)
    return found


# For people


def render(found: Mapping[str, Any]) -> str:
    """Return an estimate as Markdown."""
    rules = []
    for name, rule in found["rules"].items():
        took, row = rule.get("measured"), {"rule": f"`{name}`"}
        if "hours" in rule:
            tokens = [sum(ends) / 1e6 for ends in zip(rule["read"], rule["written"], strict=True)]
            row |= {"jobs": str(rule["jobs"]), "tokens, M": _said(tokens)}
            row |= {"device hours": _said(rule["hours"])}
        if took:
            row |= {"measured: jobs": str(took["jobs"]), "hours": f"{took['hours']:.2f}"}
            row |= {"CPU hours": f"{took['cpu_hours']:.2f}"}
            row |= {"peak, GB": f"{took['max_rss_mb'] / 1000:.1f}"}
        rules.append(row)
    hours = [rule["hours"] for rule in found["rules"].values() if "hours" in rule]
    rules.append({"rule": "all", "device hours": _said(map(sum, zip(*hours, strict=True)))})
    sizes = {**found["file_bytes"], "all": sum(found["file_bytes"].values())}
    weights = [
        {
            "model": f"`{name}`",
            "parameters, 1e9": f"{own['parameters'] / 1e9:.2f}",
            "weights, GiB": f"{own['weight_bytes'] / 2**30:.1f}",
            "at work, GiB": f"{own['work_bytes'] / 2**30:.1f}",
        }
        for name, own in found["models"].items()
    ]
    assumed = found["assumed"].items()
    parts = [
        f"# What the run `{found['run']}` takes",
        _table(rules),
        f"Device hours are a {found['device']}'s, of jobs that run a model over tokens; rankings "
        "and decompositions load no model. The low end takes every low assumption, the high end "
        "every high one.",
        _table([{"files": kind, "GiB": f"{size / 2**30:.2f}"} for kind, size in sizes.items()]),
        _table(weights),
        _table([{"assumed": what, "low to high end": _said(ends)} for what, ends in assumed]),
    ]
    return "\n\n".join(parts) + "\n"


def _said(ends: Iterable[float]) -> str:
    texts = [f"{end:.0f}" if 100 <= end < 1e6 else f"{end:.2g}" for end in ends]
    return " to ".join(dict.fromkeys(texts))


def _table(rows: list[dict[str, str]]) -> str:
    head = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(key, "") for key in head] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *cells])
