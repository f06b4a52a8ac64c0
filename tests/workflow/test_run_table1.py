"""Table 1 in a real Snakemake run of a tiny random model, with concepts of one's own."""

import os
import re
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from checkout import Checkout
from headpursuit.audit import main
from tiny import HEADS, LAYERS, WORDS

pytestmark = pytest.mark.xdist_group("workflow")

SHIPPED = dict.fromkeys(("countries", "months", "numbers", "colours"))  # not in its vocabulary
TABLE1 = {"datasets": ["asked"], "heads": None, "top": 3, "iterations": 6}
SETS = {"draws": 20, "neighbours": 50}


@pytest.fixture(scope="module")
def with_table1(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    folder = tmp_path_factory.mktemp("table1") / "checkout"
    shutil.copytree(finished.folder, folder)
    checkout = Checkout(folder)
    (folder / "own/tools.txt").write_text("hammer\nneedle\nsaddle\n")
    concepts = {**SHIPPED, "fruit": ["apple", "lemon", "turnip"], "tools": "own/tools.txt"}
    asked = yaml.safe_load((folder / "configs/tiny.yaml").read_text())["datasets"]["rtp"]
    checkout.configure(
        "table1",
        datasets={"asked": {**asked, "sample": 20, "positions": "prompt"}},
        table1={**TABLE1, "random_sets": SETS, "concepts": concepts},
    )
    checkout.snakemake("--cores", "2", "table1", overlay="table1")
    return checkout


def test_every_file_of_table1_is_there(with_table1: Checkout) -> None:
    columns = {
        "decompositions/asked.parquet": "layer head step token_id token explained",
        "lens/asked.parquet": "layer head place token_id token",
        "specialists/asked.csv": "layer head score rank explained coherence",
        "specialists/asked.null.parquet": "layer head step mean low high",
        "dictionaries/concepts/tools.csv": "word form token_id token",
        "rankings/asked/fruit.csv": "method layer head score rank atoms",
        "tables/table1.csv": "dataset layer head method tokens overlap",
        "tables/concepts.csv": "dataset heads concept other shared jaccard chance",
    }
    for name, wanted in columns.items():
        path = with_table1.path(name)
        read = pd.read_parquet if path.suffix == ".parquet" else pd.read_csv
        assert set(wanted.split()) <= set(read(path)), name
    for name in ("atoms", "heads", "concept-fruit", "concept-tools"):
        assert with_table1.path(f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert with_table1.path(f"figures/{name}.png").stat().st_size > 1000
    atoms = pd.read_parquet(with_table1.path("decompositions/asked.parquet"))
    assert len(atoms[["layer", "head"]].drop_duplicates()) == LAYERS * HEADS


def test_a_byte_of_a_concept_s_file_is_seen_whatever_its_date(with_table1: Checkout) -> None:
    path = with_table1.folder / "own/tools.txt"
    before, words = path.stat(), path.read_text()
    for text, planned in ((words.replace("hammer", "jammer"), 1), (words, 0)):
        path.write_text(text)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert with_table1.planned("table1", overlay="table1").get("build_concept", 0) == planned


def test_table1_shows_the_most_specialised(with_table1: Checkout) -> None:
    table = pd.read_csv(with_table1.path("tables/table1.csv"))
    shown = table[(table["dataset"] == "asked") & (table["method"] == "somp")]
    assert shown["rank"].tolist() == [1, 2, 3]
    assert table["published"].isna().all()


def test_every_head_of_the_table_can_be_traced(with_table1: Checkout, capsys) -> None:
    path = str(with_table1.path("tables/table1.csv"))
    table = pd.read_csv(path)
    for row in table[table["method"] == "somp"].itertuples():
        assert main(["trace", path, "asked", f"L{row.layer}.H{row.head}", "--unmasked"]) == 0
        said = capsys.readouterr().out
        fifth = re.search(r"^    5  (\S+)  ([\d.]+)  ([\d.]+)$", said, re.MULTILINE)
        assert fifth[1] == row.tokens.split()[4]
        assert float(fifth[2]) == pytest.approx(row.explained, abs=1e-4)
        assert float(fifth[3]) == pytest.approx(row.explained_null, abs=1e-4)
        assert f"rank {row.rank:g} of {LAYERS * HEADS}" in said
        assert "layer-0" in said
        assert "20, averaged over the positions: prompt" in said
        prompts = pq.read_table(with_table1.path("prompts/asked.parquet"))["text"].to_pylist()
        nearest = said.split("farthest from the mean:\n")[1].splitlines()
        assert len(nearest) == 10
        assert all(line.rsplit("  ", 1)[1] in prompts for line in nearest)
    assert main(["trace", path, "asked", "L9.H9"]) == 2
    assert "A row is named by dataset head; there are\nasked L" in capsys.readouterr().err


def test_each_data_set_has_its_positions(with_table1: Checkout) -> None:
    for name, positions in (("rtp", b'"response"'), ("asked", b'"prompt"')):
        path = with_table1.path(f"activations/{name}/layer-00.parquet")
        assert pq.read_schema(path).metadata[b"positions"] == positions
    # Without response positions no responses are needed.
    assert not with_table1.path("generations/asked").exists()


def test_a_second_run_does_nothing_and_a_concept_is_one_entry(with_table1: Checkout) -> None:
    assert with_table1.planned("table1", overlay="table1") == {}
    overlay = with_table1.folder / "configs/table1.yaml"
    config = yaml.safe_load(overlay.read_text())
    config["table1"]["concepts"]["mine"] = WORDS[:4]
    overlay.with_name("more.yaml").write_text(yaml.safe_dump(config))
    assert with_table1.planned("table1", overlay="more") == {
        "write_config": 1,
        "preflight": 1,
        "build_concept": 1,
        "rank_concept": 1,
        "plot_concept": 1,
        "publish_concepts": 1,
        "table1": 1,
    }


@pytest.mark.parametrize(
    ("deleted", "made"),
    [
        (
            "specialists/asked.csv",
            {"rank_specialists", "publish_table1", "plot_heads", "plot_atoms"},
        ),
        ("lens/asked.parquet", {"read_lens", "publish_table1"}),
        (
            "dictionaries/concepts/fruit.csv",
            {"build_concept", "rank_concept", "plot_concept", "publish_concepts"},
        ),
        ("figures/atoms.png", {"plot_atoms"}),
    ],
)
def test_a_deleted_file_is_made_again(with_table1: Checkout, deleted: str, made: set[str]) -> None:
    path = with_table1.path(deleted)
    kept = path.rename(path.with_name("kept"))
    try:
        assert set(with_table1.planned("table1", overlay="table1")) - {"table1"} == made
    finally:
        kept.rename(path)
