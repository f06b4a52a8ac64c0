"""What generate_baseline and generate_intervened share: prompts in, responses out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from headpursuit.files import read_parquet, write_parquet
from headpursuit.generate import generate
from headpursuit.heads import Head
from headpursuit.models import fast_products, open_model, scaled_heads


def write_responses(snakemake: Any, conditions: Mapping[str, Sequence[Head]], alpha: float) -> None:
    """Generate the responses to a part of a rule's prompts under each condition and write them.

    Finished batches are kept in a journal for each condition beside the output until it is
    there, so that a killed job goes on where it was.
    """
    params, output = snakemake.params, Path(snakemake.output[0])
    part = int(snakemake.wildcards.part)
    prompts = read_parquet(snakemake.input.prompts, ["prompt_id", "token_ids"])
    decoder, tokenizer, provenance = open_model(snakemake.input.model, params.model, params.device)
    tables, made_with, journals = [], {}, []
    with fast_products(decoder, params.generation["products"]) as products:
        settings = {**params.generation, "products": products}
        of_model = {"model": provenance, "dtype": params.model["dtype"]}
        for condition, heads in conditions.items():
            identity = {**of_model, "heads": heads, "alpha": alpha}
            journals.append(output.with_name(f".{output.stem}.{condition}.journal"))
            with scaled_heads(decoder, heads, alpha):
                table = generate(
                    decoder, tokenizer, prompts, settings, params.seed, journals[-1],
                    {**identity, "code": params.code}, part, params.parts,
                )  # fmt: skip
            tables.append(table.add_column(0, "condition", pa.repeat(condition, len(table))))
            made_with[condition] = {**identity, **settings, "seed": params.seed}
    write_parquet(output, pa.concat_tables(tables), made_with)
    for journal in journals:
        journal.unlink()
