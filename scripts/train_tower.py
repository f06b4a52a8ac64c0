"""Train the demo's vision tower and projector through a frozen language model."""

from headpursuit.models import model_folder
from headpursuit.rule import run_rule
from headpursuit.tower import train_tower


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
