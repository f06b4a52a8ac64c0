"""Snakemake whose jobs' scripts run in forks of itself, with the large libraries imported once.

What jobs read, are told and write is as in any run; only the start of a process for each, which
takes seconds, is not. A test makes a program of this file (:func:`test_combinations.anywhere`).
"""

import os
import runpy
import sys
import traceback
from contextlib import nullcontext

import datasets  # noqa: F401
import pandas as pd  # noqa: F401
import torch  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
from snakemake.benchmark import benchmarked
from snakemake.cli import main
from snakemake.exceptions import WorkflowError
from snakemake.script import PythonScript


def run_in_fork(self: PythonScript, name: str, edit: bool = False) -> None:
    """Run a job's script in a fork."""
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
