"""Put every published value beside this run's."""

import pandas as pd
from headpursuit.publish.published import compare, compare_tokens, display, notes
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import publish, read_csv


def read_all(paths):
    """Read tables into one."""
    return pd.concat(map(read_csv, paths)) if paths else pd.DataFrame()


def main(snakemake):
    """Write the comparison as csv, Markdown and LaTeX."""
    params, files = snakemake.params, snakemake.input
    ratios, heads = (
        pd.concat([*map(read_csv, own)] or [pd.DataFrame()]) for own in (files.tables, files.heads)
    )
    values = compare(
        read_csv(files.published),
        ratios,
        params.models,
        params.labeller,
        params.settings,
        params.published_heads,
    )
    tokens = compare_tokens(read_csv(files.tokens), heads, params.settings)
    table = pd.concat([values, tokens], ignore_index=True)
    publish(snakemake.output, table, display(table), notes(table, params.run), "published")


if __name__ == "__main__":
    run_rule(main, snakemake)
