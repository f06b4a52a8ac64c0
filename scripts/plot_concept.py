"""Draw what a concept's words explain of each head."""

from headpursuit.heads import read_ranking, top_heads
from headpursuit.rule import run_rule
from headpursuit.table1 import plot_heads
from headpursuit.tables import save_figure


def main(snakemake):
    """Write the figure as pdf and png."""
    params, values, shown = snakemake.params, {}, {}
    for dataset, path in zip(params.datasets, snakemake.input, strict=True):
        table = read_ranking(path, "somp")
        values[dataset] = table.rename(columns={"score": "value"})
        shown[dataset] = top_heads(table, params.k, *params.layers)
    label = f"variance explained by {snakemake.wildcards.concept}"
    save_figure(plot_heads(values, shown, label), snakemake.output)


if __name__ == "__main__":
    run_rule(main, snakemake)
