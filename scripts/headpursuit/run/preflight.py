"""What a run needs and this machine may lack, found out before hours are spent on it.

Everything that is lacking is told at once, each with its way out. torch is only used if it is
there: the check also runs in the light environment that starts the workflow.
"""

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

from headpursuit.data.download import bytes_to_come
from headpursuit.data.sources import source_files
from headpursuit.labelling import LOOPBACK
from headpursuit.labelling.prompt import load_prompt
from headpursuit.run.config import run_labellers, used_sources
from headpursuit.run.estimate import file_bytes, models
from headpursuit.run.experiments import Config
from headpursuit.run.files import UserError, bare_url

LARGE = 1e9  # parameters; from here on a run without a GPU takes days
GIB = 2**30


def preflight(config: Config, resources: Path, results: Path) -> dict:
    """Check that a run can succeed here, and return what was found.

    Raises:
        UserError: if something is lacking: one message with all of it, each with its way out.
    """
    lacks: list[str] = []
    notes: list[str] = []
    device = check_device(config, lacks, notes)
    sources = check_sources(config, Path(resources), lacks)
    to_come = sum(found["bytes_to_come"] or 0 for found in sources.values())
    needs = [(Path(resources), to_come), (Path(results), sum(file_bytes(config).values()))]
    report = {
        "run": config["run"],
        "device": device,
        "sources": sources,
        "disk": check_disk(needs, lacks),
        "labeller": check_labeller(config, lacks, notes),
        "notes": notes,
    }
    if lacks:
        listed = "\n".join(f"  {number}. {lack}" for number, lack in enumerate(lacks, start=1))
        raise UserError(f"The run {config['run']!r} cannot start here yet:\n{listed}")
    return report


# Device and memory


def check_device(config: Config, lacks: list[str], notes: list[str]) -> dict:
    """Check that there is a device with enough memory for each of the run's models."""
    compute = config["compute"]
    if not compute["check_device"]:
        notes.append("compute.check_device is false: neither device nor memory were looked at")
        return {"checked": False}
    gpu = {"kind": "none"} if compute["device"] == "cpu" else find_gpu(notes)
    if compute["device"] == "cuda" and gpu["kind"] == "none":
        lacks.append(
            "compute.device is cuda, but no CUDA GPU is visible here. "
            "Check nvidia-smi and CUDA_VISIBLE_DEVICES, or set compute.device: auto."
        )
        return {"checked": True, **gpu}
    if gpu["kind"] == "none":
        gpu |= {"kind": "cpu", "free_bytes": psutil.virtual_memory().available}
        _check_cpu(config, lacks, notes)
    found = models(config)
    for name, model in found.items():
        _check_memory(config, name, model, gpu, lacks)
    needed = max((model["work_bytes"] for model in found.values()), default=0)
    return {"checked": True, "needed_bytes": needed, **gpu}


def find_gpu(notes: list[str]) -> dict[str, Any]:
    """Look for a GPU with torch, or with nvidia-smi where there is no torch."""
    try:
        import torch
    except (ImportError, OSError):  # OSError: a torch whose libraries don't load
        notes.append("torch is not in this environment: nvidia-smi was asked for the GPU")
        return _ask_nvidia_smi()
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return {"kind": "cuda", "name": torch.cuda.get_device_name(), "free_bytes": free}
    if _ask_nvidia_smi()["kind"] != "none":
        notes.append(
            f"nvidia-smi is here, but torch {torch.__version__} sees no GPU: "
            "is it a build without CUDA, or one newer than the driver?"
        )
    return {"kind": "none"}


def _ask_nvidia_smi() -> dict[str, Any]:
    program = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible in ("", "-1"):
        return {"kind": "none"}
    command = [program, "--query-gpu=memory.free,name", "--format=csv,noheader,nounits"]
    try:
        command += ["-i", visible] if visible else []
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        free, name = said.stdout.splitlines()[0].split(", ", maxsplit=1)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return {"kind": "unknown", "name": "a GPU that nvidia-smi can't describe"}
    mebibytes = int(free) if free.isdigit() else None  # MIG slices give [N/A]
    return {"kind": "cuda", "name": name, "free_bytes": mebibytes and mebibytes * 2**20}


def _check_cpu(config: Config, lacks: list[str], notes: list[str]) -> None:
    compute = config["compute"]
    for name, needs in models(config).items():
        size, dtype = needs["parameters"], config["models"][name]["dtype"]
        if compute["device"] == "auto" and size > LARGE and not compute["allow_cpu"]:
            lacks.append(
                f"There is no GPU here, and {name} (experiments.{needs['experiment']}.model) has "
                f"{size / 1e9:.1f} billion parameters. Run the demo: make demo; or insist: set "
                "compute.allow_cpu: true in the config."
            )
        if dtype != "float32":
            notes.append(f"{name}: {dtype} is slow on most CPUs; float32 takes more memory")


def _check_memory(
    config: Config, name: str, needs: dict[str, Any], gpu: dict[str, Any], lacks: list[str]
) -> None:
    key, free = f"experiments.{needs['experiment']}.model", gpu.get("free_bytes")
    if free is not None and free < needs["work_bytes"]:
        whole = config["models"][name]["dtype"] == "float32"
        halve = f"models.{name}.dtype: bfloat16 (half of it), " if whole else ""
        lacks.append(
            f"{name} ({key}) needs about {needs['work_bytes'] / GIB:.1f} GiB of memory and "
            f"{gpu.get('name', 'this machine')} has {free / GIB:.1f} GiB free. Free some, take a "
            f"larger machine, or set {halve}a smaller {needs['batch']} or a smaller {key}."
        )
    memory = psutil.virtual_memory().available
    if gpu["kind"] == "cuda" and memory < needs["weight_bytes"]:
        lacks.append(
            f"{name} ({key}) takes {needs['weight_bytes'] / GIB:.1f} GiB of this machine's own "
            f"memory while extract_weights reads it, and {memory / GIB:.1f} GiB are free. "
            "Free some, or take a larger machine."
        )


# Disk


def check_disk(needs: list[tuple[Path, int]], lacks: list[str]) -> list[dict]:
    """Compare what is to be written with what is free, file system by file system."""
    shared: dict[int, list[tuple[Path, int]]] = defaultdict(list)
    for folder, needed in needs:
        shared[_existing(folder).stat().st_dev].append((folder, needed))
    report = []
    for group in shared.values():
        folders = [str(folder) for folder, _ in group]
        needed, free = (
            sum(size for _, size in group),
            shutil.disk_usage(_existing(group[0][0])).free,
        )
        if free < needed * 1.05:  # file systems slow down or fail before the last byte
            lacks.append(
                f"{' and '.join(folders)} need about {needed / GIB:.1f} GiB of disk and "
                f"{free / GIB:.1f} GiB are free. Free some, or put the folder on another disk "
                "(a symbolic link will do)."
            )
        report.append({"folders": folders, "needed_bytes": needed, "free_bytes": free})
    return report


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


# Sources


def check_sources(config: Config, resources: Path, lacks: list[str]) -> dict[str, dict]:
    """Check that each source of the run is there or may be fetched; collect what isn't."""
    report = {}
    for name, spec in used_sources(config).items():
        report[name] = {"kind": spec["kind"], "bytes_to_come": None}
        try:
            report[name]["bytes_to_come"] = _check_source(name, spec, resources / name)
        except UserError as error:
            lacks.append(str(error))
    return report


def _check_source(name: str, spec: dict, folder: Path) -> int | None:
    """Return how many bytes are to come; None if only the download itself can tell."""
    if spec["kind"] == "local":  # the config's check has seen it; a changed one is recorded anew
        return 0
    provenance = folder / "provenance.json"
    if provenance.exists():
        source_files(provenance, "**")
        return 0
    return bytes_to_come(name, spec, folder) if spec["kind"] == "hub" else None


# Labeller


def check_labeller(config: Config, lacks: list[str], notes: list[str]) -> dict:
    """Check that each labeller's prompt can be read, and its server asked."""
    labeller, used = config["labeller"], run_labellers(config)
    if set(used) & {"ollama", "openai"}:
        try:
            load_prompt(labeller["prompt"])
        except UserError as error:
            lacks.append(str(error))
    checks = {"ollama": _check_ollama, "openai": _check_openai}
    found = [
        {"backend": name, **(checks[name](labeller[name], lacks, notes) if name in checks else {})}
        for name in used
    ]
    report = found[0] if found else {"backend": None}
    return {**report, "second": found[1]} if len(found) > 1 else report


def _check_ollama(wanted: dict, lacks: list[str], notes: list[str]) -> dict:
    try:
        import ollama
    except ImportError:
        notes.append("the ollama client is not in this environment: the server was not asked")
        return {"checked": False}
    import httpx

    client = ollama.Client(host=wanted["host"], timeout=10)
    where = bare_url(wanted["host"] or os.environ.get("OLLAMA_HOST") or "127.0.0.1:11434")
    try:
        there = sorted(model.model for model in client.list().models)
    except (ConnectionError, httpx.HTTPError, ollama.ResponseError, ValueError) as error:
        if wanted["host"] or client._client.base_url.host not in LOOPBACK:
            lacks.append(
                f"No Ollama server answers at {where} ({type(error).__name__}). Start one "
                f"(ollama serve, then ollama pull {wanted['model']}), set labeller.ollama.host or "
                "OLLAMA_HOST to another, or choose another labeller.backend, such as lexicon."
            )
        elif shutil.which("ollama"):
            notes.append("no Ollama server runs here: the labelling job starts one")
        elif (Path(sys.prefix) / "conda-meta").is_dir():
            notes.append("no Ollama server runs here: the labelling job's environment brings one")
        else:
            lacks.append(
                "No Ollama server runs here and no `ollama` is installed. Install it from "
                "https://ollama.com/download, set labeller.ollama.host to a server elsewhere, or "
                "choose another labeller.backend."
            )
        return {"host": where}
    if not {wanted["model"], f"{wanted['model']}:latest"} & set(there):
        (notes if wanted["pull"] else lacks).append(
            f"The Ollama server at {where} lacks {wanted['model']} "
            f"(it has {', '.join(there) or 'none'})"
            + (
                ": it is pulled before the first label."
                if wanted["pull"]
                else f". Fetch it: ollama pull {wanted['model']}; or name another in "
                "labeller.ollama.model, or set labeller.ollama.pull: true."
            )
        )
    return {"host": where, "models": there}


def _check_openai(wanted: dict, lacks: list[str], notes: list[str]) -> dict:
    import httpx

    where, variable = bare_url(wanted["base_url"].rstrip("/")), wanted["key_variable"]
    key = os.environ.get(variable, "").strip()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        status = httpx.get(
            f"{wanted['base_url'].rstrip('/')}/models",
            headers=headers,
            timeout=10,
            trust_env=httpx.URL(wanted["base_url"]).host not in LOOPBACK,
        ).status_code
    except httpx.HTTPError as error:
        lacks.append(
            f"Nothing answers at {where} ({type(error).__name__}). Start the server, or correct "
            "labeller.openai.base_url."
        )
        return {"host": where}
    if status in (401, 403):
        known = "was refused" if key else "is not set"
        lacks.append(f"{where}: HTTP {status}; the key in ${variable} {known}.")
    elif status >= 300:
        notes.append(f"{where}/models answers HTTP {status}: the model was not looked for")
    return {"host": where}
