"""Write the part of a model's weights that rankings, decompositions and lenses read."""

from headpursuit.method.models import open_model
from headpursuit.method.weights import write_weights
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write one safetensors file."""
    model = snakemake.params.model
    # Kernels for quantised weights are mostly a GPU's.
    device = snakemake.params.device if model["bits"] else "cpu"
    decoder, _, identity = open_model(snakemake.input.model, model, device)
    write_weights(snakemake.output[0], decoder, identity)


if __name__ == "__main__":
    run_rule(main, snakemake)
