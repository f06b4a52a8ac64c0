"""Write pages of the report, each named by its file."""

from pathlib import Path

from headpursuit.publish.pages import write_page
from headpursuit.run.files import write_text
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write the pages."""
    for path in snakemake.output:
        write_text(path, write_page(Path(path).stem, snakemake.input, Path.cwd()))


if __name__ == "__main__":
    run_rule(main, snakemake)
