"""The library behind the workflow's scripts: importable and testable without Snakemake."""

import os

# Nothing but a download may use the network. Hugging Face's libraries read this when they are
# first imported, so it has to stand here; the script that downloads sets it to 0 before.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
