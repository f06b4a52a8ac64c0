"""Take every measure before and after, by sample and by word."""

import pandas as pd
import pyarrow as pa
from headpursuit.method.score import BY_WORD, score_answers, score_counts, score_expected
from headpursuit.method.words import measured_words
from headpursuit.run.files import parquet_metadata, read_parquet, read_responses, write_parquet
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import read_csv


def main(snakemake):
    """Write condition, sample_id, measure, before and after; and the same sums by word."""
    params, files = snakemake.params, snakemake.input
    words = read_csv(files.words[0], ["word", "split"])
    by_word, by_sample, facts = [pd.DataFrame(columns=BY_WORD)], [], {}
    columns = ["condition", "response", "token_ids"]
    responses = {}
    if scaled := files.get("scaled"):
        both = [read_responses(paths, columns) for paths in (files.baseline, scaled)]
        frames = pd.concat([table.to_pandas() for table in both])
        responses = dict(list(frames.groupby("condition", sort=False)))
    if "count" in params.measures:
        found = score_counts(responses, words, params.matching)
        by_word.append(found[0])
        by_sample.append(found[1])
    if "exact_match" in params.measures:
        samples = files.samples[0]
        images = read_parquet(samples, ["sample_id", "label"]).to_pandas()
        classes = parquet_metadata(samples)["classes"]
        by_sample.append(score_answers(responses, images, classes, params.normalise))
        facts["classes"] = len(classes)
    if "expected" in params.measures:
        keys = ["condition", "positions", "nll", "mass"]
        found = score_expected(read_responses(files.expected, keys), words)
        by_word.append(found[0])
        by_sample.append(found[1])
        covered = parquet_metadata(files.expected[0], ["tokens"])["tokens"]
        pairs = zip(covered, measured_words(words), strict=True)
        measured = [bool(own) for own, counts in pairs if counts]
        facts["coverage"] = sum(measured) / len(measured)
    for path, tables in (
        (snakemake.output.by_word, by_word),
        (snakemake.output.by_sample, by_sample),
    ):
        table = pa.Table.from_pandas(pd.concat(tables), preserve_index=False)
        write_parquet(path, table, facts)


if __name__ == "__main__":
    run_rule(main, snakemake)
