"""Make the table of the heads that concepts share."""

import pandas as pd
from headpursuit.concepts import concept_overlaps, display, notes
from headpursuit.heads import read_ranking
from headpursuit.rule import run_rule
from headpursuit.tables import write_csv, write_latex, write_markdown


def main(snakemake):
    """Write csv, Markdown and LaTeX."""
    params, paths = snakemake.params, iter(snakemake.input)
    tables = []
    for dataset in params.datasets:
        rankings = {name: read_ranking(next(paths), "somp") for name in params.concepts}
        tables.append(concept_overlaps(dataset, rankings, params.k, params.layers))
    table = pd.concat(tables, ignore_index=True)
    write_csv(snakemake.output.csv, table)
    said = notes(params.model, params.layers)
    write_markdown(snakemake.output.md, display(table), said)
    write_latex(snakemake.output.tex, display(table), said, "tab:concepts")


if __name__ == "__main__":
    run_rule(main, snakemake)
