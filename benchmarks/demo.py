"""Time the demo in a fresh clone, downloads done: the text part, then all that is left of it.

    python benchmarks/demo.py    # about 20 minutes; then benchmarks/report.py

It clones this checkout's last commit into a temporary folder, runs the demo's downloads, and times
the rest of `snakemake --configfile configs/demo.yaml`: first tables 1 and 2 with all that leads to
them, then what is left.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import measure

TEXT = ["table1", "table2"]  # rules
MINUTES = {"text part": 8, "all, with figure 1": 12}


def main() -> None:
    """Run the demo and write the two times."""
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(measure.ROOT), str(clone)], check=True)
        snakemake = [str(measure.ROOT / ".venv/bin/snakemake"), "--cores", str(measure.THREADS)]
        snakemake += ["--configfile", "configs/demo.yaml"]

        def run(*targets: str) -> float:
            started = time.monotonic()
            subprocess.run([*snakemake, *targets], check=True, cwd=clone, env=os.environ)
            return time.monotonic() - started

        run("--until", "download_source")
        text = run("--", *TEXT)
        seconds = {"text part": text, "all, with figure 1": text + run()}
    n = f"{measure.THREADS} cores, a fresh clone, downloads done"
    measure.write(
        "demo",
        [
            measure.row(
                f"the demo, {part}", f"{minutes} minutes", "<= 1", [seconds[part] / 60],
                [float(minutes)], checked="Snakemake's own check of every output", n=n,
            )
            for part, minutes in MINUTES.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
