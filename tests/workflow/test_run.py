"""Real Snakemake runs of the whole text experiment on a tiny random model."""

import json
import unicodedata

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from checkout import Checkout, edit_a_byte
from headpursuit.audit import main
from hub_server import Repo, serve
from tiny import WORDS

pytestmark = pytest.mark.xdist_group("workflow")

TABLES = ["table2.csv", "table2.draws.csv", "table2.md", "table2.tex"]
# What stands on each file, by rule: what must be made again, and nothing else.
PUBLISH = {"publish_table2": 1, "plot_table2": 1, "compare_published": 1, "write_pages": 1}
SCORE = {"score_words": 1, **PUBLISH}
HEADS = {"generate_intervened": 1, "join_responses": 3, "measure_expected": 2, **SCORE}
RANKED = {"rank_heads": 1, "select_heads": 2, "draw_controls": 2, **HEADS}
WORDED = {"build_dictionary": 1, **RANKED}
LABELLED = {"summarise_labels": 1, "split_words": 1, **WORDED}
BASELINE = {"label_responses": 1, "cache_activations": 1, **LABELLED, "join_responses": 4}


def test_every_file_of_the_contract_is_there(finished: Checkout) -> None:
    columns = {
        "prompts/rtp.parquet": "prompt_id text rendered",
        "generations/rtp/baseline.parquet": "prompt_id sample response n_tokens stop_reason",
        "generations/rtp/somp-k2.parquet": "prompt_id sample response n_tokens stop_reason",
        "generations/rtp/random-k2-d00.parquet": "prompt_id sample response n_tokens stop_reason",
        "labels/rtp.parquet": "prompt_id reply words dropped status",
        "words/rtp.csv": "word count rank split",
        "activations/rtp/layer-00.parquet": "sample_id layer z",
        "rankings/rtp.csv": "method layer head score rank atoms",
        "heads/rtp/random-k2-d01.csv": "layer head",
        "scores/rtp.parquet": "condition word before after",
        "tables/table2.csv": "dataset method heads metric value sd median q25 q75 ci_low ci_high "
        "draws baseline_count count length_ratio published published_source",
    }
    for name, wanted in columns.items():
        path = finished.path(name)
        table = pd.read_csv(path) if path.suffix == ".csv" else pq.read_table(path).to_pandas()
        assert set(wanted.split()) <= set(table.columns), name
        assert len(table), name
    for name in ("figures/table2.pdf", "figures/table2.png", "logs/rank_heads/rtp.log"):
        assert finished.path(name).stat().st_size > 0
    assert not list(finished.path("").rglob(".*.journal"))


def test_the_config_in_force_is_kept(finished: Checkout) -> None:
    config = yaml.safe_load(finished.path("config.yaml").read_text())
    assert config["run"] == "tiny"
    assert config["pursuit"]["iterations"] == 5  # of the overlay
    assert config["pursuit"]["norm"] == "l1"  # of config.yaml


def test_table_adds_up(finished: Checkout) -> None:
    """The table's counts are those of a plain count over the stored responses."""
    words = pd.read_csv(finished.path("words/rtp.csv"))
    heldout = set(words[words["split"] == "heldout"]["word"])
    assert 0.65 < (words["split"] == "selection").mean() < 0.75

    def occurrences(condition: str) -> int:
        path = finished.path(f"generations/rtp/{condition}.parquet")
        responses = pq.read_table(path)["response"].to_pylist()
        # A mark (of Hebrew, say) belongs to the word that it stands in, and is no letter to \w.
        pieces = "".join(
            c if c == "_" or unicodedata.category(c)[0] in "LMN" else " "
            for c in " ".join(responses).lower()
        )
        return sum(piece in heldout for piece in pieces.split())

    table = pd.read_csv(finished.path("tables/table2.csv"))
    counts = table[table["metric"] == "count"].set_index("method")
    for method, condition in (("somp", "somp-k2"), ("random", "random-k2-d00")):
        row = counts.loc[method]
        assert row["baseline_count"] == occurrences("baseline") > 0
        assert row["count"] == occurrences(condition)
        assert row["value"] == pytest.approx(row["count"] / row["baseline_count"])
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert set(table["metric"]) == {"count", "expected"}
    assert table.set_index(["method", "metric"])["draws"].to_dict() == {
        ("somp", "count"): 1,
        ("somp", "expected"): 1,
        ("logit_lens", "count"): 1,
        ("logit_lens", "expected"): 1,
        ("random", "count"): 1,
        ("random", "expected"): 2,
    }


def test_controls_match_layers_and_are_disjoint(finished: Checkout) -> None:
    chosen = pd.read_csv(finished.path("heads/rtp/somp-k2.csv"))
    for draw in range(2):
        control = pd.read_csv(finished.path(f"heads/rtp/random-k2-d0{draw}.csv"))
        assert sorted(control["layer"]) == sorted(chosen["layer"])
        assert not set(map(tuple, control.values)) & set(map(tuple, chosen.values))


def test_second_run_does_nothing(finished: Checkout) -> None:
    assert finished.planned() == {}


@pytest.mark.parametrize(
    ("deleted", "made"),
    [
        (
            "prompts/rtp.parquet",
            {"prepare_prompts": 1, "generate_baseline": 1, **BASELINE, "join_responses": 4},
        ),
        ("responses/rtp/baseline/part-1.parquet", {"generate_baseline": 1, **BASELINE}),
        ("generations/rtp/baseline.parquet", BASELINE),
        ("labels/rtp.parquet", {"label_responses": 1, **LABELLED}),
        ("words/rtp.csv", {"split_words": 1, **WORDED}),
        ("dictionaries/rtp.csv", WORDED),
        ("activations/rtp/layer-01.parquet", {"cache_activations": 1, **RANKED}),
        ("weights/tiny.safetensors", {"extract_weights": 1, **RANKED}),
        ("rankings/rtp.csv", RANKED),
        ("heads/rtp/random-k2-d01.csv", {"draw_controls": 1, "measure_expected": 2, **SCORE}),
        ("generations/rtp/somp-k2.parquet", {"join_responses": 1, **SCORE}),
        (
            "responses/rtp/k2-1/part-1.parquet",
            {"generate_intervened": 1, "join_responses": 3, **SCORE},
        ),
        ("expected/rtp/part-2.parquet", {"measure_expected": 1, **SCORE}),
        ("scores/rtp.parquet", SCORE),
        ("tables/table2.tex", PUBLISH),
        ("figures/table2.png", {"plot_table2": 1, "write_pages": 1}),
    ],
)
def test_a_deleted_file_is_made_again_with_what_stands_on_it(
    finished: Checkout, deleted: str, made: dict[str, int]
) -> None:
    path = finished.path(deleted)
    aside = path.rename(path.with_name(".aside"))
    try:
        planned = finished.planned()
    finally:
        aside.rename(path)
    planned.pop("all")
    assert planned == made


def test_a_rebuilt_file_is_the_same(checkout: Checkout) -> None:
    names = ["heads/rtp/somp-k2.csv", "scores/rtp.parquet", *(f"tables/{name}" for name in TABLES)]
    before = {name: checkout.path(name).read_bytes() for name in names}
    checkout.path("words/rtp.csv").unlink()
    checkout.snakemake()
    assert {name: checkout.path(name).read_bytes() for name in names} == before
    assert checkout.planned() == {}


def test_runs_from_scratch_are_byte_identical(finished: Checkout, elsewhere: Checkout) -> None:
    for name in [*(f"tables/{table}" for table in TABLES), "figures/table2.png"]:
        assert finished.path(name).read_bytes() == elsewhere.path(name).read_bytes(), name


def test_a_colour_makes_a_new_figure_and_nothing_else(finished: Checkout) -> None:
    finished.configure("colour", publish={"colours": {"somp": "#008800"}})
    assert set(finished.planned(overlay="colour")) == {
        "all",
        "plot_table2",
        "preflight",
        "write_config",
        "write_pages",
    }


def test_alpha_reruns_from_the_intervention_on(finished: Checkout) -> None:
    finished.configure("alpha", heads={"alpha": 0.0})
    planned = finished.planned(overlay="alpha")
    assert planned["generate_intervened"] == 1
    assert not {"generate_baseline", "cache_activations", "rank_heads"} & set(planned)


def test_another_k_or_draw_leaves_the_other_responses_as_they_are(finished: Checkout) -> None:
    finished.configure("k", heads={"k": [1, 2]})
    assert finished.planned(overlay="k")["generate_intervened"] == 1
    one_each = {"generation": {"conditions_per_job": 1}}
    finished.configure("each", **one_each)
    assert finished.planned(overlay="each")["generate_intervened"] == 3


def test_how_work_is_divided_changes_no_result(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        *(f"generations/rtp/{name}.parquet" for name in ("baseline", "somp-k2", "random-k2-d00")),
        "scores/rtp.parquet",
        "scores/rtp.per_prompt.parquet",
        *(f"tables/{name}" for name in TABLES),
    ]
    generation = {"parts": 3, "conditions_per_job": 2}
    checkout.configure("divided", run="divided", generation=generation, score={"parts": 3})
    checkout.snakemake("results/divided/tables/table2.csv", overlay="divided")
    for name in names:
        other = checkout.folder / "results/divided" / name
        assert other.read_bytes() == checkout.path(name).read_bytes(), name
    planned = checkout.planned(overlay="divided")
    assert not {"generate_baseline", "generate_intervened", "measure_expected"} & set(planned)

    # What is left of the third part is read no more.
    checkout.configure("divided", run="divided", generation=generation, score={"parts": 2})
    wanted = [f"results/divided/{name}" for name in ("config.yaml", "tables/table2.csv")]
    checkout.snakemake(*wanted, overlay="divided")
    assert (checkout.folder / "results/divided/expected/rtp/part-3.parquet").exists()
    said = []
    for run in ("divided", "tiny"):
        path = checkout.folder / f"results/{run}/tables/table2.csv"
        assert main(["trace", str(path), "rtp", "somp", "2", "expected"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_own_words_need_no_labeller(checkout: Checkout) -> None:
    words = checkout.folder / "own/list.txt"
    words.write_text("\n".join(WORDS[:20]) + "\n", encoding="utf-8")
    checkout.configure("own", run="own", words={"file": "own/list.txt"})
    target = "results/own/words/rtp.csv"
    said = checkout.snakemake(target, "--printshellcmds", overlay="own")
    assert "label_responses" not in said
    table = pd.read_csv(checkout.folder / target)
    assert set(table["word"]) == set(WORDS[:20])
    assert "label_responses" not in checkout.planned(overlay="own")
    edit_a_byte(words)
    assert checkout.planned(target, overlay="own") == {"split_words": 1}


def test_provenance_of_a_local_source(finished: Checkout) -> None:
    record = json.loads((finished.folder / "resources/tiny-prompts/provenance.json").read_text())
    assert record["files"][0]["path"] == "prompts.jsonl"
    assert len(record["files"][0]["sha256"]) == 64


def test_a_source_from_the_hub(checkout: Checkout) -> None:
    """A job downloads, though the library that its rules import takes the Hub offline."""
    prompts = (checkout.folder / "own/prompts.jsonl").read_bytes()
    spec = {"kind": "hub", "id": "org/prompts", "repo_type": "dataset", "revision": "main"}
    source = {**spec, "files": ["prompts.jsonl"], "licence": "none"}
    checkout.configure(
        "hub",
        run="hub",
        sources={"hub-prompts": source},
        datasets={"rtp": {"source": "hub-prompts"}},
    )
    with serve({"org/prompts": Repo(files={"prompts.jsonl": prompts})}) as hub:
        checkout.snakemake("results/hub/prompts/rtp.parquet", overlay="hub", HF_ENDPOINT=hub.url)
    record = json.loads((checkout.folder / "resources/hub-prompts/provenance.json").read_text())
    assert record["commit"] == "c" * 40
    tables = [checkout.folder / f"results/{run}/prompts/rtp.parquet" for run in ("hub", "tiny")]
    assert pq.read_table(tables[0]).equals(pq.read_table(tables[1]))


def test_prompts_that_change_on_disk_are_read_anew(checkout: Checkout) -> None:
    prompts = checkout.folder / "own/prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("apple", "plum"), encoding="utf-8")
    assert checkout.planned()["prepare_prompts"] == 1


@pytest.mark.parametrize(
    ("name", "reruns"),
    [
        ("own/prompts.jsonl", {"download_source", "prepare_prompts"}),
        ("own/model/model.safetensors", {"download_source", "generate_baseline"}),
        ("data/unrelated_words.txt", {"rank_heads"}),
    ],
)
def test_a_byte_of_a_user_s_file_is_seen_whatever_its_date(
    checkout: Checkout, name: str, reruns: set[str]
) -> None:
    before = checkout.planned()
    edit_a_byte(checkout.folder / name)
    assert reruns <= set(checkout.planned()) - set(before)
    edit_a_byte(checkout.folder / name)
    assert checkout.planned() == before


def test_other_dates_are_no_other_content(checkout: Checkout) -> None:
    before = checkout.planned()
    (checkout.folder / "own/model/.hidden").touch()
    for path in (checkout.folder / "own").rglob("*"):
        path.touch()
    assert checkout.planned() == before
