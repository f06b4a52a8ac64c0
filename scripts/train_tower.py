"""Train the demo's vision tower and projector through a frozen language model."""

from headpursuit.data.tower import train_tower
from headpursuit.method.models import model_folder
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write what was trained as float16 safetensors, and its record."""
    params = snakemake.params
    train_tower(
        model_folder(snakemake.input.model, params.language_model),
        snakemake.input.data,
        params.samples,
        params.build,
        params.seed,
        snakemake.output.tower,
        snakemake.output.record,
    )


if __name__ == "__main__":
    run_rule(main, snakemake)
