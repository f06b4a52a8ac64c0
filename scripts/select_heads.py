"""Select the top k heads of each ranking among the candidate layers."""

from headpursuit.method.heads import choose_heads, read_ranking, write_conditions
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write condition, layer and head, best first."""
    params, path = snakemake.params, snakemake.input.ranking[0]
    rankings = {method: read_ranking(path, method) for method in params.methods}
    write_conditions(snakemake.output[0], choose_heads(rankings, params.k, params.layers))


if __name__ == "__main__":
    run_rule(main, snakemake)
