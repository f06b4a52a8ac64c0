"""Measure the probability of the words under every condition, teacher-forced."""

from pathlib import Path

from headpursuit.method.expected import covered_words, measure_expected
from headpursuit.method.heads import read_conditions
from headpursuit.method.models import fast_products, open_model
from headpursuit.run.files import finished, read_parquet, read_responses, sha256, write_together
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import read_csv


def main(snakemake):
    """Write condition, sample_id, repeat, positions, nll and mass (one value a word)."""
    params, files = snakemake.params, snakemake.input
    prompts = read_parquet(files.samples[0], ["sample_id", "token_ids"])
    responses = read_responses(files.responses, ["token_ids"])
    words = read_csv(files.words[0], ["word", "split"])
    dictionary = read_csv(files.dictionary[0], ["word", "token_id", "starts_word"])
    covered = covered_words(words, dictionary)
    conditions = {"baseline": [], **read_conditions(files.heads, params.conditions)}
    decoder, tokenizer, model = open_model(files.model, params.model, params.device)
    output = Path(snakemake.output[0])
    journal = output.with_name(f".{output.stem}.journal")
    with fast_products(decoder, params.products) as products:
        identity = {
            "model": model,
            "dtype": params.model["dtype"],
            "products": products,
            "device": decoder.device.type,
            "alpha": params.alpha,
            "words": list(covered),
            "tokens": list(covered.values()),
            "responses": [sha256(path) for path in [*files.samples, *files.responses]],
            "part": [int(snakemake.wildcards.part), params.parts],
            "code": params.code,
        }
        kept = finished(output, identity, conditions)
        there = set() if kept is None else set(kept["condition"].to_pylist())
        pending = {name: heads for name, heads in conditions.items() if name not in there}
        table = measure_expected(
            decoder,
            tokenizer.pad_token_id,
            prompts,
            responses,
            covered,
            pending,
            params.alpha,
            params.batch_tokens,
            journal,
            identity,
            int(snakemake.wildcards.part),
            params.parts,
        )
    write_together(output, [kept, table], conditions, identity, tokens=list(covered.values()))
    journal.unlink()


if __name__ == "__main__":
    run_rule(main, snakemake)
