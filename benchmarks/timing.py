"""What the benchmarks share: interleaved timing, peak memory of a fresh process, rows of results.

python benchmarks/timing.py MODULE FUNCTION [JSON ARGUMENTS]    # a function alone: its peak
"""

import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = ROOT / "results" / "bench"
THREADS = 2
PACKAGES = ("torch", "numpy", "transformers", "pyarrow", "transformer-lens", "nnsight")

sys.path[:0] = [str(ROOT / "scripts"), str(HERE)]


def interleave(works: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time every work once a round, forwards and backwards by turns, so that all see one machine.

    Returns:
        The seconds of each work, round by round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        names = list(works)
        for name in names if number % 2 == 0 else reversed(names):
            gc.collect()
            started = time.perf_counter()
            works[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def row(
    work: str,
    beside: str,
    goal: str | None,
    over: list[float],
    under: list[float],
    checked: str,
    **more: Any,
) -> dict[str, Any]:
    """Return a row of the table: the ratio of two medians and the range of the rounds' ratios.

    Args:
        work: what is measured.
        beside: what it is compared with.
        goal: ``>= 40`` or ``<= 1.1``, of the ratio; None if there is none.
        over: measurements above the line, one a round.
        under: those below it.
        checked: how the results were found to be equal before.
        more: what else to keep, ``n`` for one.
    """
    ratio = statistics.median(over) / statistics.median(under)
    each = [a / b for a, b in zip(over, under, strict=True)]
    met = None
    if goal:
        sign, bound = goal.split()
        met = ratio >= float(bound) if sign == ">=" else ratio <= float(bound)
    print(f"{work} | {beside} | {ratio:.3g} [{min(each):.3g}, {max(each):.3g}] | {goal} | {met}")
    return {
        "work": work, "beside": beside, "goal": goal, "met": met, "ratio": ratio,
        "low": min(each), "high": max(each), "rounds": len(over), "over": over, "under": under,
        "checked": checked, **more,
    }  # fmt: skip


def write(name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write a benchmark's rows, and what else it found, with the machine and versions beside it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(), "rows": rows, **more}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    from headpursuit.run.rule import describe_host  # importable from here on

    host, versions = describe_host(), {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        **{key: host[key] for key in ("processor", "cores", "system")},
        "memory_gib": round(host["memory_bytes"] / 2**30),
        "python": platform.python_version(),
        "versions": versions,
        "threads": THREADS,
        "date": time.strftime("%Y-%m-%d"),
        "load": round(os.getloadavg()[2], 1),
    }


def alone(module: str, function: str, *arguments: Any) -> dict[str, Any]:
    """Call a benchmark's function in a fresh process.

    Returns:
        What it returned, with ``peak``: the most memory that the process had, in bytes, by the
        operating system's count.
    """
    command = [sys.executable, __file__, module, function, json.dumps(arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory(field: str) -> int:
    """Return a count of this process's memory in bytes: VmRSS (now) or VmHWM (the most so far).

    ru_maxrss is not used: Linux starts it at what the parent had when the process was made.
    """
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status: peak memory needs Linux")


if __name__ == "__main__":
    found = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*json.loads(sys.argv[3]))
    print(json.dumps((found or {}) | {"peak": memory("VmHWM")}))
