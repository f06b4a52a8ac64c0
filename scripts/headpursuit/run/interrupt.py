"""Ending a run at once, with all its jobs, when it is told to."""

import signal
import threading
import time
from contextlib import suppress
from typing import NoReturn

import psutil  # Snakemake brings it

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_jobs_on_signals() -> None:
    """Make SIGINT and SIGTERM end Snakemake's running jobs as well, wherever they were sent.

    By itself Snakemake waits for them, which may take hours, unless the terminal sends its Ctrl-C
    to them too. It then removes their half-made files and its lock as after any Ctrl-C.
    """
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _interrupt)


def _interrupt(*_: object) -> NoReturn:
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # once is enough
    threading.Thread(target=_end_jobs, daemon=True).start()
    raise KeyboardInterrupt


def _end_jobs() -> None:
    told: set[int] = set()
    while True:  # again and again: one may be about to start
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                # Of other children, such as those that cancel jobs on a cluster, none is touched.
                is_job = any(".snakemake/scripts/" in word for word in child.cmdline())
                if is_job and child.pid not in told:
                    told.add(child.pid)
                    child.terminate()
        time.sleep(0.2)
