"""Make the table of the heads that a table's experiments share, and a map of what they explain."""

from headpursuit.method.heads import top_heads
from headpursuit.publish.overlap import choosers, concept_tokens, display, notes, overlaps
from headpursuit.publish.table1 import plot_heads
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import publish, save_figure


def main(snakemake):
    """Write csv, Markdown, LaTeX and the figure."""
    read, experiments = snakemake.input.rankings, snakemake.params.experiments
    rankings, own, layers = choosers(read, experiments)
    who = [each["heads_from"] or name for name, each in experiments.items()]
    read_by = dict(zip(who, snakemake.input.dictionaries, strict=True))
    tokens = {name: concept_tokens(read_by[name]) for name in own}
    table = overlaps(rankings, own, layers, tokens)
    label = f"{snakemake.wildcards.shared}-overlap"
    publish(snakemake.output, table, display(table), notes(own, layers), label)
    shown = {name: top_heads(rankings[name], max(own[name]["k"]), *layers[name]) for name in own}
    figure = plot_heads(rankings, "score", shown, "score of the first method")
    save_figure(figure, snakemake.output.heads)


if __name__ == "__main__":
    run_rule(main, snakemake)
