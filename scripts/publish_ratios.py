"""Publish ratios: csv, Markdown and LaTeX, the single random draws, and the figure."""

from headpursuit.publish.ratio import (
    display,
    notes,
    put_published,
    ratio_rows,
    read_published,
    read_scores,
)
from headpursuit.publish.ratio_plot import plot
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import save_figure, write_csv, write_latex, write_markdown


def main(snakemake):
    """Write the tables and the figure."""
    params, output = snakemake.params, snakemake.output
    scores = read_scores(snakemake.input.scores, params.experiments, params.score, params.seed)
    table, draws = ratio_rows(scores, params.experiments)
    published = read_published(snakemake.input.published)
    table = put_published(table, published, params.publish["published_heads"])
    facts = {name: own.facts for name, own in scores.items()}
    said = notes(table, facts, params.experiments, params.score, params.seed)
    shown = display(table, params.publish["spread"], params.score["confidence"])
    write_csv(output.csv, table)
    write_csv(output.draws, draws)
    write_markdown(output.md, shown, said)
    write_latex(output.tex, shown, said, f"tab:{snakemake.wildcards.ratios}")
    save_figure(plot(table, draws, params.publish["colours"]), output.figure)


if __name__ == "__main__":
    run_rule(main, snakemake)
