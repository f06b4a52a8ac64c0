"""Take a concept's words, the most frequent ones, and split them into selection and held-out."""

import logging
from collections import Counter

from headpursuit.method.answers import answered_by
from headpursuit.method.words import (
    count_words,
    distinct_words,
    label_counts,
    most_frequent,
    read_word_list,
    split_words,
)
from headpursuit.run.files import UserError, parquet_metadata, read_parquet, read_responses
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import write_csv

log = logging.getLogger(__name__)


def listed(snakemake, concept):
    """Return the words of a list, counted in the responses where only the top are used."""
    key = snakemake.params.key
    matching = {name: concept[name] for name in ("case_sensitive", "inflections")}
    words = concept.get("words") or read_word_list(snakemake.input.file[0], f"{key}.file")
    words = distinct_words(words, matching["case_sensitive"], key)
    if not concept["top"]:
        return [(word, None) for word in words]
    responses = read_responses(snakemake.input.responses, ["response"])["response"].to_pylist()
    totals = count_words(responses, words, **matching).sum(0).tolist()
    return most_frequent(Counter(dict(zip(words, totals, strict=True))), concept["top"])


def refuse_unanswered(samples, words, params):
    """Raise a UserError if none of the words is a right answer: f1 needs a group of these."""
    right = read_parquet(samples, ["references"])["references"].to_pylist()
    found = sum(answered_by(words, own) for own in right)
    log.info("%d of %d samples of %s are answered by a word", found, len(right), params.name)
    if not found:
        raise UserError(
            f"{params.key}: none of its {len(words)} words answers any of the {len(right)} samples "
            f"of {params.name}, and f1 is measured where one does. Use other words, more samples "
            f"(samples.{params.name}.sample), or measures without f1."
        )


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
    if answers := snakemake.input.get("answers"):
        refuse_unanswered(answers[0], [word for word, _ in ranked], params)
    share = concept["selection_share"]
    table = split_words(ranked, share, params.seed, params.name, params.split)
    write_csv(snakemake.output[0], table)


if __name__ == "__main__":
    run_rule(main, snakemake)
