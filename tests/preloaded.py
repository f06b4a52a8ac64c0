"""Snakemake whose jobs' scripts run in forks of itself, with the large libraries imported once.

What jobs read, are told and write is as in any run; only the start of a process for each, which
takes seconds, is not. See :class:`checkout.Preloaded`.
"""

import importlib
import os
import runpy
import sys
import threading
import traceback
from contextlib import nullcontext

from snakemake.benchmark import benchmarked
from snakemake.cli import main
from snakemake.exceptions import WorkflowError
from snakemake.script import PythonScript

LARGE = ["pandas", "torch", "matplotlib.pyplot", "transformers.generation.utils"]
LARGE += ["transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto"]
importing = threading.Lock()


def run_in_fork(self: PythonScript, name: str, edit: bool = False) -> None:
    """Run a job's script in a fork."""
    with importing:  # at the first job: a dry run needs none of it
        for library in LARGE:
            importlib.import_module(library)
    child = os.fork()
    if not child:
        status = 1
        try:
            runpy.run_path(name, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    with benchmarked(child, self.bench_record) if self.bench_record else nullcontext():
        failed = os.waitpid(child, 0)[1]
    if failed:
        raise WorkflowError(f"{name} failed")


PythonScript.execute_script = run_in_fork
sys.exit(main())
