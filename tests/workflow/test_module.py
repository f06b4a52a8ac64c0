"""Another workflow, elsewhere, imports this one as a module and asks for a concept of its own."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from checkout import TINY, Checkout, Preloaded, make_checkout
from tiny import WORDS

pytestmark = pytest.mark.xdist_group("workflow")

SNAKEFILE = """
configfile: "config/study.yaml"

module headpursuit:
    snakefile: "../our tools/headpursuit/Snakefile"
    config: config["headpursuit"]

use rule * from headpursuit as headpursuit_*

rule name_head:
    default_target: True
    input:
        ranking="results/study/rankings/tools.csv",
        config=rules.headpursuit_write_config.output,
    output:
        "head.txt"
    run:
        import csv
        with open(input.ranking) as ranking, open(output[0], "w") as named:
            best = next(csv.DictReader(ranking))
            print(f"L{best['layer']}.H{best['head']} {config['greeting']}", file=named)
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Give a folder with a workflow of a user's, its config and its data, in which it has run."""
    folder = tmp_path_factory.mktemp("module")
    make_checkout(folder / "our tools/headpursuit")
    study = folder / "study"
    study.mkdir()
    (folder / "our tools/headpursuit/own").rename(study / "own")
    (study / "own/tools.txt").write_text("\n".join(WORDS[20:24]) + "\n", encoding="utf-8")
    (study / "Snakefile").write_text(SNAKEFILE)
    own = {
        **TINY,
        "run": "study",
        "concepts": {"tools": {"file": "own/tools.txt"}},
        "experiments": {
            **TINY["experiments"],
            "tools": {"model": "tiny", "samples": "rtp", "concept": "tools", "positions": "prompt"},
        },
        "tables": {**TINY["tables"], "concepts": ["tools"]},
    }
    (study / "config").mkdir()
    config = {"greeting": "knows tools", "headpursuit": own}
    (study / "config/study.yaml").write_text(yaml.safe_dump(config))
    checkout = Preloaded(study)
    checkout.snakemake(overlay="")
    return checkout


def test_a_concept_of_another_workflow(study: Checkout) -> None:
    ranking = pd.read_csv(study.folder / "results/study/rankings/tools.csv")
    best = ranking.iloc[0]
    said = (study.folder / "head.txt").read_text()
    assert said == f"L{best['layer']}.H{best['head']} knows tools\n"
    words = pd.read_csv(study.folder / "results/study/dictionaries/tools.csv")["word"]
    assert set(words) == set(WORDS[20:24])


def test_what_the_importing_config_leaves_out_is_config_yaml_s(study: Checkout) -> None:
    config = yaml.safe_load((study.folder / "results/study/config.yaml").read_text())
    pursuit = config["experiments"]["tools"]["pursuit"]
    assert pursuit["iterations"] == TINY["defaults"]["pursuit"]["iterations"]
    assert pursuit["norm"] == "l1"
    assert "greeting" not in config


def test_nothing_is_written_into_the_imported_workflow(study: Checkout) -> None:
    imported = study.folder.parent / "our tools/headpursuit"
    assert not {"results", "resources", ".snakemake"} & {path.name for path in imported.iterdir()}


def test_a_second_run_does_nothing(study: Checkout) -> None:
    assert study.planned(overlay="") == {}


def test_the_whole_of_it_can_be_asked_for(study: Checkout) -> None:
    planned = study.planned("headpursuit_all", overlay="")
    assert planned["headpursuit_publish_ratios"] == planned["headpursuit_label_responses"] == 1


def test_a_mistake_in_the_importing_config_is_told(study: Checkout, tmp_path: Path) -> None:
    copy = tmp_path / "study"
    shutil.copytree(study.folder / "config", copy / "config")
    snakefile = SNAKEFILE.replace("../our tools", str(study.folder.parent / "our tools"))
    (copy / "Snakefile").write_text(snakefile)
    config = copy / "config/study.yaml"
    config.write_text(config.read_text().replace("iterations", "itertaions"))
    code, said = Checkout(copy).run("-n", overlay="")
    assert code != 0
    assert "pursuit.itertaions: unknown key; did you mean iterations?" in said
    assert "Traceback" not in said
