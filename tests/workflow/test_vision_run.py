"""A real Snakemake run of the image experiment: a tiny tower trained through a tiny text model."""

import json
import re
import shutil
import string
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from checkout import Checkout, make_checkout
from headpursuit.audit import main
from tiny_figure1 import prepare_figure1
from tiny_vision import make_vlm

pytestmark = pytest.mark.xdist_group("vision")

TABLES = ["figure1.csv", "figure1.md", "figure1.tex", "figure1.draws.csv"]
TABLES += ["figure1.overlap.csv", "figure1.cross.csv"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Give a checkout in which figure 1 was made, with the tower trained in it."""
    checkout = make_checkout(tmp_path_factory.mktemp("vision") / "checkout")
    checkout.configure("vision", **prepare_figure1(checkout.folder / "own"))
    checkout.snakemake("figure1", overlay="vision")
    return checkout


def test_every_file_of_the_contract_is_there(ran: Checkout) -> None:
    columns = {
        "images/stripes.parquet": "image_id part source label class_name image",
        "classes/photos.csv": "label class_name selection evaluation",
        "class_dictionaries/stripes.csv": "class_name form token_id token",
        "image_activations/photos/layer-02.parquet": "sample_id layer z",
        "image_rankings/stripes.csv": "method layer head score rank atoms",
        "image_heads/photos.csv": "condition layer head",
        "answers/stripes/part-1.parquet": "condition image_id label answer n_tokens stop_reason",
        "image_scores/stripes.parquet": "condition image_id label strict first_word names",
        "tables/figure1.csv": "dataset method heads metric value sd median q25 q75 ci_low ci_high "
        "draws baseline_accuracy accuracy images published published_source",
        "tables/figure1.overlap.csv": "heads dataset other shared jaccard",
        "tables/figure1.cross.csv": "heads dataset heads_from metric value ci_low ci_high",
    }
    for name, wanted in columns.items():
        path = ran.path(name)
        table = pd.read_csv(path) if path.suffix == ".csv" else pq.read_table(path).to_pandas()
        assert set(wanted.split()) <= set(table.columns), name
        assert len(table), name
    for name in ("figure1.pdf", "figure1.png", "figure1.overlap.pdf", "figure1.overlap.png"):
        assert ran.path(f"figures/{name}").stat().st_size > 0


def test_the_table_is_that_of_the_answers(ran: Checkout) -> None:
    answers = pq.read_table(ran.path("answers/stripes")).to_pandas()  # of all parts
    names = dict(enumerate(pd.read_csv(ran.path("classes/stripes.csv"))["class_name"]))
    bare = answers["answer"].str.strip(string.punctuation + string.whitespace).str.lower()
    right = bare == answers["label"].map(names)
    accuracy = right.groupby(answers["condition"]).mean()
    table = pd.read_csv(ran.path("tables/figure1.csv"))
    own = table[(table["dataset"] == "stripes") & (table["metric"] == "strict")]
    assert set(own["method"]) == {"somp", "unrelated", "size", "random"}
    for row in own[own["method"] != "random"].itertuples():
        assert row.accuracy == pytest.approx(accuracy[f"{row.method}-k{row.heads}"])
        assert row.baseline_accuracy == pytest.approx(accuracy["baseline"])
        assert row.images == 24
    draws = [accuracy[f"random-k2-d0{draw}"] for draw in range(2)]
    random = own[(own["method"] == "random") & (own["heads"] == 2)].iloc[0]
    assert random["accuracy"] == pytest.approx(np.mean(draws))


def test_traced_answers_sum_to_every_cell(ran: Checkout, capsys) -> None:
    path = str(ran.path("tables/figure1.csv"))
    table = pd.read_csv(path)
    assert len(table) == 2 * 4 * 2 * 2  # data sets, methods, k, metrics
    for row in table.itertuples():
        assert main(["trace", path, row.dataset, row.method, str(row.heads), row.metric]) == 0
        said = capsys.readouterr().out
        assert said.count("  right answers (") == row.draws
        sums = []
        for own in re.findall(r"  right answers \(.*\n((?:    .*\n)+)", said):
            pairs = [re.search(r": (\d+) -> (\d+)$", line).groups() for line in own.splitlines()]
            sums.append(np.array(pairs, int).sum(0))
        before, after = np.mean(sums, axis=0)
        assert before == pytest.approx(row.baseline_accuracy * row.images)
        assert after == pytest.approx(row.accuracy * row.images)
        for name in pd.read_csv(ran.path(f"classes/{row.dataset}.csv"), dtype=str)["class_name"]:
            assert f"    {name}: " in said


def test_parts_share_no_image(ran: Checkout) -> None:
    for dataset in ("stripes", "photos"):
        table = pq.read_table(ran.path(f"images/{dataset}.parquet")).to_pandas()
        assert table["source"].is_unique
        assert set(table["part"]) == {"selection", "evaluation"}


def test_random_heads_match_layers_and_are_disjoint(ran: Checkout) -> None:
    heads = pd.read_csv(ran.path("image_heads/stripes.csv")).groupby("condition")
    for k in (1, 2):
        chosen = heads.get_group(f"somp-k{k}")
        for draw in range(2):
            control = heads.get_group(f"random-k{k}-d0{draw}")
            assert sorted(control["layer"]) == sorted(chosen["layer"])
            both = [set(zip(t["layer"], t["head"], strict=True)) for t in (chosen, control)]
            assert not both[0] & both[1]


def test_heads_of_the_other_data_set_are_evaluated(ran: Checkout) -> None:
    table = pd.read_csv(ran.path("tables/figure1.cross.csv"))
    assert len(table) == 2 * 2 * 2 * 2  # k, data sets, where from, metrics
    conditions = set(
        pq.read_table(ran.path("answers/photos/part-1.parquet"))["condition"].to_pylist()
    )
    assert {"somp-k1-from-stripes", "somp-k2-from-stripes"} <= conditions


def test_the_tower_has_its_record(ran: Checkout) -> None:
    record = json.loads(ran.path("tower/tower.json").read_text())
    assert record["trained_images"] == 60
    assert record["accuracy"]["images"] == 30
    assert record["build"]["training"]["epochs"] == 1
    assert len(record["sha256"]) == 64


def test_second_run_does_nothing(ran: Checkout) -> None:
    assert ran.planned("figure1", overlay="vision") == {}


def test_all_makes_figure1_too(ran: Checkout) -> None:
    assert "publish_table2" in ran.planned(overlay="vision")
    assert "figure1" not in ran.planned(overlay="vision")  # it is there already
    assert "answer_images" not in ran.planned(overlay="tiny")


def test_a_rebuilt_tower_is_the_same(ran: Checkout) -> None:
    path = ran.path("tower/tower.safetensors")
    before = path.read_bytes()
    path.unlink()
    ran.snakemake("results/tiny/tower/tower.safetensors", overlay="vision")
    assert path.read_bytes() == before
    assert ran.planned("figure1", overlay="vision") == {}


def test_published_again_is_the_same(ran: Checkout) -> None:
    names = ["figures/figure1.png", "figures/figure1.pdf", "figures/figure1.overlap.pdf"]
    names += [f"tables/{name}" for name in TABLES]
    before = {name: ran.path(name).read_bytes() for name in names}
    ran.path("tables/figure1.md").unlink()
    ran.snakemake("figure1", overlay="vision")
    for name in names:
        assert ran.path(name).read_bytes() == before[name], name


def test_the_parts_of_the_answers_change_no_score(ran: Checkout, tmp_path: Path) -> None:
    shutil.copytree(ran.folder, tmp_path / "checkout")
    other = Checkout(tmp_path / "checkout")
    overlay = (ran.folder / "configs/vision.yaml").read_text()
    (other.folder / "configs/parts.yaml").write_text(overlay.replace("parts: 2", "parts: 3"))
    target = "results/tiny/image_scores/photos.parquet"
    assert "answer_images" in other.snakemake(target, overlay="parts")
    assert other.path("answers/photos/part-3.parquet").exists()
    assert (other.folder / target).read_bytes() == (ran.folder / target).read_bytes()


def test_a_normalisation_needs_no_model(ran: Checkout) -> None:
    overlay = (ran.folder / "configs/vision.yaml").read_text()
    (ran.folder / "configs/letters.yaml").write_text(
        overlay.replace("vision:\n", "vision:\n  normalise: []\n", 1)
    )
    planned = set(ran.planned("figure1", overlay="letters"))
    assert "score_answers" in planned
    assert not planned & {"answer_images", "cache_image_activations", "rank_image_heads"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rows:\n      - 61", "rows:\n      - 1"), "images are in both parts"),
        (("{classes}. Answer", "classes. Answer"), "vision.template: {classes} has to be in it"),
        (("dataset: stripes", "dataset: plums"), "vision.build.dataset: 'plums' is not under"),
    ],
)
def test_refused(ran: Checkout, change: tuple[str, str], message: str) -> None:
    text = (ran.folder / "configs/vision.yaml").read_text()
    assert change[0] in text
    wrong = text.replace(*change).replace("run: tiny", "run: wrong")
    (ran.folder / "configs/wrong.yaml").write_text(wrong)
    code, said = ran.run("results/wrong/tower/tower.json", overlay="wrong")
    assert code != 0
    assert message in said, said
    assert "Traceback" not in said


def test_a_whole_model_of_a_folder(ran: Checkout, tmp_path: Path) -> None:
    """LLaVA-NeXT with its tiling, chat template and a data set of one's own; no build."""
    make_vlm(ran.folder / "own/next", "llava_next")
    text = (ran.folder / "configs/vision.yaml").read_text()
    config = yaml.safe_load(text)
    config["run"] = "next"
    config["sources"]["next"] = {"kind": "local", "path": "own/next"}
    config["models"]["next"] = {**config["models"]["assembled"], "source": "next", "chat": True}
    config["vision"] |= {"model": "next", "datasets": ["photos"], "build": None}
    config["vision"]["heads"] = {"methods": ["somp"], "k": [1], "draws": 2}
    (ran.folder / "configs/next.yaml").write_text(yaml.safe_dump(config))
    ran.snakemake("results/next/tables/figure1.csv", overlay="next")
    table = pd.read_csv(ran.folder / "results/next/tables/figure1.csv")
    assert len(table) == 2 * 1 * 2  # SOMP and random, k, metrics
