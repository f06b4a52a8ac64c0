"""GPUs that no other job of this machine uses: one lock a device, taken before CUDA starts."""

import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from headpursuit.run.files import UserError

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
WAIT_SECONDS = 1.0  # between two looks for a free device


def take_gpus(number: int) -> list[str]:
    """Wait until so many GPUs are free, lock them, and let CUDA see them alone.

    The process holds the locks until it ends, however it ends. Where no GPU can be seen, nothing
    is done: ``compute.device`` decides what follows.

    Raises:
        UserError: if fewer may be taken than are asked for.
    """
    devices = candidates()
    if not devices:
        return []
    if len(devices) < number:
        raise UserError(
            f"The job asks for {number} GPUs, and {len(devices)} can be seen here "
            f"({', '.join(devices)}): name more in {VISIBLE}."
        )
    taken = _lock(devices, number)
    if len(taken) < number:
        log.info("waiting for a free GPU among %s", ", ".join(devices))
    while len(taken) < number:
        time.sleep(WAIT_SECONDS)
        taken = _lock(devices, number)
    os.environ[VISIBLE] = ",".join(taken)
    log.info("took %s", ", ".join(taken))
    return taken


def candidates() -> list[str]:
    """Return the GPUs that a job may take: those in CUDA_VISIBLE_DEVICES, all where it is not set.

    They are named by UUID: on a cluster's node, index 0 may be another device in each job. As CUDA
    does it, a device that is none hides those behind it. Indices count as nvidia-smi does.
    """
    there, visible = _there(), os.environ.get(VISIBLE)
    if visible is None:
        return there
    found: dict[str, None] = {}
    for name in map(str.strip, visible.split(",")):
        if there and name.isdigit():
            named = there[int(name) : int(name) + 1]
        elif there and name.startswith("GPU-"):
            named = [own for own in there if own.startswith(name)]
        else:  # a part of a GPU, or a machine without nvidia-smi
            named = [name] if name.isdigit() or name.startswith(("GPU-", "MIG-")) else []
        if not named:
            break
        found[named[0]] = None
    return list(found)


def _there() -> list[str]:
    """Return the UUIDs of this machine's GPUs, as far as nvidia-smi says."""
    if not shutil.which("nvidia-smi"):
        return []
    asked = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in said.stdout.splitlines() if line.startswith("GPU-")]


def _lock(devices: list[str], number: int) -> list[str]:
    """Lock so many of the devices; where fewer are free, none."""
    held: dict[str, int] = {}
    for name in devices:
        if len(held) < number and (handle := _try(name)) is not None:
            held[name] = handle
    if len(held) == number:
        return list(held)
    for handle in held.values():
        os.close(handle)
    return []


def _try(name: str) -> int | None:
    """Return a device's locked file, open until the process ends; None if another holds it."""
    path = Path(tempfile.gettempdir()) / f"headpursuit-{name}.lock"
    # Where it is another user's file, Linux lets one open it, but not with O_CREAT.
    flags = os.O_RDONLY | os.O_NOFOLLOW | (0 if path.exists() else os.O_CREAT)
    handle = os.open(path, flags, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
