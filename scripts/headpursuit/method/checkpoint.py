"""Save a model with heads scaled, for an engine of one's own, one file of weights at a time."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from headpursuit.method.decoder import Family, family_of, scaled_heads
from headpursuit.method.heads import Condition, Head, named_condition, refuse_absent
from headpursuit.method.models import (
    LOCAL,
    load_model,
    loading,
    model_folder,
    quantised_by,
    read_config,
)
from headpursuit.run.files import UserError, plain, read_json, write_text
from headpursuit.run.finished import Run, run_folder

# Of the model's folder these are not copied: weights, and what says where they are from.
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx")
RECORD = "provenance.json"
# What a file says of an intervention: of which model, and what its heads are multiplied by, where.
INTERVENTION = ("model", "revision", "layers", "heads_per_layer", "heads", "alpha", "at")


def save_condition(
    results: Path, experiment: str, condition: str, to: Path, check: bool = False
) -> list[str]:
    """Save the model of a run's experiment with the heads of one of its conditions scaled.

    Where ``to`` ends in .json, it is a file that says what is scaled, for
    :func:`apply_intervention` and :func:`intervention`. Otherwise it is the folder of a model; with
    ``check``, both models are then loaded, one after the other, and their logits compared.

    Returns:
        What was done, line by line.

    Raises:
        UserError: if the run, its model's files or the condition are not there, or as
            :func:`save_scaled`.
    """
    run = Run(run_folder(results))
    own = run.experiment(experiment)
    heads, alpha, at, against = run.condition(experiment, condition)
    if against:
        raise UserError(
            f"{experiment} is signed: {condition} multiplies heads that write against it by "
            "another number. Name a condition of an experiment that is not."
        )
    if to.suffix != ".json":
        _refuse_some_positions(at)
    model = run.config["models"][own["model"]]
    source = run.source_record(model["source"])
    if to.suffix != ".json":
        folder = model_folder(run.model_record(own["model"]), model)
        return _save(folder, heads, alpha, to, check)
    if to.exists():
        raise UserError(f"{to} exists already; name another file.")
    name, revision = source.get("id", model["source"]), source.get("commit", source.get("version"))
    scaled = (name, revision, model["layers"], model["heads"], heads, alpha, at)
    write_text(to, json.dumps(dict(zip(INTERVENTION, scaled, strict=True))) + "\n")
    return [f"{to}: {len(heads)} heads of {name}, times {alpha:g}"]


def apply_intervention(file: Path, model: Path, folder: Path, check: bool = False) -> list[str]:
    """Save a model with the heads scaled that a file of :func:`save_condition` names.

    Returns:
        What was done, line by line.

    Raises:
        UserError: if the file is none, or as :func:`save_scaled`.
    """
    scaled = _read_intervention(file, *_shape(model))
    _refuse_some_positions(scaled.at)
    return _save(model, scaled.heads, scaled.alpha, folder, check)


def _refuse_some_positions(at: str) -> None:
    if at != "all":
        raise UserError(
            f"These heads are scaled in {at} alone, and weights act at all positions: name "
            "another condition."
        )


def intervention(model: Any, file: str | Path) -> dict[str, Any]:
    """Return the heads, alpha and place that a file of ``headpursuit checkpoint`` names.

    They are arguments of ``scaled``, ``respond`` and ``measure``:
    ``with hp.scaled(model, **hp.intervention(model, "heads.json")): ...``

    Args:
        model: of ``headpursuit.load``.
        file: written by :func:`save_condition`.

    Raises:
        UserError: if the file is none, or of a model of another shape.
    """
    found = _read_intervention(file, *model.decoder.shape)
    return {"heads": found.heads, "alpha": found.alpha, "at": found.at}


def _read_intervention(file: str | Path, n_layers: int, n_heads: int) -> Condition:
    """Read what :func:`save_condition` wrote for a model of so many layers and heads a layer."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no readable JSON: {plain(error)}.") from error
    if not isinstance(found, dict) or not {*INTERVENTION} <= {*found}:
        raise UserError(
            f"{file} is none of headpursuit checkpoint's files, or lacks a key of theirs: "
            f"{', '.join(INTERVENTION)}."
        )
    if (shape := (found["layers"], found["heads_per_layer"])) != (n_layers, n_heads):
        raise UserError(
            f"{file} is for {plain(found['model'])}, {shape[0]} layers x {shape[1]} heads; this "
            f"model has {n_layers} x {n_heads}."
        )
    return named_condition(found["heads"], found["alpha"], found["at"], n_layers, n_heads)


def _save(model: Path, heads: Sequence[Head], alpha: float, folder: Path, check: bool) -> list[str]:
    """Save a model with heads scaled, and say so."""
    save_scaled(model, heads, alpha, folder)
    said = [f"{folder}: {model} with {len(heads)} heads times {alpha:g}"]
    if check:
        largest = compare_logits(model, heads, alpha, folder)
        said.append(f"largest difference from the logits of scaled rows: {largest:g}")
    return said


def _shape(model: Path) -> tuple[int, int]:
    """Return how many layers a model has, and heads in each."""
    read_config(model)
    with loading(model, "model's config.json"):
        shape = transformers.AutoConfig.from_pretrained(model, **LOCAL).get_text_config()
    return shape.num_hidden_layers, shape.num_attention_heads


def save_scaled(model: Path, heads: Sequence[Head], alpha: float, folder: Path) -> None:
    """Save a model whose heads write ``alpha`` times what they wrote, with all files beside it.

    The model is a folder of config.json, safetensors and tokenizer. One file of its weights is in
    memory at a time.

    Raises:
        UserError: if the folder exists, or the model or the heads do not fit.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already: name a new folder, or remove it.")
    config = read_config(model)
    family = family_of(config.get("model_type"))
    if method := quantised_by(config):
        raise UserError(
            f"{model}: its weights are quantised by {method}, and only plain columns can be "
            "scaled. Take the unquantised model."
        )
    factors = torch.ones(*_shape(model))
    refuse_absent(heads, *factors.shape)
    for layer, head in heads:
        factors[layer, head] = alpha
    wanted = {layer for layer, _ in heads}
    files = weight_files(model)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for file in files:
            wanted -= _scale_file(file, part / file.name, family, factors)
        if wanted:
            raise UserError(f"{model}: no output projection of layer {min(wanted)} in its weights.")
        for path in sorted(model.iterdir()):
            if path.is_file() and path.suffix not in WEIGHTS and path.name != RECORD:
                shutil.copyfile(path, part / path.name)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def weight_files(model: Path) -> list[Path]:
    """Return the safetensors that transformers loads a model from; UserError without any."""
    index, single = model / "model.safetensors.index.json", model / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        return [model / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    other = sorted({path.suffix for path in model.iterdir()} & set(WEIGHTS))
    raise UserError(
        f"{model}: no model.safetensors, only {', '.join(other) or 'no weights at all'}. A "
        "model in GGUF is saved from its converted folder, resources/models/<model>."
    )


def _scale_file(source: Path, target: Path, family: Family, factors: Tensor) -> set[int]:
    """Write a file of weights with its output projections scaled, and return their layers."""
    # In files, names begin in several ways: model., language_model.model., or nothing at all.
    blocks = family.layers.rpartition(".")[2]
    named = re.compile(rf"(?:.*\.)?{blocks}\.(\d+)\.{re.escape(family.projection)}\.weight")
    with loading(source, "file of weights"):
        with safe_open(source, "pt") as opened:
            about = opened.metadata()
        tensors = load_file(source)
    scaled = set()
    for name, weight in tensors.items():
        found = named.fullmatch(name)
        if not found or "vision" in name:
            continue
        layer, columns = int(found[1]), weight.T if family.transposed else weight
        head_dim = columns.shape[1] // factors.shape[1]
        columns.mul_(factors[layer].repeat_interleave(head_dim).to(weight.dtype))
        scaled.add(layer)
    save_file(tensors, target, about)
    target.chmod(0o644)
    return scaled


@torch.inference_mode()
def compare_logits(model: Path, heads: Sequence[Head], alpha: float, folder: Path) -> float:
    """Return the largest difference between a saved model's logits and those of scaled rows.

    Raises:
        UserError: if there is one where nothing is rounded, at an alpha of -1, 0 or 1.
    """
    dtype = read_config(model).get("dtype") or read_config(model).get("torch_dtype") or "float32"
    ids = torch.arange(32)[None] * 97 % 251
    saved = load_model(folder, dtype, "cpu").model(ids).logits
    plain = load_model(model, dtype, "cpu")
    with scaled_heads(plain, heads, alpha):
        rows = plain.model(ids).logits
    if alpha in (-1, 0, 1) and not torch.equal(saved, rows):
        raise UserError(f"{folder}: its logits are not those of scaled rows. Do not use it.")
    return float((saved - rows).abs().max())
