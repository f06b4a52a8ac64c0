"""One real Snakemake run of all kinds of experiments on a tiny random model."""

import json
import string
import unicodedata

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from checkout import Checkout, edit_a_byte
from hub_server import Repo, serve
from tiny import HEADS, LAYERS, WORDS

pytestmark = pytest.mark.xdist_group("workflow")

# What stands on each file of the experiment rtp, by rule: made again, and nothing else.
PUBLISH = {"publish_ratios": 1, "compare_published": 1, "write_pages": 1}
MEASURE = {"measure": 1, **PUBLISH}
HEADS_OF = {"intervene": 2, "measure_expected": 2, **MEASURE}
RANKED = {"rank_heads": 1, "select_heads": 1, "draw_controls": 1, **HEADS_OF}
WORDED = {"build_dictionary": 1, **RANKED}
LABELLED = {"summarise_labels": 1, "split_words": 1, **WORDED}
BASELINE = {"label_responses": 1, "cache_activations": 1, **LABELLED}

FILES = {
    "samples/rtp.parquet": "sample_id text source rendered token_ids own_positions",
    "samples/stripes.parquet": "sample_id part source label class_name image",
    "responses/rtp/baseline/part-1.parquet": "condition sample_id repeat response stop_reason",
    "responses/rtp/scaled/part-2.parquet": "condition sample_id repeat response stop_reason",
    "responses/photos/scaled/part-1.parquet": "condition sample_id repeat response",
    "labels/rtp.parquet": "sample_id repeat reply words dropped status",
    "words/rtp.csv": "word count rank split",
    "dictionaries/tools.csv": "word split form starts_word token_id token shared",
    "activations/asked.parquet": "sample_id layer z",
    "rankings/photos.csv": "method layer head score rank atoms",
    "heads/rtp/selected.csv": "condition layer head",
    "heads/rtp/random.csv": "condition layer head",
    "expected/fruit/part-1.parquet": "condition sample_id repeat positions nll mass",
    "scores/rtp.parquet": "condition sample_id measure before after",
    "scores/rtp.words.parquet": "measure condition word split before after",
    "decompositions/asked.parquet": "layer head step token_id token explained",
    "lens/asked.parquet": "layer head place token_id token",
    "specialists/asked.csv": "layer head score rank explained coherence",
    "specialists/asked.null.parquet": "layer head step mean low high",
    "tables/table1.csv": "experiment layer head method tokens overlap",
    "tables/table2.csv": "experiment method heads measure value ci_low before after n",
    "tables/enhanced.draws.csv": "experiment method heads measure draw value",
    "tables/figure1.overlap.csv": "heads one other shared jaccard chance",
}
PICTURES = ["table2", "enhanced", "figure1", "figure4", "table1.heads", "table1.atoms"]
PICTURES += ["figure1.heads"]


def read(checkout: Checkout, name: str) -> pd.DataFrame:
    path = checkout.path(name)
    return pd.read_csv(path) if path.suffix == ".csv" else pq.read_table(path).to_pandas()


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_the_contract_is_there(finished: Checkout, name: str) -> None:
    table = read(finished, name)
    assert set(FILES[name].split()) <= set(table.columns)
    assert len(table)


def test_pictures_logs_and_no_journal(finished: Checkout) -> None:
    for name in PICTURES:
        assert finished.path(f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert finished.path(f"figures/{name}.png").stat().st_size > 1000
    assert finished.path("logs/rank_heads/rtp.log").stat().st_size > 0
    assert not list(finished.path("").rglob(".*.journal"))


def test_the_config_in_force_is_kept(finished: Checkout) -> None:
    config = yaml.safe_load(finished.path("config.yaml").read_text())
    pursuit = config["experiments"]["tools"]["pursuit"]
    assert pursuit["iterations"] == 5  # of the overlay's defaults
    assert pursuit["norm"] == "l1"  # of the schema
    assert config["experiments"]["tools"]["alpha"] == 3.0  # of what it is like


def test_table2_adds_up(finished: Checkout) -> None:
    """The table's counts are those of a plain count over the stored responses."""
    words = read(finished, "words/rtp.csv")
    heldout = set(words[words["split"] == "heldout"]["word"])
    assert 0.65 < (words["split"] == "selection").mean() < 0.75

    def occurrences(kind: str, condition: str) -> int:
        table = pq.read_table(finished.path(f"responses/rtp/{kind}")).to_pandas()
        responses = table[table["condition"] == condition]["response"]
        # A mark (of Hebrew, say) belongs to the word that it stands in, and is no letter to \w.
        pieces = "".join(
            c if c == "_" or unicodedata.category(c)[0] in "LMN" else " "
            for c in " ".join(responses).lower()
        )
        return sum(piece in heldout for piece in pieces.split())

    table = read(finished, "tables/table2.csv")
    counts = table[table["measure"] == "count"].set_index("method")
    for method, condition in (("somp", "somp-k2"), ("random", "random-k2-d00")):
        row = counts.loc[method]
        assert row["before"] == occurrences("baseline", "baseline") > 0
        assert row["after"] == occurrences("scaled", condition)
        assert row["value"] == pytest.approx(row["after"] / row["before"])
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert table.set_index(["method", "measure"])["draws"].to_dict() == {
        (method, measure): 2 if (method, measure) == ("random", "expected") else 1
        for method in ("somp", "logit_lens", "random")
        for measure in ("count", "expected")
    }


def test_figure1_adds_up(finished: Checkout) -> None:
    images = read(finished, "samples/stripes.parquet").set_index("sample_id")
    names = json.loads(
        pq.read_schema(finished.path("samples/stripes.parquet")).metadata[b"classes"]
    )
    answers = pd.concat(
        pq.read_table(finished.path(f"responses/stripes/{kind}")).to_pandas()
        for kind in ("baseline", "scaled")
    )
    bare = answers["response"].str.strip(string.punctuation + string.whitespace).str.lower()
    label = images.loc[answers["sample_id"], "label"].to_numpy()
    right = (bare == np.array(names)[label]).groupby(answers["condition"]).sum()
    table = read(finished, "tables/figure1.csv")
    own = table[(table["experiment"] == "stripes") & (table["measure"] == "strict")]
    assert set(own["method"]) == {"somp", "unrelated", "size", "random"}
    for row in own[own["method"] != "random"].itertuples():
        assert row.after == right[f"{row.method}-k{row.heads}"]
        assert row.before == right["baseline"]
        assert row.n == 24
    random = own[(own["method"] == "random") & (own["heads"] == 2)].iloc[0]
    assert random["after"] == pytest.approx(right[["random-k2-d00", "random-k2-d01"]].mean())


def test_words_that_nothing_is_held_out_of_are_measured(finished: Checkout) -> None:
    words = read(finished, "words/fruit.csv")
    assert set(words["split"]) == {"selection"} and set(words["word"]) == {
        "apple",
        "lemon",
        "turnip",
    }
    table = read(finished, "tables/enhanced.csv").set_index(["method", "measure"])
    assert table.loc[("somp", "expected"), "before"] > 0
    assert set(table["alpha"]) == {3.0}


@pytest.mark.parametrize("experiment", ["rtp", "stripes"])
def test_controls_match_layers_and_are_disjoint(finished: Checkout, experiment: str) -> None:
    chosen = read(finished, f"heads/{experiment}/selected.csv").groupby("condition")
    for name, control in read(finished, f"heads/{experiment}/random.csv").groupby("condition"):
        own = chosen.get_group(name.split("-d")[0].replace("random", "somp"))
        assert sorted(control["layer"]) == sorted(own["layer"])
        both = [set(map(tuple, t[["layer", "head"]].values)) for t in (own, control)]
        assert not both[0] & both[1]


def test_heads_of_another_experiment(finished: Checkout) -> None:
    """They are those of its first method, and nothing but the responses is made anew."""
    facts = json.loads(
        pq.read_schema(
            finished.path("responses/stripes-from-photos/scaled/part-1.parquet")
        ).metadata[b"heads"]
    )
    photos = read(finished, "heads/photos/selected.csv").groupby("condition")
    assert list(facts) == ["somp-k1", "somp-k2"]
    for name, heads in facts.items():
        assert heads == photos.get_group(name)[["layer", "head"]].values.tolist()
    assert not finished.path("activations/stripes-from-photos.parquet").exists()
    assert set(read(finished, "tables/figure4.csv")["heads_from"]) == {"photos"}


def test_each_experiment_has_its_positions(finished: Checkout) -> None:
    for name, positions in (("rtp", "response"), ("asked", "prompt"), ("photos", "image")):
        schema = pq.read_schema(finished.path(f"activations/{name}.parquet"))
        assert json.loads(schema.metadata[b"positions"]) == positions
    atoms = read(finished, "decompositions/asked.parquet")
    assert len(atoms[["layer", "head"]].drop_duplicates()) == LAYERS * HEADS
    table = read(finished, "tables/table1.csv")
    assert table[table["method"] == "somp"]["rank"].tolist() == [1, 2, 3]


def test_the_tower_has_its_record(finished: Checkout) -> None:
    record = json.loads(finished.path("tower/assembled.json").read_text())
    assert record["trained_images"] == 60
    assert record["accuracy"]["images"] == 30


# What runs again


def test_second_run_does_nothing(finished: Checkout) -> None:
    assert finished.planned() == {}


@pytest.mark.parametrize(
    ("deleted", "made"),
    [
        ("samples/rtp.parquet", {"prepare_samples": 1, "respond": 2, **BASELINE}),
        ("responses/rtp/baseline/part-1.parquet", {"respond": 1, **BASELINE}),
        ("labels/rtp.parquet", {"label_responses": 1, **LABELLED}),
        ("words/rtp.csv", {"split_words": 1, **WORDED}),
        ("dictionaries/rtp.csv", WORDED),
        ("activations/rtp.parquet", {"cache_activations": 1, **RANKED}),
        ("rankings/rtp.csv", RANKED),
        ("heads/rtp/random.csv", {"draw_controls": 1, **HEADS_OF}),
        ("responses/rtp/scaled/part-1.parquet", {"intervene": 1, **MEASURE}),
        ("expected/rtp/part-2.parquet", {"measure_expected": 1, **MEASURE}),
        ("scores/rtp.parquet", MEASURE),
        ("tables/table2.tex", PUBLISH),
        ("figures/table2.png", PUBLISH),
        ("lens/asked.parquet", {"read_lens": 1, "publish_heads": 1, "write_pages": 1}),
        (
            "responses/stripes-from-photos/scaled/part-1.parquet",
            {"intervene": 1, **MEASURE},
        ),
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
    assert planned == {**made, "all": 1}


ALWAYS = {"all", "write_config", "preflight", "write_pages", "compare_published", "publish_ratios"}


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({"k": [1, 2]}, {"select_heads", "draw_controls", "intervene", "measure_expected"}),
        ({"draws": 3}, {"draw_controls", "intervene", "measure_expected"}),
        ({"count_draws": 2}, {"intervene"}),
        ({"methods": ["somp", "size"]}, {"select_heads", "draw_controls", "intervene",
                                         "measure_expected"}),
        ({"alpha": 0.0}, {"intervene", "measure_expected"}),
        ({"pursuit": {"norm": "l2"}}, {"rank_heads", "select_heads", "draw_controls", "intervene",
                                       "measure_expected"}),
        ({"concept": "tools"}, {"rank_heads", "select_heads", "draw_controls", "intervene",
                                "measure_expected"}),  # experiments.tools has its words
        ({"measures": ["count"]}, set()),
    ],
)  # fmt: skip
def test_a_variant_makes_only_what_differs(finished: Checkout, changes: dict, made: set) -> None:
    """Beside its parent, under a name of its own; and nothing of the parent's runs again."""
    variant = {"variant": {"like": "rtp", **changes}}
    finished.configure("variant", experiments=variant, tables={"mine": ["rtp", "variant"]})
    planned = finished.planned(overlay="variant")
    assert set(planned) - ALWAYS - {"publish_overlap", "measure"} == made
    assert planned["measure"] == 1
    assert not {"respond", "cache_activations", "label_responses"} & set(planned)


def test_a_colour_makes_new_figures_and_nothing_else(finished: Checkout) -> None:
    finished.configure("colour", publish={"colours": {"somp": "#008800"}})
    assert set(finished.planned(overlay="colour")) == ALWAYS - {"compare_published"} | {
        "publish_heads"
    } | {"compare_published"}


def test_a_normalisation_needs_no_model(finished: Checkout) -> None:
    finished.configure("letters", experiments={"stripes": {"normalise": []}})
    planned = set(finished.planned(overlay="letters"))
    assert planned - ALWAYS == {"measure"}


def test_a_further_k_keeps_what_is_there(checkout: Checkout) -> None:
    """Conditions that are there are not computed again, and stay as they are."""
    name = "responses/rtp/scaled/part-1.parquet"
    before = read(checkout, name)
    checkout.configure("more", experiments={"rtp": {"k": [2, 1]}})
    checkout.snakemake(overlay="more")
    after = read(checkout, name)
    assert set(after["condition"]) == set(before["condition"]) | {
        "somp-k1", "logit_lens-k1", "random-k1-d00"
    }  # fmt: skip
    kept = after[after["condition"].isin(before["condition"])]
    assert kept.reset_index(drop=True).equals(before)
    log = checkout.path("logs/intervene/rtp/part-1.log").read_text()
    assert "3 of 6 conditions are there already" in log


def test_a_rebuilt_file_is_the_same(checkout: Checkout) -> None:
    names = ["heads/rtp/selected.csv", "scores/rtp.parquet", "tower/assembled.safetensors"]
    names += [f"tables/table2.{end}" for end in ("csv", "draws.csv", "md", "tex")]
    before = {name: checkout.path(name).read_bytes() for name in names}
    checkout.path("words/rtp.csv").unlink()
    checkout.path("tower/assembled.safetensors").unlink()
    checkout.snakemake("all", "results/tiny/tower/assembled.safetensors")
    assert {name: checkout.path(name).read_bytes() for name in names} == before
    assert checkout.planned() == {}


def test_runs_from_scratch_are_byte_identical(finished: Checkout, elsewhere: Checkout) -> None:
    for path in finished.path("tables").iterdir():
        assert path.read_bytes() == elsewhere.path(f"tables/{path.name}").read_bytes(), path.name
    for name in PICTURES:
        both = (own.path(f"figures/{name}.png").read_bytes() for own in (finished, elsewhere))
        assert next(both) == next(both), name


def test_how_work_is_divided_changes_no_result(checkout: Checkout) -> None:
    checkout.configure("divided", run="divided", compute={"parts": 3})
    targets = ["tables/table2.csv", "tables/figure1.csv"]
    checkout.snakemake(*(f"results/divided/{name}" for name in targets), overlay="divided")
    for name in [*targets, "scores/rtp.parquet", "scores/rtp.words.parquet"]:
        other = checkout.folder / "results/divided" / name
        assert other.read_bytes() == checkout.path(name).read_bytes(), name


# Files of a user's own


def test_own_words_need_no_labeller(checkout: Checkout) -> None:
    words = checkout.folder / "own/list.txt"
    words.write_text("\n".join(WORDS[:20]) + "\n", encoding="utf-8")
    mine = {"file": "own/list.txt", "selection_share": 0.7, "top": 15}
    own = {"concepts": {"mine": mine}, "experiments": {"rtp": {"concept": "mine"}}}
    checkout.configure("own", run="own", **own)
    target = "results/own/words/rtp.csv"
    said = checkout.snakemake(target, "--printshellcmds", overlay="own")
    assert "label_responses" not in said
    table = pd.read_csv(checkout.folder / target)
    assert set(table["word"]) <= set(WORDS[:20]) and len(table) == 15
    assert "label_responses" not in checkout.planned(overlay="own")
    edit_a_byte(words)
    assert checkout.planned(target, overlay="own") == {"split_words": 1}


def test_a_source_from_the_hub(checkout: Checkout) -> None:
    """A job downloads, though the library that its rules import takes the Hub offline."""
    prompts = (checkout.folder / "own/prompts.jsonl").read_bytes()
    spec = {"kind": "hub", "id": "org/prompts", "repo_type": "dataset", "revision": "main"}
    source = {**spec, "files": ["prompts.jsonl"], "licence": "none"}
    checkout.configure(
        "hub",
        run="hub",
        sources={"hub-prompts": source},
        samples={"rtp": {"source": "hub-prompts"}},
    )
    with serve({"org/prompts": Repo(files={"prompts.jsonl": prompts})}) as hub:
        checkout.snakemake("results/hub/samples/rtp.parquet", overlay="hub", HF_ENDPOINT=hub.url)
    record = json.loads((checkout.folder / "resources/hub-prompts/provenance.json").read_text())
    assert record["commit"] == "c" * 40
    tables = [checkout.folder / f"results/{run}/samples/rtp.parquet" for run in ("hub", "tiny")]
    assert pq.read_table(tables[0]).equals(pq.read_table(tables[1]))


@pytest.mark.parametrize(
    ("name", "reruns"),
    [
        ("own/prompts.jsonl", {"download_source", "prepare_samples"}),
        ("own/model/model.safetensors", {"download_source", "respond", "extract_weights"}),
        ("own/tools.txt", {"split_words"}),
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
