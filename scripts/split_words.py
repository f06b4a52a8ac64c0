"""Take a concept's words, the most frequent ones, and split them into selection and held-out."""

from collections import Counter

from headpursuit.method.words import (
    count_words,
    distinct_words,
    label_counts,
    most_frequent,
    read_word_list,
    split_words,
)
from headpursuit.run.files import parquet_metadata, read_parquet, read_responses
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import write_csv


def listed(snakemake, concept):
    """Return the words of a list, counted in the responses where only the top are used."""
    matching = {name: concept[name] for name in ("case_sensitive", "inflections")}
    words = concept.get("words")
    if not words:
        words = read_word_list(snakemake.input.file[0], f"{snakemake.params.key}.file")
    words = distinct_words(words, matching["case_sensitive"])
    if not concept["top"]:
        return [(word, None) for word in words]
    responses = read_responses(snakemake.input.responses, ["response"])["response"].to_pylist()
    totals = count_words(responses, words, **matching).sum(0).tolist()
    return most_frequent(Counter(dict(zip(words, totals, strict=True))), concept["top"])


def main(snakemake):
    """Write word, count, rank and split."""
    params = snakemake.params
    concept = params.concept
    if "class_names" in concept:
        ranked = [(name, None) for name in parquet_metadata(snakemake.input.samples[0])["classes"]]
    elif snakemake.input.labels:
        labels = read_parquet(snakemake.input.labels[0], ["words"])["words"].to_pylist()
        ranked = most_frequent(label_counts(labels, concept["case_sensitive"]), concept["top"])
    else:
        ranked = listed(snakemake, concept)
    share = concept["selection_share"]
    table = split_words(ranked, share, params.seed, params.name, params.split, params.key)
    write_csv(snakemake.output[0], table)


if __name__ == "__main__":
    run_rule(main, snakemake)
