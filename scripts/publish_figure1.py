"""Make figure 1's table as csv, Markdown and LaTeX, its draws, overlap and crossed heads."""

import pandas as pd
from headpursuit.figure1 import cross, display, figure1, notes, overlap
from headpursuit.files import read_parquet
from headpursuit.rule import run_rule
from headpursuit.table2 import read_published
from headpursuit.tables import read_csv, write_csv, write_latex, write_markdown


def main(snakemake):
    """Write the six files."""
    params = snakemake.params
    published = read_published(snakemake.input.published)
    names, heads, score = params.datasets, params.heads, params.score
    wanted = ["condition", "image_id", "label", "strict", "first_word", "names"]
    scores = {
        name: read_parquet(path, wanted).to_pandas()
        for name, path in zip(names, snakemake.input.scores, strict=True)
    }
    columns = ["condition", "layer", "head"]
    chosen = {
        name: read_csv(path, columns)
        for name, path in zip(names, snakemake.input.heads, strict=True)
    }
    classes = {
        name: len(read_csv(path, ["class_name"]))
        for name, path in zip(names, snakemake.input.classes, strict=True)
    }
    made = [
        figure1(own, name, heads, score, published, params.published_heads, params.seed)
        for name, own in scores.items()
    ]
    table = pd.concat([rows for rows, _ in made], ignore_index=True)
    method, ks = heads["methods"][0], heads["k"]
    write_csv(snakemake.output.csv, table)
    write_csv(snakemake.output.draws, pd.concat([draws for _, draws in made]))
    write_csv(snakemake.output.overlap, overlap(chosen, method, ks))
    write_csv(snakemake.output.cross, cross(scores, method, ks, score, params.seed))
    text = display(table, params.spread, score["confidence"])
    settings = {
        "score": score,
        "alpha": heads["alpha"],
        "seed": params.seed,
        "iterations": params.iterations,
    }
    said = notes(table, classes, params.model, settings)
    write_markdown(snakemake.output.md, text, said)
    write_latex(snakemake.output.tex, text, said, "tab:figure1")


if __name__ == "__main__":
    run_rule(main, snakemake)
