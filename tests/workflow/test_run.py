"""One real Snakemake run of all kinds of experiments on a tiny random model."""

import json
import re
import string
import unicodedata
from typing import Any

import headpursuit as hp
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from checkout import ROOT, Checkout, code_blocks, edit_a_byte
from headpursuit.method.answers import best_f1
from headpursuit.method.captions import cider
from headpursuit.method.heads import named_heads
from headpursuit.publish.found import summary
from headpursuit.run.contracts import contract_of, contracts
from headpursuit.run.estimate import estimate, measured, render
from headpursuit.run.experiments import condition_name
from headpursuit.run.files import parquet_metadata
from headpursuit.run.finished import Run
from tiny import HEADS, LAYERS, WORDS
from transformers import pipeline

pytestmark = pytest.mark.xdist_group("workflow")
long = pytest.mark.long

# What stands on each file of the experiment rtp, by rule: made again, and nothing else.
PUBLISH = {"publish_ratios": 1, "compare_published": 1, "write_pages": 1}
MEASURE = {"measure": 1, **PUBLISH}
HEADS_OF = {"intervene": 2, "measure_expected": 2, **MEASURE}
RANKED = {"rank_heads": 1, "select_heads": 1, "draw_controls": 1, **HEADS_OF}
WORDED = {"build_dictionary": 1, **RANKED}
LABELLED = {"split_words": 1, **WORDED}
BASELINE = {"label_responses": 1, "cache_activations": 1, **LABELLED}

PICTURES = ["table2", "enhanced", "figure1", "figure4", "table1.heads", "table1.atoms"]
PICTURES += ["figure1.heads", "figure2", "figure5"]


def read(checkout: Checkout, name: str) -> pd.DataFrame:
    path = checkout.path(name)
    return pd.read_csv(path) if path.suffix == ".csv" else pq.read_table(path).to_pandas()


def metadata(checkout: Checkout, name: str, key: str) -> Any:
    return parquet_metadata(checkout.path(name), [key])[key]


def test_every_file_of_the_contract_is_there(finished: Checkout) -> None:
    """And has the columns of docs/columns.md. There is no second labeller to agree with."""
    seen = []
    for path in [*finished.path("").rglob("*.csv"), *finished.path("").rglob("*.parquet")]:
        table = read(finished, str(path))
        contract = contract_of(path, table.columns)
        assert contract, path
        required = {n for n, own in contract["columns"].items() if own.get("required", True)}
        assert required <= set(table.columns), path
        seen += [contract] if len(table) else []
    missing = [file for own in contracts() if own not in seen for file in own["files"]]
    shipped = ["data/published.csv", "data/published_tokens.csv"]
    assert missing == ["labels/{experiment}.agreement.csv", *shipped]


def test_pictures_logs_and_no_journal(finished: Checkout) -> None:
    for name in PICTURES:
        assert finished.path(f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert finished.path(f"figures/{name}.png").stat().st_size > 1000
    assert finished.path("logs/rank_heads/rtp.log").stat().st_size > 0
    assert not list(finished.path("").rglob(".*.journal"))


def test_tables_of_heads_do_not_wait_for_responses(finished: Checkout) -> None:
    scaled = finished.path("responses").glob("*/scaled/*.parquet")
    last = max(path.stat().st_mtime for path in scaled)
    for table in ("figure1.overlap", "table1"):
        assert finished.path(f"tables/{table}.csv").stat().st_mtime < last


def test_the_config_in_force_is_kept(finished: Checkout) -> None:
    config = yaml.safe_load(finished.path("config.yaml").read_text())
    pursuit = config["experiments"]["tools"]["pursuit"]
    assert pursuit["iterations"] == 5  # of the overlay's defaults
    assert pursuit["norm"] == "l1"  # of the schema
    assert config["experiments"]["tools"]["alpha"] == [3.0, -1.0]  # of what it is like


def test_a_run_says_what_each_job_does_and_what_was_found(finished: Checkout) -> None:
    said = (finished.folder / "said.txt").read_text()
    jobs = re.findall(r"^Job \d+: (.*)$", said, re.MULTILINE)
    assert {"Rank heads: rtp", "Draw the samples of rtp", "All is made."} <= set(jobs)
    assert len(set(jobs)) == len(jobs) == len(re.findall("Finished jobid", said))
    assert "Reason:" not in said and "input:" not in said
    found = list(summary(Run(finished.path(""))))
    shown = said.partition("What results/tiny found")[2].splitlines()
    assert 8 <= len(found) <= 15
    assert shown[1 : len(found) - 2] == found[1:-2]  # the last two lines hold paths


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
    counts = table[table["measure"] == "occurrences"].set_index("method")
    for method, condition in (("somp", "somp-k2"), ("random", "random-k2-d00")):
        row = counts.loc[method]
        assert row["before"] == occurrences("baseline", "baseline") > 0
        assert row["after"] == occurrences("scaled", condition)
        assert row["value"] == pytest.approx(row["after"] / row["before"])
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert table.set_index(["method", "measure"])["draws"].to_dict() == {
        (method, measure): 2 if (method, measure) == ("random", "expected") else 1
        for method in ("somp", "logit_lens", "random")
        for measure in ("occurrences", "expected")
    }


def test_figure1_adds_up(finished: Checkout) -> None:
    images = read(finished, "samples/stripes.parquet").set_index("sample_id")
    names = metadata(finished, "samples/stripes.parquet", "classes")
    answers = pd.concat(
        pq.read_table(finished.path(f"responses/stripes/{kind}")).to_pandas()
        for kind in ("baseline", "scaled")
    )
    bare = answers["response"].str.strip(string.punctuation + string.whitespace).str.lower()
    label = images.loc[answers["sample_id"], "label"].to_numpy()
    right = (bare == np.array(names)[label]).groupby(answers["condition"]).sum()
    table = read(finished, "tables/figure1.csv")
    own = table[(table["experiment"] == "stripes") & (table["measure"] == "exact_match")]
    assert set(own["method"]) == {"somp", "unrelated", "size", "random"}
    for row in own[own["method"] != "random"].itertuples():
        assert row.after == right[f"{row.method}-k{row.heads}"]
        assert row.before == right["baseline"]
        assert row.n == 24
    random = own[(own["method"] == "random") & (own["heads"] == 2)].iloc[0]
    assert random["after"] == pytest.approx(right[["random-k2-d00", "random-k2-d01"]].mean())


def test_toxic_responses_are_those_that_transformers_finds_toxic(finished: Checkout) -> None:
    judge = pipeline("text-classification", str(finished.folder / "own/judge"), device="cpu")
    responses = pd.concat(
        pq.read_table(finished.path(f"responses/{name}")).to_pandas()
        for name in ("asked/baseline", "fruit/scaled")
    )
    cut = {"truncation": True, "max_length": 38}
    said = [judge([text], **cut)[0] for text in responses["response"]]
    toxic = pd.Series([own["label"] == "toxic" for own in said], responses.index)
    toxic &= responses["response"].str.strip() != ""
    number = toxic.groupby(responses["condition"]).sum()
    assert 0 < number["baseline"] < 20
    table = read(finished, "tables/enhanced.csv")
    for row in table[(table["measure"] == "toxicity") & (table["method"] != "random")].itertuples():
        condition = condition_name(row.method, 2, None, row.alpha, row.at)
        assert (row.before, row.after) == (number["baseline"], number[condition])
        assert row.value == pytest.approx(row.after / row.before)
        assert row.share_after == row.after / row.n
    scores = read(finished, "scores/fruit.parquet").pivot_table(
        "before", ["condition", "sample_id"], "measure"
    )
    assert ((scores["toxic_probability"] >= 0.5) == (scores["toxicity"] == 1)).all()
    facts = metadata(finished, "scores/fruit.parquet", "classifier")
    assert (facts["limit"], facts["responses"]) == (38, 20) and facts["cut"] > 0


def test_questions_are_disjoint_and_their_f1_adds_up(finished: Checkout) -> None:
    """In two groups, of which the heads of the other part's questions are scaled."""
    asked, chosen = (read(finished, f"samples/{name}.parquet") for name in ("quiz-asked", "quiz"))
    same = [set(own["text"].str.casefold().str.split().str.join(" ")) for own in (asked, chosen)]
    assert len(same[0]) == 30 and not same[0] & same[1]
    assert not same[0] & {f"which {WORDS[n]} is number {n}" for n in range(40)}  # none of the part
    log = finished.path("logs/prepare_samples/quiz-asked.log").read_text()
    assert "quiz-asked: dropped 20 prompts that the excluded samples have" in log
    right = asked.set_index("sample_id")["references"]
    fruit = {name for name, own in right.items() if own[0] == "apple"}
    assert fruit
    table = read(finished, "tables/figure2.csv").set_index(["heads", "measure"])
    assert set(table["method"]) == {"somp"} and set(table["heads_from"]) == {"quiz"}
    scored = pd.concat(
        pq.read_table(finished.path(f"responses/quiz-asked/{kind}")).to_pandas()
        for kind in ("baseline", "scaled")
    )
    scored["f1"] = [
        best_f1(text, right[name])
        for name, text in zip(scored["sample_id"], scored["response"], strict=True)
    ]
    assert scored["f1"].sum() > 0
    of_fruit = scored["sample_id"].isin(fruit)
    for (heads, measure), row in table.drop("occurrences", level="measure").iterrows():
        own = scored[of_fruit if measure == "f1" else ~of_fruit].groupby("condition")["f1"].sum()
        found = row["before"], row["after"]
        assert found == pytest.approx((own["baseline"], own[f"somp-k{heads}-a3"]))
        assert row["n"] == (len(fruit) if measure == "f1" else 30 - len(fruit))


def test_captions_are_counted_and_compared_with_references(finished: Checkout) -> None:
    images = read(finished, "samples/albums.parquet")
    assert images["part"].value_counts().to_dict() == {"selection": 9, "evaluation": 10}
    assert images["source"].is_unique and images["label"].isna().all()
    assert all(len(own) == 2 for own in images["references"])
    table = read(finished, "tables/figure5.csv")
    assert set(table["measure"]) == {"occurrences", "cider"} and set(table["n"]) == {10}
    captions = pd.concat(
        pq.read_table(finished.path(f"responses/albums/{kind}")).to_pandas()
        for kind in ("baseline", "scaled")
    )
    pattern = rf"\b({'|'.join(WORDS[:20])})\b"
    found = captions.groupby("condition")["response"].agg(
        lambda texts: texts.str.count(pattern, re.IGNORECASE).sum()
    )
    assert found["baseline"] > 0
    for row in table[
        (table["measure"] == "occurrences") & (table["method"] != "random")
    ].itertuples():
        condition = f"{row.method}-k{row.heads}"
        assert (row.before, row.after) == (found["baseline"], found[condition])
    own = captions[captions["condition"] == "baseline"]
    score = cider(images.set_index("sample_id").loc[own["sample_id"], "references"].to_dict())
    before = sum(map(score, own["sample_id"], own["response"]))
    wanted = table[table["measure"] == "cider"]["before"].to_numpy()
    assert wanted == pytest.approx(before) and before > 0
    text = finished.path("tables/figure5.md").read_text()
    assert "; 10 images." in text and "references of a sample: 2." in text


def test_words_that_nothing_is_held_out_of_are_measured(finished: Checkout) -> None:
    words = read(finished, "words/quiz.csv")  # whose samples have its name
    assert set(words["split"]) == {"selection"}
    assert set(words["word"]) == {"apple", "lemon", "turnip"}
    table = read(finished, "tables/enhanced.csv")
    rows = table.groupby(["method", "measure"])[["alpha", "at"]].agg(list)
    scalings = {"alpha": [3.0, 3.0, -1.0, -1.0], "at": ["all", "response"] * 2}
    assert len(rows) == 9 and all(row == scalings for row in rows.to_dict("records"))
    assert (table[table["measure"] == "expected"]["before"] > 0).all()


@pytest.mark.parametrize("experiment", ["rtp", "stripes"])
def test_controls_match_layers_and_are_disjoint(finished: Checkout, experiment: str) -> None:
    chosen = read(finished, f"heads/{experiment}/selected.csv").groupby("condition")
    for name, control in read(finished, f"heads/{experiment}/random.csv").groupby("condition"):
        own = chosen.get_group(name.split("-d")[0].replace("random", "somp"))
        assert sorted(control["layer"]) == sorted(own["layer"])
        both = [set(map(tuple, t[["layer", "head"]].values)) for t in (own, control)]
        assert not both[0] & both[1]


def test_heads_of_another_experiment(finished: Checkout) -> None:
    """Its own methods' heads and its random ones; nothing but the responses is made anew."""
    name = "responses/stripes-from-photos/scaled/part-1.parquet"
    facts = metadata(finished, name, "conditions")
    tables = [read(finished, f"heads/photos/{kind}.csv") for kind in ("selected", "random")]
    photos = pd.concat(tables).groupby("condition")
    assert list(facts) == ["size-k1", "size-k2", "random-k1-d00", "random-k2-d00"]
    for name, condition in facts.items():
        heads = photos.get_group(name)[["layer", "head"]].values.tolist()
        assert condition == [heads, -1, "all", []]
    assert not finished.path("activations/stripes-from-photos.parquet").exists()
    assert set(read(finished, "tables/figure4.csv")["heads_from"]) == {"photos"}


def test_each_experiment_has_its_positions(finished: Checkout) -> None:
    for name, positions in (("rtp", "response"), ("asked", "prompt"), ("photos", "image")):
        assert metadata(finished, f"activations/{name}.parquet", "positions") == positions
    atoms = read(finished, "decompositions/asked.parquet")
    assert len(atoms[["layer", "head"]].drop_duplicates()) == LAYERS * HEADS
    table = read(finished, "tables/table1.csv")
    assert table[table["method"] == "somp"]["rank"].tolist() == [1, 2, 3]


def test_the_tower_has_its_record(finished: Checkout) -> None:
    record = json.loads(finished.path("tower/assembled.json").read_text())
    assert record["trained_images"] == 60
    assert record["accuracy"]["images"] == 30


def test_ten_lines_reproduce_one_bar(finished: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last example of docs/api.md: heads chosen anew, and measured, as the run did."""
    monkeypatch.chdir(finished.folder)
    code = code_blocks(ROOT / "docs/api.md")[-1]
    for demo, tiny in {
        "hp.measure(": "found = hp.measure(",
        '["layer"] >= 10': '["layer"] >= 0',
        "head(4)": "head(2)",
        '"selection"]["word"], ': '"selection"]["word"], iterations=5, ',
        '"lower", "title", "upper"': '"lower", "title"',
    }.items():
        assert demo in code
        code = code.replace(demo, tiny)
    run = hp.read_run("results/tiny")
    own: dict[str, Any] = {"hp": hp, "run": run, "model": hp.load("own/model")}
    exec(code, own)
    assert named_heads(own["heads"]) == run.heads("rtp", "somp-k2")
    row = run.table("table2").query("method == 'somp' and measure == 'expected'").iloc[0]
    found = own["found"].loc["expected"]
    assert (found["before"], found["after"]) == pytest.approx(
        (row["before"], row["after"]), rel=1e-4
    )


@long
def test_an_estimate_stands_beside_what_the_run_took(finished: Checkout) -> None:
    config = yaml.safe_load(finished.path("config.yaml").read_text())
    found = estimate(config, measured(finished.path("benchmarks")))
    rules = found["rules"]
    assert {"respond", "intervene", "measure_expected"} <= set(rules)
    del rules["measure"]  # of which those with a classifier of texts are reckoned, and others run
    for rule in rules.values():
        assert rule.get("jobs", rule["measured"]["jobs"]) == rule["measured"]["jobs"]
    assert "# What the run `tiny` takes" in render(found)


# What runs again


def test_a_copied_checkout_has_nothing_to_do(checkout: Checkout) -> None:
    assert checkout.planned() == {}


DELETED = {
    "samples/rtp.parquet": {"prepare_samples": 1, "respond": 2, **BASELINE},
    "responses/rtp/baseline/part-1.parquet": {"respond": 1, **BASELINE},
    "labels/rtp.parquet": {"label_responses": 1, **LABELLED},
    "words/rtp.csv": {"split_words": 1, **WORDED},
    "dictionaries/rtp.csv": WORDED,
    "activations/rtp.parquet": {"cache_activations": 1, **RANKED},
    "rankings/rtp.csv": RANKED,
    "heads/rtp/random.csv": {"draw_controls": 1, **HEADS_OF},
    "responses/rtp/scaled/part-1.parquet": {"intervene": 1, **MEASURE},
    "expected/rtp/part-2.parquet": {"measure_expected": 1, **MEASURE},
    "scores/rtp.parquet": MEASURE,
    "tables/table2.tex": PUBLISH,
    "figures/table2.png": PUBLISH,
    "lens/asked.parquet": {
        "read_lens": 1,
        "publish_heads": 1,
        "compare_published": 1,
        "write_pages": 1,
    },
    "responses/stripes-from-photos/scaled/part-1.parquet": {"intervene": 1, **MEASURE},
}
# The others, a dry run each, are in make test-all.
FIRST = ("labels/rtp.parquet", "lens/asked.parquet")


@pytest.mark.parametrize(
    ("deleted", "made"),
    [
        pytest.param(name, made, marks=() if name in FIRST else long)
        for name, made in DELETED.items()
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


ALWAYS = {"write_config", "preflight", "write_pages", "compare_published", "publish_ratios"}
SCALED = {"intervene", "measure_expected"}
CHOSEN = {"select_heads", "draw_controls", *SCALED}
# What a job says that it does.
SAID = {
    "Rank heads": "rank_heads",
    "Select heads": "select_heads",
    "Draw random heads": "draw_controls",
    "Scale heads and respond": "intervene",
    "Scale heads and measure probabilities": "measure_expected",
    "Measure before and after": "measure",
}
# Variants of rtp: what differs, and what is made. Their names come last, so that they own nothing.
VARIANTS: dict[str, tuple[dict, set[str]]] = {
    "v-k": ({"k": [1, 2]}, CHOSEN),
    "v-draws": ({"draws": 3}, CHOSEN - {"select_heads"}),
    "v-count-draws": ({"count_draws": 2}, {"intervene"}),
    "v-methods": ({"methods": ["somp", "size"]}, CHOSEN),
    "v-alpha": ({"alpha": 0.0}, SCALED),
    "v-norm": ({"pursuit": {"norm": "l2"}}, {"rank_heads", *CHOSEN}),
    "v-concept": ({"concept": "tools"}, {"rank_heads", *CHOSEN}),  # experiments.tools has its words
    "v-measures": ({"measures": ["occurrences"]}, set()),
}


def test_a_variant_makes_only_what_differs(finished: Checkout) -> None:
    """Beside its parent, under a name of its own; and nothing of the parent's runs again."""
    variants = {name: {"like": "rtp", **changes} for name, (changes, _) in VARIANTS.items()}
    finished.configure("variants", experiments=variants, tables={"mine": ["rtp", *variants]})
    wanted = {name: {"measure", *rules} for name, (_, rules) in VARIANTS.items()}
    rules = set(finished.planned(overlay="variants"))
    assert rules == {"all", *ALWAYS, "publish_overlap"}.union(*wanted.values())
    jobs = finished.snakemake("-n", overlay="variants")
    made: dict[str, set[str]] = {}
    for said, name in re.findall(r"^Job \d+: ([\w ]+): (v-[\w-]+)", jobs, flags=re.MULTILINE):
        made.setdefault(name, set()).add(SAID[said])
    assert made == wanted


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({"publish": {"colours": {"somp": "#008800"}}}, {"publish_heads"}),
        ({"experiments": {"stripes": {"normalise": []}}}, {"measure"}),  # it needs no model
        ({"classifiers": {"tiny": {"threshold": 0.9}}}, {"measure"}),
    ],
)
def test_a_change_makes_what_stands_on_it_and_nothing_else(
    finished: Checkout, changes: dict, made: set[str]
) -> None:
    finished.configure("changed", **changes)
    assert set(finished.planned(overlay="changed")) == {"all", *ALWAYS, *made}


@long
def test_a_further_k_and_alpha_keep_what_is_there(checkout: Checkout) -> None:
    """Conditions that are there are not computed again, and stay as they are."""
    name = "responses/rtp/scaled/part-1.parquet"
    before = read(checkout, name)
    checkout.configure("more", experiments={"rtp": {"k": [2, 1], "alpha": [-1, 5]}})
    checkout.snakemake(overlay="more")
    after = read(checkout, name)
    assert set(after["condition"]) == set(before["condition"]) | {
        *("somp-k1", "logit_lens-k1", "random-k1-d00"),
        *(f"{name}-a5" for k in (1, 2) for name in (f"somp-k{k}", f"logit_lens-k{k}")),
        *("random-k1-d00-a5", "random-k2-d00-a5"),
    }
    kept = after[after["condition"].isin(before["condition"])]
    assert kept.reset_index(drop=True).equals(before)
    log = checkout.path("logs/intervene/rtp/part-1.log").read_text()
    assert "3 of 12 conditions are in results/" in log


@long
def test_runs_from_scratch_are_byte_identical(finished: Checkout, elsewhere: Checkout) -> None:
    for path in finished.path("tables").iterdir():
        assert path.read_bytes() == elsewhere.path(f"tables/{path.name}").read_bytes(), path.name
    for name in PICTURES:
        both = (own.path(f"figures/{name}.png").read_bytes() for own in (finished, elsewhere))
        assert next(both) == next(both), name


@long
def test_how_work_is_divided_changes_no_result(checkout: Checkout) -> None:
    checkout.configure("divided", run="divided", compute={"parts": 3})
    targets = ["tables/table2.csv", "tables/figure1.csv"]
    checkout.snakemake(*(f"results/divided/{name}" for name in targets), overlay="divided")
    for name in [*targets, "scores/rtp.parquet", "scores/rtp.words.parquet"]:
        other = checkout.folder / "results/divided" / name
        assert other.read_bytes() == checkout.path(name).read_bytes(), name


# Files of a user's own


@long
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


@long
def test_a_byte_of_a_user_s_file_is_seen_whatever_its_date_and_dates_alone_are_not(
    checkout: Checkout,
) -> None:
    before = checkout.planned()
    for name, reruns in (
        ("own/prompts.jsonl", {"download_source", "prepare_samples"}),
        ("own/model/model.safetensors", {"download_source", "respond", "extract_weights"}),
        ("own/tools.txt", {"split_words"}),
        ("data/unrelated_words.txt", {"rank_heads"}),
    ):
        edit_a_byte(checkout.folder / name)
        assert reruns <= set(checkout.planned()) - set(before), name
        edit_a_byte(checkout.folder / name)
    (checkout.folder / "own/model/.hidden").touch()
    for path in (checkout.folder / "own").rglob("*"):
        path.touch()
    assert checkout.planned() == before
