"""Rank all heads by how much of what they write at image tokens the class names explain."""

from headpursuit.models import open_model
from headpursuit.ranking import rank_heads
from headpursuit.rule import run_rule
from headpursuit.tables import read_csv, write_csv
from headpursuit.words import unrelated_tokens


def main(snakemake):
    """Write layer, head, score, rank and atoms, best first."""
    params, wildcards = snakemake.params, snakemake.wildcards
    decoder, tokenizer, _ = open_model(snakemake.input.model, params.model, params.device)
    dictionary = read_csv(snakemake.input.dictionary, ["token_id"])
    token_ids = sorted({int(token_id) for token_id in dictionary["token_id"]})
    if wildcards.method == "unrelated":
        token_ids = unrelated_tokens(
            snakemake.input.unrelated,
            tokenizer,
            token_ids,
            params.dictionary["cases"],
            params.dictionary["leading_space"],
            params.seed,
            wildcards.dataset,
        )
    ranking = rank_heads(
        decoder,
        tokenizer,
        snakemake.input.activations,
        token_ids,
        wildcards.method,
        params.pursuit,
    )
    write_csv(snakemake.output[0], ranking)


if __name__ == "__main__":
    run_rule(main, snakemake)
