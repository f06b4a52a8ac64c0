"""Generate the responses to a part of a data set's prompts without any intervention."""

from headpursuit.responses import write_responses
from headpursuit.rule import run_rule


def main(snakemake):
    """Write the responses."""
    write_responses(snakemake, {"baseline": []}, alpha=1.0)


if __name__ == "__main__":
    run_rule(main, snakemake)
