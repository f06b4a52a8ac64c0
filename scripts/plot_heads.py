"""Draw what few tokens explain of each head."""

from headpursuit.rule import run_rule
from headpursuit.table1 import plot_heads, shown_heads
from headpursuit.tables import read_csv, save_figure


def main(snakemake):
    """Write the figure as pdf and png."""
    params, values, shown = snakemake.params, {}, {}
    for dataset, path in zip(params.datasets, snakemake.input.specialists, strict=True):
        table = read_csv(path, ["layer", "head", "rank", "explained"])
        values[dataset] = table.rename(columns={"explained": "value"})
        shown[dataset] = shown_heads(params.heads, table, params.top)
    label = f"variance explained by {params.tokens} tokens"
    save_figure(plot_heads(values, shown, label), snakemake.output)


if __name__ == "__main__":
    run_rule(main, snakemake)
