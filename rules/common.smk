# What all rules share: the checked config, the wildcards, and the device's resources.

import os
import sys

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))
hub_offline = os.environ.get("HF_HUB_OFFLINE")

from headpursuit.config import (
    candidate_layers,
    check_config,
    generated_conditions,
    intervened_conditions,
    pooled_where,
)
from headpursuit.files import UserError
from headpursuit.lineage import code_hash
from headpursuit.sources import used_sources
from snakemake.exceptions import WorkflowError

# The library takes the Hub offline for the process that imports it. Jobs inherit the environment
# of this one, and those that download need the Hub.
if hub_offline is None:
    os.environ.pop("HF_HUB_OFFLINE", None)

try:
    check_config(config)
except UserError as error:
    raise WorkflowError(str(error)) from None

MODEL = config["models"][config["text"]["model"]]
DATASETS = config["text"]["datasets"]
LAYERS = range(MODEL["layers"])
# A job that runs a model asks for a GPU, unless the config says that it runs without.
GPU = 0 if config["compute"]["device"] == "cpu" else 1
# Weights, activations and some room, for each attempt.
MODEL_MB = 2000 + int(MODEL["parameters"] * (4 if MODEL["dtype"] == "float32" else 2) * 1.5 / 1e6)


wildcard_constraints:
    source="[a-z0-9][a-z0-9._-]*",
    model="[a-z0-9][a-z0-9._-]*",
    dataset="[a-z0-9][a-z0-9._-]*",
    concept="[a-z0-9][a-z0-9_-]*",
    method="somp|logit_lens",
    condition=r"(somp|logit_lens|random)-k\d+(-d\d+)?",
    k=r"\d+",
    draw=r"\d+",


def source_record(key):
    """The provenance.json of the source that a config key names; wildcards go into the key."""
    source = lookup(key, within=config)
    return lambda wildcards: f"<resources>/{source(wildcards)}/provenance.json"


# The model's files: as downloaded, or as converted from GGUF.
MODEL_FILES = (
    f"<resources>/models/{config['text']['model']}/provenance.json"
    if MODEL["gguf"]
    else f"<resources>/{MODEL['source']}/provenance.json"
)
# How words are matched in text, wherever they are counted.
MATCHING = {key: config["words"][key] for key in ("case_sensitive", "inflections")}
