"""Pack the run into an RO-Crate."""

from pathlib import Path

from headpursuit.run.crate import write_crate
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write the crate."""
    output = Path(snakemake.output[0]).absolute()
    limit = int(snakemake.params.largest_mb * 1e6)
    write_crate(output, output.parents[1], Path.cwd(), limit, sorted(snakemake.input.pages))


if __name__ == "__main__":
    run_rule(main, snakemake)
