"""Draw prompts and render what the model reads; or draw images, class by class."""

from headpursuit.data.images import prepare_images
from headpursuit.data.prompts import read_rows, render_prompts, sample_prompts, unique_prompts
from headpursuit.data.sources import source_files
from headpursuit.method.models import load_tokenizer, longest_input, model_folder
from headpursuit.run.experiments import of_images
from headpursuit.run.files import write_parquet
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write sample_id, text, source, references, rendered, token_ids and own_positions; or, of
    images, sample_id, part, source, label, class_name, references and image."""
    params, spec, data = snakemake.params, snakemake.params.samples, snakemake.input.data
    if of_images(spec):
        prepare_images(data, spec, params.seed, params.name, snakemake.output[0])
        return
    rows = read_rows(source_files(data, spec["files"]), spec, f"samples.{params.name}")
    others = ()
    if params.excluded:
        theirs = source_files(snakemake.input.excluded, params.excluded["files"])
        others = read_rows(theirs, params.excluded, f"samples.{spec['excluding']}")
    folder = model_folder(snakemake.input.model, params.model)
    tokenizer, limit = load_tokenizer(folder), longest_input(folder)
    prompts = sample_prompts(
        unique_prompts(rows, params.name, others),
        spec["sample"],
        params.seed,
        params.name,
        lambda drawn: render_prompts(drawn, spec["template"], tokenizer, params.model["chat"]),
        None if limit is None else limit - params.max_new_tokens,
    )
    metadata = {"template": spec["template"], "chat": params.model["chat"], "seed": params.seed}
    write_parquet(snakemake.output[0], prompts, metadata)


if __name__ == "__main__":
    run_rule(main, snakemake)
