"""One run of configs/v2.yaml over config.yaml, on replicas of all their sources: make rehearsal-v2.

Data sets have few classes, and the draws of questions are smaller; else the run is the shipped one.
"""

from collections.abc import Iterator

import pytest
import replica_models
import replica_sources
import yaml
from conftest import JUDGE, LLAVA, MACHINE, MISTRAL, Rehearsal, replicas
from headpursuit.run.experiments import merge
from replica_names import DIGITS, DTD, EUROSAT, GTSRB, RESISC45
from replica_tokenizer import ROOT
from replica_vlms import CAPTIONS, GEMMA, QWEN, VICUNA, make

CLASSES = {"mnist": DIGITS, "svhn": DIGITS, "eurosat": EUROSAT}
CLASSES |= {"gtsrb": GTSRB[13:19], "resisc45": RESISC45[:6], "dtd": DTD[:6]}
QUESTIONS = {"samples": {"triviaqa": {"sample": 60}, "triviaqa-validation": {"sample": 40}}}
SHIPPED = yaml.safe_load((ROOT / "configs/v2.yaml").read_text(encoding="utf-8"))


class Full(Rehearsal):
    """Its runs are the full version's."""

    usual = "v2 machine"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Full]:
    """Give the full version's whole run and its manifest."""
    folder = tmp_path_factory.mktemp("v2")
    with replicas(folder / "run", v2_files(folder), Full, merge(MACHINE, QUESTIONS)) as run:
        run.snakemake("all", "audit")
        yield run


def v2_files(folder) -> dict[str, dict[str, bytes]]:
    """Return the files of all repositories, by their ids."""
    made = {name: own() for name, own in replica_sources.DATASETS.items()}
    for dataset in ("gtsrb", "resisc45", "dtd"):
        id = SEED["sources"][dataset]["id"]
        made[id] = getattr(replica_sources, dataset)(CLASSES[dataset])
    made["AnyModal/flickr30k"] = replica_sources.flickr30k()
    made[MISTRAL] = replica_models.mistral(folder / "mistral", questions=60)
    asked = CAPTIONS[VICUNA]
    made[LLAVA] = replica_models.llava_next(folder / "llava", CLASSES, asked)
    made[JUDGE] = replica_models.roberta_toxicity(folder / "judge")
    return made | {name: make(name, folder / name, CLASSES) for name in (VICUNA, GEMMA, QWEN)}


SEED = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
