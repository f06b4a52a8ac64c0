"""Publish ratios: csv, Markdown and LaTeX, the single random draws, and the figure."""

from headpursuit.publish.overlap import (
    choosers,
    overlaps,
    plot_crossed,
    put_rankings,
    ranking_notes,
)
from headpursuit.publish.ratio import (
    display,
    notes,
    plot,
    put_published,
    ratio_rows,
    read_scores,
)
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import publish, read_csv, save_figure, write_csv


def main(snakemake):
    """Write the tables and the figure."""
    params, files, output = snakemake.params, snakemake.input, snakemake.output
    own, score, seed = params.experiments, params.score, params.seed
    scores = read_scores(files.scores, own)
    table, draws = ratio_rows(scores, own, score, seed)
    table = put_rankings(table, dict(zip(own, files.rankings, strict=True)), own)
    published, own_heads = read_csv(files.published), params.publish["published_heads"]
    table = put_published(table, published, params.models, own_heads)
    said = [*notes(table, scores, own, score, seed), *ranking_notes(table, own)]
    shown = display(table, params.publish["spread"], score["confidence"])
    publish(output, table, shown, said, snakemake.wildcards.ratios)
    write_csv(output.draws, draws)
    if table["heads_from"].notna().any():
        figure = plot_crossed(table, overlaps(*choosers(files.rankings, own)))
    else:
        figure = plot(table, draws, params.publish["colours"])
    save_figure(figure, output.figure)


if __name__ == "__main__":
    run_rule(main, snakemake)
