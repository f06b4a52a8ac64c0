"""What every rule's script does around its work: log, GPU, threads, and errors in plain words."""

import ctypes
import json
import logging
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from headpursuit.run.files import UserError, bare_url, refusal, visible
from headpursuit.run.gpu import take_gpus

# Before what a job writes into its log of itself; the manifest reads it.
MADE_BY = "made by "
# Options of mallopt(3): M_MMAP_THRESHOLD (2**25 is its largest), M_TRIM_THRESHOLD, M_TOP_PAD.
MALLOC = {-3: 2**25, -1: 2**30, -2: 2**26}


def run_rule(main: Callable[[Any], None], snakemake: Any) -> None:
    """Run a script's ``main(snakemake)`` with its messages in the rule's log and on the terminal.

    A user's mistake, or a disk that refuses, ends with its message alone; anything else leaves its
    traceback in the log.
    """
    _prepare_process()
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback
    where = Path((snakemake.output or snakemake.log)[0]).parent
    try:
        _start_log(snakemake.log[0])
        if number := snakemake.resources.get("gpu", 0):
            take_gpus(number)
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


def _prepare_process() -> None:
    libc = ctypes.CDLL(None)
    if sys.platform == "linux":
        # Linux ends this process if Snakemake is killed outright. Else the job would go on, unseen,
        # beside the one that the next run starts in its place.
        set_death_signal = 1  # PR_SET_PDEATHSIG
        libc.prctl(set_death_signal, signal.SIGTERM)
    if platform.libc_ver()[0] == "glibc":
        # Reuse what a layer's tensors leave behind. Handed back, the system clears the same pages
        # anew for the next layer, which takes a tenth of the time of a model on a processor.
        for option, size in MALLOC.items():
            libc.mallopt(option, size)


def _fail(rule: str, message: str, status: int = 1) -> NoReturn:
    logging.error("%s", message)
    print(f"\n{rule}: {bare_url(visible(message))}\n", file=sys.stderr)
    sys.exit(status)


def loaded() -> dict[str, str]:
    """Return the versions of Python and of the packages that this process has imported."""
    found = {"python": platform.python_version()}
    for name, module in sorted(sys.modules.items()):
        version = getattr(module, "__dict__", {}).get("__version__")
        if "." not in name and name not in sys.stdlib_module_names and isinstance(version, str):
            found[name] = version
    return found


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
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:(.*)", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor()
