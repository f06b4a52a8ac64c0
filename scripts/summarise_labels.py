"""Sum up what the labeller did, with masked words: for programs and for the report."""

from headpursuit.labelling.audit import summary, summary_html
from headpursuit.run.files import read_parquet, write_json, write_text
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write the summary as JSON and as a page."""
    facts = summary(read_parquet(snakemake.input[0], ["status", "words", "dropped", "cut"]))
    write_json(snakemake.output.json, facts)
    title = f"Labels of {snakemake.wildcards.experiment}"
    write_text(snakemake.output.html, summary_html(facts, title))


if __name__ == "__main__":
    run_rule(main, snakemake)
