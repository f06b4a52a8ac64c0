"""What generate_baseline and generate_intervened share: prompts in, responses out."""

from pathlib import Path
from typing import Any

from headpursuit.files import read_parquet, write_parquet
from headpursuit.generate import generate
from headpursuit.heads import Head
from headpursuit.models import open_model, scaled_heads


def write_responses(snakemake: Any, heads: list[Head], alpha: float) -> None:
    """Generate the responses of a rule's prompts with ``heads`` scaled and write them.

    Finished batches are kept in a journal beside the output until it is there, so that a killed
    job goes on where it was.
    """
    params, output = snakemake.params, Path(snakemake.output[0])
    prompts = read_parquet(snakemake.input.prompts, ["prompt_id", "token_ids"])
    decoder, tokenizer, provenance = open_model(snakemake.input.model, params.model, params.device)
    journal = output.with_name(f".{output.stem}.journal")
    identity = {"model": provenance, "dtype": params.model["dtype"], "heads": heads, "alpha": alpha}
    with scaled_heads(decoder, heads, alpha):
        table = generate(
            decoder, tokenizer, prompts, params.generation, params.seed, journal, identity
        )
    write_parquet(output, table, {**identity, **params.generation, "seed": params.seed})
    journal.unlink()
