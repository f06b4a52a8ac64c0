"""Describe every file of the run: hash, size, columns, and how it was made."""

from pathlib import Path

from headpursuit.run.files import write_json
from headpursuit.run.manifest import build_manifest
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write the manifest."""
    output, files = Path(snakemake.output[0]), snakemake.input
    results, version = output.absolute().parents[1], snakemake.params.snakemake
    write_json(output, build_manifest(results, Path.cwd(), files, version))


if __name__ == "__main__":
    run_rule(main, snakemake)
