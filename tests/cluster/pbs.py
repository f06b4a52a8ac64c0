"""qsub, qstat and qdel in front of SLURM, by the name that this file is called by.

They know what profiles/cluster-generic says to PBS, and refuse all else.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path


def qsub(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-V", action="store_true", required=True)
    parser.add_argument("-j", choices=["oe"], required=True)
    parser.add_argument("-o", required=True)
    parser.add_argument("-l", action="append", required=True)
    parser.add_argument("script")
    said = parser.parse_args(arguments)
    select, walltime = said.l
    cpus, memory, gpus = re.fullmatch(
        r"select=1:ncpus=(\d+):mem=(\d+)mb:ngpus=(\d+)", select
    ).groups()
    minutes = re.fullmatch(r"walltime=(\d+):00", walltime)[1]
    command = ["sbatch", "--parsable", f"--cpus-per-task={cpus}", f"--mem={memory}", f"-t{minutes}"]
    command += [f"--gpus={gpus}"] if gpus != "0" else []
    subprocess.run([*command, f"--output={said.o}/%j.out", said.script], check=True)


def qstat(arguments: list[str]) -> None:
    if not arguments:
        subprocess.run(["squeue"], check=True)
        return
    finished, full, job = arguments
    assert (finished, full) == ("-x", "-f")
    command = ["scontrol", "--oneliner", "show", "job", job]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    state = re.search(r"JobState=(\w+)", said)[1]
    print(f"Job Id: {job}")
    waiting = {"PENDING": "Q", "CONFIGURING": "Q", "RUNNING": "R", "COMPLETING": "E"}
    print(f"    job_state = {waiting.get(state, 'F')}")
    if state not in waiting:
        status = re.search(r"ExitCode=(\d+)", said)[1]
        print(f"    Exit_status = {status if state in ('COMPLETED', 'FAILED') else 271}")


def qdel(arguments: list[str]) -> None:
    subprocess.run(["scancel", *arguments], check=True)


{"qsub": qsub, "qstat": qstat, "qdel": qdel}[Path(sys.argv[0]).name](sys.argv[1:])
