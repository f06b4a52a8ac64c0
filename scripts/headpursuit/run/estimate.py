"""What a run takes: jobs, tokens, disk, memory and device time, reckoned from its config.

What no config says is assumed, as a pair of a low and a high value; each assumption stands below
and in the estimate itself. A finished run's benchmark files say what it really took.
"""

import csv
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from headpursuit.run.config import run_labellers, used_models
from headpursuit.run.experiments import (
    Config,
    concept_of,
    conditions,
    models_of,
    of_images,
    positions_of,
    running,
    stage_owners,
)
from headpursuit.run.files import ROOT, UserError, beside

SNAKEFILE = ROOT / "Snakefile"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROMPTS = 3000  # of samples taken whole; the paper's two have fewer
CLASSES = (10, 50)  # of images; the paper's six have 10 to 47
PROMPT_TOKENS = (15, 200)
FILLED = (0.5, 1.0)  # share of max_new_tokens that a response has
IMAGE_TOKENS = (1176, 2900)  # LLaVA-NeXT's: of a small image, and of a large one
QUESTION_TOKENS = (60, 400)  # what is asked about an image, with every class name
LABEL_TOKENS = (2, 30)  # a labeller's reply
WORDS = 100  # of a list in a file
ROW_BYTES = 8  # of a generated token: its id, and its text
PART_BYTES = 8  # of one word's probability
LOAD_SECONDS = (5, 120)  # until a job's model is loaded and its checksums are compared
VOCABULARY = 100_000  # rows of an unembedding; 32,000 to 262,000
# Floating-point operations a second that a model is run with: reading many tokens at once, and
# writing one after the other, when memory is what limits. An A100 peaks at 312e12 in bfloat16.
SPEED = {
    "GPU": {"read": (5e13, 1.6e14), "written": (3e12, 3e13)},
    "core": {"read": (2e10, 6e11), "written": (8e9, 8e10)},
}
ASSUMED = {
    "prompts of samples taken whole": PROMPTS,
    "classes of images, where the config does not name them": CLASSES,
    "tokens of a prompt": PROMPT_TOKENS,
    "share of max_new_tokens that a response has": FILLED,
    "tokens of an image (where the config does not build the tower)": IMAGE_TOKENS,
    "tokens of a question about an image": QUESTION_TOKENS,
    "tokens of a labeller's reply": LABEL_TOKENS,
    "words of a concept's file": WORDS,
    "seconds until a job's model is loaded": LOAD_SECONDS,
    "operations a second reading, an A100": SPEED["GPU"]["read"],
    "operations a second writing, an A100": SPEED["GPU"]["written"],
    "operations a second reading, a CPU core": SPEED["core"]["read"],
    "operations a second writing, a CPU core": SPEED["core"]["written"],
}

# Rules that read or write tokens, and the stage whose files each makes.
RULES = {
    "respond": "baseline",
    "cache_activations": "activations",
    "label_responses": "labels",
    "label_second": "labels",
    "intervene": "scaled",
    "measure_expected": "expected",
}

Span = tuple[float, float]


def estimate(config: Config, snakemake: str, benchmarks: Mapping[str, Any]) -> dict[str, Any]:
    """Return jobs, tokens and hours by rule, files by kind, and models.

    Args:
        config: the config, with all its keys.
        snakemake: the Python that Snakemake runs on.
        benchmarks: what :func:`measured` found.
    """
    rules = planned_jobs(config, snakemake)
    for name, work in tokens(config).items():
        if name in rules:
            busy = _plus(work.pop("seconds"), _times(rules[name]["jobs"], LOAD_SECONDS))
            rules[name] |= work | {"hours": _times(1 / 3600, busy)}
    for name, found in benchmarks.items():
        rules.setdefault(name, {"jobs": 0})["measured"] = found
    return {
        "run": config["run"],
        "device": _device(config),
        "rules": rules,
        "file_bytes": file_bytes(config),
        "models": models(config),
        "assumed": ASSUMED,
    }


def planned_jobs(config: dict, snakemake: str) -> dict[str, dict[str, int]]:
    """Return what Snakemake plans of each rule: jobs, and the most that one asks for.

    Raises:
        UserError: if Snakemake cannot plan the run.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as handle:
        yaml.safe_dump(config, handle)
        handle.flush()
        command = [snakemake, "-m", "snakemake", "--dry-run", "--forceall", "--nolock"]
        command += ["--profile", "none", "--workflow-profile", "none"]
        command += ["--snakefile", str(SNAKEFILE), "--configfile", handle.name]
        said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        raise UserError(f"Snakemake cannot plan this run:\n{said.stdout}{said.stderr}")
    rules: dict[str, dict[str, int]] = {}
    for block in re.split(r"^(?:local)?rule (?=\w+:$)", said.stdout, flags=re.MULTILINE)[1:]:
        asked = rules.setdefault(
            block.split(":")[0], {"jobs": 0, "mem_mb": 0, "runtime": 0, "gpu": 0}
        )
        asked["jobs"] += 1
        for key in ("mem_mb", "runtime", "gpu"):
            if found := re.search(rf"\b{key}=(\d+)", block):
                asked[key] = max(asked[key], int(found[1]))
    rules.pop("all", None)
    return rules


# Samples and their tokens


class Size(NamedTuple):
    """How many samples an experiment has, and how many tokens each."""

    selection: Span  # samples whose activations are cached
    responses: Span  # under one condition
    asked: Span  # tokens of a sample as the model reads it
    answer: Span  # tokens of a response


def size_of(config: Config, name: str) -> Size:
    """Return an experiment's size."""
    own = config["experiments"][name]
    samples, new = config["samples"][own["samples"]], own["generation"]["max_new_tokens"]
    if not of_images(samples):
        prompts = _span(samples["sample"] or PROMPTS)
        responses = _times(prompts, own["generation"]["samples"])
        cached = responses if positions_of(config, own) == "response" else prompts
        return Size(cached, responses, PROMPT_TOKENS, _times(new, FILLED))
    classes, image = len(samples["classes"] or ()) or CLASSES, IMAGE_TOKENS
    if build := config["models"][own["model"]]["build"]:
        image = (build["tower"]["image_size"] // build["tower"]["patch_size"]) ** 2
    selection, evaluation = (
        _times(samples["per_class"][part], classes) for part in ("selection", "evaluation")
    )
    return Size(selection, evaluation, _plus(image, QUESTION_TOKENS), (1, new))


def _times(*factors: float | Span) -> Span:
    low, high = zip(*map(_span, factors), strict=True)
    return prod(low), prod(high)


def _plus(*terms: float | Span) -> Span:
    low, high = zip((0, 0), *map(_span, terms), strict=True)
    return sum(low), sum(high)


def _span(value: float | Span) -> Span:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


# Tokens and time


def tokens(config: Config) -> dict[str, dict[str, Span]]:
    """Return how many tokens each rule's model reads and writes, and the seconds that it takes."""
    labellers = dict(zip(("label_responses", "label_second"), run_labellers(config), strict=False))
    stages, found, speed = stage_owners(config), {}, SPEED[_device(config)]
    reading, writing = ((1 / fast, 1 / slow) for slow, fast in (speed["read"], speed["written"]))
    for rule, stage in RULES.items():
        for name in stages[stage]:
            parameters = config["models"][config["experiments"][name]["model"]]["parameters"]
            if stage == "labels":
                parameters = _labeller_parameters(config, labellers.get(rule))
            if parameters is None:
                continue
            read, written = _tokens(config, name, stage)
            # A token takes two operations a weight.
            each = _plus(_times(read, reading), _times(written, writing))
            work = {"read": read, "written": written, "seconds": _times(2 * parameters, each)}
            before = found.get(rule, dict.fromkeys(work, 0))
            found[rule] = {key: _plus(before[key], own) for key, own in work.items()}
    return found


def _tokens(config: Config, name: str, stage: str) -> tuple[Span, Span]:
    """Return how many tokens are read and written for an experiment's file of a stage."""
    own, size = config["experiments"][name], size_of(config, name)
    if stage == "activations":
        answer = size.answer if positions_of(config, own) == "response" else 0
        return _times(size.selection, _plus(size.asked, answer)), (0, 0)
    if stage == "labels":
        texts = _times(size.responses, len(concept_of(config, own)["labelled"]["texts"]))
        prompt = beside(config["labeller"]["prompt"]).stat().st_size / 4  # bytes a token
        # Servers keep what all requests begin with; in the best case it is read once.
        return _times(texts, _plus(size.answer, (0, prompt))), _times(texts, LABEL_TOKENS)
    times = {
        "baseline": 1,
        "scaled": len(conditions(config, name, "count")),
        "expected": 1 + len(conditions(config, name, "expected")),
    }[stage]
    read, written = (_times(times, size.responses, each) for each in (size.asked, size.answer))
    return (_plus(read, written), (0, 0)) if stage == "expected" else (read, written)


def _labeller_parameters(config: Config, backend: str | None) -> float | None:
    """Return the size that an Ollama model's name gives, such as ``llama3.3:70b``."""
    model = config["labeller"].get(backend, {}).get("model") or ""
    found = re.search(r"(\d+(?:\.\d+)?)b\b", model)
    return float(found[1]) * 1e9 if found else None


def _device(config: Config) -> str:
    return "core" if config["compute"]["device"] == "cpu" else "GPU"


# Memory and disk


def models(config: Config) -> dict[str, dict[str, Any]]:
    """Return the size of each model that an experiment names.

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
            images = compute["batch_images"] * size_of(config, name).asked[1]
            batch, key = max((batch, key), (images, "compute.batch_images"))
        # Keys and values of one batch, where four query heads share each.
        kept = batch * 2 * model["layers"] * _width(model) * BYTES[model["dtype"]] / 4
        work_bytes = int(_weights(model) * 1.2 + kept)
        if work_bytes > found.get(own["model"], {"work_bytes": 0})["work_bytes"]:
            found[own["model"]] = {
                "parameters": model["parameters"],
                "weight_bytes": _weights(model),
                "work_bytes": work_bytes,
                "batch": key,
                "experiment": name,
            }
    return found


def file_bytes(config: Config) -> dict[str, int]:
    """Estimate what a run writes of each kind; downloads apart, whose sizes no config says."""
    found, stages = defaultdict(float), stage_owners(config)
    for name in stages["activations"]:
        model = config["models"][config["experiments"][name]["model"]]
        row = model["layers"] * _width(model) * BYTES[config["compute"]["cache"]]
        found["activations"] += size_of(config, name).selection[1] * row
    for stage in ("baseline", "scaled"):
        for name in stages[stage]:
            found["responses"] += _tokens(config, name, stage)[1][1] * ROW_BYTES
    for name in stages["expected"]:
        concept = concept_of(config, config["experiments"][name])
        words = concept["top"] or len(concept.get("words", ())) or WORDS
        rows = size_of(config, name).responses[1] * (1 + len(conditions(config, name, "expected")))
        found["expected"] += rows * words * PART_BYTES
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
    # A decoder layer has about 12 d^2 parameters; the config doesn't carry d itself.
    return sqrt(model["parameters"] / (12 * model["layers"]))


# What a finished run took


def measured(benchmarks: Path) -> dict[str, dict[str, float]]:
    """Return jobs, hours and the largest memory of each rule, from a run's benchmark files."""
    found = defaultdict(list)
    for path in sorted(Path(benchmarks).rglob("*.tsv")):
        rule = path.relative_to(benchmarks).with_suffix("").parts[0]
        with path.open(encoding="utf-8", newline="") as handle:
            found[rule] += map(_job, csv.DictReader(handle, delimiter="\t"))
    return {rule: _all_of(jobs) for rule, jobs in found.items()}


def _job(row: Mapping[str, str]) -> dict[str, float]:
    # A job too short to be looked at has NA or -.
    seconds, cpu, memory = (
        float(row[key]) if row[key][0].isdigit() else 0.0 for key in ("s", "cpu_time", "max_rss")
    )
    return {"jobs": 1, "hours": seconds / 3600, "cpu_hours": cpu / 3600, "max_rss_mb": memory}


def _all_of(took: Sequence[Mapping[str, float]]) -> dict[str, float]:
    found = {key: sum(own[key] for own in took) for key in took[0]}
    return found | {"max_rss_mb": max(own["max_rss_mb"] for own in took)}


# For people


def render(found: Mapping[str, Any]) -> str:
    """Return an estimate as Markdown."""
    device, rules, sizes = found["device"], found["rules"], found["file_bytes"]
    head = ["rule", "jobs", "GPUs", "memory, GB", "limit, h", "tokens, M", f"{device} hours"]
    head += ["measured: jobs", "hours", "CPU hours", "peak, GB"]
    rows = [_rule_row(f"`{name}`", rule) for name, rule in rules.items()]
    said = (
        "Memory and limit are what one job asks for at its first attempt. Hours are those of a "
        f"{'CPU core' if device == 'core' else 'GPU'}, for the jobs that run a model over tokens; "
        "rankings and decompositions load no model and are not reckoned. The low end takes every "
        "low assumption, the high end every high one."
    )
    weights = [
        [f"`{name}`", f"{own['parameters'] / 1e9:.2f}"]
        + [f"{own[key] / 2**30:.1f}" for key in ("weight_bytes", "work_bytes")]
        for name, own in found["models"].items()
    ]
    sizes = {**sizes, "all": sum(sizes.values())}.items()
    disk = [[kind, f"{size / 2**30:.2f}"] for kind, size in sizes]
    assumed = [[what, _said(own)] for what, own in found["assumed"].items()]
    parts = [
        f"# What the run `{found['run']}` takes",
        _table(head, [*rows, _rule_row("all", _together(list(rules.values())))]),
        said,
        _table(["files", "GiB"], disk),
        _table(["model", "parameters, 1e9", "weights, GiB", "at work, GiB"], weights),
        _table(["assumed", "low to high"], assumed),
    ]
    return "\n\n".join(parts) + "\n"


def _rule_row(name: str, rule: Mapping[str, Any]) -> list[str]:
    took = rule.get("measured")
    return [
        name,
        str(rule["jobs"]),
        str(rule.get("gpu") or ""),
        f"{rule['mem_mb'] / 1000:.1f}" if "mem_mb" in rule else "",
        f"{rule['runtime'] / 60:.1f}" if "runtime" in rule else "",
        _said(_times(1e-6, _plus(rule["read"], rule["written"]))) if "read" in rule else "",
        _said(rule["hours"]) if "hours" in rule else "",
        *([str(took["jobs"]), f"{took['hours']:.2f}", f"{took['cpu_hours']:.2f}",
           f"{took['max_rss_mb'] / 1000:.1f}"] if took else [""] * 4),
    ]  # fmt: skip


def _together(rules: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums over all rules: jobs, hours, and what was measured."""
    took = [rule["measured"] for rule in rules if "measured" in rule]
    return {
        "jobs": sum(rule["jobs"] for rule in rules),
        "hours": _plus(*(rule["hours"] for rule in rules if "hours" in rule)),
        **({"measured": _all_of(took)} if took else {}),
    }


def _said(value: float | Span) -> str:
    ends = [f"{end:.0f}" if 100 <= end < 1e6 else f"{end:.2g}" for end in _span(value)]
    return " to ".join(dict.fromkeys(ends))


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
