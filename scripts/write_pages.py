"""Write pages of the report, each named by its file."""

from pathlib import Path

from headpursuit.publish.pages import write_page
from headpursuit.run.files import write_text
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write the pages; the first leads to the others."""
    first, *others = [Path(path).stem for path in snakemake.output]
    pages = {first: others}
    for path in map(Path, snakemake.output):
        linked = pages.get(path.stem, ())
        write_text(path, write_page(path.stem, snakemake.input, Path.cwd(), linked))


if __name__ == "__main__":
    run_rule(main, snakemake)
