"""qsub, qstat and qdel in front of SLURM, by the name that this file is called by.

They know what profiles/cluster-generic says to PBS, and refuse all else.
"""

import re
import subprocess
import sys
from pathlib import Path

WAITING = {"PENDING": "Q", "CONFIGURING": "Q", "RUNNING": "R", "COMPLETING": "E"}


def qsub(*arguments: str) -> None:
    asked = re.fullmatch(
        r"-V -j oe -o (?P<out>\S+) -l select=1:ncpus=(?P<cpus>\d+):mem=(?P<memory>\d+)mb"
        r":ngpus=(?P<gpus>\d+) -l walltime=(?P<minutes>\d+):00 (?P<script>\S+)",
        " ".join(arguments),
    )
    command = ["sbatch", "--parsable", f"--cpus-per-task={asked['cpus']}"]
    command += [f"--mem={asked['memory']}", f"-t{asked['minutes']}"]
    command += [f"--gpus={asked['gpus']}"] if asked["gpus"] != "0" else []
    subprocess.run([*command, f"--output={asked['out']}/%j.out", asked["script"]], check=True)


def qstat(*arguments: str) -> None:
    if not arguments:
        subprocess.run(["squeue"], check=True)
        return
    finished, full, job = arguments
    assert (finished, full) == ("-x", "-f")
    command = ["scontrol", "--oneliner", "show", "job", job]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    state, status = (re.search(rf"{key}=(\w+)", said)[1] for key in ("JobState", "ExitCode"))
    print(f"Job Id: {job}")
    print(f"    job_state = {WAITING.get(state, 'F')}")
    if state not in WAITING:
        print(f"    Exit_status = {status if state in ('COMPLETED', 'FAILED') else 271}")


def qdel(*jobs: str) -> None:
    subprocess.run(["scancel", *jobs], check=True)


{"qsub": qsub, "qstat": qstat, "qdel": qdel}[Path(sys.argv[0]).name](*sys.argv[1:])
