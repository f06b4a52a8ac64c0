# What all rules share: the checked config, the experiments' files, and the device's resources.

import os
import subprocess
import sys

ROOT = Path(str(workflow.current_basedir)).parent
sys.path.insert(0, str(ROOT / "scripts"))
# For jobs: in a container the library lies elsewhere, and pip may have installed another copy of it.
search = [str(ROOT / "scripts"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
os.environ.update(
    HEADPURSUIT_ROOT=str(ROOT),
    PYTHONPATH=os.pathsep.join(dict.fromkeys(filter(None, search))),
)
hub_offline = os.environ.get("HF_HUB_OFFLINE")

from headpursuit.run.config import load_config
from headpursuit.run.uses import used_models, used_sources
from headpursuit.run.estimate import job_times, measured
from headpursuit.run.experiments import (
    conditions,
    heads_of,
    is_asked,
    model_record,
    models_of,
    owners,
    stage_owners,
    tables_of,
    writes_responses,
)
from headpursuit.run.files import UserError, beside, refuse_braces, refuse_unwritable
from headpursuit.run.interrupt import end_jobs_on_signals
from headpursuit.run import lineage
from headpursuit.run.params import claim_facts, hub_ids, pick, ratio_facts, stated
from headpursuit.run.workload import model_of
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


onsuccess:
    # With --quiet nothing is printed, nor where Snakemake is installed alone (--sdm conda).
    quiet = {own.name for own in workflow.output_settings.quiet or ()}
    if not quiet & {"ALL", "PROGRESS", "RULES"}:
        asked = [sys.executable, "-m", "headpursuit", "claims", "--short"]
        asked.append(workflow.pathvars.apply("<results>"))
        found = subprocess.run(asked, capture_output=True, text=True)
        if not found.returncode:
            logger.info(f"\n{found.stdout}")


# Every environment in one image, for --sdm conda apptainer (docs/environments.md).
if config["compute"]["image"]:

    containerized: config["compute"]["image"]


EXPERIMENTS = config["experiments"]
OWNERS = owners(config)
MADE = stage_owners(config)
COMPUTE = config["compute"]
PARTS = range(1, COMPUTE["parts"] + 1)
# A job that runs a model asks for a GPU, unless the config says that it runs without.
GPU = 0 if COMPUTE["device"] == "cpu" else 1

# Priorities. Start the longest jobs first, and their inputs before them, so that no core idles at
# the end.
LONGEST = 10
AWAITED = 20
SHOWN = 25  # tables, and the rankings that the first of them need: there is soon something to read
JUDGING = 30  # tells what is wrong with data before the time of a model is spent


def any_of(names):
    """A wildcard's constraint: one of the names; without names, nothing."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"


wildcard_constraints:
    source=any_of(config["sources"]),
    model=any_of(config["models"]),
    experiment=any_of(EXPERIMENTS),
    part=r"\d+",


def at(where, within):
    """What stands at a path of keys and wildcards, as lookup finds it, which searches all keys."""

    def find(wildcards):
        found = within
        for key in where.split("/"):
            found = found[wildcards[key[1:-1]] if key[0] == "{" else key]
        return found

    return find


# Files


def named(pattern, experiment):
    """A pattern's files for an experiment: each stage in braces becomes its owner; all parts."""
    return collect(pattern, **OWNERS[experiment], part=PARTS)


def made(*patterns, when=lambda stated: True):
    """An input: an experiment's files, where something holds of the experiment."""
    return lambda wildcards: [
        path
        for pattern in patterns
        if when(STATED[wildcards.experiment])
        for path in named(pattern, wildcards.experiment)
    ]


def every(pattern):
    """All files of a pattern that this run makes."""
    return collect(pattern, **MADE, part=PARTS)


def source_record(name):
    """The record of a source's files."""
    return f"<resources>/{name}/provenance.json"


def model_files(name):
    """The record of a model's files: as downloaded, as converted from GGUF, or as put together."""
    return f"<resources>/{model_record(config, name)}"


def files_of_model(wildcards):
    """The record of the files of an experiment's model."""
    return model_files(EXPERIMENTS[wildcards.experiment]["model"])


def weights_of_model(wildcards):
    """What ranking needs of an experiment's model."""
    return f"<results>/weights/{EXPERIMENTS[wildcards.experiment]['model']}.safetensors"


def source_of(key):
    """An input: the record of the source of an experiment's samples, say; nothing without them."""
    find = at(f"{{experiment}}/{key}", STATED)
    return lambda wildcards: source_record(entry["source"]) if (entry := find(wildcards)) else []


def own_path(wildcards):
    """The path of a source that is the user's own file or folder; of others none."""
    source = config["sources"][wildcards.source]
    return [source["path"]] if source["kind"] == "local" else []


def shipped_file(name):
    """A file of this workflow, relative where that runs in its own folder: it may be moved then."""
    at_home = os.path.samefile(ROOT, os.getcwd())
    return name if at_home else workflow.source_path(f"../{name}")


def own_file(where, within):
    """An input: a file of the user's own, by where its path stands; nothing where it does not."""
    find = at(where, within)
    return lambda wildcards: [str(beside(path)) for path in [find(wildcards)] if path]


def own_content(where, within):
    """A param: the content of such a file. Jobs run again when it changes; dates mislead."""
    find = at(where, within)
    return lambda wildcards: content(beside(find(wildcards))) if find(wildcards) else None


def to_label(backend):
    """Inputs: what a labeller reads, its prompt, and the word list of the backend lexicon."""
    lexicon, source = backend == "lexicon", LABELLER["lexicon"]["source"]
    return {
        "responses": made(
            "<results>/responses/{baseline}/baseline/part-{part}.parquet",
            when=lambda stated: "labelled" in stated["concept"],
        ),
        "prompts": made(
            "<results>/samples/{samples}.parquet",
            when=lambda stated: "prompt" in stated["concept"].get("labelled", {}).get("texts", ()),
        ),
        "images": made(
            "<results>/samples/{samples}.parquet",
            when=lambda stated: "keywords" in stated["concept"],
        ),
        "prompt_file": [] if lexicon else own_file("{experiment}/labeller/prompt", STATED),
        "lexicon": source_record(source) if lexicon else [],
    }


def in_table(pattern):
    """An input: a file of each of a table's experiments, in their order."""
    return lambda wildcards: [
        path for name in config["tables"][wildcards[0]] for path in named(pattern, name)
    ]


def figure(path, result):
    """An output: a figure as PDF and as PNG, which the report shows beside its table."""
    table = re.search(r"\{\w+\}", path)[0]
    labels = {"result": result}
    png = report(f"{path}.png", "../report/figure.rst", category=f"2 {table}", labels=labels)
    return [f"{path}.pdf", png]


# Params

STATED = {name: stated(config, name) for name in EXPERIMENTS}


def own(*keys):
    """Params of these names: what is stated of an experiment."""
    return {key: at(f"{{experiment}}/{key}", STATED) for key in keys}


def code_hash(rule):
    """A param: a hash of the code behind a rule's result, worked out where there is such a job."""
    return lambda wildcards: lineage.code_hash(rule)


def label_params(backend):
    """Params: how a labeller is asked, and the content of its prompt."""
    asked = own_content("{experiment}/labeller/prompt", STATED)
    return {
        "labeller": lambda wildcards: {
            **STATED[wildcards.experiment]["labeller"],
            "backend": backend,
        },
        "content": None if backend == "lexicon" else asked,
    }


# Resources


def by_attempt(**amounts):
    """Resources that grow with each attempt: a job killed for want of them is given more."""
    return {
        name: lambda wildcards, attempt, amount=amount: (
            attempt * (amount(wildcards) if callable(amount) else amount)
        )
        for name, amount in amounts.items()
    }


def model_mb(wildcards):
    """Memory for a model's weights, a batch and some room."""
    name = wildcards.get("model") or EXPERIMENTS[wildcards.experiment]["model"]
    return 3000 + int(model_of(config["models"][name]).weights * 1.5 / 1e6)


def label_resources(backend):
    """What a labeller may need: its own Ollama server takes a GPU, and loads a model of 43 GB."""
    own = backend == "ollama" and not LABELLER["ollama"]["host"]
    return {**by_attempt(mem_mb=48000 if own else 2000, runtime=2880), "gpu": GPU if own else 0}


# An older Snakemake, which does not know this keyword, has to read the Snakefile up to min_version.
pathvars:
    results=f"results/{config['run']}",
    logs="<results>/logs",
    benchmarks="<results>/benchmarks",


# Messages

# A job's own process needs none.
main = workflow.exec_mode.name == "DEFAULT"
TIMES = job_times(config, measured(workflow.pathvars.apply("<benchmarks>"))) if main else {}


def doing(rule, what):
    """A job's message: what it does, and how long jobs of its rule take, where that is known."""
    return f"{what} ({TIMES[rule]})" if rule in TIMES else what
