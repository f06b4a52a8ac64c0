"""What generate_baseline and generate_intervened share: prompts in, responses out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headpursuit.files import read_parquet, write_parquet
from headpursuit.generate import generate
from headpursuit.heads import Head
from headpursuit.models import fast_products, open_model


def write_responses(snakemake: Any, conditions: Mapping[str, Sequence[Head]], alpha: float) -> None:
    """Generate the responses to a part of a rule's prompts under each condition and write them.

    Finished batches are kept in a journal beside the output until it is there, so that a killed
    job goes on where it was.
    """
    params, output = snakemake.params, Path(snakemake.output[0])
    part = int(snakemake.wildcards.part)
    prompts = read_parquet(snakemake.input.prompts, ["prompt_id", "token_ids"])
    decoder, tokenizer, provenance = open_model(snakemake.input.model, params.model, params.device)
    journal = output.with_name(f".{output.stem}.journal")
    with fast_products(decoder, params.generation["products"]) as products:
        settings = {**params.generation, "products": products}
        identity = {"model": provenance, "dtype": params.model["dtype"]}
        table = generate(
            decoder, tokenizer, prompts, conditions, alpha, settings, params.seed, journal,
            {**identity, "code": params.code}, part, params.parts,
        )  # fmt: skip
    made_with = {
        condition: {**identity, "heads": heads, "alpha": alpha, **settings, "seed": params.seed}
        for condition, heads in conditions.items()
    }
    write_parquet(output, table, made_with)
    journal.unlink()
