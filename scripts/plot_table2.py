"""Draw table 2."""

from headpursuit.rule import run_rule
from headpursuit.table2 import plot
from headpursuit.tables import read_csv, save_figure


def main(snakemake):
    """Write the figure as pdf and png."""
    table = read_csv(snakemake.input.table, ["dataset", "method", "heads", "metric", "value"])
    draws = read_csv(snakemake.input.draws, ["dataset", "method", "heads", "metric", "value"])
    save_figure(plot(table, draws, snakemake.params.colours), snakemake.output)


if __name__ == "__main__":
    run_rule(main, snakemake)
