"""Make the table of the heads that a table's experiments share, and a map of what they explain."""

from headpursuit.method.heads import read_ranking, top_heads
from headpursuit.publish.overlap import display, notes, overlaps
from headpursuit.publish.table1 import plot_heads
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import save_figure, write_csv, write_latex, write_markdown


def main(snakemake):
    """Write csv, Markdown, LaTeX and the figure."""
    params, output = snakemake.params, snakemake.output
    name = snakemake.wildcards.shared
    rankings = {
        experiment: read_ranking(path, spec["methods"][0])
        for (experiment, spec), path in zip(
            params.experiments.items(), snakemake.input.rankings, strict=True
        )
    }
    table = overlaps(rankings, params.experiments, params.layers)
    write_csv(output.csv, table)
    said = notes(params.experiments, params.layers)
    write_markdown(output.md, display(table), said)
    write_latex(output.tex, display(table), said, f"tab:{name}-overlap")
    values = {key: own.rename(columns={"score": "value"}) for key, own in rankings.items()}
    shown = {
        key: top_heads(own, max(params.experiments[key]["k"]), *params.layers[key])
        for key, own in rankings.items()
    }
    save_figure(plot_heads(values, shown, "score of the first method"), output.heads)


if __name__ == "__main__":
    run_rule(main, snakemake)
