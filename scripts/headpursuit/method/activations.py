"""The activation cache: what each head's slice of the output projection reads, pooled."""

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from headpursuit.method.batches import Halving, pad, plan_batches
from headpursuit.method.decoder import Decoder, collected
from headpursuit.run.files import UserError, atomic, check_table, parquet_metadata, read_parquet

log = logging.getLogger(__name__)

# Rows held back before they are written; it bounds the memory whatever the number of samples.
ROW_GROUP = 256
# Samples' numbers, layer, and float32 averages, samples x (heads * head_dim).
Pooled = tuple[list[int], int, Tensor]


def pooled_positions(
    prompts: pa.Table,
    responses: pa.Table | None,
    positions: str,
    special: Collection[int] | None = None,
) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Return what is read and which positions of it are averaged.

    Args:
        prompts: table with sample_id, token_ids and, unless ``special`` is None, own_positions.
        responses: the baseline's, with sample_id, repeat and token_ids; only for ``response``.
        positions: ``prompt``, ``last`` or ``response``.
        special: ids of special tokens, which are left out; of a prompt, what the chat template
            writes is left out too. None counts all.

    Returns:
        Sample ids, token ids and positions of each sample that has any; UserError if none has.
    """
    names, rows = prompts["sample_id"].to_pylist(), prompts["token_ids"].to_pylist()
    if positions == "response":
        ids, names, rows, where = dict(zip(names, rows, strict=True)), [], [], []
        for record in responses.select(["sample_id", "repeat", "token_ids"]).to_pylist():
            prompt, response = ids[record["sample_id"]], record["token_ids"]
            names.append(f"{record['sample_id']}/{record['repeat']}")
            rows.append(prompt + response)
            counted = enumerate(response, start=len(prompt))
            where.append([place for place, i in counted if special is None or i not in special])
    elif positions == "last":
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


def pooled_inputs(
    decoder: Decoder,
    rows: Sequence[Sequence[int]],
    where: Sequence[Sequence[int]],
    pad_id: int,
    batch_tokens: int,
) -> Iterator[Pooled]:
    """Run the model over token ids and average what projections read over each row's positions."""

    def encode(batch: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        # Padding is on the right, where causal attention never looks.
        ids, _ = pad([rows[i] for i in batch], pad_id, left=False, device=decoder.device)
        weights = torch.zeros(ids.shape, device=decoder.device)
        for row, i in enumerate(batch):
            weights[row, where[i]] = 1 / len(where[i])
        return {"input_ids": ids}, weights

    def name(i: int) -> str:
        return f"a sample of {len(rows[i])} tokens"

    batches = plan_batches([len(row) for row in rows], batch_tokens)
    yield from averaged(decoder, batches, encode, name)


@torch.inference_mode()
def averaged(
    decoder: Decoder,
    batches: Iterable[Sequence[Any]],
    encode: Callable[[Sequence[Any]], tuple[Mapping[str, Tensor], Tensor]],
    name: Callable[[Any], str],
) -> Iterator[tuple[Sequence[Any], int, Tensor]]:
    """Run the model batch by batch and average each layer's projection input over positions.

    The average over positions commutes with the projection, so the heads' averaged writes can be
    had from it (docs/files.md, activations). Where a norm follows the projection, a position's
    input is multiplied by what that norm multiplies it by, so that averages are of what reaches
    the residual stream.

    Args:
        decoder: the model.
        batches: of samples.
        encode: returns what the model is called with for some samples, and the weight of each
            position in the average, samples x positions.
        name: says which sample, and how large.

    Yields:
        Samples, layer, and averages as in :data:`Pooled`, a batch and layer at a time.
    """

    def read(samples: Sequence[Any]) -> tuple[Sequence[Any], dict[int, Tensor]]:
        inputs, weights = encode(samples)

        def average(layer: int, args: tuple[Tensor], output: Tensor) -> Tensor:
            scale = decoder.frozen_scale(layer, output)
            own = weights if scale is None else weights * scale
            # Some rows at a time, lest float32 copies of a whole batch be made.
            pieces = zip(own.split(8), args[0].split(8), strict=True)
            return torch.cat([torch.einsum("bp,bpk->bk", w, some.float()) for w, some in pieces])

        with collected(decoder.projections, average) as averages:
            decoder.model.base_model(**inputs, use_cache=False)  # the logits are not needed
        return samples, averages

    work = Halving(read, name)
    for batch in tqdm(batches, unit="batch"):
        for samples, averages in work(batch):
            for layer, z in averages.items():
                yield samples, layer, z


def write_cache(
    path: str | Path,
    pooled: Iterable[Pooled],
    names: Sequence[str],
    dtype: str,
    metadata: Mapping[str, Any],
) -> None:
    """Write the pooled inputs as they come, each row group of one layer.

    Samples have the ids ``names``, values the ``dtype`` float32 or float16; ``metadata`` are stored
    in the schema as JSON.

    Raises:
        UserError: at the first value that is not finite, naming layer and sample.
    """
    encoded = {key: json.dumps(value) for key, value in metadata.items()}
    with atomic(path) as part, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for layer, samples, z in _row_groups(pooled, names, dtype):
            layers = pa.array(np.full(len(samples), layer, dtype=np.int16))
            values = pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), z.shape[1])
            table = pa.table({"sample_id": samples, "layer": layers, "z": values})
            table = table.replace_schema_metadata(encoded)
            check_table(path, table)
            if writer is None:
                options = {"compression": "none", "write_page_checksum": True}
                writer = stack.enter_context(
                    pq.ParquetWriter(part, table.schema, use_dictionary=False, **options)
                )
            writer.write_table(table, row_group_size=len(table))


def _row_groups(
    pooled: Iterable[Pooled], names: Sequence[str], dtype: str
) -> Iterator[tuple[int, list[str], np.ndarray]]:
    """Join what comes a batch and layer at a time to row groups: layer, sample ids and values."""
    waiting: dict[int, list[tuple[list[str], np.ndarray]]] = {}

    def joined(layer: int) -> tuple[int, list[str], np.ndarray]:
        samples, values = zip(*waiting.pop(layer), strict=True)
        return layer, list(chain(*samples)), np.concatenate(values)

    for indices, layer, z in pooled:
        samples, values = [names[i] for i in indices], z.cpu().numpy().astype(dtype)
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise UserError(
                f"Layer {layer}, sample {samples[int(bad.argmax())]}: an activation is not finite "
                f"in {dtype}. If the model runs in float16, try bfloat16 or float32."
            )
        waiting.setdefault(layer, []).append((samples, values))
        if sum(len(own) for own, _ in waiting[layer]) >= ROW_GROUP:
            yield joined(layer)
    for layer in sorted(waiting):
        yield joined(layer)


@dataclass(frozen=True)
class Inputs:
    """An activation cache in memory: sample ids, and by layer z, samples x heads x head_dim."""

    names: list[str]
    layers: list[np.ndarray]


def gather(decoder: Decoder, pooled: Iterable[Pooled], names: Sequence[str]) -> Inputs:
    """Return the pooled inputs in the order of the samples, which have the ids ``names``."""
    n_layers, n_heads = decoder.shape
    shape = len(names), n_heads, decoder.head_dim
    layers = [np.empty(shape, np.float32) for _ in range(n_layers)]
    for samples, layer, z in pooled:
        layers[layer][samples] = z.cpu().numpy().reshape(len(samples), n_heads, -1)
    return Inputs(list(names), layers)


def read_layer(path: str | Path | Inputs, layer: int) -> tuple[list[str], np.ndarray]:
    """Return a layer's sample ids, and z as float32 of samples x heads x head_dim.

    Raises:
        UserError: if the file is damaged or a value is not finite.
    """
    if isinstance(path, Inputs):
        return path.names, path.layers[layer]
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
