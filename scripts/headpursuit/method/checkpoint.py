"""Save a model with heads scaled, for an inference engine of one's own.

python -m headpursuit.method.checkpoint MODEL HEADS CONDITION ALPHA FOLDER
"""

import argparse
import sys
from pathlib import Path

from headpursuit.method.decoder import gains
from headpursuit.method.heads import read_conditions
from headpursuit.method.models import load_model, load_tokenizer, read_config
from headpursuit.run.files import UserError


def save_scaled(model: Path, heads: Path, condition: str, alpha: float, folder: Path) -> None:
    """Save a model whose heads write ``alpha`` times what they wrote, with its tokenizer.

    The model is a folder of config.json, safetensors and tokenizer; ``heads`` a table of a run's
    ``heads/``, of which those of ``condition`` are scaled.

    Raises:
        UserError: if the folder exists, or the model or the heads do not fit.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already: name a new folder, or remove it.")
    config = read_config(model)
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    decoder, tokenizer = load_model(model, dtype, "cpu"), load_tokenizer(model)
    chosen = read_conditions([heads], [condition])[condition]
    for layer, factors in enumerate(gains(decoder, [chosen], alpha)[0]):
        decoder.matrix(layer).mul_(factors.repeat_interleave(decoder.head_dim))
    part = folder.with_name(f".{folder.name}.part")
    decoder.model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(folder)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("heads", type=Path, help="table of heads: results/<run>/heads/...csv")
    parser.add_argument("condition", help="whose heads: somp-k16")
    parser.add_argument("alpha", type=float, help="what the heads' writes are multiplied by")
    parser.add_argument("folder", type=Path, help="where the edited model goes")
    try:
        save_scaled(**vars(parser.parse_args()))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
