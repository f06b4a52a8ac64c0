"""Rank all heads by how much of what they write the selection words' tokens explain."""

from headpursuit.models import open_model
from headpursuit.ranking import rank_heads
from headpursuit.rule import run_rule
from headpursuit.tables import read_csv, write_csv
from headpursuit.words import unrelated_tokens


def main(snakemake):
    """Write layer, head, score, rank and atoms, best first."""
    params = snakemake.params
    decoder, tokenizer, _ = open_model(snakemake.input.model, params.model, params.device)
    dictionary = read_csv(snakemake.input.dictionary, ["split", "token_id"])
    chosen = dictionary[dictionary["split"] == "selection"]["token_id"]
    token_ids = sorted({int(token_id) for token_id in chosen})
    if snakemake.wildcards.method == "unrelated":
        token_ids = unrelated_tokens(
            snakemake.input.unrelated,
            tokenizer,
            token_ids,
            params.dictionary["cases"],
            params.dictionary["leading_space"],
            params.seed,
            snakemake.wildcards.dataset,
        )
    ranking = rank_heads(
        decoder,
        tokenizer,
        snakemake.input.activations,
        token_ids,
        snakemake.wildcards.method,
        params.pursuit,
    )
    write_csv(snakemake.output[0], ranking)


if __name__ == "__main__":
    run_rule(main, snakemake)
