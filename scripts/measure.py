"""Take every measure before and after, by sample and by word."""

import pandas as pd
import pyarrow as pa
from headpursuit.method.classifier import label_probabilities
from headpursuit.method.score import (
    BY_WORD,
    score_answers,
    score_cider,
    score_counts,
    score_expected,
    score_f1,
    score_lengths,
    score_toxicity,
)
from headpursuit.method.words import measured_words
from headpursuit.run.files import parquet_metadata, read_parquet, read_responses, write_parquet
from headpursuit.run.rule import run_rule
from headpursuit.run.tables import read_csv


def main(snakemake):
    """Write condition, sample_id, measure, before and after; and the same sums by word."""
    params, files, output = snakemake.params, snakemake.input, snakemake.output
    words = read_csv(files.words[0], ["word", "split"])
    by_word, by_sample, facts = [pd.DataFrame(columns=BY_WORD)], [], {}
    if scaled := files.get("scaled"):
        columns = ["condition", "response", "token_ids"]
        both = [read_responses(paths, columns).to_pandas() for paths in (files.baseline, scaled)]
        responses = pd.concat(both, ignore_index=True)
    if "occurrences" in params.measures:
        words_of, samples_of = score_counts(responses, words, params.matching)
        by_word.append(words_of)
        by_sample.append(samples_of)
    if "toxicity" in params.measures:
        texts = responses["response"]
        probability, found = label_probabilities(texts, files.classifier, params.classifier)
        by_sample.append(score_toxicity(responses, probability, found["threshold"]))
        n = int((responses["condition"] == "baseline").sum())
        facts["classifier"] = {**found, "responses": n}
    if {"occurrences", "toxicity", "cider"} & set(params.measures):
        by_sample.append(score_lengths(responses))
    if "exact_match" in params.measures:
        images = read_parquet(files.samples[0], ["sample_id", "label"]).to_pandas()
        classes = parquet_metadata(files.samples[0])["classes"]
        by_sample.append(score_answers(responses, images, classes, params.normalise))
        facts["classes"] = len(classes)
    if {"f1", "cider"} & set(params.measures):
        table = read_parquet(files.samples[0], ["sample_id", "references"]).to_pandas()
        answered = table[table["sample_id"].isin(responses["sample_id"])]
        references = dict(zip(answered["sample_id"], answered["references"], strict=True))
        facts["references"] = [fewest(map(len, references.values())) for fewest in (min, max)]
    if "f1" in params.measures:
        by_sample.append(score_f1(responses, references, words["word"]))
    if "cider" in params.measures:
        by_sample.append(score_cider(responses, references))
    if "expected" in params.measures:
        keys = ["condition", "positions", "nll", "mass"]
        words_of, samples_of = score_expected(read_responses(files.expected, keys), words)
        by_word.append(words_of)
        by_sample.append(samples_of)
        tokens = parquet_metadata(files.expected[0], ["tokens"])["tokens"]
        pairs = zip(tokens, measured_words(words), strict=True)
        measured = [bool(own) for own, counts in pairs if counts]
        facts["coverage"] = sum(measured) / len(measured)
    for path, tables in ((output.by_word, by_word), (output.by_sample, by_sample)):
        write_parquet(path, pa.Table.from_pandas(pd.concat(tables), preserve_index=False), facts)


if __name__ == "__main__":
    run_rule(main, snakemake)
