"""Publish ratios: csv, Markdown and LaTeX, sets of heads compared, single draws, and the figure."""

from headpursuit.publish.against import COMPARED_NOTES, compared_cells
from headpursuit.publish.answer import disagreements
from headpursuit.publish.figure import curve_notes, plot
from headpursuit.publish.overlap import (
    choosers,
    is_crossed,
    overlaps,
    plot_crossed,
    put_rankings,
    ranking_notes,
)
from headpursuit.publish.published import put_published
from headpursuit.publish.ratio import display, notes, ratio_rows, read_scores
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import publish, read_csv, save_figure, write_csv


def main(snakemake):
    """Write the tables and the figure."""
    params, files, output = snakemake.params, snakemake.input, snakemake.output
    own, score = params.experiments, params.score
    scores = read_scores(files.scores, own)
    table, draws, compared = ratio_rows(scores, own, score)
    table = put_rankings(table, dict(zip(own, files.rankings, strict=True)), own)
    published, own_heads = read_csv(files.published), params.publish["published_heads"]
    table = put_published(table, published, params.models, own_heads)
    choices = {name: each["differs"] for name, each in own.items()}
    said = [*notes(table, scores, own, score), *ranking_notes(table, own)]
    said += [*curve_notes(table, choices), *disagreements(table)]
    shown = display(table, compared, params.publish["spread"], score["confidence"])
    publish(output.csv, table, shown, said)
    write_csv(output.draws, draws)
    cells = compared_cells(compared, score["confidence"])
    publish(output.tests, compared, cells, COMPARED_NOTES)
    if is_crossed(table):
        figure = plot_crossed(table, overlaps(*choosers(files.rankings, own)))
    else:
        figure = plot(table, draws, choices, params.publish["colours"])
    save_figure(figure, output.figure)


if __name__ == "__main__":
    run_rule(main, snakemake)
