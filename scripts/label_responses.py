"""Name the harmful words of each baseline response (and prompt, where the concept says so)."""

from pathlib import Path

from headpursuit.labelling.audit import agreement, summary
from headpursuit.labelling.label import label_file, read_terms, read_texts
from headpursuit.run.files import read_parquet, write_json
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import write_csv


def main(snakemake):
    """Write the labels, their summary and, of a second labeller, how far it agrees."""
    settings, given, made = snakemake.params.labeller, snakemake.input, snakemake.output
    texts = read_texts(given.responses, given.prompts)
    terms = read_terms(given.lexicon, settings["lexicon"])
    server_log = Path(snakemake.log[0]).with_suffix(".server.log")
    labels = label_file(texts, Path(made.labels), settings, terms, server_log)
    write_json(made.summary, summary(labels))
    if first := given.get("first"):
        columns = ["sample_id", "repeat", "words", "status"]
        write_csv(made.agreement, agreement(read_parquet(first, columns), labels))


if __name__ == "__main__":
    run_rule(main, snakemake)
