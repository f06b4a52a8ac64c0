"""Choose every condition's heads on an image data set."""

from headpursuit.figure1 import choose_heads
from headpursuit.heads import read_ranking
from headpursuit.rule import run_rule
from headpursuit.tables import write_csv


def main(snakemake):
    """Write condition, layer and head."""
    params = snakemake.params
    rankings = {
        method: read_ranking(snakemake.input.ranking, method) for method in params.heads["methods"]
    }
    table = choose_heads(
        rankings,
        params.heads,
        params.layers,
        params.n_heads,
        params.seed,
        snakemake.wildcards.dataset,
    )
    write_csv(snakemake.output[0], table)


if __name__ == "__main__":
    run_rule(main, snakemake)
