"""Select the top k heads of each ranking among the candidate layers."""

from headpursuit.method.heads import read_ranking, top_heads, write_heads
from headpursuit.run.experiments import condition_name
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write condition, layer and head, best first."""
    params, path = snakemake.params, snakemake.input.ranking[0]
    rankings = {method: read_ranking(path, method) for method in params.methods}
    chosen = {
        condition_name(method, k): top_heads(ranking, k, *params.layers)
        for k in params.k
        for method, ranking in rankings.items()
    }
    write_heads(snakemake.output[0], chosen)


if __name__ == "__main__":
    run_rule(main, snakemake)
