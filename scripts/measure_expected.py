"""Measure the probability of the words under every condition, teacher-forced."""

from pathlib import Path

from headpursuit.expected import covered_words, measure_expected
from headpursuit.files import read_parquet, read_responses, write_parquet
from headpursuit.heads import read_conditions
from headpursuit.models import fast_products, open_model
from headpursuit.rule import run_rule
from headpursuit.tables import read_csv


def main(snakemake):
    """Write condition, sample_id, repeat, positions, nll and mass (one value a word)."""
    params, files = snakemake.params, snakemake.input
    prompts = read_parquet(files.samples[0], ["sample_id", "token_ids"])
    responses = read_responses(files.responses, ["token_ids"])
    words = read_csv(files.words[0], ["word", "split"])
    dictionary = read_csv(files.dictionary[0], ["word", "token_id", "starts_word"])
    covered = covered_words(words, dictionary)
    conditions = read_conditions(files.heads, params.conditions)
    decoder, tokenizer, model = open_model(files.model, params.model, params.device)
    output = Path(snakemake.output[0])
    journal = output.with_name(f".{output.stem}.journal")
    with fast_products(decoder, params.products) as products:
        identity = {"model": model, "dtype": params.model["dtype"], "code": params.code}
        identity |= {"products": products, "device": decoder.device.type}
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
            identity,
            int(snakemake.wildcards.part),
            params.parts,
        )
    metadata = {"words": list(covered), "tokens": list(covered.values()), "model": model}
    write_parquet(output, table, {**metadata, "products": products})
    journal.unlink()


if __name__ == "__main__":
    run_rule(main, snakemake)
