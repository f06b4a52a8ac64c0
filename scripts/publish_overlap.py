"""Make the table of the heads that a table's experiments share, and a map of what they explain."""

from headpursuit.method.heads import read_ranking, top_heads
from headpursuit.publish.overlap import display, notes, overlaps
from headpursuit.publish.table1 import plot_heads
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import publish, save_figure


def main(snakemake):
    """Write csv, Markdown, LaTeX and the figure."""
    own, layers = snakemake.params.experiments, snakemake.params.layers
    rankings = {
        name: read_ranking(path, own[name]["methods"][0])
        for name, path in zip(own, snakemake.input.rankings, strict=True)
    }
    table = overlaps(rankings, own, layers)
    label = f"{snakemake.wildcards.shared}-overlap"
    publish(snakemake.output, table, display(table), notes(own, layers), label)
    shown = {name: top_heads(rankings[name], max(own[name]["k"]), *layers[name]) for name in own}
    figure = plot_heads(rankings, "score", shown, "score of the first method")
    save_figure(figure, snakemake.output.heads)


if __name__ == "__main__":
    run_rule(main, snakemake)
