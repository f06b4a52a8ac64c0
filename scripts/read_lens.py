"""Apply the aggregated logit lens to every head."""

import pyarrow as pa
from headpursuit.method.decompose import read_lens, vocabulary
from headpursuit.method.models import load_tokenizer, model_folder
from headpursuit.method.tokens import token_texts
from headpursuit.method.weights import HeadWeights
from headpursuit.run.files import write_parquet
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write layer, head, place, token_id and token."""
    params, spec = snakemake.params, snakemake.params.vocabulary
    weights = HeadWeights(snakemake.input.weights)
    tokenizer = load_tokenizer(model_folder(snakemake.input.model, params.model))
    words = vocabulary(weights, tokenizer, params.fold_norm_gain)
    path = snakemake.input.activations[0]
    lens = read_lens(weights, words, path, spec["per_sample"], spec["tokens"])
    lens["token"] = token_texts(tokenizer, lens["token_id"])
    write_parquet(snakemake.output[0], pa.Table.from_pandas(lens))


if __name__ == "__main__":
    run_rule(main, snakemake)
