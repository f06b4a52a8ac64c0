"""The activation cache: what is averaged, and the file that holds it."""

import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from headpursuit.method.activations import (
    ROW_GROUP,
    pooled_inputs,
    pooled_positions,
    read_layer,
    write_cache,
)
from headpursuit.method.decoder import Decoder
from headpursuit.run.files import UserError, parquet_metadata
from tiny import HEADS, LAYERS
from torch import Tensor

TEXTS = ["apple", "river stone cloud", "the window of a garden\nis open", "silver " * 9]
WHERE = [[0, 1], [1, 3], [2, 3, 4, 5, 6], [9]]  # what is averaged of each


@pytest.fixture
def prompts(tokenizer) -> pa.Table:
    return pa.table({"sample_id": list("abcd"), "token_ids": tokenizer(TEXTS)["input_ids"]})


def naive(decoder: Decoder, ids: list[int], where: list[int]) -> list[Tensor]:
    """Read what each layer's output projection reads of one sample, and average it.

    Gemma 2 normalises what comes out, and so what each position gives has its own weight.
    """
    seen = []
    kind = decoder.model.config.model_type

    def keep(module, args, output):
        scale = (output[0].square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        seen.append((args[0][0] * (scale if kind == "gemma2" else 1))[where].mean(0))

    with ExitStack() as stack, torch.inference_mode():
        for layer in decoder.layers:
            projection = layer.attn.c_proj if kind == "gpt2" else layer.self_attn.o_proj
            stack.enter_context(projection.register_forward_hook(keep))
        decoder.model(torch.tensor([ids]))
    return seen


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 30, 1000])
def test_the_cache_holds_the_mean_of_each_sample(
    model, prompts, tmp_path: Path, family: str, batch_tokens: int
):
    decoder, path = model(family), tmp_path / "cache.parquet"
    rows = prompts["token_ids"].to_pylist()
    pooled = pooled_inputs(decoder, rows, WHERE, 0, batch_tokens)
    write_cache(path, pooled, list("abcd"), "float32", {"heads": HEADS})
    expected = dict(zip("abcd", map(partial(naive, decoder), rows, WHERE), strict=True))
    assert len({tuple(read_layer(path, layer)[0]) for layer in range(LAYERS)}) == 1
    for layer in range(LAYERS):
        found, z = read_layer(path, layer)
        assert sorted(found) == sorted(expected)
        assert z.shape == (len(expected), HEADS, decoder.head_dim)
        for name, own in zip(found, z, strict=True):
            np.testing.assert_allclose(own.ravel(), expected[name][layer], atol=2e-5)


def test_special_tokens_and_the_template_do_not_count(prompts):
    """Unless the config says so; the last token is the last, whatever it is."""
    special = {7, 8}
    ids = prompts["token_ids"].to_pylist()
    own = prompts.append_column("own_positions", pa.array([[1], [1, 3], [], [2]]))
    positions = partial(pooled_positions, own, None)
    # Nothing of c is its own.
    some = (["a", "b", "d"], [ids[0], ids[1], ids[3]], [[1], [1, 3], [2]])
    assert positions("prompt", special) == some
    assert positions("prompt") == (list("abcd"), ids, [list(range(len(row))) for row in ids])
    last = (list("abcd"), ids, [[len(row) - 1] for row in ids])
    assert positions("last", special) == positions("last") == last
    responses = pa.table(
        {
            "sample_id": ["a", "a", "b", "c"],
            "repeat": [0, 1, 0, 1],
            "token_ids": [[5, 6, 7], [8], [], [9]],
        }
    )
    read = [ids[0] + [5, 6, 7], ids[0] + [8], ids[2] + [9]]  # of b's there is nothing
    first, other = len(ids[0]), len(ids[2])
    where = [[first, first + 1, first + 2], [first], [other]]
    assert pooled_positions(own, responses, "response") == (["a/0", "a/1", "c/1"], read, where)
    some = (["a/0", "c/1"], [read[0], read[2]], [[first, first + 1], [other]])
    assert pooled_positions(own, responses, "response", special) == some


def test_no_response_at_all_is_refused(prompts):
    none = pa.table({"sample_id": ["a"], "repeat": [0], "token_ids": [[]]})
    with pytest.raises(UserError, match="No response has a position to average: all are empty"):
        pooled_positions(prompts, none, "response")


# Writing and reading


def batches(values: np.ndarray, size: int = 7) -> Iterator[tuple[list[int], int, Tensor]]:
    """Give values (layers x samples x width) as a model would, a batch and layer at a time."""
    for start in range(0, values.shape[1], size):
        indices = list(range(start, min(start + size, values.shape[1])))
        for layer, own in enumerate(values):
            yield indices, layer, torch.from_numpy(own[indices])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("n", [1, 5, ROW_GROUP, 2 * ROW_GROUP + 3])
def test_a_round_trip(tmp_path: Path, dtype: str, n: int):
    """One file for all layers, each with the samples in the same order."""
    values = np.random.default_rng(0).normal(size=(2, n, 12)).astype(np.float32)
    path = tmp_path / "cache.parquet"
    metadata: dict[str, Any] = {
        "heads": 3, "model": {"name": "tiny", "commit": None}, "positions": "last", "samples": n
    }  # fmt: skip
    write_cache(path, batches(values), [f"s{i}" for i in range(n)], dtype, metadata)
    assert parquet_metadata(path) == metadata
    schema = pq.read_schema(path)
    assert schema.names == ["sample_id", "layer", "z"]
    kind = {"float32": "float", "float16": "halffloat"}[dtype]
    assert str(schema.field("z").type.value_type) == kind
    for layer in (0, 1):
        names, z = read_layer(path, layer)
        assert names == [f"s{i}" for i in range(n)]
        assert z.dtype == np.float32
        np.testing.assert_array_equal(z.reshape(n, 12), values[layer].astype(dtype))
    with pytest.raises(UserError, match="not the activations of 3 heads in layer 2"):
        read_layer(path, 2)


@pytest.mark.parametrize(
    ("bad", "dtype"),
    [(70_000, "float16"), (np.nan, "float32"), (np.inf, "float32"), (-np.inf, "float32")],
)
def test_what_is_not_finite_is_refused_and_leaves_nothing(tmp_path: Path, bad: float, dtype: str):
    values = np.zeros((2, 20, 4), dtype=np.float32)
    values[1, 13, 2] = bad
    names, path = [f"s{i}" for i in range(20)], tmp_path / "cache.parquet"
    message = rf"Layer 1, sample s13: .* not finite in {dtype}"
    with np.errstate(over="ignore"), pytest.raises(UserError, match=message):
        write_cache(path, batches(values), names, dtype, {"heads": 1})
    assert not list(tmp_path.iterdir())
    if dtype == "float16":
        write_cache(path, batches(values), names, "float32", {"heads": 1})


def test_a_cache_with_a_bad_value_is_refused(tmp_path: Path):
    z = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, np.nan, 4.0], pa.float32()), 2)
    table = pa.table({"sample_id": ["a", "b"], "layer": [0, 0], "z": z})
    pq.write_table(table.replace_schema_metadata({"heads": "1"}), tmp_path / "0.parquet")
    with pytest.raises(UserError, match="sample b is not finite"):
        read_layer(tmp_path / "0.parquet", 0)


def test_rows_are_written_as_they_come(tmp_path: Path):
    """The memory needed does not grow with the number of samples."""
    width = 2048

    def stream(n: int) -> Iterator[tuple[list[int], int, Tensor]]:
        for start in range(0, n, 64):
            yield list(range(start, start + 64)), 0, torch.full((64, width), float(start))

    peaks = []
    for n in (2 * ROW_GROUP, 10 * ROW_GROUP):
        path = tmp_path / f"{n}.parquet"
        names = [str(i) for i in range(n)]
        tracemalloc.start()  # numpy reports its arrays to it
        write_cache(path, stream(n), names, "float32", {"heads": 1})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        file = pq.ParquetFile(path)
        assert file.metadata.num_rows == n
        assert file.num_row_groups == n // ROW_GROUP
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 4 * ROW_GROUP * width * 4
