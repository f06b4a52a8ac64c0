"""The activation cache: what each head's slice of the output projection reads, pooled."""

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from headpursuit.method.batches import SMALLER, Halving, pad, plan_batches
from headpursuit.method.models import Decoder, projection_inputs
from headpursuit.run.files import UserError, atomic, check_table, parquet_metadata, read_parquet

log = logging.getLogger(__name__)

# Rows held back before they are written; it bounds the memory whatever the number of samples.
ROW_GROUP = 256


def pooled_positions(
    prompts: pa.Table,
    responses: pa.Table | None,
    positions: str,
    special: Collection[int] | None = None,
) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Return what is read and which positions of it are averaged.

    Args:
        prompts: table with sample_id, token_ids and, unless ``special`` is None, own_positions.
        responses: the baseline's responses with sample_id, sample and token_ids; only read for
            ``response``.
        positions: ``prompt``, ``last`` or ``response``.
        special: ids of special tokens, which are left out; of a prompt, what the chat template
            writes is left out too. None counts all.

    Returns:
        Sample ids, token ids and positions of each sample; samples without positions are left out.

    Raises:
        UserError: if no sample is left.
    """
    ids = dict(zip(prompts["sample_id"].to_pylist(), prompts["token_ids"].to_pylist(), strict=True))
    if positions == "response":
        names, rows, where = [], [], []
        for record in responses.select(["sample_id", "repeat", "token_ids"]).to_pylist():
            prompt, response = ids[record["sample_id"]], record["token_ids"]
            names.append(f"{record['sample_id']}/{record['repeat']}")
            rows.append(prompt + response)
            counted = enumerate(response, start=len(prompt))
            where.append([place for place, i in counted if special is None or i not in special])
    else:
        names, rows = list(ids), list(ids.values())
        if positions == "last":
            where = [[len(row) - 1] for row in rows]
        elif special is None:
            where = [list(range(len(row))) for row in rows]
        else:
            where = prompts["own_positions"].to_pylist()
    kept = [sample for sample in zip(names, rows, where, strict=True) if sample[2]]
    if not kept:
        raise UserError(
            f"No {positions} has a position to average: all are empty but for special tokens "
            "(special_tokens)."
        )
    if len(kept) < len(rows):
        log.info("left out %d samples without a position to average", len(rows) - len(kept))
    return tuple(map(list, zip(*kept, strict=True)))


@torch.inference_mode()
def pooled_inputs(
    decoder: Decoder,
    rows: Sequence[Sequence[int]],
    where: Sequence[Sequence[int]],
    pad_id: int,
    batch_tokens: int,
) -> Iterator[tuple[list[int], int, Tensor]]:
    """Run the model and average each layer's projection input over each sample's positions.

    The average over positions commutes with the projection, so the heads' averaged writes can be
    had from it (docs/files.md, activations).

    Yields:
        (indices of the samples, layer, float32 z of samples x (heads * head_dim)), a batch and
        layer at a time.
    """

    def read(batch: Sequence[int]) -> tuple[Sequence[int], dict[int, Tensor]]:
        # Padding is on the right, where causal attention never looks.
        ids, _ = pad([rows[i] for i in batch], pad_id, left=False, device=decoder.device)
        weights = torch.zeros(ids.shape, device=decoder.device)
        for row, i in enumerate(batch):
            weights[row, where[i]] = 1 / len(where[i])
        return batch, averaged_inputs(decoder, weights, input_ids=ids)

    work = Halving(
        read,
        "compute.batch_tokens.reading",
        lambda i: f"a sample of {len(rows[i])} tokens",
        SMALLER,
    )
    for batch in tqdm(plan_batches([len(r) for r in rows], batch_tokens), unit="batch"):
        for samples, averages in work(batch):
            for layer, z in averages.items():
                yield samples, layer, z


def averaged_inputs(decoder: Decoder, weights: Tensor, **inputs: Any) -> dict[int, Tensor]:
    """Run the model and return, by layer, the average of its projection's input over positions.

    Where a norm follows the projection, a position's input is multiplied by what that norm
    multiplies it by, so that averages are of what reaches the residual stream.

    A layer's is averaged as soon as it is there, so that no second one is held in memory.

    Args:
        decoder: the model.
        weights: of each position in the average, batch x positions.
        inputs: what the model is called with.

    Returns:
        Layer to float32 averages, batch x (heads * head_dim).
    """

    def average(z: Tensor, scale: Tensor | None) -> Tensor:
        own = weights if scale is None else weights * scale
        # Some rows at a time, lest float32 copies of a whole batch be made.
        pieces = zip(own.split(8), z.split(8), strict=True)
        return torch.cat([torch.einsum("bp,bpk->bk", w, some.float()) for w, some in pieces])

    with projection_inputs(decoder, range(len(decoder.layers)), average) as averages:
        # The logits are not needed.
        decoder.model.base_model(**inputs, use_cache=False)
    return averages


def write_cache(
    path: str | Path,
    pooled: Iterable[tuple[list[int], int, Tensor]],
    names: Sequence[str],
    dtype: str,
    metadata: Mapping[str, Any],
) -> None:
    """Write the pooled inputs as they come, each row group of one layer.

    Args:
        path: the Parquet file.
        pooled: of :func:`pooled_inputs`.
        names: sample ids.
        dtype: ``float32`` or ``float16``.
        metadata: stored in the schema as JSON.

    Raises:
        UserError: at the first value that is not finite, naming layer and sample.
    """
    encoded = {key: json.dumps(value) for key, value in metadata.items()}
    with atomic(path) as part, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        waiting: dict[int, list[tuple[list[int], np.ndarray]]] = {}

        def flush(layer: int) -> None:
            nonlocal writer
            batches = waiting.pop(layer)
            z = np.concatenate([values for _, values in batches])
            samples = [names[i] for indices, _ in batches for i in indices]
            table = _layer_table(samples, layer, z, encoded)
            check_table(path, table)
            if writer is None:
                writer = stack.enter_context(
                    pq.ParquetWriter(
                        part,
                        table.schema,
                        use_dictionary=False,
                        compression="none",
                        write_page_checksum=True,
                    )
                )
            writer.write_table(table, row_group_size=len(table))

        for indices, layer, z in pooled:
            values = z.cpu().numpy().astype(dtype)
            bad = ~np.isfinite(values).all(axis=1)
            if bad.any():
                raise UserError(
                    f"Layer {layer}, sample {names[indices[int(bad.argmax())]]}: an activation is "
                    f"not finite in {dtype}. If the model runs in float16, try bfloat16 or float32."
                )
            waiting.setdefault(layer, []).append((indices, values))
            if sum(len(own) for own, _ in waiting[layer]) >= ROW_GROUP:
                flush(layer)
        for layer in sorted(waiting):
            flush(layer)
        writer.close()  # the footer must be there before the file is renamed


def _layer_table(
    samples: list[str], layer: int, z: np.ndarray, metadata: Mapping[str, str]
) -> pa.Table:
    values = pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), z.shape[1])
    layers = pa.array(np.full(len(samples), layer, dtype=np.int16))
    table = pa.table({"sample_id": samples, "layer": layers, "z": values})
    return table.replace_schema_metadata(dict(metadata))


def read_layer(path: str | Path, layer: int) -> tuple[list[str], np.ndarray]:
    """Read one layer of a cache.

    Returns:
        Sample ids, and z as float32 of samples x heads x head_dim.

    Raises:
        UserError: if the file is damaged or a value is not finite.
    """
    heads = parquet_metadata(path, ["heads"])["heads"]
    table = read_parquet(path, ["sample_id", "layer", "z"], [("layer", "=", layer)])
    width = getattr(table.schema.field("z").type, "list_size", 0)
    if not len(table) or not width or width % heads or table["z"].null_count:
        raise UserError(
            f"{path}: not the activations of {heads} heads in layer {layer}. Delete it and run "
            "again."
        )
    values = table["z"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    z = values.astype(np.float32).reshape(len(table), heads, -1)
    finite = np.isfinite(z).all(axis=(1, 2))
    names = table["sample_id"].to_pylist()
    if not finite.all():
        raise UserError(
            f"{path}: sample {names[int((~finite).argmax())]} is not finite in layer {layer}. "
            "Delete the file and run again."
        )
    return names, z
