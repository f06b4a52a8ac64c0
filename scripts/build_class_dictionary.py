"""Turn a data set's class names into rows of the unembedding matrix."""

from headpursuit.models import load_tokenizer, model_folder
from headpursuit.rule import run_rule
from headpursuit.tables import read_csv, write_csv
from headpursuit.words import class_dictionary


def main(snakemake):
    """Write class_name, form, token_id and token."""
    names = list(read_csv(snakemake.input.classes, ["class_name"])["class_name"])
    tokenizer = load_tokenizer(model_folder(snakemake.input.model, snakemake.params.model))
    write_csv(
        snakemake.output[0], class_dictionary(names, tokenizer, **snakemake.params.dictionary)
    )


if __name__ == "__main__":
    run_rule(main, snakemake)
