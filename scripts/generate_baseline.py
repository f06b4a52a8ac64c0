"""Generate the responses of a data set's prompts without any intervention."""

from headpursuit.responses import write_responses
from headpursuit.rule import run_rule


def main(snakemake):
    """Write the responses."""
    write_responses(snakemake, heads=[], alpha=1.0)


if __name__ == "__main__":
    run_rule(main, snakemake)
