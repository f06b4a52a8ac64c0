"""Cache the input of every layer's attention output projection, averaged over positions."""

from headpursuit.method.activations import pooled_inputs, pooled_positions, write_cache
from headpursuit.method.models import open_model
from headpursuit.method.special import special_tokens
from headpursuit.method.vision import open_images
from headpursuit.run.files import parquet_metadata, read_parquet, read_responses
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write sample_id, layer and z; each row group is of one layer."""
    params, files = snakemake.params, snakemake.input
    samples = files.samples[0]
    metadata = {"positions": params.positions, "special_tokens": params.special_tokens}
    if params.positions == "image":
        reader, model = open_images(
            samples, params.samples, files.model, params.model, params.device, params.batch_images
        )
        decoder = reader.decoder
        selected = read_parquet(samples, ["sample_id"], [("part", "=", "selection")])
        names = selected["sample_id"].to_pylist()
        metadata |= {"samples": len(names), "question": reader.question}
        pooled = reader.pooled_inputs()
    else:
        prompts = read_parquet(samples, ["sample_id", "token_ids", "own_positions"])
        responses = None
        if params.positions == "response":
            responses = read_responses(files.responses, ["token_ids"])
        decoder, tokenizer, model = open_model(files.model, params.model, params.device)
        special = None if params.special_tokens else special_tokens(tokenizer)
        names, rows, where = pooled_positions(prompts, responses, params.positions, special)
        metadata |= {
            "samples": len(rows),
            "tokens": sum(map(len, rows)),
            "pooled_tokens": sum(map(len, where)),
            "prompts": parquet_metadata(samples),
        }
        pooled = pooled_inputs(decoder, rows, where, tokenizer.pad_token_id, params.batch_tokens)
    metadata |= {"model": model, "heads": decoder.n_heads}
    write_cache(snakemake.output[0], pooled, names, params.dtype, metadata)


if __name__ == "__main__":
    run_rule(main, snakemake)
