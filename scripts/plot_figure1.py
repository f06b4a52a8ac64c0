"""Draw figure 1, and the overlap of head sets between data sets."""

from headpursuit.figure1 import plot, plot_overlap
from headpursuit.rule import run_rule
from headpursuit.tables import read_csv, save_figure


def main(snakemake):
    """Write both figures as pdf and png."""
    table = read_csv(snakemake.input.table, ["dataset", "method", "heads", "metric", "value"])
    draws = read_csv(snakemake.input.draws, ["dataset", "method", "heads", "metric", "value"])
    overlaps = read_csv(snakemake.input.overlap, ["heads", "dataset", "other", "jaccard"])
    crossed = read_csv(snakemake.input.cross, ["heads", "dataset", "heads_from", "value"])
    save_figure(plot(table, draws, snakemake.params.colours), snakemake.output.bars)
    save_figure(plot_overlap(overlaps, crossed), snakemake.output.overlap)


if __name__ == "__main__":
    run_rule(main, snakemake)
