"""Write the responses to a part of the samples: of the model as it is, or under every condition."""

from headpursuit.method.heads import read_conditions
from headpursuit.method.models import fast_products, open_model
from headpursuit.method.responses import Prompts, write_responses
from headpursuit.method.vision import open_images
from headpursuit.run.experiments import of_images
from headpursuit.run.files import sha256
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write condition, sample_id, repeat, response, n_tokens, stop_reason and token_ids."""
    params, files = snakemake.params, snakemake.input
    conditions = {"baseline": []}
    if heads := files.get("heads"):
        conditions = read_conditions(heads, params.get("conditions"))
    if of_images(params.samples):
        reader, model = open_images(
            files.samples[0],
            params.samples,
            files.model,
            params.model,
            params.device,
            params.batch_images,
        )
        decoder, asked = reader.decoder, reader.question
    else:
        decoder, tokenizer, model = open_model(files.model, params.model, params.device)
        asked = None
        reader = Prompts(
            decoder, tokenizer, files.samples[0], params.generation, params.batch_tokens
        )
    with fast_products(decoder, params.products) as products:
        identity = {
            "model": model,
            "dtype": params.model["dtype"],
            "products": products,
            "device": decoder.device.type,
            "samples": sha256(files.samples[0]),
            "question": asked,
            "batch_images": params.batch_images,
            "code": params.code,
        }
        write_responses(
            snakemake.output[0],
            decoder,
            reader,
            conditions,
            params.get("alpha", 1.0),
            params.generation,
            params.batch_tokens,
            params.seed,
            identity,
            (int(snakemake.wildcards.part), params.parts),
        )


if __name__ == "__main__":
    run_rule(main, snakemake)
