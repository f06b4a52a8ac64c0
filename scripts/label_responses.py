"""Name the harmful words of each baseline response (and prompt, where the concept says so)."""

from pathlib import Path

from headpursuit.labelling.label import label_file, read_terms, read_texts
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write sample_id, repeat (-1: the prompt), reply, words, dropped, status, attempts and cut."""
    settings, asked = snakemake.params.labeller, snakemake.input
    texts = read_texts(asked.responses, asked.prompts)
    terms = read_terms(asked.lexicon, settings["lexicon"])
    server_log = Path(snakemake.log[0]).with_suffix(".server.log")
    label_file(texts, snakemake.output[0], settings, terms, server_log)


if __name__ == "__main__":
    run_rule(main, snakemake)
