"""Count the questions that a concept's words answer, before a model's time is spent on them."""

from headpursuit.method.answers import answered_by
from headpursuit.run.files import UserError, read_parquet, write_json
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import read_csv


def main(snakemake):
    """Write both numbers; a UserError if no word is a right answer: f1 needs a group of these."""
    params, files = snakemake.params, snakemake.input
    words = read_csv(files.words[0], ["word"])["word"]
    right = read_parquet(files.samples[0], ["references"])["references"].to_pylist()
    found = sum(answered_by(words, own) for own in right)
    if not found:
        raise UserError(
            f"{params.key}: none of its {len(words)} words answers any of the {len(right)} samples "
            f"of {params.name}, and f1 is measured where one does. Use other words, more samples "
            f"(samples.{params.name}.sample), or measures without f1."
        )
    write_json(snakemake.output[0], {"answered": found, "samples": len(right)})


if __name__ == "__main__":
    run_rule(main, snakemake)
