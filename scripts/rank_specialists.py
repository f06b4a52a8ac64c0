"""Rank heads by how well few tokens explain them, against random tokens."""

import pyarrow as pa
from headpursuit.decompose import rank_specialists, vocabulary
from headpursuit.files import read_parquet, write_parquet
from headpursuit.models import load_tokenizer, model_folder
from headpursuit.rule import run_rule
from headpursuit.tables import write_csv
from headpursuit.weights import HeadWeights


def main(snakemake):
    """Write the ranking, and what random sets of tokens explain of each head."""
    params, columns = snakemake.params, ["layer", "head", "step", "token_id", "explained"]
    weights = HeadWeights(snakemake.input.weights)
    tokenizer = load_tokenizer(model_folder(snakemake.input.model, params.model))
    ranking, null = rank_specialists(
        weights,
        vocabulary(weights, tokenizer, params.fold_norm_gain),
        snakemake.input.activations,
        read_parquet(snakemake.input.atoms, columns).to_pandas(),
        params.tokens,
        params.random_sets,
        params.center,
        params.seed,
        snakemake.wildcards.dataset,
    )
    write_csv(snakemake.output.ranking, ranking)
    write_parquet(snakemake.output.null, pa.Table.from_pandas(null))


if __name__ == "__main__":
    run_rule(main, snakemake)
