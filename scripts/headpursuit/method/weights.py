"""The weights that rankings, decompositions and lenses read, in a file of their own.

A head's write needs its layer's output projection, and a dictionary needs rows of the unembedding:
a tenth of a 7B model. With them in a file, nothing that follows loads the model or needs a GPU.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headpursuit.method.decoder import Decoder, by_head, parameter_of
from headpursuit.run.files import UserError, atomic


def write_weights(path: str | Path, decoder: Decoder, identity: Mapping[str, Any]) -> None:
    """Write a model's :class:`HeadWeights`, in its own number format; gains are float32.

    The file appears whole or not at all. ``identity`` is what open_model says of the model.
    """
    tensors = {name: own.detach().cpu().contiguous() for name, own in _tensors(decoder).items()}
    about = {
        "layers": len(decoder.layers),
        "heads": decoder.n_heads,
        "head_dim": decoder.head_dim,
        "model": identity,
        "crc32": {name: _crc32(tensor) for name, tensor in tensors.items()},
    }
    with atomic(path) as part:
        # In one text: safetensors writes several in any order.
        save_file(tensors, part, {"about": json.dumps(about)})


def _tensors(decoder: Decoder) -> dict[str, Tensor]:
    base = decoder.language_model
    final = base.ln_f if decoder.model.config.model_type == "gpt2" else base.norm
    unembedding = parameter_of(decoder.model.get_output_embeddings())
    if unembedding is None:
        raise UserError(
            "The model's unembedding is quantised, and dictionaries are rows of a plain one. Take "
            "a model whose lm_head was left as it is."
        )
    tensors = {"unembedding": unembedding, "final_gain": decoder.gain(final)}
    for layer in range(len(decoder.layers)):
        tensors[f"projection.{layer}"] = decoder.matrix(layer)
        if (gain := decoder.post_gain(layer)) is not None:
            tensors[f"post_gain.{layer}"] = gain
    return tensors


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(tensor.view(torch.uint8).numpy())


class HeadWeights:
    """A model's output projections, unembedding and gains, read from their file layer by layer.

    Attributes:
        shape: (layers, heads a layer).
        model: what identifies the model (name and commit, version or checksum).
        rows: of the unembedding; those behind the last token belong to none.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file of :func:`write_weights`; UserError if it is damaged."""
        self._path = path
        try:
            self._file = safe_open(path, "pt")
            about = json.loads(self._file.metadata()["about"])
            self.rows: int = self._file.get_slice("unembedding").get_shape()[0]
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise self._damaged(error) from error
        self.shape: tuple[int, int] = about["layers"], about["heads"]
        self.model: dict[str, Any] = about["model"]
        self._crc32: dict[str, int] = about["crc32"]
        self._names = self._crc32.keys()

    def layer_columns(self, layer: int) -> Tensor:
        """Return what takes a layer's cached inputs to the stream, heads x d x head_dim.

        As :meth:`headpursuit.method.decoder.Decoder.layer_columns` does, bit by bit.
        """
        gain = self._read(f"post_gain.{layer}") if f"post_gain.{layer}" in self._names else None
        return by_head(self._read(f"projection.{layer}"), self.shape[1], gain)

    def unembedding(self, token_ids: Sequence[int], fold_norm_gain: bool) -> Tensor:
        """Return rows of the unembedding matrix as float32, tokens x d.

        With ``fold_norm_gain`` they are multiplied by the final norm's gain, and so the directions
        of the residual stream that raise the logits.
        """
        rows = self._read("unembedding")[torch.as_tensor(token_ids)].float()
        return rows * self._read("final_gain") if fold_norm_gain else rows

    def mean_row(self, token_ids: Sequence[int]) -> Tensor:
        """Return the mean (d) of rows of the unembedding, the final norm's gain folded in."""
        rows = self._read("unembedding")
        # Some at a time: in float32 a whole vocabulary may have gigabytes.
        parts = torch.as_tensor(token_ids).split(4096)
        total = sum(rows[part].double().sum(0) for part in parts)
        return (total / len(token_ids)).float() * self._read("final_gain")

    def _read(self, name: str) -> Tensor:
        tensor = self._file.get_tensor(name)
        if _crc32(tensor) != self._crc32[name]:
            raise self._damaged(f"{name} has another checksum than when it was written")
        return tensor

    def _damaged(self, why: object) -> UserError:
        return UserError(f"{self._path}: not readable weights ({why}). Delete it and run again.")


class LoadedWeights(HeadWeights):
    """The same of a model in memory."""

    def __init__(self, decoder: Decoder) -> None:
        """Take the model."""
        self._tensors = _tensors(decoder)
        self._names = self._tensors.keys()
        self.rows = len(self._tensors["unembedding"])
        self.shape = decoder.shape

    def _read(self, name: str) -> Tensor:
        return self._tensors[name].detach().cpu()
