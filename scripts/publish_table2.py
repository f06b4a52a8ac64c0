"""Make table 2 as csv, Markdown and LaTeX, and the table of single random draws."""

import pandas as pd
from headpursuit.files import parquet_metadata, read_parquet
from headpursuit.rule import run_rule
from headpursuit.table2 import PER_PROMPT, display, notes, read_published, table2
from headpursuit.tables import write_csv, write_latex, write_markdown


def main(snakemake):
    """Write the four files."""
    params = snakemake.params
    published = read_published(snakemake.input.published)
    tables, draws = [], []
    for dataset, path in zip(params.datasets, snakemake.input.scores, strict=True):
        own, own_draws = table2(
            read_parquet(path, PER_PROMPT).to_pandas(),
            dataset,
            parquet_metadata(path, ["coverage"])["coverage"],
            params.heads,
            params.score,
            published,
            params.published_heads,
            params.seed,
        )
        tables.append(own)
        draws.append(own_draws)
    table = pd.concat(tables, ignore_index=True)
    write_csv(snakemake.output.csv, table)
    write_csv(snakemake.output.draws, pd.concat(draws, ignore_index=True))
    text = display(table, params.spread, params.score["confidence"])
    said = notes(table, params.model, params.score, params.heads["alpha"])
    write_markdown(snakemake.output.md, text, said)
    write_latex(snakemake.output.tex, text, said, "tab:table2")


if __name__ == "__main__":
    run_rule(main, snakemake)
