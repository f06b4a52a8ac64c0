"""Rank all heads by what a dictionary's tokens say of their writes, by every method."""

from headpursuit.method.models import load_tokenizer, model_folder
from headpursuit.method.ranking import rank_heads
from headpursuit.method.weights import HeadWeights
from headpursuit.method.words import unrelated_tokens
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import read_csv, write_csv


def main(snakemake):
    """Write method, layer, head, score, rank and atoms, method by method, best first."""
    params, files = snakemake.params, snakemake.input
    tokenizer = load_tokenizer(model_folder(files.model, params.model))
    dictionary = read_csv(files.dictionary[0], ["token_id", "split"])
    selection = dictionary[dictionary["split"] == "selection"]
    token_ids = sorted(set(selection["token_id"].tolist()))
    dictionaries = dict.fromkeys(("somp", "logit_lens", "unrelated", "size"), token_ids)
    dictionaries["unrelated"] = unrelated_tokens(
        files.unrelated[0],
        tokenizer,
        token_ids,
        params.concept["cases"],
        params.concept["leading_space"],
        params.seed,
        params.name,
    )
    dictionaries = {method: ids for method, ids in dictionaries.items() if ids}
    weights = HeadWeights(files.weights)
    ranking = rank_heads(weights, tokenizer, files.activations[0], dictionaries, params.pursuit)
    write_csv(snakemake.output[0], ranking)


if __name__ == "__main__":
    run_rule(main, snakemake)
