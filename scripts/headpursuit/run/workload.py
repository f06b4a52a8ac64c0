"""A run's jobs as its config says them: what each reads, writes and takes on a device."""

import re
from collections.abc import Hashable, Mapping
from math import ceil, sqrt
from typing import Any

from headpursuit.run import roofline, sizes
from headpursuit.run.experiments import (
    Config,
    classifier_of,
    concept_of,
    conditions,
    graph_of,
    labeller_of,
    models_of,
    owners,
    positions_of,
    running,
    stage_owners,
)
from headpursuit.run.files import beside
from headpursuit.run.roofline import Cost, Device, Job, Model, reading, rows_at_once, writing
from headpursuit.run.sizes import size_of
from headpursuit.run.uses import run_labellers

TEXTS = "share of the labelling prompt that is read for each text"
# For the low end of an estimate, and for the high end.
ASSUMED = {
    **sizes.ASSUMED,
    TEXTS: (0, 0.25),  # servers keep what texts share
    "tokens of a labeller's reply": (5, 20),
    "tokens of an image that a labeller reads": (256, 2900),
    "bytes of a labeller's parameter": (0.6, 0.6),  # Ollama's usual 4 bits
    "share of a device's operations that a labeller reaches": (0.25, 0.12),
    "parameters of a classifier of texts": (1.1e8, 3.5e8),  # RoBERTa's two sizes
    "rows that are written together, where memory allows": (128, 128),
    "share of the layers from the lowest scaled head on": (0.5, 0.85),
    **roofline.ASSUMED,
    # Without a model: docs/clusters.md has 50 s and 14 minutes on two cores.
    "seconds to rank 1,024 heads": (20, 150),
    "seconds to decompose 1,024 heads, or to read their lens": (400, 1600),
    "seconds of any other job": (3, 15),
}
LOW, HIGH = ({"end": end} | {what: own[end] for what, own in ASSUMED.items()} for end in (0, 1))
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Stages whose jobs run a model over tokens, and the rule of each.
RULES = {
    "baseline": "respond",
    "activations": "cache_activations",
    "labels": "label_responses",
    "scaled": "intervene",
    "expected": "measure_expected",
    "scores": "measure",  # where a classifier reads responses
}
IN_PARTS = ("baseline", "scaled", "expected")  # compute.parts jobs a file
# Those that read a model's weights alone.
RANKING = {"rankings": "rank_heads", "decomposition": "decompose_heads", "lens": "read_lens"}


def jobs_of(config: Config, given: Mapping[str, Any], device: Device) -> dict[Hashable, Job]:
    """Return a run's jobs behind its downloads, on a device, under one end's assumptions.

    They are named by stage, experiment and part; there is one more for each model's weights.
    """
    named, stages, graph, found = owners(config), stage_owners(config), graph_of(config), {}
    every = config["experiments"]
    # Scores take too little to count where no classifier reads responses.
    stages["scores"] = [own for own in stages["scores"] if classifier_of(config, every[own])]
    for name in models_of(config, running(config)):
        seconds = _loading(model_of(config["models"][name]).weights, given)
        found["weights", name, 1] = Job("extract_weights", seconds, "cores")

    def parts(stage: str) -> range:
        return range(1, 1 + (config["compute"]["parts"] if stage in IN_PARTS else 1))

    for stage, names in stages.items():
        for name in names:
            behind = []
            for earlier in graph[name][stage][1]:
                if (owner := named[name][earlier]) in stages[earlier]:
                    behind += [(earlier, owner, part) for part in parts(earlier)]
            if stage in RANKING:
                behind.append(("weights", config["experiments"][name]["model"], 1))
            job = _job(config, stage, name, given, device)
            share = len(parts(stage))
            for part in parts(stage):
                found[stage, name, part] = job.of(share, tuple(behind))
    for name in stages["labels"] if len(run_labellers(config)) > 1 else ():
        second = _labelling(config, name, 1, given, device)._replace(rule="label_second")
        found["second", name, 1] = second.of(1, found["labels", name, 1].after)
    return found


def _job(config: Config, stage: str, name: str, given: Mapping[str, Any], device: Device) -> Job:
    """Return the job of a stage's file, not yet divided into parts."""
    if stage == "labels":
        return _labelling(config, name, 0, given, device)
    entry = config["models"][config["experiments"][name]["model"]]
    model = model_of(entry)
    if stage in RANKING:
        what = "rank 1,024 heads"
        if stage != "rankings":
            what = "decompose 1,024 heads, or to read their lens"
        many = entry["layers"] * entry["heads"] / 1024
        return Job(RANKING[stage], many * given[f"seconds to {what}"], "cores")
    if stage not in RULES:
        return Job(stage, given["seconds of any other job"], None)
    read, written = tokens_of(config, name, stage, given)
    if stage == "scores":
        model = Model(given["parameters of a classifier of texts"], 12, 768, 4)
    size, share = size_of(config, name, given), 1.0
    if stage in ("scaled", "expected"):  # what lies below is read once, as by the baseline
        share = given["share of the layers from the lowest scaled head on"]
    doing = "responding" if written else "reading"
    each = size.asked + (0 if written else size.answer)
    costs = [reading(model, read, each, config["compute"]["batch_tokens"][doing], share)]
    if written:
        rows, each = read / size.asked, size.asked + size.answer
        most = given["rows that are written together, where memory allows"]
        together = rows_at_once(model, device, each, min(rows, most))
        costs.append(writing(model, ceil(rows / together) * size.answer, together, each))
    seconds = sum(cost.seconds(device, given) for cost in costs)
    cost, loading = Cost(*map(sum, zip(*costs, strict=True))), _loading(model.weights, given)
    return Job(RULES[stage], seconds, _place(device), (), read, written, cost, loading)


def _labelling(
    config: Config, name: str, which: int, given: Mapping[str, Any], device: Device
) -> Job:
    """Return the job that asks the run's first or second labeller; empty without its size."""
    labeller = labeller_of(config, concept_of(config, config["experiments"][name]))
    backend = run_labellers(config)[which]
    parameters = labeller_parameters(labeller, backend)
    if parameters is None:
        return Job("label_responses", 0, None)
    read, written = tokens_of(config, name, "labels", given)
    size = parameters * given["bytes of a labeller's parameter"]
    # Its engine fuses kernels and launches them as one, and reads 512 tokens at once.
    cost = Cost(
        2 * parameters * (read + written), size * (read / 512 + written / labeller["slots"])
    )
    reached = given["share of a device's operations that a labeller reaches"]
    given = given | {"share of a device's operations that matrix products reach": reached}
    seconds, loading = cost.seconds(device, given), _loading(size, given)
    here = backend == "ollama" and not labeller["ollama"]["host"]
    place, loading = (_place(device), loading) if here else (None, 0.0)
    return Job("label_responses", seconds, place, (), read, written, cost, loading)


def tokens_of(
    config: Config, name: str, stage: str, given: Mapping[str, Any]
) -> tuple[float, float]:
    """Return how many tokens are read and written for an experiment's file of a stage."""
    own, size = config["experiments"][name], size_of(config, name, given)
    if stage == "activations":
        answered = positions_of(config, own) == "response"
        return size.selection * (size.asked + (size.answer if answered else 0)), 0
    if stage == "labels":
        concept = concept_of(config, own)
        if "keywords" in concept:
            asked, each = size.selection, given["tokens of an image that a labeller reads"]
        else:
            asked, each = size.responses * len(concept["labelled"]["texts"]), size.answer
        prompt = beside(labeller_of(config, concept)["prompt"]).stat().st_size / 4  # bytes a token
        return asked * (each + prompt * given[TEXTS]), asked * given["tokens of a labeller's reply"]
    if stage == "expected":
        rows = size.responses * (1 + len(conditions(config, name, "expected")))
        return rows * (size.asked + size.answer), 0
    if stage == "scores":  # the same text, under another condition, is read once
        return size.responses * (1 + len(conditions(config, name, "occurrences"))) * size.answer, 0
    rows = size.responses * (
        len(conditions(config, name, "occurrences")) if stage == "scaled" else 1
    )
    return rows * size.asked, rows * size.answer


def labeller_parameters(labeller: Config, backend: str | None) -> float | None:
    """Return the size that an Ollama model's name gives, such as ``llama3.3:70b``."""
    model = labeller.get(backend, {}).get("model") or ""
    found = re.search(r"(\d+(?:\.\d+)?)b\b", model)
    return float(found[1]) * 1e9 if found else None


def width(model: Mapping[str, Any]) -> float:
    """Return a model's width: a decoder layer has about 12 d^2 parameters."""
    return sqrt(model["parameters"] / (12 * model["layers"]))


def model_of(model: Mapping[str, Any]) -> Model:
    """Return what an entry of the config's ``models`` says of a model's cost."""
    bytes_ = BYTES[model["dtype"]]
    return Model(model["parameters"], model["layers"], width(model), bytes_, model["bits"])


def _loading(weights: float, given: Mapping[str, Any]) -> float:
    seconds = weights / given["bytes of weights a second from disk to device"]
    return given["seconds until a job's libraries are loaded"] + seconds


def _place(device: Device) -> str:
    return "gpu" if device.gpu else "cores"
