"""Write pages of the report, each named by its file."""

from pathlib import Path

from headpursuit.publish.pages import write_page
from headpursuit.run.files import write_text
from headpursuit.run.finished import read_run
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write the pages."""
    files = snakemake.input
    run = read_run(Path(files.config).parent)
    for path in snakemake.output:
        write_text(path, write_page(Path(path).stem, run, files, Path.cwd()))


if __name__ == "__main__":
    run_rule(main, snakemake)
