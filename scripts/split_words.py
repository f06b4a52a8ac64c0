"""Take the most frequent words and split them into selection and held-out words."""

from collections import Counter

from headpursuit.files import read_parquet
from headpursuit.rule import run_rule
from headpursuit.tables import write_csv
from headpursuit.words import count_words, label_counts, read_word_list, split_words


def main(snakemake):
    """Write word, count, rank and split."""
    spec, matching = snakemake.params.words, snakemake.params.matching
    if spec["file"] is not None:
        words = read_word_list(snakemake.input.words, matching["case_sensitive"])
        responses = read_parquet(snakemake.input.responses, ["response"])["response"].to_pylist()
        totals = count_words(responses, words, **matching).sum(0).tolist()
        counts = Counter(dict(zip(words, totals, strict=True)))
    else:
        labels = read_parquet(snakemake.input.labels, ["words"])["words"].to_pylist()
        counts = label_counts(labels, matching["case_sensitive"])
    dataset = snakemake.wildcards.dataset
    table = split_words(
        counts, spec["top"], spec["selection_share"], snakemake.params.seed, dataset
    )
    write_csv(snakemake.output[0], table)


if __name__ == "__main__":
    run_rule(main, snakemake)
