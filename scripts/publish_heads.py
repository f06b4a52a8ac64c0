"""Make a table of what single heads write, and its figures."""

from headpursuit.publish.table1 import (
    display,
    notes,
    plot_atoms,
    plot_heads,
    shown_heads,
    table1,
)
from headpursuit.publish.texts import by_text
from headpursuit.run.files import parquet_metadata, read_parquet
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import lay_out, publish, read_csv, save_figure

STEPS = ["layer", "head", "step"]


def main(snakemake):
    """Write csv, Markdown and LaTeX, a heat map of all heads, and curves of those shown."""
    params, files, output = snakemake.params, snakemake.input, snakemake.output
    own, printed = params.experiments, read_csv(files.published)

    def tables(paths, columns):
        return {
            name: read_parquet(path, columns).to_pandas()
            for name, path in zip(own, paths, strict=True)
        }

    specialists = dict(zip(own, map(read_csv, files.specialists), strict=True))
    facts = dict(zip(own, map(parquet_metadata, files.atoms), strict=True))
    atoms = tables(files.atoms, [*STEPS, "token", "explained"])
    lens = tables(files.lens, ["layer", "head", "place", "token"])
    nulls = tables(files.nulls, [*STEPS, "mean", "low", "high"])
    tokens = {name: spec["vocabulary"]["tokens"] for name, spec in own.items()}
    shown, rows = {}, []
    for name, spec in own.items():
        shown[name] = shown_heads(spec["vocabulary"], specialists[name])
        # Heads of another model share nothing with these but their numbers.
        alike = printed["model"] == params.models[spec["model"]]
        published = printed[alike & (printed["dataset"] == spec["samples"])]
        measured = (atoms[name], lens[name], specialists[name])
        rows += table1(name, shown[name], *measured, published, tokens[name])
    table = lay_out("tables/{table}.csv", rows)
    said = notes(facts, specialists, own, params.seed)
    publish(output.csv, table, display(table), said)
    label = f"variance explained by {by_text({n: str(k) for n, k in tokens.items()})} tokens"
    save_figure(plot_heads(specialists, "explained", shown, label), output.heads)
    save_figure(plot_atoms(atoms, nulls, shown, tokens, params.colours), output.atoms)


if __name__ == "__main__":
    run_rule(main, snakemake)
