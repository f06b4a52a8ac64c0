"""Put every published value beside this run's."""

from headpursuit.published import compare, display, notes
from headpursuit.rule import run_rule
from headpursuit.table2 import read_published
from headpursuit.tables import read_csv, write_csv, write_latex, write_markdown


def main(snakemake):
    """Write the comparison as csv, Markdown and LaTeX."""
    params, wanted = snakemake.params, ["dataset", "method", "heads", "metric", "value"]
    tables = {"table2": read_csv(snakemake.input.table2, wanted)}
    if snakemake.input.figure1:
        tables["figure1"] = read_csv(snakemake.input.figure1, wanted)
    published = read_published(snakemake.input.published)
    table = compare(
        published,
        tables,
        params.models,
        params.labeller,
        params.settings,
        params.published_heads,
    )
    write_csv(snakemake.output.csv, table)
    said = notes(table, params.run)
    write_markdown(snakemake.output.md, display(table), said)
    write_latex(snakemake.output.tex, display(table), said, "tab:published")


if __name__ == "__main__":
    run_rule(main, snakemake)
