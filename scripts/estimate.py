"""Reckon what the run takes, and say it."""

from headpursuit.run.estimate import estimate, render
from headpursuit.run.files import write_json, write_text
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write the estimate as JSON and as Markdown, which is also printed."""
    found = estimate(snakemake.params.config, snakemake.params.benchmarks)
    write_json(snakemake.output.json, found)
    write_text(snakemake.output.md, render(found))
    print(render(found))


if __name__ == "__main__":
    run_rule(main, snakemake)
