"""Decompose every head over the whole vocabulary, and set its atoms against random tokens."""

import pyarrow as pa
from headpursuit.method.decompose import decompose_heads, rank_specialists, vocabulary
from headpursuit.method.models import load_tokenizer, model_folder
from headpursuit.method.tokens import token_texts
from headpursuit.method.weights import HeadWeights
from headpursuit.run.files import parquet_metadata, write_parquet
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import write_csv


def main(snakemake):
    """Write the atoms (layer, head, step, token_id, token, explained), the heads ranked by how well
    few of them explain, and what random sets of tokens explain of each head."""
    params, path, output = snakemake.params, snakemake.input.activations[0], snakemake.output
    weights, pursuit = HeadWeights(snakemake.input.weights), params.pursuit
    tokenizer = load_tokenizer(model_folder(snakemake.input.model, params.model))
    words = vocabulary(weights, tokenizer, pursuit["fold_norm_gain"])
    atoms = decompose_heads(weights, words, path, pursuit)
    ranking, null = rank_specialists(
        weights, words, path, atoms, params.vocabulary, pursuit["center"], params.seed, params.name
    )
    atoms.insert(4, "token", token_texts(tokenizer, atoms["token_id"]))
    cache = parquet_metadata(path, ["samples", "positions"])
    metadata = {"model": weights.model, "pursuit": pursuit, "vocabulary": len(words[0])}
    metadata |= {key: cache[key] for key in ("samples", "positions")}
    write_parquet(output.atoms, pa.Table.from_pandas(atoms), metadata)
    write_csv(output.specialists, ranking)
    write_parquet(output.null, pa.Table.from_pandas(null))


if __name__ == "__main__":
    run_rule(main, snakemake)
