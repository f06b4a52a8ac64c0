"""Draw the prompts of a data set and render what the model reads."""

from headpursuit.files import write_parquet
from headpursuit.models import load_tokenizer, longest_input, model_folder
from headpursuit.prompts import read_rows, render_prompts, sample_prompts, unique_prompts
from headpursuit.rule import run_rule
from headpursuit.sources import source_files


def main(snakemake):
    """Write prompt_id, text, source, rendered and token_ids."""
    params, dataset = snakemake.params, snakemake.wildcards.dataset
    spec = params.dataset
    files = source_files(snakemake.input.data, spec["files"])
    rows = read_rows(files, spec["text"], spec["where"], f"datasets.{dataset}")
    folder = model_folder(snakemake.input.model, params.model)
    tokenizer, limit = load_tokenizer(folder), longest_input(folder)
    prompts = sample_prompts(
        unique_prompts(rows, dataset),
        spec["sample"],
        params.seed,
        dataset,
        lambda drawn: render_prompts(drawn, spec["template"], tokenizer, params.model["chat"]),
        None if limit is None else limit - params.max_new_tokens,
    )
    metadata = {"template": spec["template"], "chat": params.model["chat"], "seed": params.seed}
    write_parquet(snakemake.output[0], prompts, metadata)


if __name__ == "__main__":
    run_rule(main, snakemake)
