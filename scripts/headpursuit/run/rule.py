"""What every rule's script does around its work: log, threads, and errors in plain words."""

import ctypes
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from headpursuit.run.files import UserError, bare_url, refusal, visible

# Before what a job writes into its log of itself; the manifest reads it.
MADE_BY = "made by "
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3); 2**25 is its largest for -3


def run_rule(main: Callable[[Any], None], snakemake: Any) -> None:
    """Run a script's ``main(snakemake)`` with its messages in the rule's log and on the terminal.

    A user's mistake, or a disk that refuses, ends with its message alone; anything else leaves its
    traceback in the log.
    """
    _end_with_snakemake()
    _keep_freed_memory()
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback
    where = Path((snakemake.output or snakemake.log)[0]).parent
    try:
        _start_log(snakemake.log[0])
        if "torch" in sys.modules:
            # Results must not depend on how many processors a machine has.
            sys.modules["torch"].set_num_threads(snakemake.threads)
        started = time.monotonic()
        main(snakemake)
    except UserError as error:
        _fail(snakemake.rule, str(error))
    except KeyboardInterrupt:
        _fail(snakemake.rule, "interrupted. Run the same command again to go on.", 130)
    except BaseException as error:
        if refused := refusal(error, where):
            _fail(snakemake.rule, refused)
        logging.exception("%s failed", snakemake.rule)
        raise
    logging.info("%s done in %.1f s", snakemake.rule, time.monotonic() - started)
    maker = {"params": dict(snakemake.params.items()), "software": loaded(), **describe_host()}
    logging.info("%s%s", MADE_BY, json.dumps(maker, default=str))


class _Visible(logging.Formatter):
    """Leaves out what a terminal would act on, in names and texts of others, and passwords."""

    def format(self, record: logging.LogRecord) -> str:
        return bare_url(visible(super().format(record)))


def _start_log(path: str) -> None:
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(_Visible("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "matplotlib", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _end_with_snakemake() -> None:
    """Have Linux end this process if Snakemake is killed outright.

    Else the job would go on, unseen, beside the one that the next run starts in its place.
    """
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _keep_freed_memory() -> None:
    """Have glibc reuse what a layer's tensors leave behind.

    Else it hands them back, and the system clears the same pages anew for the next layer, which
    takes a tenth of the time of a model on a processor.
    """
    if platform.libc_ver()[0] == "glibc":
        option = ctypes.CDLL(None).mallopt
        for name, size in ((MMAP_THRESHOLD, 2**25), (TRIM_THRESHOLD, 2**30), (TOP_PAD, 2**26)):
            option(name, size)


def _fail(rule: str, message: str, status: int = 1) -> NoReturn:
    logging.error("%s", message)
    print(f"\n{rule}: {bare_url(visible(message))}\n", file=sys.stderr)
    sys.exit(status)


def loaded() -> dict[str, str]:
    """Return the versions of Python and of the packages that this process has imported."""
    packages = {
        name: version
        for name, module in sorted(sys.modules.items())
        if "." not in name
        and name not in sys.stdlib_module_names
        and isinstance(version := getattr(module, "__dict__", {}).get("__version__"), str)
    }
    return {"python": platform.python_version(), **packages}


def describe_host() -> dict[str, Any]:
    """Return the hardware and operating system of this machine."""
    torch = sys.modules.get("torch")
    with_gpu = torch is not None and torch.cuda.is_available()
    return {
        "name": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name() if with_gpu else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
