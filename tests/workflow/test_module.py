"""Another workflow, elsewhere, imports this one as a module and asks for a concept of its own."""

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


@pytest.fixture
def study(tmp_path: Path) -> Checkout:
    """Give a folder with a workflow of a user's, its config and its data."""
    make_checkout(tmp_path / "our tools/headpursuit")
    study = tmp_path / "study"
    (study / "config").mkdir(parents=True)
    (tmp_path / "our tools/headpursuit/own").rename(study / "own")
    (study / "own/tools.txt").write_text("\n".join(WORDS[20:24]) + "\n", encoding="utf-8")
    (study / "Snakefile").write_text(SNAKEFILE)
    tools = {"model": "tiny", "samples": "rtp", "concept": "tools", "positions": "prompt"}
    own = {
        **TINY,
        "run": "study",
        "concepts": {"tools": {"file": "own/tools.txt"}},
        "experiments": {**TINY["experiments"], "tools": tools},
        "tables": {**TINY["tables"], "concepts": ["tools"]},
    }
    config = {"greeting": "knows tools", "headpursuit": own}
    (study / "config/study.yaml").write_text(yaml.safe_dump(config))
    return Preloaded(study)


def test_one_file_or_the_whole_of_it_can_be_asked_for(study: Checkout) -> None:
    planned = study.planned(overlay="")
    assert planned["headpursuit_rank_heads"] == planned["name_head"] == 1
    assert "headpursuit_respond" not in planned
    planned = study.planned("headpursuit_all", overlay="")
    assert planned["headpursuit_publish_ratios"] == planned["headpursuit_label_responses"] == 1
    assert planned["headpursuit_intervene"] == 2


def test_a_mistake_in_the_importing_config_is_told(study: Checkout) -> None:
    config = study.folder / "config/study.yaml"
    config.write_text(config.read_text().replace("iterations", "itertaions"))
    said = study.refused("-n", overlay="")
    assert "pursuit.itertaions: unknown key; did you mean iterations?" in said


@pytest.mark.long
def test_a_concept_of_another_workflow(study: Checkout) -> None:
    study.snakemake(overlay="")
    results = study.folder / "results/study"
    best = pd.read_csv(results / "rankings/tools.csv").iloc[0]
    said = (study.folder / "head.txt").read_text()
    assert said == f"L{best['layer']}.H{best['head']} knows tools\n"
    assert set(pd.read_csv(results / "dictionaries/tools.csv")["word"]) == set(WORDS[20:24])
    config = yaml.safe_load((results / "config.yaml").read_text())
    pursuit = config["experiments"]["tools"]["pursuit"]
    assert pursuit["iterations"] == TINY["defaults"]["pursuit"]["iterations"]
    assert pursuit["norm"] == "l1"  # what the importing config leaves out is config.yaml's
    assert "greeting" not in config
    imported = study.folder.parent / "our tools/headpursuit"
    assert not {"results", "resources", ".snakemake"} & {path.name for path in imported.iterdir()}
    assert study.planned(overlay="") == {}
