"""Look whether this machine has what the run needs, before the first heavy job."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "0")  # before anything imports huggingface_hub

from pathlib import Path

from headpursuit.run.files import write_json
from headpursuit.run.preflight import preflight
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write a report of device, memory, disk, access and labeller, or say all that is lacking."""
    results = Path(snakemake.output[0]).parent
    report = preflight(snakemake.params.config, Path(snakemake.params.resources), results)
    write_json(snakemake.output[0], report)


if __name__ == "__main__":
    run_rule(main, snakemake)
