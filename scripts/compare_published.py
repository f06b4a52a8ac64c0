"""Put every published value beside this run's."""

import pandas as pd
from headpursuit.publish.published import compare, display, notes
from headpursuit.publish.ratio import COLUMNS, read_published
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import read_csv, write_csv, write_latex, write_markdown


def main(snakemake):
    """Write the comparison as csv, Markdown and LaTeX."""
    params, output = snakemake.params, snakemake.output
    tables = [read_csv(path, COLUMNS) for path in snakemake.input.tables]
    ratios = pd.concat(tables) if tables else pd.DataFrame(columns=COLUMNS)
    table = compare(
        read_published(snakemake.input.published),
        ratios,
        params.models,
        params.labeller,
        params.settings,
        params.published_heads,
    )
    write_csv(output.csv, table)
    said = notes(table, params.run)
    write_markdown(output.md, display(table), said)
    write_latex(output.tex, display(table), said, "tab:published")


if __name__ == "__main__":
    run_rule(main, snakemake)
