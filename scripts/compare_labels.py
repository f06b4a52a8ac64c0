"""How far two labellers agree, by response and by word."""

import logging

from headpursuit.labelling.audit import agreement
from headpursuit.run.files import read_parquet
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import write_csv

COLUMNS = ["sample_id", "repeat", "words", "status"]


def main(snakemake):
    """Write scope, word, responses, first, second, both, precision, recall and kappa."""
    first = read_parquet(snakemake.input.first, COLUMNS)
    second = read_parquet(snakemake.input.second, COLUMNS)
    table = agreement(first, second)
    logging.info("kappa of responses: %s", table["kappa"].iloc[0])
    write_csv(snakemake.output[0], table)


if __name__ == "__main__":
    run_rule(main, snakemake)
