"""Put every published value beside this run's."""

import pandas as pd
from headpursuit.publish.published import compare, display, notes
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import publish, read_csv


def main(snakemake):
    """Write the comparison as csv, Markdown and LaTeX."""
    params, files = snakemake.params, snakemake.input
    tables = list(map(read_csv, files.tables))
    table = compare(
        read_csv(files.published),
        pd.concat(tables) if tables else pd.DataFrame(),
        params.models,
        params.labeller,
        params.settings,
        params.published_heads,
    )
    publish(snakemake.output, table, display(table), notes(table, params.run), "published")


if __name__ == "__main__":
    run_rule(main, snakemake)
