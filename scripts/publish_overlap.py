"""Make the table of the heads that a table's experiments share, and a map of what they explain."""

from headpursuit.method.heads import top_heads
from headpursuit.publish.overlap import choosers, concept_tokens, display, notes, overlaps
from headpursuit.publish.table1 import plot_heads
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import publish, save_figure


def main(snakemake):
    """Write csv, Markdown, LaTeX and the figure."""
    files, experiments = snakemake.input, snakemake.params.experiments
    rankings, own = choosers(files.rankings, experiments)
    who = [each["heads_from"] or name for name, each in experiments.items()]
    tokens = dict(zip(who, map(concept_tokens, files.dictionaries), strict=True))
    table = overlaps(rankings, own, tokens)
    publish(snakemake.output.csv, table, display(table), notes(own))
    shown = {
        name: top_heads(rankings[name], max(each["k"]), *each["layers"])
        for name, each in own.items()
    }
    figure = plot_heads(rankings, "score", shown, "score of the first method")
    save_figure(figure, snakemake.output.heads)


if __name__ == "__main__":
    run_rule(main, snakemake)
