"""Models: loading them, their tokenizers, and what their files say of them."""

import atexit
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import cached_file

from headpursuit.data.sources import PICKLED, source_files, source_root, verify
from headpursuit.method.batches import is_out_of_memory
from headpursuit.method.check import self_check
from headpursuit.method.decoder import Decoder, family_of, parameter_of
from headpursuit.run.files import UserError, read_json, refuse_unknown

log = logging.getLogger(__name__)

# Whether this processor multiplies in a format of 16 bits.
SUPPORTED = {
    "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
    "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
}
MANY = 16  # rows, from which on converting the weights takes less than it saves
LOCAL = {"local_files_only": True, "trust_remote_code": False}
# Files beside the weights that decide what a model reads and writes.
READ = (".json", ".jinja", ".model", ".txt")
LACKING = (
    "See that the model's source has all its files (sources.*.files and models.*.path in the "
    "config), delete the source's provenance.json and run again."
)


def pick_device(device: str) -> torch.device:
    """Return the device that ``compute.device`` means here; UserError if CUDA is not there."""
    refuse_unknown("device", device, ("auto", "cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device is cuda, but PyTorch sees no CUDA device here.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def load_model(
    folder: str | Path,
    dtype: str,
    device: str = "auto",
    expected: tuple[int, int] | None = None,
    device_map: Any = None,
) -> Decoder:
    """Load a model from a local folder of safetensors and prove that its heads are understood.

    Args:
        folder: holds config.json and safetensors.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu`` or ``cuda``.
        expected: (layers, heads) that the config states.
        device_map: None, all of it on the device; or accelerate's, such as ``auto``.

    Raises:
        UserError: if the folder is incomplete, it is quantised in a way that cannot be read here,
            memory does not suffice, the shape is not the stated one, or the self-check fails.
    """
    config = read_config(folder)
    family = family_of(config.get("model_type"))
    auto = (
        transformers.AutoModelForImageTextToText
        if family.reads_images
        else transformers.AutoModelForCausalLM
    )
    method = quantised_by(config)
    try:
        if method and not _reads_quantised(config, method):
            raise UserError(f"transformers {transformers.__version__} does not know how.")
        model = load_weights(auto, folder, "model", dtype, device, device_map)
    except UserError as error:
        if method is None:
            raise
        raise UserError(
            f"{folder}: its weights are quantised by {method}, and do not load here: "
            f"{' '.join(str(error.__cause__ or error).split())} Install what it asks for into the "
            "environment, or name the unquantised model in models.*.source."
        ) from error
    with loading(folder, "model"):
        decoder = Decoder(model)
        if expected is not None and decoder.shape != tuple(expected):
            raise UserError(
                f"{folder} has {decoder.shape[0]} layers of {decoder.shape[1]} heads, but the "
                f"config says {expected[0]} of {expected[1]}: correct layers and heads under "
                "models."
            )
        self_check(decoder)
    log.info(
        "loaded %s: %d layers x %d heads of %d, %s on %s",
        folder, *decoder.shape, decoder.head_dim, dtype, decoder.device,
    )  # fmt: skip
    return decoder


def load_weights(
    auto: Any, folder: str | Path, what: str, dtype: str, device: str, device_map: Any = None
) -> Any:
    """Load a folder's safetensors, each weight of them, by one of transformers' ``Auto`` classes.

    With a ``device_map`` of accelerate's, weights that have no room on the device are brought there
    from memory, or from a temporary folder, whenever they are needed.

    Raises:
        UserError: it says ``what`` does not load.
    """
    refuse_unknown("dtype", dtype, ("float32", "bfloat16", "float16"))
    target = pick_device(device)
    if not any(Path(folder).glob("*.safetensors")) and any(Path(folder).glob("*.bin")):
        raise UserError(f"{folder}: the {what}'s weights are in .bin files alone. {PICKLED}")
    with loading(folder, what):
        model, loaded = auto.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            device_map=device_map or {"": target},
            offload_folder=_offloading() if device_map else None,
            use_safetensors=True,
            output_loading_info=True,
            **LOCAL,
        )
        if missing := sorted(loaded["missing_keys"]):  # they would be random numbers
            raise OSError(f"no weights for {', '.join(missing)}.")
    if target.type == "cpu" and not device_map and dtype in SUPPORTED and not SUPPORTED[dtype]():
        for module in model.modules():
            if type(module) is nn.Linear and parameter_of(module) is not None:
                module.forward = partial(_multiply, module)
    return model.eval().requires_grad_(False)


def _multiply(layer: nn.Linear, rows: Tensor) -> Tensor:
    """Multiply many rows in float32 and round the sums, as processors with half formats do.

    Where they lack them PyTorch takes 6 to 15 times as long.
    """
    if rows.numel() < MANY * rows.shape[-1]:
        return linear(rows, layer.weight, layer.bias)
    bias = None if layer.bias is None else layer.bias.float()
    return linear(rows.float(), layer.weight.float(), bias).to(rows.dtype)


def _offloading() -> str:
    """Return a folder that is gone when the process ends."""
    folder = tempfile.mkdtemp(prefix="headpursuit-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def local_folder(model: str | Path) -> str:
    """Return a model's folder: itself, or that of a repository in the Hub's cache; or UserError."""
    if Path(model).is_dir():
        return str(model)
    try:
        return str(Path(cached_file(str(model), "config.json", local_files_only=True)).parent)
    except OSError as error:
        raise UserError(
            f"{model}: there is no such folder, and no such repository in the Hub's cache on this "
            f"machine. Name a folder, or fetch the repository first: hf download {model}"
        ) from error


def quantised_by(config: Mapping[str, Any]) -> str | None:
    """Return what quantised a model's weights, as its config.json says; None if nothing did."""
    for own in (config, config.get("text_config") or {}):
        if said := own.get("quantization_config"):
            return str(said.get("quant_method", "a method without a name"))
    return None


def _reads_quantised(config: Mapping[str, Any], method: str) -> bool:
    """Say whether transformers knows a method, and looks where the model's config.json says so."""
    known = any(own.startswith(method) for own in AUTO_QUANTIZATION_CONFIG_MAPPING)
    return known and "quantization_config" in config


@contextmanager
def loading(path: str | Path, what: str) -> Iterator[None]:
    """Say what went wrong while a block loads a file or folder, and what helps.

    Raises:
        UserError: in the place of whatever transformers, safetensors or PyTorch raise.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        helps = (
            "Memory does not suffice: free some, take a device with more of it or a smaller "
            "model, or set models.*.dtype: bfloat16 (half of float32)."
            if is_out_of_memory(error)
            else f"{LACKING} If it has, it needs another version of transformers than "
            f"{transformers.__version__}."
        )
        raise UserError(f"{path}: the {what} does not load: {why} {helps}") from error


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return what a model's config.json says; UserError if it is missing or damaged."""
    path = Path(folder) / "config.json"
    if not path.exists():
        files = [own.name for own in sorted(path.parent.glob("*.gguf"))]
        helps = f"Name it in models.*.gguf: {', '.join(files)}." if files else LACKING
        raise UserError(f"{path} is missing, so this is no model. {helps}")
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("text_config", {}), dict):
        raise UserError(f"{path}: not a model's config.json. {LACKING}")
    return config


def model_folder(provenance: str | Path, model: Mapping[str, Any]) -> Path:
    """Return the folder of a downloaded or converted model, its files checked for their sizes.

    Args:
        provenance: provenance.json of the source, or of the converted folder.
        model: its entry in the config's ``models``, or ``classifiers``.
    """
    source_files(provenance, "**/*")
    # A converted model lies beside its own provenance.json.
    return source_root(provenance) / ("" if model.get("gguf") else model["path"])


def open_model(
    provenance: str | Path, model: Mapping[str, Any], device: str
) -> tuple[Decoder, Any, dict[str, Any]]:
    """Load a config's model, as :func:`model_folder` takes it, and check its checksums.

    Returns:
        The model, its tokenizer, and what identifies them (name and commit, version or checksum).
    """
    folder = model_folder(provenance, model)
    verify(provenance)  # damaged weights mostly load, as other numbers
    shape = model["layers"], model["heads"]
    decoder = load_model(folder, model["dtype"], device, shape, model.get("device_map"))
    return decoder, load_tokenizer(folder), identity_of(provenance, folder)


def identity_of(provenance: str | Path, folder: Path) -> dict[str, Any]:
    """Return what identifies a source's model, in its folder.

    It is the source's name and commit, and the checksums of weights and of what else is read with
    them: a local folder's generation_config.json may change beside the same weights.
    """
    record, root = read_json(provenance), source_root(provenance)
    files = [(root / file["path"], file["sha256"]) for file in record["files"]]
    own = {path.relative_to(folder): sha for path, sha in files if path.is_relative_to(folder)}
    weights = [own[path] for path in own if path.suffix == ".safetensors"]
    read = {path.as_posix(): own[path] for path in sorted(own) if path.suffix in READ}
    about = {"name": record["name"], "commit": record.get("commit")}
    return {**about, "weights_sha256": weights, "read_sha256": read}


def refuse_foreign(decoder: Decoder, own: Any, tokenizer: Any) -> None:
    """Raise a UserError if a tokenizer is not the model's, which is ``own``, None if unknown."""
    rows = decoder.model.get_output_embeddings().weight.shape[0]
    ids = tokenizer.get_vocab()
    if (highest := max(ids.values())) >= rows:
        raise UserError(
            f"The tokenizer is another model's: its ids go up to {highest}, and the model's "
            f"unembedding has {rows} rows."
        )
    for token, number in own.get_vocab().items() if own else ():
        if ids.get(token) != number:
            raise UserError(
                f"The tokenizer is another model's: its id of {token!r} is {ids.get(token)}, and "
                f"the model's own tokenizer says {number}."
            )


def longest_input(folder: str | Path) -> int | None:
    """Return how many tokens a model reads at most; None if its config does not say."""
    config = read_config(folder)
    return config.get("max_position_embeddings") or config.get("n_positions")


def load_tokenizer(folder: str | Path):
    """Load a tokenizer from a local folder, padding on the left as batched generation needs.

    Raises:
        UserError: if the folder holds none.
    """
    folder = Path(folder)
    if not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        raise UserError(f"{folder}: no tokenizer is there (tokenizer.json and others). {LACKING}")
    with loading(folder, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left", **LOCAL)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Uploads have it in one of four files.
    templates = [path.name for path in sorted(folder.glob("chat_template.*"))]
    for path in (folder / "tokenizer_config.json", folder / "processor_config.json"):
        if path.exists() and "chat_template" in read_json(path):
            templates.append(path.name)
    log.info("chat template: %s", ", ".join(templates) or "none")
    return tokenizer
