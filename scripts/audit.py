"""Describe every file of the run: hash, size, columns, and how it was made."""

from pathlib import Path

from headpursuit.run.files import write_json
from headpursuit.run.manifest import build_manifest
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write the manifest."""
    output, version = Path(snakemake.output[0]), snakemake.params.snakemake
    results = output.absolute().parents[1]
    write_json(output, build_manifest(results, Path.cwd(), snakemake.input, version))


if __name__ == "__main__":
    run_rule(main, snakemake)
