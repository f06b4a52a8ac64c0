"""What a run needs and this machine may lack, found out before hours are spent on it.

Everything that is lacking is told at once, each with its way out. torch is only used if it is
there: the check also runs in the light environment that starts the workflow.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from headpursuit.data.download import bytes_to_come, read_from_hub
from headpursuit.data.sources import source_files
from headpursuit.labelling.backend import Refused, telling
from headpursuit.labelling.ollama import Server, plain_name
from headpursuit.labelling.openai import open_http
from headpursuit.labelling.prompt import load_prompt
from headpursuit.run.estimate import file_bytes, models
from headpursuit.run.experiments import Config, labeller_of
from headpursuit.run.files import UserError
from headpursuit.run.retry import Busy
from headpursuit.run.uses import labelled, run_labellers, used_classifiers, used_sources

LARGE = 1e9  # parameters; from here on a run without a GPU takes days
GIB = 2**30
ASKING_SECONDS = 10  # until a labeller's server has to answer


class Told(NamedTuple):
    """What ends the run, and what is only written down."""

    lacks: list[str]
    notes: list[str]


def preflight(config: Config, resources: Path, results: Path) -> dict[str, Any]:
    """Check that a run can succeed here, and return what was found.

    Raises:
        UserError: if something is lacking: one message with all of it, each with its way out.
    """
    told = Told([], [])
    device = _check_device(config, told)
    sources = _check_sources(config, resources, told)
    _check_classifiers(config, resources, told)
    to_come = sum(found["bytes_to_come"] or 0 for found in sources.values())
    report = {
        "run": config["run"],
        "device": device,
        "sources": sources,
        "disk": _check_disk({resources: to_come, results: sum(file_bytes(config).values())}, told),
        "labeller": _check_labeller(config, told),
        "notes": told.notes,
    }
    if told.lacks:
        listed = "\n".join(f"  {number}. {lack}" for number, lack in enumerate(told.lacks, start=1))
        raise UserError(f"The run {config['run']!r} cannot start here yet:\n{listed}")
    return report


# Device and memory


def _check_device(config: Config, told: Told) -> dict[str, Any]:
    compute = config["compute"]
    if not compute["check_device"]:
        told.notes.append("compute.check_device is false: neither device nor memory were looked at")
        return {"checked": False}
    device = {"kind": "none"} if compute["device"] == "cpu" else _find_gpu(told)
    if device["kind"] == "none" and compute["device"] == "cuda":
        told.lacks.append(
            "compute.device is cuda, but no CUDA GPU is visible here. "
            "Check nvidia-smi and CUDA_VISIBLE_DEVICES, or set compute.device: auto."
        )
        return {"checked": True, **device}
    memory = psutil.virtual_memory().available
    if device["kind"] == "none":
        device = {"kind": "cpu", "name": "this machine", "free_bytes": memory}
    found = models(config)
    for name, needs in found.items():
        _check_model(config, name, needs, device, told)
        if device["kind"] == "cuda" and memory < needs["weight_bytes"]:
            told.lacks.append(
                f"{name} (experiments.{needs['experiment']}.model) takes "
                f"{needs['weight_bytes'] / GIB:.1f} GiB of this machine's own memory while "
                f"extract_weights reads it, and {memory / GIB:.1f} GiB are free. Free some."
            )
    needed = max((needs["work_bytes"] for needs in found.values()), default=0)
    return {"checked": True, "needed_bytes": needed, **device}


def _check_model(config: Config, name: str, needs: dict, device: dict, told: Told) -> None:
    compute, dtype = config["compute"], config["models"][name]["dtype"]
    key, size = f"experiments.{needs['experiment']}.model", needs["parameters"]
    if device["kind"] == "cpu":
        if compute["device"] == "auto" and size > LARGE and not compute["allow_cpu"]:
            told.lacks.append(
                f"There is no GPU here, and {name} ({key}) has {size / 1e9:.1f} billion "
                "parameters. Run the demo: make demo; or insist: set compute.allow_cpu: true in "
                "the config. Where nvidia-smi shows a GPU, torch is a build without CUDA, or newer "
                "than the driver."
            )
        if dtype != "float32":
            told.notes.append(f"{name}: {dtype} is slow on most CPUs; float32 takes more memory")
    free = device["free_bytes"]
    lacks = free is not None and free < needs["work_bytes"]
    if lacks and config["models"][name]["device_map"]:
        told.notes.append(f"{name}: layers without room on {device['name']} wait in memory: slow")
    elif lacks:
        halve = f"models.{name}.dtype: bfloat16 (half of it), " if dtype == "float32" else ""
        told.lacks.append(
            f"{name} ({key}) needs about {needs['work_bytes'] / GIB:.1f} GiB of memory and "
            f"{device['name']} has {free / GIB:.1f} GiB free. Free some, take a larger machine, or "
            f"set {halve}a smaller {needs['batch']} or a smaller {key}."
        )


def _find_gpu(told: Told) -> dict[str, Any]:
    """Look for a GPU with torch, or with nvidia-smi where there is no torch."""
    try:
        import torch
    except (ImportError, OSError):  # OSError: a torch whose libraries do not load
        told.notes.append("torch is not in this environment: nvidia-smi was asked for the GPU")
        return _ask_nvidia_smi()
    if not torch.cuda.is_available():
        return {"kind": "none"}
    free, _ = torch.cuda.mem_get_info()
    return {"kind": "cuda", "name": torch.cuda.get_device_name(), "free_bytes": free}


def _ask_nvidia_smi() -> dict[str, Any]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or not shutil.which("nvidia-smi"):
        return {"kind": "none"}
    command = ["nvidia-smi", "--query-gpu=memory.free,name", "--format=csv,noheader,nounits"]
    command += ["-i", visible] if visible else []
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if "No devices" in said.stdout + said.stderr:
            return {"kind": "none"}
        free, name = said.stdout.splitlines()[0].split(", ", maxsplit=1)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        free, name = "", "a GPU that nvidia-smi cannot describe"
    free_bytes = int(free) * 2**20 if free.isdigit() else None  # slices of a GPU give [N/A]
    return {"kind": "cuda", "name": name, "free_bytes": free_bytes}


# Disk and sources


def _check_disk(needs: dict[Path, int], told: Told) -> list[dict[str, Any]]:
    """Compare what is to be written with what is free, file system by file system."""
    shared: dict[int, dict[str, Any]] = {}
    for folder, needed in needs.items():
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        empty = {"folders": [], "needed_bytes": 0, "free_bytes": shutil.disk_usage(there).free}
        own = shared.setdefault(there.stat().st_dev, empty)
        own["folders"].append(str(folder))
        own["needed_bytes"] += needed
    for own in shared.values():
        needed, free = own["needed_bytes"], own["free_bytes"]
        if free < needed * 1.05:  # file systems slow down or fail before the last byte
            told.lacks.append(
                f"{' and '.join(own['folders'])} need about {needed / GIB:.1f} GiB of disk and "
                f"{free / GIB:.1f} GiB are free. Free some, or put the folder on another disk "
                "(a symbolic link will do)."
            )
    return list(shared.values())


def _check_sources(config: Config, resources: Path, told: Told) -> dict[str, dict]:
    """Check that each source of the run is there or may be fetched.

    bytes_to_come are None where only the download itself can tell.
    """
    report = {}
    for name, spec in used_sources(config).items():
        to_come, provenance = None, resources / name / "provenance.json"
        try:
            # The config's check has seen a local one; a changed one is read anew.
            if spec["kind"] == "local":
                to_come = 0
            elif provenance.exists():
                source_files(provenance, "**")
                to_come = 0
            elif spec["kind"] == "hub":
                to_come = bytes_to_come(name, spec, resources / name)
        except UserError as error:
            told.lacks.append(str(error))
        report[name] = {"kind": spec["kind"], "bytes_to_come": to_come}
    return report


def _check_classifiers(config: Config, resources: Path, told: Told) -> None:
    """Check that each classifier of texts has its label, wherever its config.json can be read.

    What cannot is told of by the check of sources, or by the job that loads it.
    """
    for name in used_classifiers(config):
        own = config["classifiers"][name]
        spec, path = config["sources"][own["source"]], str(Path(own["path"], "config.json"))
        local, there = spec["kind"] == "local", resources / own["source"] / path
        there = Path(spec["path"], path) if local else there
        hub = spec["kind"] == "hub" and not there.exists()
        try:
            text = read_from_hub(own["source"], spec, path) if hub else there.read_bytes()
            labels = list(json.loads(text)["id2label"].values())
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if own["label"] not in labels:
            told.lacks.append(
                f"classifiers.{name}.label: {own['source']} has no label {own['label']!r}; it has "
                f"{', '.join(map(str, labels))}. Correct that key."
            )


# Labeller


def _check_labeller(config: Config, told: Told) -> dict[str, Any]:
    """Check that each labeller's prompt can be read, and its server asked; of images, too."""
    concepts = labelled(config).values()
    asked = {"keywords" in concept: labeller_of(config, concept) for concept in concepts}
    report: dict[str, Any] = {"backend": None}
    for of_images, labeller in sorted(asked.items()):
        first, *more = (_ask(labeller, backend, told) for backend in run_labellers(config))
        own = first | ({"second": more[0]} if more else {})
        report = {**report, "keywords": own} if of_images else own
    return report


def _ask(labeller: Config, backend: str, told: Told) -> dict[str, Any]:
    if backend == "lexicon":
        return {"backend": backend}
    found = {}
    try:  # an address or a key may be none
        found = {"ollama": _ask_ollama, "openai": _ask_openai}[backend](labeller, told)
        load_prompt(labeller["prompt"], labeller["per_image"])
    except UserError as error:
        told.lacks.append(str(error))
    return {"backend": backend, **found}


def _ask_ollama(labeller: Config, told: Told) -> dict[str, Any]:
    wanted = labeller["ollama"]
    server, name = Server(wanted["host"], ASKING_SECONDS), plain_name(wanted["model"])
    try:
        there = server.models()
    except (Busy, Refused) as error:
        in_conda = (Path(sys.prefix) / "conda-meta").is_dir()  # the job's environment brings one
        if server.here and not wanted["host"] and (shutil.which("ollama") or in_conda):
            told.notes.append("no Ollama server runs here: the labelling job starts one")
        else:
            told.lacks.append(
                f"No Ollama server answers at {server.name} ({error}). Install Ollama "
                "(https://ollama.com/download) and start one (ollama serve, then ollama pull "
                f"{name}), set labeller.ollama.host or OLLAMA_HOST to another, or choose another "
                "labeller.backend, such as lexicon."
            )
        return {"host": server.name}
    models = sorted(own.model for own in there.values())
    if name not in there:
        lack = f"The Ollama server at {server.name} lacks {name} (it has {', '.join(models)})"
        if wanted["pull"]:
            told.notes.append(f"{lack}: it is pulled before the first label.")
        else:
            told.lacks.append(
                f"{lack}. Fetch it: ollama pull {name}; or name another in "
                f"labeller.{'keywords.' if labeller['per_image'] else ''}ollama.model, or set "
                "labeller.ollama.pull: true."
            )
    return {"host": server.name, "models": models}


def _ask_openai(labeller: Config, told: Told) -> dict[str, Any]:
    wanted = labeller["openai"]
    try:
        with open_http(wanted, ASKING_SECONDS) as http, telling(wanted["base_url"]):
            http.get("models")
    except Refused as error:
        if error.status in (401, 403):
            told.lacks.append(str(error))
        else:  # not all have such a list
            told.notes.append(f"{error}; no model was looked for")
    except Busy as error:
        told.lacks.append(f"{error}. Start the server, or correct labeller.openai.base_url.")
    return {"host": wanted["base_url"]}
