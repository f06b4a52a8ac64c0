"""What a run takes: jobs, tokens, disk, memory and device time, reckoned from its config.

What no config says is assumed, as a pair of a low and a high value; each assumption stands below
and in the estimate itself. A finished run's benchmark files say what it really took.
"""

import csv
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import yaml

from headpursuit.config import (
    cross_conditions,
    generated_conditions,
    intervened_conditions,
    pooled_where,
    used_datasets,
)
from headpursuit.files import ROOT, UserError, beside
from headpursuit.labellers import used_labellers

SNAKEFILE = ROOT / "Snakefile"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROMPTS = 3000  # of a data set taken whole; the paper's two have fewer
CLASSES = (10, 50)  # of an image data set; the paper's have 10 to 47
PROMPT_TOKENS = (15, 200)
FILLED = (0.5, 1.0)  # share of max_new_tokens that a response has
IMAGE_TOKENS = (1176, 2900)  # LLaVA-NeXT's: of a small image, and of a large one
QUESTION_TOKENS = (60, 400)  # what is asked about an image, with every class name
LABEL_TOKENS = (2, 30)  # a labeller's reply
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
    "prompts of a data set taken whole": PROMPTS,
    "classes of an image data set": CLASSES,
    "tokens of a prompt": PROMPT_TOKENS,
    "share of max_new_tokens that a response has": FILLED,
    "tokens of an image (where the config does not build the tower)": IMAGE_TOKENS,
    "tokens of a question about an image": QUESTION_TOKENS,
    "tokens of a labeller's reply": LABEL_TOKENS,
    "seconds until a job's model is loaded": LOAD_SECONDS,
    "operations a second reading, an A100": SPEED["GPU"]["read"],
    "operations a second writing, an A100": SPEED["GPU"]["written"],
    "operations a second reading, a CPU core": SPEED["core"]["read"],
    "operations a second writing, a CPU core": SPEED["core"]["written"],
}

Span = tuple[float, float]


def estimate(config: dict, snakemake: str, benchmarks: dict) -> dict:
    """Return jobs, tokens and hours by rule, files by kind, and models.

    Args:
        config: the config.
        snakemake: the Python that Snakemake runs on.
        benchmarks: what :func:`measured` found.
    """
    rules = planned_jobs(config, snakemake)
    for name, work in tokens(config).items():
        if name in rules:
            rules[name] |= work | {"hours": hours(work, rules[name]["jobs"], config)}
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


# Jobs


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
    for block in re.split(r"^(?=(?:local)?rule \w+:$)", said.stdout, flags=re.MULTILINE)[1:]:
        name = re.match(r"(?:local)?rule (\w+):", block)[1]
        asked = rules.setdefault(name, {"jobs": 0, "mem_mb": 0, "runtime": 0, "gpu": 0})
        asked["jobs"] += 1
        for key in ("mem_mb", "runtime", "gpu"):
            if found := re.search(rf"\b{key}=(\d+)", block):
                asked[key] = max(asked[key], int(found[1]))
    rules.pop("all", None)
    return rules


# Tokens and time


def tokens(config: dict) -> dict[str, dict[str, Any]]:
    """Return how many tokens each rule's model reads and writes, and how large that model is."""
    new = _times(config["generation"]["max_new_tokens"], FILLED)
    both = _plus(PROMPT_TOKENS, new)
    samples, heads = config["generation"]["samples"], config["heads"]
    sizes = _prompts(config)
    texts = sum(sizes[name] for name in config["text"]["datasets"]) * samples
    model = config["models"][config["text"]["model"]]["parameters"]
    conditions = len(generated_conditions(heads))
    scored = texts * (1 + len(intervened_conditions(heads)))
    pooled = (
        _times(size * samples, both)
        if pooled_where(config, name) == "response"
        else _times(size, PROMPT_TOKENS)
        for name, size in sizes.items()
    )
    found = {
        "generate_baseline": _work(_times(texts, PROMPT_TOKENS), _times(texts, new), model),
        "generate_intervened": _work(
            _times(texts * conditions, PROMPT_TOKENS), _times(texts * conditions, new), model
        ),
        "measure_expected": _work(_times(scored, both), (0, 0), model),
        "cache_activations": _work(_plus(*pooled), (0, 0), model),
    }
    if not config["words"]["file"]:
        for name, backend in zip(
            ("label_responses", "label_second"), used_labellers(config), strict=False
        ):
            if (parameters := _labeller_parameters(config, backend)) is not None:
                asked = beside(config["labeller"]["prompt"]).stat().st_size / 4  # bytes a token
                each = texts * len(config["words"]["texts"])
                # Servers keep what all requests begin with; in the best case it is read once.
                read = _times(each, _plus(new, (0, asked)))
                found[name] = _work(read, _times(each, LABEL_TOKENS), parameters)
    return found | (_image_tokens(config) if config["vision"] else {})


def _image_tokens(config: dict) -> dict[str, dict[str, Any]]:
    vision = config["vision"]
    each = _question(vision)
    conditions = 1 + len(intervened_conditions(vision["heads"]))
    cached = _plus(*(_images(config, name, "selection") for name in vision["datasets"]))
    answered = _plus(
        *(
            _times(
                conditions + len(cross_conditions(vision, name)),
                _images(config, name, "evaluation"),
            )
            for name in vision["datasets"]
        )
    )
    parameters = config["models"][vision["model"]]["parameters"]
    return {
        "cache_image_activations": _work(_product(cached, each), (0, 0), parameters),
        "answer_images": _work(
            _product(answered, each),
            _product(answered, (1, vision["max_new_tokens"])),
            parameters,
        ),
    }


def _question(vision: Mapping[str, Any]) -> Span:
    """Return the tokens of an image and the question about it."""
    image = IMAGE_TOKENS
    if vision["build"]:
        tower = vision["build"]["tower"]
        image = ((tower["image_size"] // tower["patch_size"]) ** 2,) * 2
    return _plus(image, QUESTION_TOKENS)


def _labeller_parameters(config: dict, backend: str) -> float | None:
    """Return the size that an Ollama model's name gives, such as ``llama3.3:70b``."""
    found = re.search(r"(\d+(?:\.\d+)?)b\b", config["labeller"].get(backend, {}).get("model") or "")
    return float(found[1]) * 1e9 if found else None


def hours(work: Mapping[str, Any], jobs: int, config: dict) -> Span:
    """Return how long a rule's jobs keep a device busy: a token takes two operations a weight."""
    speed = SPEED[_device(config)]
    low, high = (
        sum(2 * work["parameters"] * work[kind][end] / speed[kind][1 - end] for kind in speed)
        + jobs * LOAD_SECONDS[end]
        for end in (0, 1)
    )
    return low / 3600, high / 3600


def _device(config: dict) -> str:
    return "core" if config["compute"]["device"] == "cpu" else "GPU"


def _prompts(config: dict) -> dict[str, int]:
    return {name: config["datasets"][name]["sample"] or PROMPTS for name in used_datasets(config)}


def _images(config: dict, dataset: str, part: str) -> Span:
    classes = config["image_datasets"][dataset]["classes"]
    return _times(config["vision"]["images"][part], (len(classes),) * 2 if classes else CLASSES)


def _times(number: float, span: Span) -> Span:
    return number * span[0], number * span[1]


def _product(first: Span, second: Span) -> Span:
    return first[0] * second[0], first[1] * second[1]


def _work(read: Span, written: Span, parameters: float) -> dict[str, Any]:
    return {"read": read, "written": written, "parameters": parameters}


def _plus(*spans: Span) -> Span:
    return sum(span[0] for span in spans), sum(span[1] for span in spans)


# Memory and disk


def models(config: dict) -> dict[str, dict[str, int]]:
    """Return each model's size: parameters, bytes of its weights, and of memory when at work."""
    vision = config["vision"]
    batches = {config["text"]["model"]: config["generation"]["batch_tokens"]}
    if vision:
        images = vision["batch_images"] * _question(vision)[1]
        batches[vision["model"]] = max(images, batches.get(vision["model"], 0))
    return {name: _size(config["models"][name], batch) for name, batch in batches.items()}


def _size(model: Mapping[str, Any], tokens_at_once: float) -> dict[str, int]:
    # Keys and values of one batch, where four query heads share each.
    width = 2 * model["layers"] * _width(model) * BYTES[model["dtype"]] / 4
    return {
        "parameters": model["parameters"],
        "weight_bytes": _weights(model),
        "work_bytes": int(_weights(model) * 1.2 + tokens_at_once * width),
    }


def _weights(model: Mapping[str, Any]) -> int:
    return model["parameters"] * BYTES[model["dtype"]]


def file_bytes(config: dict) -> dict[str, int]:
    """Estimate what a run writes of each kind; downloads apart, whose sizes no config says."""
    model, generation = config["models"][config["text"]["model"]], config["generation"]
    sizes = _prompts(config)
    rows = sum(
        size * (generation["samples"] if pooled_where(config, name) == "response" else 1)
        for name, size in sizes.items()
    )
    texts = sum(sizes[name] for name in config["text"]["datasets"]) * generation["samples"]
    conditions = 1 + len(generated_conditions(config["heads"]))
    parts = texts * (1 + len(intervened_conditions(config["heads"]))) * config["words"]["top"]
    found = {
        "activations": rows * model["layers"] * _width(model) * _cached(config),
        # Twice: as the jobs write them, and joined by condition.
        "responses, generations": 2 * texts * conditions * generation["max_new_tokens"] * ROW_BYTES,
        "expected": parts * PART_BYTES,
        "weights": sum(_extracted(config["models"][name]) for name in models(config)),
    }
    if model["gguf"]:
        found["converted model (resources)"] = _weights(model)
    if vision := config.get("vision"):
        own = config["models"][vision["model"]]
        images = sum(_images(config, name, "selection")[1] for name in vision["datasets"])
        found["image_activations"] = images * own["layers"] * _width(own) * _cached(config)
        if vision["build"]:
            found["assembled model (resources)"] = own["parameters"] * 4
    found["tables, figures, logs and the rest"] = 100 * 2**20
    return {kind: int(size) for kind, size in found.items()}


def _extracted(model: Mapping[str, Any]) -> float:
    """Return the bytes of a model's output projections and unembedding."""
    rows = model["layers"] * _width(model) + VOCABULARY
    return rows * _width(model) * BYTES[model["dtype"]]


def _cached(config: dict) -> int:
    return BYTES[config["activations"]["dtype"]]


def _width(model: Mapping[str, Any]) -> float:
    # A decoder layer has about 12 d^2 parameters; the config doesn't carry d itself.
    return sqrt(model["parameters"] / (12 * model["layers"]))


# What a finished run took


def measured(benchmarks: Path) -> dict[str, dict[str, float]]:
    """Return jobs, hours and the largest memory of each rule, from a run's benchmark files."""
    found: dict[str, dict[str, float]] = defaultdict(
        lambda: {"jobs": 0, "hours": 0.0, "cpu_hours": 0.0, "max_rss_mb": 0.0}
    )
    for path in sorted(Path(benchmarks).rglob("*.tsv")):
        rule = found[path.relative_to(benchmarks).with_suffix("").parts[0]]
        with path.open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle, delimiter="\t"):
                rule["jobs"] += 1
                rule["hours"] += _number(row["s"]) / 3600
                rule["cpu_hours"] += _number(row["cpu_time"]) / 3600
                rule["max_rss_mb"] = max(rule["max_rss_mb"], _number(row["max_rss"]))
    return dict(found)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # a job too short to be looked at has NA or -
        return 0.0


# For people


def render(found: dict) -> str:
    """Return an estimate as Markdown."""
    device, rules = found["device"], found["rules"]
    lines = [f"# What the run `{found['run']}` takes", ""]
    head = ["rule", "jobs", "GPUs", "memory, GB", "limit, h", "tokens, M", f"{device} hours"]
    head += ["measured: jobs", "hours", "CPU hours", "peak, GB"]
    rows = [_rule_row(name, rule) for name, rule in rules.items()]
    rows.append(_total(rules.values()))
    lines += [*_table(head, rows), ""]
    lines += [
        "Memory and limit are what one job asks for at its first attempt. Hours are those of a "
        f"{'CPU core' if device == 'core' else 'GPU'}, for the jobs that run a model over tokens; "
        "rankings and decompositions load no model and are not reckoned. The low end takes every "
        "low assumption, the high end every high one.",
        "",
    ]
    sizes = found["file_bytes"]
    disk = [[kind, f"{size / 2**30:.2f}"] for kind, size in sizes.items()]
    disk.append(["all", f"{sum(sizes.values()) / 2**30:.2f}"])
    lines += [*_table(["files", "GiB"], disk), ""]
    weights = [
        [
            f"`{name}`",
            f"{model['parameters'] / 1e9:.2f}",
            f"{model['weight_bytes'] / 2**30:.1f}",
            f"{model['work_bytes'] / 2**30:.1f}",
        ]
        for name, model in found["models"].items()
    ]
    lines += [*_table(["model", "parameters, 1e9", "weights, GiB", "at work, GiB"], weights), ""]
    assumed = [[what, _span(value)] for what, value in found["assumed"].items()]
    lines += [*_table(["assumed", "low to high"], assumed), ""]
    return "\n".join(lines)


def _rule_row(name: str, rule: Mapping[str, Any]) -> list[str]:
    took = rule.get("measured")
    read = (
        [a + b for a, b in zip(rule["read"], rule["written"], strict=True)] if "read" in rule else 0
    )
    return [
        f"`{name}`",
        str(rule["jobs"]),
        str(rule.get("gpu") or ""),
        f"{rule['mem_mb'] / 1000:.1f}" if "mem_mb" in rule else "",
        f"{rule['runtime'] / 60:.1f}" if "runtime" in rule else "",
        _span(_times(1e-6, read)) if read else "",
        _span(rule["hours"]) if "hours" in rule else "",
        *([str(took["jobs"]), f"{took['hours']:.2f}", f"{took['cpu_hours']:.2f}",
           f"{took['max_rss_mb'] / 1000:.1f}"] if took else [""] * 4),
    ]  # fmt: skip


def _total(rules) -> list[str]:
    rules = list(rules)
    spans = [rule["hours"] for rule in rules if "hours" in rule]
    took = [rule["measured"] for rule in rules if "measured" in rule]
    return [
        "all",
        str(sum(rule["jobs"] for rule in rules)),
        *[""] * 4,
        _span(_plus(*spans)),
        *([str(sum(t["jobs"] for t in took)), f"{sum(t['hours'] for t in took):.2f}",
           f"{sum(t['cpu_hours'] for t in took):.2f}",
           f"{max(t['max_rss_mb'] for t in took) / 1000:.1f}"] if took else [""] * 4),
    ]  # fmt: skip


def _span(value: float | Span) -> str:
    ends = value if isinstance(value, (tuple, list)) else (value,)
    return " to ".join(
        dict.fromkeys(f"{end:.0f}" if 100 <= end < 1e6 else f"{end:.2g}" for end in ends)
    )


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]
