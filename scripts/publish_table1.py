"""Make table 1 as csv, Markdown and LaTeX."""

import pandas as pd
from headpursuit.files import parquet_metadata, read_parquet
from headpursuit.rule import run_rule
from headpursuit.table1 import display, notes, read_published_tokens, shown_heads, table1
from headpursuit.tables import read_csv, write_csv, write_latex, write_markdown


def main(snakemake):
    """Write the three files."""
    params, files = snakemake.params, snakemake.input
    spec = params.table1
    tables, counts = [], {}
    paths = zip(params.datasets, files.atoms, files.lens, files.specialists, strict=True)
    for dataset, atoms, lens, ranking in paths:
        specialists = read_csv(ranking, ["layer", "head", "rank", "explained", "coherence"])
        tables.append(
            table1(
                dataset,
                shown_heads(spec["heads"], specialists, spec["top"]),
                read_parquet(atoms, ["layer", "head", "step", "token"]).to_pandas(),
                read_parquet(lens, ["layer", "head", "place", "token"]).to_pandas(),
                specialists,
                read_published_tokens(files.published, dataset, params.model_id),
                spec["tokens"],
            )
        )
        counts[dataset] = parquet_metadata(atoms) | {"heads": len(specialists)}
    table = pd.concat(tables, ignore_index=True)
    write_csv(snakemake.output.csv, table)
    said = notes(counts, params.model, spec, params.seed)
    write_markdown(snakemake.output.md, display(table), said)
    write_latex(snakemake.output.tex, display(table), said, "tab:table1")


if __name__ == "__main__":
    run_rule(main, snakemake)
