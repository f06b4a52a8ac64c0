"""Ask about the evaluation images, as the model is and under every condition."""

from headpursuit.files import sha256
from headpursuit.heads import read_conditions
from headpursuit.images import image_ids, stream_images
from headpursuit.models import fast_products
from headpursuit.rule import run_rule
from headpursuit.vision import open_vlm, write_answers


def main(snakemake):
    """Write condition, image_id, label, answer, n_tokens and stop_reason."""
    params = snakemake.params
    conditions = read_conditions(snakemake.input.heads, snakemake.wildcards.dataset, params.crossed)
    part, size = int(snakemake.wildcards.part), params.batch_images
    # Whole batches, so that they are the same however many parts there are.
    batches = -(-len(image_ids(snakemake.input.images, "evaluation")) // size)
    first, end = (batches * at // params.parts * size for at in (part - 1, part))
    decoder, processor, question, provenance = open_vlm(
        snakemake.input.model,
        params.model,
        params.device,
        params.template,
        params.object,
        snakemake.input.classes,
    )
    metadata = {"model": provenance, "question": question, "alpha": params.alpha}
    identity = {
        "images": sha256(snakemake.input.images),
        "model_files": sha256(snakemake.input.model),  # its record, which has their checksums
        "batch_images": size,
        "dtype": params.model["dtype"],
        "device": decoder.device.type,
        "code": params.code,
    }
    with fast_products(decoder, params.products) as products:
        write_answers(
            snakemake.output[0],
            decoder,
            processor,
            question,
            enumerate(
                stream_images(snakemake.input.images, "evaluation", size, first, end),
                start=first // size,
            ),
            conditions,
            params.alpha,
            params.max_new_tokens,
            params.batch_tokens,
            {**metadata, "products": products},
            identity,
        )


if __name__ == "__main__":
    run_rule(main, snakemake)
