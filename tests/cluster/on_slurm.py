"""A checkout whose jobs go to the SLURM of slurm.py, and what SLURM says of them."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from checkout import Checkout, wait_until

# What the profile sets for a large cluster is too slow here.
QUICK = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10"]
PROMPTS = "results/tiny/samples/rtp.parquet"  # of one job that computes, after local ones


@dataclass
class Run:
    """A Snakemake at work."""

    process: subprocess.Popen
    log: Path

    def ended(self, within: int = 1800) -> int:
        """Wait for its end and return its exit status."""
        return self.process.wait(within)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


class Cluster(Checkout):
    """A checkout with a profile of a cluster."""

    def start(self, *arguments: str, profile: str = "slurm", overlay: str = "tiny", **env) -> Run:
        """Start Snakemake as on a login node."""
        command = [sys.executable, "-m", "snakemake", *arguments, "--profile"]
        command += [f"profiles/{profile}", *(QUICK if profile == "slurm" else [])]
        command += ["--configfile", f"configs/{overlay}.yaml", "configs/cluster.yaml"]
        log = self.folder / f"run-{time.monotonic_ns()}.log"
        with log.open("w") as out:
            env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
            process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=out, stderr=subprocess.STDOUT
            )
        return Run(process, log)

    def succeeds(self, *arguments: str, **options) -> Run:
        """Run Snakemake to its end; AssertionError if it fails."""
        run = self.start(*arguments, **options)
        assert run.ended() == 0, run.said
        return run

    def jobs(self) -> list[dict[str, str]]:
        """Return what SLURM says of this checkout's jobs, in order of their submission."""
        command = ["scontrol", "--oneliner", "show", "jobs"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in said.splitlines()]
        own = [row for row in rows if row.get("WorkDir") == str(self.folder)]
        return sorted(own, key=lambda row: int(row["JobId"]))

    def states(self) -> list[str]:
        """Return how its jobs ended or stand."""
        return [job["JobState"] for job in self.jobs()]

    def start_a_job(self, code: str, *arguments: str, **options) -> tuple[Run, str]:
        """Have the one job of PROMPTS run some code at its first try; return it when it does."""
        first = (
            "def main(snakemake):\n"
            "    from pathlib import Path\n"
            "    import time\n"
            "    first = not Path('own/tries').exists()\n"
            "    Path('own/tries').touch()\n"
            f"    if first:\n        {code}\n"
        )
        self.change("scripts/prepare_samples.py", "def main(snakemake):", first)
        run = self.start(PROMPTS, *arguments, **options)
        wait_until((self.folder / "own/tries").exists)
        return run, self.jobs()[-1]["JobId"]

    def change(self, name: str, old: str, new: str) -> None:
        """Replace text in a file of the checkout."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")
