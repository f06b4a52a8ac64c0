"""Turn a GGUF model into a folder of float32 safetensors with its tokenizer."""

from pathlib import Path

from headpursuit.data.convert import convert_gguf
from headpursuit.data.sources import source_root, verify
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Dequantise the model of the source; its own provenance.json is written last."""
    model, provenance = snakemake.params.model, snakemake.input.source
    verify(provenance)
    gguf = source_root(provenance) / model["path"] / model["gguf"]
    convert_gguf(gguf, Path(snakemake.output[0]), provenance)


if __name__ == "__main__":
    run_rule(main, snakemake)
