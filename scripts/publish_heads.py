"""Make a table of what single heads write, and its figures."""

import pandas as pd
from headpursuit.publish.table1 import (
    display,
    notes,
    plot_atoms,
    plot_heads,
    read_published_tokens,
    shown_heads,
    table1,
)
from headpursuit.run.files import parquet_metadata, read_parquet
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import read_csv, save_figure, write_csv, write_latex, write_markdown

STEPS = ["layer", "head", "step"]


def main(snakemake):
    """Write csv, Markdown and LaTeX, a heat map of all heads, and curves of those shown."""
    params, files, output = snakemake.params, snakemake.input, snakemake.output
    name = snakemake.wildcards.heads_table
    own = params.experiments
    ranked = ["layer", "head", "rank", "explained", "coherence"]
    specialists = dict(
        zip(own, (read_csv(path, ranked) for path in files.specialists), strict=True)
    )
    atoms, lens, nulls = (
        dict(zip(own, (read_parquet(path, columns).to_pandas() for path in paths), strict=True))
        for paths, columns in (
            (files.atoms, [*STEPS, "token", "explained"]),
            (files.lens, ["layer", "head", "place", "token"]),
            (files.nulls, [*STEPS, "mean", "low", "high"]),
        )
    )
    shown = {
        experiment: shown_heads(spec["vocabulary"], specialists[experiment])
        for experiment, spec in own.items()
    }
    table = pd.concat(
        [
            table1(
                experiment,
                shown[experiment],
                atoms[experiment],
                lens[experiment],
                specialists[experiment],
                read_published_tokens(
                    files.published, spec["samples"], params.models[spec["model"]]
                ),
                spec["vocabulary"]["tokens"],
            )
            for experiment, spec in own.items()
        ],
        ignore_index=True,
    )
    write_csv(output.csv, table)
    counts = {
        experiment: parquet_metadata(path) | {"heads": len(specialists[experiment])}
        for experiment, path in zip(own, files.atoms, strict=True)
    }
    said = notes(counts, own, params.seed)
    write_markdown(output.md, display(table), said)
    write_latex(output.tex, display(table), said, f"tab:{name}")
    values = {key: each.rename(columns={"explained": "value"}) for key, each in specialists.items()}
    tokens = next(iter(own.values()))["vocabulary"]["tokens"]
    save_figure(plot_heads(values, shown, f"variance explained by {tokens} tokens"), output.heads)
    save_figure(plot_atoms(atoms, nulls, shown, tokens, params.colours), output.atoms)


if __name__ == "__main__":
    run_rule(main, snakemake)
