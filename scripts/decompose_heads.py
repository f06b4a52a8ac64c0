"""Decompose every head into atoms out of the whole vocabulary."""

import pyarrow as pa
from headpursuit.decompose import decompose_heads, vocabulary
from headpursuit.files import parquet_metadata, write_parquet
from headpursuit.models import load_tokenizer, model_folder
from headpursuit.rule import run_rule
from headpursuit.tokens import token_texts
from headpursuit.weights import HeadWeights


def main(snakemake):
    """Write layer, head, step, token_id, token and explained."""
    params, paths = snakemake.params, snakemake.input.activations
    weights = HeadWeights(snakemake.input.weights)
    tokenizer = load_tokenizer(model_folder(snakemake.input.model, params.model))
    words = vocabulary(weights, tokenizer, params.pursuit["fold_norm_gain"])
    atoms = decompose_heads(weights, words, paths, params.iterations, params.pursuit)
    atoms.insert(4, "token", token_texts(tokenizer, atoms["token_id"]))
    cache = parquet_metadata(paths[0], ["samples", "positions"])
    metadata = {
        "model": weights.model,
        "pursuit": params.pursuit | {"iterations": params.iterations},
        "vocabulary": len(words[0]),
        "samples": cache["samples"],
        "positions": cache["positions"],
    }
    write_parquet(snakemake.output[0], pa.Table.from_pandas(atoms), metadata)


if __name__ == "__main__":
    run_rule(main, snakemake)
