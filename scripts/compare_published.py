"""Put what the paper says beside what this run says: every published value, and every claim."""

import pandas as pd
from headpursuit.publish import claims
from headpursuit.publish.published import compare, compare_tokens, display, notes
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import publish, read_csv


def read_all(paths):
    """Read tables into one."""
    return pd.concat(map(read_csv, paths)) if paths else pd.DataFrame()


def main(snakemake):
    """Write the comparison and the verdicts as csv, Markdown and LaTeX."""
    params, files, output = snakemake.params, snakemake.input, snakemake.output
    values = compare(
        read_csv(files.published),
        read_all(files.tables),
        params.models,
        params.labeller,
        params.settings,
        params.published_heads,
    )
    tokens = compare_tokens(read_csv(files.tokens), read_all(files.heads), params.settings)
    table = pd.concat([values, tokens], ignore_index=True)
    publish(output.csv, table, display(table), notes(table, params.run))
    run = claims.Run(
        read_all(files.tests),
        read_all(files.overlaps),
        params.experiments,
        params.published_heads,
        params.confidence,
    )
    verdicts = claims.judge(claims.read_claims(files.claims), run)
    models = [params.models[own["model"]] for own in params.experiments.values()]
    said = claims.notes(verdicts, params.run, list(dict.fromkeys(models)), params.confidence)
    publish(output.claims, verdicts, claims.display(verdicts, params.confidence), said)


if __name__ == "__main__":
    run_rule(main, snakemake)
