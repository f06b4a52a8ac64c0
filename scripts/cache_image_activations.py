"""Cache the input of every layer's attention output projection, pooled over image tokens."""

import json

from headpursuit.activations import write_cache
from headpursuit.images import image_ids
from headpursuit.rule import run_rule
from headpursuit.vision import open_vlm, pooled_image_inputs


def main(snakemake):
    """Write a Parquet file a layer: sample_id, layer and z."""
    params, images = snakemake.params, snakemake.input.images
    decoder, processor, question, provenance = open_vlm(
        snakemake.input.model,
        params.model,
        params.device,
        params.template,
        params.object,
        snakemake.input.classes,
    )
    names = image_ids(images, "selection")
    metadata = {
        "model": provenance,
        "heads": decoder.n_heads,
        "positions": "image",
        "samples": len(names),
        "question": question,
    }
    pooled = pooled_image_inputs(
        decoder, processor, question, images, "selection", params.batch_images
    )
    encoded = {key: json.dumps(value) for key, value in metadata.items()}
    write_cache(snakemake.output, pooled, names, params.dtype, encoded)


if __name__ == "__main__":
    run_rule(main, snakemake)
