"""Turn a concept's words into rows of the unembedding matrix."""

from headpursuit.method.models import load_tokenizer, model_folder
from headpursuit.method.words import build_dictionary, distinct_classes
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import read_csv, write_csv


def main(snakemake):
    """Write word, split, form, starts_word, token_id, token and shared."""
    params = snakemake.params
    concept = params.concept
    words = read_csv(snakemake.input.words[0], ["word", "split"])
    tokenizer = load_tokenizer(model_folder(snakemake.input.model, params.model))
    # Where case counts, a word's rows are those of the case it is listed in.
    cases = ["written"] if concept["case_sensitive"] else concept["cases"]
    table = build_dictionary(
        words, tokenizer, concept["rows"], cases, concept["leading_space"], params.key
    )
    write_csv(snakemake.output[0], distinct_classes(table) if "class_names" in concept else table)


if __name__ == "__main__":
    run_rule(main, snakemake)
