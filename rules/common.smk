# What all rules share: the checked config, the experiments' files, and the device's resources.

import os
import sys

ROOT = Path(str(workflow.current_basedir)).parent
sys.path.insert(0, str(ROOT / "scripts"))
os.environ.update(HEADPURSUIT_ROOT=str(ROOT))  # for jobs in a container
hub_offline = os.environ.get("HF_HUB_OFFLINE")

from headpursuit.run.config import labelled, load_config, used_models, used_sources
from headpursuit.run.experiments import (
    candidate_layers,
    concept_of,
    conditions,
    draws_of,
    heads_of,
    methods_of,
    of_images,
    owners,
    positions_of,
    running,
    tables_of,
    writes_responses,
)
from headpursuit.run.files import UserError, beside, refuse_braces, refuse_unwritable
from headpursuit.run.interrupt import end_jobs_on_signals
from headpursuit.run.lineage import code_hash
from headpursuit.data.sources import content
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

try:
    config = load_config(shipped, workflow.configfiles)
    refuse_braces(workflow.basedir, os.getcwd())
    refuse_unwritable(".snakemake", *map(workflow.pathvars.apply, ("<results>", "<resources>")))
except UserError as error:
    raise WorkflowError(str(error)) from None


onstart:
    end_jobs_on_signals()


# Every environment in one image, for --sdm conda apptainer (docs/environments.md).
if config["compute"]["image"]:

    containerized: config["compute"]["image"]


EXPERIMENTS = config["experiments"]
RUNNING = running(config)
OWNERS = owners(config)
# Experiments with words of their own, and those in which something is measured.
WORDED = [name for name in RUNNING if EXPERIMENTS[name]["concept"]]
MEASURED = [name for name in RUNNING if EXPERIMENTS[name]["measures"]]
COMPUTE = config["compute"]
PARTS = range(1, COMPUTE["parts"] + 1)
# A job that runs a model asks for a GPU, unless the config says that it runs without.
GPU = 0 if COMPUTE["device"] == "cpu" else 1

# Priorities. Start the longest jobs first, and their inputs before them, so that no core idles at
# the end.
LONGEST = 10
AWAITED = 20


def by_attempt(amount):
    """A resource that grows with each attempt: a job killed for want of it is given more."""
    return lambda wildcards, attempt: amount * attempt


def any_of(names):
    """A wildcard's constraint: one of the names; without names, nothing."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"


wildcard_constraints:
    source=any_of(config["sources"]),
    model=any_of(config["models"]),
    experiment=any_of(EXPERIMENTS),
    ratios=any_of(tables_of(config, "ratios")),
    table=any_of(config["tables"]),
    part=r"\d+",


def made(*patterns):
    """The files that an experiment stands on: each stage's name in braces becomes its owner."""
    return lambda wildcards: [
        path for pattern in patterns for path in named(pattern, wildcards.experiment)
    ]


def named(pattern, experiment):
    """A pattern's files for an experiment: its stages' owners, and all parts."""
    return collect(pattern, **OWNERS[experiment], part=PARTS)


def every(pattern, names=RUNNING):
    """A pattern's files for experiments, each once."""
    return list(dict.fromkeys(path for name in names for path in named(pattern, name)))


def own(*keys):
    """A param: what stands under an experiment's keys; of several keys, a mapping."""
    return lambda wildcards: (
        EXPERIMENTS[wildcards.experiment][keys[0]]
        if len(keys) == 1
        else {key: EXPERIMENTS[wildcards.experiment][key] for key in keys}
    )


def model_of(wildcards):
    """A param: the entry of an experiment's model."""
    return config["models"][EXPERIMENTS[wildcards.experiment]["model"]]


def samples_of(wildcards):
    """A param: the entry of an experiment's samples."""
    return config["samples"][EXPERIMENTS[wildcards.experiment]["samples"]]


def samples_name(wildcards):
    """A param: the name of an experiment's samples, which is part of all its seeds."""
    return EXPERIMENTS[wildcards.experiment]["samples"]


def concept_words(wildcards):
    """A param: an experiment's concept."""
    return concept_of(config, EXPERIMENTS[wildcards.experiment])


def loaded_mb(name):
    """Memory for a model's weights, a batch and some room."""
    model = config["models"][name]
    bytes_each = 4 if model["dtype"] == "float32" else 2
    return 3000 + int(model["parameters"] * bytes_each * 1.5 / 1e6)


def model_mb(wildcards, attempt):
    """The same for an experiment's model, more with each attempt."""
    return attempt * loaded_mb(EXPERIMENTS[wildcards.experiment]["model"])


def source_record(name):
    """The record of a source's files."""
    return f"<resources>/{name}/provenance.json"


def model_files(name):
    """The record of a model's files: as downloaded, as converted from GGUF, or as put together."""
    if config["models"][name]["build"]:
        return f"<resources>/assembled/{name}/provenance.json"
    if config["models"][name]["gguf"]:
        return f"<resources>/models/{name}/provenance.json"
    return source_record(config["models"][name]["source"])


def files_of_model(wildcards):
    """The record of the files of an experiment's model."""
    return model_files(EXPERIMENTS[wildcards.experiment]["model"])


def weights_of(wildcards):
    """What ranking needs of an experiment's model."""
    return f"<results>/weights/{EXPERIMENTS[wildcards.experiment]['model']}.safetensors"


def own_path(name):
    """The path of a source that is the user's own file or folder; of others none."""
    source = config["sources"][name]
    return [source["path"]] if source["kind"] == "local" else []


def own_file(path):
    """The path and the content of a file of the user's own; nothing where there is none."""
    return ([str(beside(path))], content(beside(path))) if path else ([], None)


def hub_id(model):
    """A model's Hub repository; its name where it comes from elsewhere."""
    source = config["sources"][config["models"][model]["source"]]
    return source["id"] if source["kind"] == "hub" else model


def build_of(wildcards):
    """What a model is put together of."""
    return config["models"][wildcards.model]["build"]


def prompts_to_label(wildcards):
    """The prompts, where they are labelled beside the responses."""
    texts = concept_words(wildcards)["labelled"]["texts"]
    return made("<results>/samples/{samples}.parquet")(wildcards) if "prompt" in texts else []


def lexicon_of(backend):
    """The word list of the backend lexicon."""
    return source_record(LABELLER["lexicon"]["source"]) if backend == "lexicon" else []


def words_from(wildcards):
    """What a concept's words are taken from: labels, responses that count them, or class names."""
    concept, found = concept_words(wildcards), {}
    if "labelled" in concept:
        found["labels"] = made("<results>/labels/{labels}.parquet")(wildcards)
    elif concept["top"]:
        found["responses"] = made("<results>/responses/{baseline}/baseline/part-{part}.parquet")(
            wildcards
        )
    if "class_names" in concept:
        found["samples"] = made("<results>/samples/{samples}.parquet")(wildcards)
    return found


def measured_in(wildcards):
    """What an experiment's measures are taken of."""
    measures, found = EXPERIMENTS[wildcards.experiment]["measures"], {}
    if writes_responses(EXPERIMENTS[wildcards.experiment]):
        found["scaled"] = made("<results>/responses/{scaled}/scaled/part-{part}.parquet")(wildcards)
    if "expected" in measures:
        found["expected"] = made("<results>/expected/{expected}/part-{part}.parquet")(wildcards)
    return found


def in_table(pattern):
    """A file of each of a table's experiments, in their order."""
    return lambda wildcards: [
        path for name in config["tables"][wildcards[0]] for path in named(pattern, name)
    ]


def experiments_in(*keys):
    """A param: a table's experiments, and what stands under some of their keys."""
    return lambda wildcards: {
        name: {key: EXPERIMENTS[name][key] for key in keys}
        for name in config["tables"][wildcards[0]]
    }


def ratio_facts(name):
    """What a table of ratios says of an experiment."""
    own = EXPERIMENTS[name]
    return {
        **{key: own[key] for key in ("samples", "model", "alpha", "heads_from", "k")},
        "methods": methods_of(config, name),
        "draws": 0 if own["heads_from"] else own["draws"],
        "iterations": EXPERIMENTS[heads_of(config, name)]["pursuit"]["iterations"],
    }


# An older Snakemake, which does not know this keyword, has to read the Snakefile up to min_version.
pathvars:
    results=f"results/{config['run']}",
    logs="<results>/logs",
    benchmarks="<results>/benchmarks",
