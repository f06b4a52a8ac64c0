"""Measure the probability of the words under every condition, teacher-forced."""

from pathlib import Path

from headpursuit.expected import covered_words, measure_expected
from headpursuit.files import read_parquet, write_parquet
from headpursuit.heads import read_heads
from headpursuit.models import fast_products, open_model
from headpursuit.rule import run_rule
from headpursuit.tables import read_csv


def main(snakemake):
    """Write condition, prompt_id, sample, positions, nll and mass (one value a word)."""
    params = snakemake.params
    prompts = read_parquet(snakemake.input.prompts, ["prompt_id", "token_ids"])
    responses = read_parquet(snakemake.input.responses, ["prompt_id", "sample", "token_ids"])
    words = read_csv(snakemake.input.words, ["word", "split"])
    dictionary = read_csv(snakemake.input.dictionary, ["word", "token_id", "starts_word"])
    covered = covered_words(words, dictionary)
    conditions = {
        condition: read_heads(path)
        for condition, path in zip(params.conditions, snakemake.input.heads, strict=True)
    }
    decoder, tokenizer, provenance = open_model(snakemake.input.model, params.model, params.device)
    identity = {"model": provenance, "dtype": params.model["dtype"], "code": params.code}
    output = Path(snakemake.output[0])
    journal = output.with_name(f".{output.stem}.journal")
    with fast_products(decoder, params.products) as products:
        table = measure_expected(
            decoder,
            tokenizer.pad_token_id,
            prompts,
            responses,
            covered,
            conditions,
            params.alpha,
            params.batch_tokens,
            journal,
            {**identity, "products": products},
            int(snakemake.wildcards.part),
            params.parts,
        )
    metadata = {"words": list(covered), "tokens": list(covered.values()), "model": provenance}
    metadata["products"] = products
    write_parquet(output, table, metadata)
    journal.unlink()


if __name__ == "__main__":
    run_rule(main, snakemake)
