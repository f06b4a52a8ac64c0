"""GGUF weights, dequantised once into a folder that loads like any other model."""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from struct import error as StructError

import torch

from headpursuit.files import UserError, read_json, sha256, write_json


def convert_gguf(gguf: Path, provenance: Path, source_provenance: str | Path) -> None:
    """Dequantise a GGUF file to float32 safetensors beside ``provenance``, which is written last.

    Args:
        gguf: the file.
        provenance: provenance.json of the folder to be made.
        source_provenance: that of the download.

    Raises:
        UserError: if transformers cannot read the file.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = provenance.parent
    local = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **local)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **local)
    except (OSError, ValueError, KeyError, StructError) as error:
        raise UserError(f"{gguf}: transformers cannot read it: {error}") from error
    # The weights are plain numbers now; save_pretrained refuses while the model says otherwise.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path != provenance)
    source = read_json(source_provenance)
    write_json(
        provenance,
        {
            "name": folder.name,
            "kind": "converted",
            "from": {key: source.get(key) for key in ("name", "kind", "id", "version", "commit")},
            "gguf": {"path": gguf.name, "sha256": sha256(gguf)},
            "licence": source.get("licence"),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "tools": {name: version(name) for name in ("torch", "transformers", "gguf")},
            "root": str(folder),
            "files": [
                {"path": path.name, "size": path.stat().st_size, "sha256": sha256(path)}
                for path in files
                if not path.name.startswith(".")
            ],
        },
    )
