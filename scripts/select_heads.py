"""Select the top k heads of a ranking among the candidate layers."""

from headpursuit.heads import read_ranking, top_heads, write_heads
from headpursuit.rule import run_rule


def main(snakemake):
    """Write layer and head, best first."""
    ranking = read_ranking(snakemake.input.ranking, snakemake.wildcards.method)
    heads = top_heads(ranking, int(snakemake.wildcards.k), *snakemake.params.layers)
    write_heads(snakemake.output[0], heads)


if __name__ == "__main__":
    run_rule(main, snakemake)
