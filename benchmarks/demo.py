"""Time the demo in fresh clones, downloads done: its text part, and all of it.

    python benchmarks/demo.py    # about 20 minutes; then benchmarks/report.py

For each, it clones this checkout's last commit into a temporary folder, runs the demo's downloads,
and times `snakemake --configfile configs/demo.yaml`: as far as tables 1 and 2, or whole.
"""

import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import timing

TABLES = [f"results/demo/tables/{name}.csv" for name in ("table1", "table2", "concepts.overlap")]
# Part to its targets, and the minutes that are its goal.
PARTS = {"text part": (TABLES, 8), "all, with figure 1": (["all"], 12)}


def main() -> None:
    """Run the demo's parts and write their times."""
    n = f"{timing.THREADS} cores, a fresh clone, downloads done"
    timing.write(
        "demo",
        [
            timing.row(
                f"the demo, {part}", f"{minutes} minutes", "<= 1", [run(targets) / 60],
                [float(minutes)], checked="Snakemake's own check of every output", n=n,
            )
            for part, (targets, minutes) in PARTS.items()
        ],
    )  # fmt: skip


def run(targets: Sequence[str]) -> float:
    """Return the seconds that a fresh clone takes to make targets, downloads done."""
    snakemake = [timing.ROOT / ".venv/bin/snakemake", "--cores", str(timing.THREADS)]
    snakemake += ["--configfile", "configs/demo.yaml"]
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "clone"
        subprocess.run(["git", "clone", "--quiet", timing.ROOT, clone], check=True)
        subprocess.run([*snakemake, "--until", "download_source"], check=True, cwd=clone)
        started = time.monotonic()
        subprocess.run([*snakemake, "--", *targets], check=True, cwd=clone)
        return time.monotonic() - started


if __name__ == "__main__":
    main()
