"""GGUF weights, dequantised once into a folder that loads like any other model."""

from functools import cache
from pathlib import Path
from unittest.mock import patch

import gguf
import torch

from headpursuit.data.sources import write_made_provenance
from headpursuit.method.models import LOCAL, loading
from headpursuit.run.files import sha256


def convert_gguf(path: Path, provenance: Path, source_provenance: str | Path) -> None:
    """Dequantise a GGUF file to float32 safetensors beside ``provenance``, which is written last.

    Raises:
        UserError: if transformers cannot read the file, or memory does not suffice.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = provenance.parent
    local = {"gguf_file": path.name, **LOCAL}
    # The file is read for the config, the weights and the tokenizer, which takes seconds each.
    with loading(path, "model"), patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)):
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **local)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **local)
    # The weights are plain numbers now; save_pretrained refuses while the model says otherwise.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    origin = {"gguf": {"path": path.name, "sha256": sha256(path)}}
    tools = ("torch", "transformers", "gguf")
    write_made_provenance(provenance, "converted", source_provenance, origin, tools)
