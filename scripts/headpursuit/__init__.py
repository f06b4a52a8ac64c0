"""What attention heads write, and what changes when they are scaled: docs/api.md.

The functions of ``headpursuit.api`` are imported when they are first asked for, so that Snakemake,
which imports this package too, waits for none of the large libraries.
"""

import os
from importlib import import_module
from typing import Any

# Nothing but a download may use the network. Hugging Face's libraries read this when they are
# first imported, so it has to stand here; the script that downloads sets it to 0 before.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The functions of api.py; its own list would import it.
__all__ = ["UserError", "cache", "intervention", "load", "measure", "pursue", "random_heads"]
__all__ += ["rank", "read_run", "respond", "scaled"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("headpursuit.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
