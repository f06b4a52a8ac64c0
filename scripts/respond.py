"""Write the responses to a part of the samples: of the model as it is, or under every condition."""

from pathlib import Path

from headpursuit.method.batches import PartFile
from headpursuit.method.decoder import fast_products
from headpursuit.method.heads import Condition, read_conditions
from headpursuit.method.models import open_model
from headpursuit.method.responses import Prompts, write_responses
from headpursuit.method.vision import open_images
from headpursuit.method.writing import room_of
from headpursuit.run.experiments import of_images
from headpursuit.run.files import read_parquet, sha256
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write condition, sample_id, repeat, response, n_tokens, stop_reason and token_ids."""
    params, files, samples = snakemake.params, snakemake.input, snakemake.input.samples[0]
    opened = files.model, params.model, params.device
    conditions, question = {"baseline": Condition()}, None
    if heads := files.get("heads"):
        conditions = read_conditions(heads, params.get("conditions"), files.get("ranking", ()))
    if of_images(params.samples):
        reader, model = open_images(samples, params.samples, *opened, params.batch_images)
        decoder, question = reader.decoder, reader.question
    else:
        decoder, tokenizer, model = open_model(*opened)
        prompts = read_parquet(samples, ["sample_id", "token_ids"])
        reader = Prompts(decoder, tokenizer, prompts, params.generation, params.batch_tokens)
    with fast_products(decoder, params.products) as products:
        settings = {
            "model": model,
            "dtype": params.model["dtype"],
            "products": products,
            "device": decoder.device.type,
            "samples": sha256(samples),
            "question": question,
            "batch_images": params.batch_images,
            "generation": params.generation,
            "seed": params.seed,
            "code": params.code,
        }
        path, part = Path(snakemake.output[0]), (int(snakemake.wildcards.part), params.parts)
        room = room_of(decoder, params.batch_tokens, params.memory_gb)
        others = sorted(path.parents[2].glob(f"*/*/{path.name}"))
        file = PartFile(path, settings, params.batch_tokens, part, room, others)
        write_responses(file, decoder, reader, conditions)


if __name__ == "__main__":
    run_rule(main, snakemake)
