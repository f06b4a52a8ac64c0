"""Rank all heads by how much of what they write a dictionary's tokens explain."""

from headpursuit.models import load_tokenizer, model_folder
from headpursuit.ranking import rank_heads
from headpursuit.rule import run_rule
from headpursuit.tables import read_csv, write_csv
from headpursuit.weights import HeadWeights
from headpursuit.words import unrelated_tokens


def main(snakemake):
    """Write method, layer, head, score, rank and atoms, method by method, best first."""
    params, files = snakemake.params, snakemake.input
    tokenizer = load_tokenizer(model_folder(files.model, params.model))
    dictionary = read_csv(files.dictionary, ["token_id", *(["split"] if params.split else [])])
    if params.split:
        dictionary = dictionary[dictionary["split"] == params.split]
    token_ids = sorted({int(token_id) for token_id in dictionary["token_id"]})
    dictionaries = dict.fromkeys(params.methods, token_ids)
    if "unrelated" in dictionaries:
        dictionaries["unrelated"] = unrelated_tokens(
            files.unrelated,
            tokenizer,
            token_ids,
            params.dictionary["cases"],
            params.dictionary["leading_space"],
            params.seed,
            snakemake.wildcards.dataset,
        )
    weights = HeadWeights(files.weights)
    ranking = rank_heads(weights, tokenizer, files.activations, dictionaries, params.pursuit)
    write_csv(snakemake.output[0], ranking)


if __name__ == "__main__":
    run_rule(main, snakemake)
