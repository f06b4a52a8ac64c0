"""Judge every answer, strictly and by its first word."""

import pyarrow as pa
from headpursuit.figure1 import score_answers
from headpursuit.files import read_parquet, write_parquet
from headpursuit.rule import run_rule
from headpursuit.tables import read_csv


def main(snakemake):
    """Write condition, image_id, label, strict, first_word and names."""
    columns = ["condition", "image_id", "label", "answer"]
    parts = [read_parquet(path, columns) for path in snakemake.input.answers]
    # Every condition's images in the same order, for the paired bootstrap.
    answers = pa.concat_tables(parts).to_pandas().sort_values(["condition", "image_id"])
    classes = list(read_csv(snakemake.input.classes, ["class_name"])["class_name"])
    scores = score_answers(answers, classes, snakemake.params.normalise)
    table = pa.Table.from_pandas(scores, preserve_index=False)
    write_parquet(snakemake.output[0], table)


if __name__ == "__main__":
    run_rule(main, snakemake)
