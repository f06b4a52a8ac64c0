"""Measure the probability of the words under every condition, teacher-forced."""

from pathlib import Path

from headpursuit.method.batches import PartFile
from headpursuit.method.decoder import fast_products
from headpursuit.method.expected import covered_words, measure_expected
from headpursuit.method.heads import Condition, read_conditions
from headpursuit.method.models import open_model
from headpursuit.run.files import read_parquet, read_responses, sha256
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
    scaled = read_conditions(files.heads, params.conditions, files.ranking)
    conditions = {"baseline": Condition(), **scaled}
    decoder, _, model = open_model(files.model, params.model, params.device)
    with fast_products(decoder, params.products) as products:
        settings = {
            "model": model,
            "dtype": params.model["dtype"],
            "products": products,
            "device": decoder.device.type,
            "words": list(covered),
            "tokens": list(covered.values()),
            "responses": [sha256(path) for path in [*files.samples, *files.responses]],
            "code": params.code,
        }
        path, part = Path(snakemake.output[0]), (int(snakemake.wildcards.part), params.parts)
        others = sorted(path.parents[1].glob(f"*/{path.name}"))
        file = PartFile(path, settings, params.batch_tokens, part, others=others)
        measure_expected(file, decoder, prompts, responses, covered, conditions)


if __name__ == "__main__":
    run_rule(main, snakemake)
