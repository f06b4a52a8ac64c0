"""Name the harmful words of each baseline response (and prompt), or the keywords of each image."""

import logging
from pathlib import Path

import pyarrow as pa
from headpursuit.data.prompts import read_rows
from headpursuit.data.sources import source_files
from headpursuit.labelling.audit import agreement, summary
from headpursuit.labelling.label import label_responses, open_backend
from headpursuit.run.files import read_parquet, read_responses, write_json, write_parquet
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import write_csv


def main(snakemake):
    """Write the labels, their summary and, of a second labeller, how far it agrees."""
    given, made = snakemake.input, snakemake.output
    labels = label(read_images(given) if given.images else read_texts(given), snakemake)
    write_parquet(made.labels, labels)
    facts = summary(labels, masked=not given.images)
    write_json(made.summary, facts)
    if missing := facts["refused"] + facts["unparsed"]:
        told = "%d of %d have no label: see status and reply in %s"
        logging.warning(told, missing, facts["responses"], made.labels)
    if first := getattr(given, "first", None):
        columns = ["sample_id", "repeat", "words", "status"]
        write_csv(made.agreement, agreement(read_parquet(first, columns), labels))


def read_texts(given):
    """Return the baseline's responses and, as repeat -1, the prompts."""
    tables = [read_responses(given.responses, ["response"])]
    for path in given.prompts:
        texts = read_parquet(path, ["sample_id", "text"])
        tables.append(with_repeat(texts.rename_columns(["sample_id", "response"]), -1))
    return pa.concat_tables(tables)


def read_images(given):
    """Return the images that choose heads, encoded as in the source."""
    selected = [("part", "=", "selection")]
    return with_repeat(read_parquet(given.images[0], ["sample_id", "image"], selected), 0)


def with_repeat(table, repeat):
    """Add the column that tells the responses to one prompt apart."""
    return table.add_column(1, "repeat", pa.array([repeat] * len(table), pa.int32()))


def label(asked, snakemake):
    """Ask the backend; the journal beside the labels outlasts the job, which goes on from it."""
    settings, path = snakemake.params.labeller, Path(snakemake.output.labels)
    server_log = Path(snakemake.log[0]).with_suffix(".server.log")
    # A word list is asked again in no time.
    journal = None if settings["backend"] == "lexicon" else path.with_suffix(".journal.jsonl")
    limits = {"attempts": settings["attempts"], "patience": settings["patience"]}
    terms = read_terms(snakemake.input.lexicon, settings["lexicon"])
    with open_backend(settings, asked[-1].to_pylist(), terms, server_log) as backend:
        return label_responses(asked, backend, journal, **limits)


def read_terms(lexicon, spec):
    """Read a word list out of a source (its provenance.json); without one there are no terms."""
    if not lexicon:
        return []
    files = source_files(str(lexicon), spec["files"])
    return [word for _, word in read_rows(files, spec, "labeller.lexicon")]


if __name__ == "__main__":
    run_rule(main, snakemake)
