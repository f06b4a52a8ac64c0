"""Generate the responses of a data set's prompts with a condition's heads scaled by alpha."""

from headpursuit.heads import read_heads
from headpursuit.responses import write_responses
from headpursuit.rule import run_rule


def main(snakemake):
    """Write the responses."""
    write_responses(snakemake, read_heads(snakemake.input.heads), snakemake.params.alpha)


if __name__ == "__main__":
    run_rule(main, snakemake)
