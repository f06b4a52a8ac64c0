# What all rules share: the checked config, the wildcards, and the device's resources.

import os
import sys

ROOT = Path(str(workflow.current_basedir)).parent
sys.path.insert(0, str(ROOT / "scripts"))
os.environ.update(HEADPURSUIT_ROOT=str(ROOT))  # for jobs in a container
hub_offline = os.environ.get("HF_HUB_OFFLINE")

from headpursuit.config import (
    candidate_layers,
    check_config,
    cross_conditions,
    generated_conditions,
    generation_jobs,
    intervened_conditions,
    pooled_where,
)
from headpursuit.files import UserError, beside, refuse_braces, refuse_unwritable
from headpursuit.interrupt import end_jobs_on_signals
from headpursuit.lineage import code_hash
from headpursuit.sources import content, used_sources
from snakemake.common import __version__ as SNAKEMAKE
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

# The library takes the Hub offline for the process that imports it. Jobs inherit the environment
# of this one, and those that download need the Hub.
if hub_offline is None:
    os.environ.pop("HF_HUB_OFFLINE", None)

# A workflow that imports this one hands its own config over in the place of config.yaml, and need
# only say what differs. Where config.yaml has been read, this changes nothing.
shipped = load_configfile(ROOT / "config.yaml")
update_config(shipped, config)
config = shipped

try:
    check_config(config, workflow.configfiles)
    refuse_braces(workflow.basedir, os.getcwd())
    refuse_unwritable(".snakemake", *map(workflow.pathvars.apply, ("<results>", "<resources>")))
except UserError as error:
    raise WorkflowError(str(error)) from None


onstart:
    end_jobs_on_signals()


# Every environment in one image, for --sdm conda apptainer (docs/environments.md).
if config["compute"]["image"]:

    containerized: config["compute"]["image"]


MODEL = config["models"][config["text"]["model"]]
DATASETS = config["text"]["datasets"]
LAYERS = range(MODEL["layers"])
# A job that runs a model asks for a GPU, unless the config says that it runs without.
GPU = 0 if config["compute"]["device"] == "cpu" else 1

# Priorities. Start the longest jobs first, and their inputs before them, so that no core idles at
# the end.
LONGEST = 10
AWAITED = 20


def by_attempt(amount):
    """A resource that grows with each attempt: a job killed for want of it is given more."""
    return lambda wildcards, attempt: amount * attempt


def model_mb(model):
    """The memory of a job that loads a model: its weights, activations and some room."""
    spec = config["models"][model]
    return 2000 + int(spec["parameters"] * (4 if spec["dtype"] == "float32" else 2) * 1.5 / 1e6)


def weights_mb(model):
    """The memory of a job that reads a model's weights file: its dictionary, work, some room."""
    return 3000 + int(config["models"][model]["parameters"] * 0.8 / 1e6)


wildcard_constraints:
    source="[a-z0-9][a-z0-9._-]*",
    model="[a-z0-9][a-z0-9._-]*",
    dataset="[a-z0-9][a-z0-9._-]*",
    concept="[a-z0-9][a-z0-9_-]*",
    method="somp|logit_lens|unrelated|size",
    condition=r"baseline|(somp|logit_lens|unrelated|size|random)-k\d+(-d\d+)?",
    job=r"k\d+-\d+",
    k=r"\d+",
    draw=r"\d+",
    part=r"\d+",


def source_record(key):
    """The provenance.json of the source that a config key names; wildcards go into the key."""
    source = lookup(key, within=config)
    return lambda wildcards: f"<resources>/{source(wildcards)}/provenance.json"


def model_files(name):
    """The record of a model's files: as downloaded, converted from GGUF, or put together here."""
    vision = config["vision"]
    if vision and vision["build"] and name == vision["model"]:
        return f"<resources>/assembled/{name}/provenance.json"
    if config["models"][name]["gguf"]:
        return f"<resources>/models/{name}/provenance.json"
    return f"<resources>/{config['models'][name]['source']}/provenance.json"


def own_path(name):
    """The path of a source that is the user's own file or folder; of others none."""
    source = config["sources"][name]
    return [source["path"]] if source["kind"] == "local" else []


def concept_file(wildcards):
    """The file of a concept's words; none of a concept whose words stand in the config."""
    words = config["table1"]["concepts"][wildcards.concept]
    return str(beside(words)) if isinstance(words, str) else []


MODEL_FILES = model_files(config["text"]["model"])
MODEL_MB = model_mb(config["text"]["model"])
# What rankings, decompositions and lenses read of the model.
WEIGHTS = f"<results>/weights/{config['text']['model']}.safetensors"
WEIGHTS_MB = weights_mb(config["text"]["model"])
VISION_MODEL = (config["vision"] or {}).get("model")
LARGEST_MB = max(map(model_mb, {config["text"]["model"], VISION_MODEL} - {None}))
# What the method `unrelated` ranks heads by.
UNRELATED_WORDS = str(beside(config["pursuit"]["unrelated_words"]))
# How words are matched in text, wherever they are counted.
MATCHING = {key: config["words"][key] for key in ("case_sensitive", "inflections")}
# What `all` makes of figure 1; rules/vision.smk says, where the config has it.
FIGURE1 = []


def hub_id(model):
    """The Hub repository of a model of the config; None where it comes from elsewhere."""
    source = config["sources"][config["models"][model]["source"]] if model else {"kind": None}
    return source["id"] if source["kind"] == "hub" else None


# An older Snakemake, which does not know this keyword, has to read the Snakefile up to min_version.
pathvars:
    results=f"results/{config['run']}",
    logs="<results>/logs",
    benchmarks="<results>/benchmarks",
