"""Choose every condition's heads on an image data set."""

from headpursuit.figure1 import choose_heads
from headpursuit.rule import run_rule
from headpursuit.tables import read_csv, write_csv


def main(snakemake):
    """Write condition, layer and head."""
    params = snakemake.params
    rankings = {
        method: read_csv(path, ["layer", "head", "rank"])
        for method, path in zip(params.heads["methods"], snakemake.input.rankings, strict=True)
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
