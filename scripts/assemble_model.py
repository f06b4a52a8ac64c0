"""Put language model, tower and projector together as an image-text model."""

from headpursuit.data.tower import assemble_model
from headpursuit.method.models import model_folder
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Save the model and its processor; its own provenance.json is written last."""
    params = snakemake.params
    assemble_model(
        model_folder(snakemake.input.model, params.language_model),
        snakemake.input.model,
        str(snakemake.input.tower),
        params.tower,
        params.samples,
        snakemake.output[0],
    )


if __name__ == "__main__":
    run_rule(main, snakemake)
