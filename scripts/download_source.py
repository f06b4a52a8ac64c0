"""Download one source of the config's catalogue; provenance.json is written last."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "0")  # before anything imports huggingface_hub

from pathlib import Path

from headpursuit.data.download import download
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Fetch the source into the folder of its provenance.json."""
    folder = Path(snakemake.output[0]).parent
    download(snakemake.wildcards.source, snakemake.params.spec, folder)


if __name__ == "__main__":
    run_rule(main, snakemake)
