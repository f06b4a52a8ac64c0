"""Count the words under every condition, by word and by prompt."""

import pandas as pd
import pyarrow as pa
from headpursuit.files import parquet_metadata, read_parquet, write_parquet
from headpursuit.rule import run_rule
from headpursuit.score import score_counts, score_expected
from headpursuit.tables import read_csv


def main(snakemake):
    """Write both metrics by word, and those of held-out words by prompt."""
    params = snakemake.params
    words = read_csv(snakemake.input.words, ["word", "split"])
    columns = ["prompt_id", "sample", "response", "token_ids"]
    baseline = read_parquet(snakemake.input.baseline, columns)
    intervened = {
        condition: read_parquet(path, columns)
        for condition, path in zip(params.conditions, snakemake.input.intervened, strict=True)
    }
    count, count_by_prompt = score_counts(baseline, intervened, words, params.matching)
    keys = ["condition", "prompt_id", "sample", "positions", "nll", "mass"]
    parts = [read_parquet(path, keys) for path in snakemake.input.expected]
    # In the same order however many parts there are: sums and the bootstrap depend on it.
    in_order = [("prompt_id", "ascending"), ("sample", "ascending")]
    table = pa.concat_tables(parts).sort_by(in_order)
    expected, expected_by_prompt = score_expected(table, words)
    by_word = pd.concat([count.assign(metric="count"), expected.assign(metric="expected")])
    order = ["metric", "condition", "word", "split", "before", "after"]
    covered = parquet_metadata(snakemake.input.expected[0], ["tokens"])["tokens"]
    heldout = [
        bool(own) for own, split in zip(covered, words["split"], strict=True) if split == "heldout"
    ]
    metadata = {"coverage": sum(heldout) / len(heldout)}
    write_parquet(
        snakemake.output.by_word,
        pa.Table.from_pandas(by_word[order], preserve_index=False),
        metadata,
    )
    by_prompt = expected_by_prompt.merge(count_by_prompt, on=["condition", "prompt_id"], how="left")
    by_prompt.insert(0, "condition", by_prompt.pop("condition"))
    write_parquet(
        snakemake.output.by_prompt,
        pa.Table.from_pandas(by_prompt, preserve_index=False),
        metadata,
    )


if __name__ == "__main__":
    run_rule(main, snakemake)
