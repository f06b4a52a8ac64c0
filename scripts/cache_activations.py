"""Cache the pooled input of every layer's attention output projection."""

import json

from headpursuit.activations import pooled_inputs, pooled_positions, write_cache
from headpursuit.files import parquet_metadata, read_parquet
from headpursuit.models import open_model
from headpursuit.rule import run_rule
from headpursuit.special import special_tokens


def main(snakemake):
    """Write a Parquet file a layer: sample_id, layer and z."""
    params, spec = snakemake.params, snakemake.params.activations
    prompts = read_parquet(snakemake.input.prompts, ["prompt_id", "token_ids", "own_positions"])
    responses = None
    if spec["positions"] == "response":
        columns = ["prompt_id", "sample", "token_ids"]
        responses = read_parquet(snakemake.input.responses, columns)
    decoder, tokenizer, provenance = open_model(snakemake.input.model, params.model, params.device)
    special = None if spec["special_tokens"] else special_tokens(tokenizer)
    names, rows, where = pooled_positions(prompts, responses, spec["positions"], special)
    metadata = {
        "model": provenance,
        "heads": decoder.n_heads,
        "positions": spec["positions"],
        "special_tokens": spec["special_tokens"],
        "samples": len(rows),
        "tokens": sum(map(len, rows)),
        "pooled_tokens": sum(map(len, where)),
        "prompts": parquet_metadata(snakemake.input.prompts),
    }
    pooled = pooled_inputs(decoder, rows, where, tokenizer.pad_token_id, spec["batch_tokens"])
    encoded = {key: json.dumps(value) for key, value in metadata.items()}
    write_cache(snakemake.output, pooled, names, spec["dtype"], encoded)


if __name__ == "__main__":
    run_rule(main, snakemake)
