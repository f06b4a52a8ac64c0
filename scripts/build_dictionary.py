"""Turn a data set's words into rows of the unembedding matrix."""

from headpursuit.models import load_tokenizer, model_folder
from headpursuit.rule import run_rule
from headpursuit.tables import read_csv, write_csv
from headpursuit.words import build_dictionary


def main(snakemake):
    """Write word, split, form, starts_word, token_id, token and shared."""
    words = read_csv(snakemake.input.words, ["word", "split"])
    tokenizer = load_tokenizer(model_folder(snakemake.input.model, snakemake.params.model))
    write_csv(
        snakemake.output[0], build_dictionary(words, tokenizer, **snakemake.params.dictionary)
    )


if __name__ == "__main__":
    run_rule(main, snakemake)
