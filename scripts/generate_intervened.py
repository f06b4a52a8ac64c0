"""Generate the responses to a part of a data set's prompts under each condition of a job."""

from headpursuit.heads import read_heads
from headpursuit.responses import write_responses
from headpursuit.rule import run_rule


def main(snakemake):
    """Write the responses."""
    params = snakemake.params
    conditions = {
        condition: read_heads(path)
        for condition, path in zip(params.conditions, snakemake.input.heads, strict=True)
    }
    write_responses(snakemake, conditions, params.alpha)


if __name__ == "__main__":
    run_rule(main, snakemake)
