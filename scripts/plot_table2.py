"""Draw table 2."""

from headpursuit.files import atomic
from headpursuit.rule import run_rule
from headpursuit.table2 import plot
from headpursuit.tables import read_csv


def main(snakemake):
    """Write the figure as pdf and png."""
    table = read_csv(snakemake.input.table, ["dataset", "method", "heads", "metric", "value"])
    draws = read_csv(snakemake.input.draws, ["dataset", "method", "heads", "metric", "value"])
    figure = plot(table, draws, snakemake.params.colours)
    for path in snakemake.output:
        with atomic(path) as part:
            # Without a date, so that the same numbers give the same bytes.
            dateless = {"CreationDate": None} if path.endswith("pdf") else {"Software": None}
            figure.savefig(part, dpi=200, metadata=dateless)


if __name__ == "__main__":
    run_rule(main, snakemake)
