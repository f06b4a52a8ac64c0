"""Turn a concept's words into rows of the unembedding matrix."""

from headpursuit.concepts import concept_dictionary, concept_words
from headpursuit.models import load_tokenizer, model_folder
from headpursuit.rule import run_rule
from headpursuit.tables import write_csv


def main(snakemake):
    """Write word, split, form, token_id and token."""
    params, concept = snakemake.params, snakemake.wildcards.concept
    tokenizer = load_tokenizer(model_folder(snakemake.input.model, params.model))
    words = concept_words(concept, snakemake.input.words or params.words)
    table = concept_dictionary(concept, words, tokenizer, params.rows, params.leading_space)
    write_csv(snakemake.output[0], table)


if __name__ == "__main__":
    run_rule(main, snakemake)
