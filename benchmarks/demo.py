"""Time the demo in a fresh clone, downloads done: until its first table, and all of it.

    python benchmarks/demo.py    # as long as the demo takes; then benchmarks/report.py

It clones this checkout's last commit into a temporary folder, runs the demo's downloads, and times
`snakemake --configfile configs/demo.yaml`.
"""

import subprocess
import tempfile
import time
from pathlib import Path

import timing

GOALS = {"its first table": 2, "all of it": 5}  # minutes


def main() -> None:
    """Run the demo and write its times."""
    n = f"{timing.THREADS} cores, a fresh clone, downloads done"
    rows = [
        timing.row(
            f"the demo, {part}", f"{GOALS[part]} minutes", "<= 1", [seconds / 60],
            [float(GOALS[part])], checked="Snakemake's own check of every output", n=n,
        )
        for part, seconds in run().items()
    ]  # fmt: skip
    timing.write("demo", rows)


def run() -> dict[str, float]:
    """Return the seconds that a fresh clone takes until a table is there, and until all is."""
    snakemake = [timing.ROOT / ".venv/bin/snakemake", "--cores", str(timing.THREADS)]
    snakemake += ["--configfile", "configs/demo.yaml"]
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "clone"
        subprocess.run(["git", "clone", "--quiet", timing.ROOT, clone], check=True)
        subprocess.run([*snakemake, "--until", "download_source"], check=True, cwd=clone)
        started = time.time()
        subprocess.run(snakemake, check=True, cwd=clone)
        whole = time.time() - started
        tables = (clone / "results/demo/tables").glob("*.csv")
        first = min(table.stat().st_mtime for table in tables) - started
    return dict(zip(GOALS, (first, whole), strict=True))


if __name__ == "__main__":
    main()
