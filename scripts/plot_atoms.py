"""Draw explained variance against the number of atoms."""

from headpursuit.files import read_parquet
from headpursuit.rule import run_rule
from headpursuit.table1 import plot_atoms, shown_heads
from headpursuit.tables import read_csv, save_figure


def main(snakemake):
    """Write the figure as pdf and png."""
    params, files = snakemake.params, snakemake.input
    steps = ["layer", "head", "step"]
    atoms, nulls = (
        {
            dataset: read_parquet(path, [*steps, *columns]).to_pandas()
            for dataset, path in zip(params.datasets, paths, strict=True)
        }
        for paths, columns in (
            (files.atoms, ["token", "explained"]),
            (files.nulls, ["mean", "low", "high"]),
        )
    )
    shown = {
        dataset: shown_heads(params.heads, read_csv(path, ["layer", "head", "rank"]), params.top)
        for dataset, path in zip(params.datasets, files.specialists, strict=True)
    }
    save_figure(plot_atoms(atoms, nulls, shown, params.tokens, params.colours), snakemake.output)


if __name__ == "__main__":
    run_rule(main, snakemake)
