"""What a run takes: tokens, device hours, memory and disk, reckoned from its config.

What no config says is assumed, once low and once high. A finished run's benchmark files say what it
really took.
"""

import csv
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from headpursuit.run import roofline
from headpursuit.run.experiments import (
    Config,
    concept_of,
    conditions,
    labeller_of,
    models_of,
    of_images,
    running,
    stage_owners,
)
from headpursuit.run.roofline import DEVICES, Device, Job
from headpursuit.run.sizes import size_of
from headpursuit.run.uses import run_labellers, used_models
from headpursuit.run.workload import (
    ASSUMED,
    BYTES,
    HIGH,
    LOW,
    jobs_of,
    labeller_parameters,
    model_of,
    tokens_of,
    width,
)

VOCABULARY = 100_000  # rows of an unembedding; 32,000 to 262,000
WORDS = 100  # of a concept's file
USUAL = "A100"
MANY = (1, 8)  # GPUs for which a run's time is told
# What of a job's cost is told, how it is called, and its unit.
COSTS = [
    ("operations", "operations, 1e15", 1e15),
    ("bytes", "moved, TB", 1e12),
    ("launches", "launches, M", 1e6),
]


def estimate(config: Config, benchmarks: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run takes: rules (:func:`work` and what :func:`measured` found), files, models.

    Of tokens, costs and hours both ends are given. The rules' are those of the first device.
    """
    on_cores = config["compute"]["device"] == "cpu"
    devices = {"this processor": this_processor(config)} if on_cores else DEVICES
    ends = {
        name: [jobs_of(config, given, device) for given in (LOW, HIGH)]
        for name, device in devices.items()
    }
    first = next(iter(devices))
    low, high = map(work, ends[first])
    rules = {
        rule: {key: [own[key], high[rule][key]] for key in own} | {"jobs": own["jobs"]}
        for rule, own in low.items()
    }
    for rule, found in benchmarks.items():
        rules.setdefault(rule, {})["measured"] = found
    return {
        "run": config["run"],
        "device": first,
        "rules": rules,
        "devices": {name: _in_all(config, devices[name], *ends[name]) for name in devices},
        "file_bytes": file_bytes(config),
        "models": models(config),
        "assumed": ASSUMED,
    }


def this_processor(config: Config) -> Device:
    """Return what this machine's processor does in the largest model's number format."""
    used = [config["models"][name] for name in models_of(config, running(config))]
    largest = max(used, key=lambda model: model["parameters"], default={"dtype": "float32"})
    compute = config["compute"]
    return roofline.processor(compute["threads"], largest["dtype"], compute["products"])


def work(jobs: Mapping[Hashable, Job]) -> dict[str, Counter]:
    """Return jobs, tokens, costs and hours of each rule that runs a model or ranks heads."""
    found: dict[str, Counter] = {}
    for job in jobs.values():
        if job.place is not None:
            own = {"jobs": 1, "read": job.read, "written": job.written, **job.cost._asdict()}
            found.setdefault(job.rule, Counter()).update(own, hours=job.seconds / 3600)
    return found


def _in_all(config: Config, device: Device, *ends: Mapping[Hashable, Job]) -> dict[str, Any]:
    """Return a run's device hours, its time on one device and on several, and what has no room."""
    place, many = ("gpu", MANY) if device.gpu else ("cores", MANY[:1])
    hours = [sum(j.seconds for j in jobs.values() if j.place == place) / 3600 for jobs in ends]
    wall = {
        count: [roofline.wall_seconds(jobs, {"gpu": count, "cores": count}) / 3600 for jobs in ends]
        for count in many
    }
    needs = {name: own["work_bytes"] for name, own in models(config).items()} | labellers(config)
    lacking = [name for name, size in needs.items() if device.gpu and size > device.memory]
    return {"limits": device._asdict(), "hours": hours, "wall_hours": wall, "no_room_for": lacking}


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
        cost = model_of(model)
        weights = int(cost.weights)
        work_bytes = int(weights * 1.2 + batch * cost.kept)  # keys and values of one batch
        if work_bytes > found.get(own["model"], {"work_bytes": 0})["work_bytes"]:
            sizes = {"parameters": model["parameters"], "weight_bytes": weights}
            sizes["work_bytes"] = work_bytes
            found[own["model"]] = {**sizes, "batch": key, "experiment": name}
    return found


def labellers(config: Config) -> dict[str, float]:
    """Return the bytes of each model that an Ollama server of the run's own loads to label."""
    found = {}
    for name in stage_owners(config)["labels"] if "ollama" in run_labellers(config) else ():
        own = labeller_of(config, concept_of(config, config["experiments"][name]))
        parameters = labeller_parameters(own, "ollama")
        if parameters and not own["ollama"]["host"]:
            found[own["ollama"]["model"]] = parameters * HIGH["bytes of a labeller's parameter"]
    return found


def file_bytes(config: Config) -> dict[str, int]:
    """Return what a run writes of each kind, at most; downloads, of no known size, apart."""
    found, stages = Counter(), stage_owners(config)
    for name in stages["activations"]:
        model = config["models"][config["experiments"][name]["model"]]
        row = model["layers"] * width(model) * BYTES[config["compute"]["cache"]]
        found["activations"] += size_of(config, name, HIGH).selection * row
    for stage in ("baseline", "scaled"):
        for name in stages[stage]:
            written = tokens_of(config, name, stage, HIGH)[1]
            found["responses"] += 8 * written  # a token's id, and its text
    for name in stages["expected"]:
        concept = concept_of(config, config["experiments"][name])
        words = concept["top"] or len(concept.get("words", ())) or WORDS
        rows = size_of(config, name, HIGH).responses
        found["expected"] += 8 * words * rows * (1 + len(conditions(config, name, "expected")))
    for name in models_of(config, running(config)):
        model = config["models"][name]  # its output projections and unembedding
        rows = model["layers"] * width(model) + VOCABULARY
        found["weights"] += rows * width(model) * BYTES[model["dtype"]]
    for model in map(config["models"].get, used_models(config)):
        if model["gguf"]:
            found["converted models (resources)"] += model_of(model).weights
        if model["build"]:
            found["assembled models (resources)"] += model["parameters"] * 4
    found["tables, figures, logs and the rest"] = 100 * 2**20
    return {kind: int(size) for kind, size in found.items()}


# What a finished run took


def measured(benchmarks: str | Path) -> dict[str, dict[str, float]]:
    """Return jobs, hours, longest job and largest memory of each rule, from benchmark files."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(Path(benchmarks).rglob("*.tsv")):
        rule = path.relative_to(benchmarks).with_suffix("").parts[0]
        nothing = dict.fromkeys(("jobs", "hours", "longest_hours", "cpu_hours", "max_rss_mb"), 0)
        own = found.setdefault(rule, nothing)
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t"):
            # A job too short to be looked at has NA or -, and a full disk cuts a file off.
            seconds, cpu, memory = (
                float(row[key]) if (row.get(key) or "")[:1].isdigit() else 0.0
                for key in ("s", "cpu_time", "max_rss")
            )
            own["jobs"] += 1
            own["hours"] += seconds / 3600
            own["cpu_hours"] += cpu / 3600
            own["max_rss_mb"] = max(own["max_rss_mb"], memory)
            own["longest_hours"] = max(own["longest_hours"], seconds / 3600)
    return found


def job_times(config: Config, benchmarks: Mapping[str, Any]) -> dict[str, str]:
    """Return how long a job of a rule takes on average: as measured before, or on an A100.

    ``benchmarks`` are :func:`measured`'s. Of a processor nothing is known before a first run.
    """
    found = {}
    if config["compute"]["device"] != "cpu":
        low, high = (work(jobs_of(config, given, DEVICES[USUAL])) for given in (LOW, HIGH))
        for rule, own in low.items():
            first, last = (_duration(end["hours"] / own["jobs"]) for end in (own, high[rule]))
            found[rule] = f"{first} to {last} on an {USUAL}"
    before = {rule: own["hours"] / own["jobs"] for rule, own in benchmarks.items() if own["jobs"]}
    return found | {rule: f"{_duration(hours)} last time" for rule, hours in before.items()}


def _duration(hours: float) -> str:
    if hours >= 1.5:
        return f"{hours:.0f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1.5 else f"{max(hours * 3600, 1):.0f} s"


# For people


def render(found: Mapping[str, Any]) -> str:
    """Return an estimate as Markdown."""
    rules = []
    for name, rule in found["rules"].items():
        took, row = rule.get("measured"), {"rule": f"`{name}`"}
        if "hours" in rule:
            tokens = [sum(ends) / 1e6 for ends in zip(rule["read"], rule["written"], strict=True)]
            row |= {"jobs": str(rule["jobs"]), "tokens, M": _said(tokens)}
            for key, title, unit in COSTS:
                row[title] = _said(end / unit for end in rule[key])
            row["hours"] = _said(rule["hours"])
        if took:
            row |= {"measured: jobs": str(took["jobs"]), "took, hours": f"{took['hours']:.2f}"}
            row |= {"CPU hours": f"{took['cpu_hours']:.2f}"}
            row |= {"peak, GB": f"{took['max_rss_mb'] / 1000:.1f}"}
        rules.append(row)
    devices = [
        {
            "device": name,
            "operations, 1e12/s": f"{own['limits']['operations'] / 1e12:.3g}",
            "memory, GB/s": f"{own['limits']['bandwidth'] / 1e9:.3g}",
            "device hours": _said(own["hours"]),
            **{f"run on {count}, hours": _said(ends) for count, ends in own["wall_hours"].items()},
            "no room for": ", ".join(own["no_room_for"]),
        }
        for name, own in found["devices"].items()
    ]
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
        _table(devices),
        "Downloads are not in it. Device hours are those of jobs that run a model over tokens; the "
        "run on one or several is that of all jobs, each behind those that it needs. The low end "
        "takes every low assumption, the high end every high one.",
        f"On {found['device']}:",
        _table(rules),
        "A job takes the time of its operations and of the bytes it moves in memory, or that of "
        "its kernel launches where that is longer, and loads its model first. Rankings and "
        "decompositions run on cores.",
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
