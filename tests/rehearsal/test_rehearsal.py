"""What the paper's run made of its replicas, from downloads to the report."""

import base64
import io
import json
from collections import Counter
from itertools import product

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import LLAVA, MISTRAL, TOKEN, Rehearsal
from headpursuit.run.config import load_config
from PIL import Image
from replica_names import DIGITS, DTD, GTSRB, RESISC45
from replica_sources import challenging, queries

TEXT = ("rtp", "tet")
IMAGES = ("mnist", "svhn", "gtsrb", "eurosat", "resisc45", "dtd")
EUROSAT = """annual crop,forest,herbaceous vegetation,highway,industrial,pasture,permanent crop,
residential,river,sea lake""".replace("\n", "").split(",")

# Of each repository, what is fetched. Nothing else was asked for.
TOKENIZER = "tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json "
FETCHED = {
    MISTRAL: TOKENIZER + "config.json generation_config.json model.safetensors.index.json "
    "model-00001-of-00003.safetensors model-00002-of-00003.safetensors "
    "model-00003-of-00003.safetensors",
    LLAVA: TOKENIZER + "config.json generation_config.json model.safetensors.index.json "
    "model-00001-of-00004.safetensors model-00002-of-00004.safetensors "
    "model-00003-of-00004.safetensors model-00004-of-00004.safetensors "
    "added_tokens.json chat_template.json preprocessor_config.json processor_config.json",
    "allenai/real-toxicity-prompts": "prompts.jsonl",
    "convoicon/Thoroughly_Engineered_Toxicity": "data/train-00000-of-00001.parquet",
    "mandarjoshi/trivia_qa": "rc.nocontext/train-00000-of-00001.parquet",
    "ylecun/mnist": "mnist/train-00000-of-00001.parquet mnist/test-00000-of-00001.parquet",
    "ufldl-stanford/svhn": "cropped_digits/train-00000-of-00001.parquet "
    "cropped_digits/test-00000-of-00001.parquet",
    "tanganke/gtsrb": "data/train-00000-of-00001.parquet data/test-00000-of-00001.parquet",
    "timm/eurosat-rgb": "data/train-00000-of-00001.parquet data/test-00000-of-00001.parquet",
    "timm/resisc45": "data/train-00000-of-00001.parquet data/test-00000-of-00001.parquet",
    "tanganke/dtd": "data/train-00000-of-00001.parquet data/test-00000-of-00001.parquet",
}


def table(finished: Rehearsal, name: str) -> pd.DataFrame:
    """Read a table with every cell as text; empty ones are missing."""
    return pd.read_csv(
        finished.path(f"tables/{name}.csv"), dtype=str, keep_default_na=False, na_values=[""]
    )


def rows(finished: Rehearsal, name: str) -> list[dict]:
    return pq.read_table(finished.path(name)).to_pylist()


# Downloads


def test_the_config_is_the_shipped_one(finished: Rehearsal) -> None:
    """But for the keys of the machine."""
    used = yaml.safe_load(finished.path("config.yaml").read_text())
    shipped = load_config(yaml.safe_load((finished.folder / "config.yaml").read_text()))
    changed = {"device": "cpu", "allow_cpu": True, "threads": 1, "check_device": False}
    assert used.pop("compute") == shipped.pop("compute") | changed
    assert used == shipped


@pytest.mark.parametrize("repository", FETCHED)
def test_what_is_fetched(finished: Rehearsal, repository: str) -> None:
    asked = finished.hub.asked("GET", f"/{repository}/resolve/")
    assert sorted(FETCHED[repository].split()) == sorted(
        {path.split("/resolve/")[1].split("/", 1)[1] for path in asked}
    )
    assert len(asked) == len(set(asked))  # each once


def test_the_token_is_in_no_file(finished: Rehearsal) -> None:
    forms = [TOKEN.encode(), base64.b64encode(TOKEN.encode())]
    for path in finished.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(form in content for form in forms), path
    bearers = [h for _, _, h in finished.hub.requests if "Bearer" in h.get("authorization", "")]
    assert bearers  # it was used


def test_no_job_failed(finished: Rehearsal) -> None:
    assert len(finished.sound_logs()) > 110


# Text


def test_prompts(finished: Rehearsal) -> None:
    config = yaml.safe_load(finished.path("config.yaml").read_text())
    made = {name: rows(finished, f"samples/{name}.parquet") for name in (*TEXT, "triviaqa")}
    assert [row["text"] for row in made["rtp"]] == challenging()
    assert [row["text"] for row in made["tet"]] == queries()
    assert len({row["text"] for row in made["triviaqa"]}) == 1000
    assert {row["source"].split(":")[0] for row in made["triviaqa"]} == {
        "train-00000-of-00001.parquet"
    }
    for name, own in made.items():
        template = config["samples"][name]["template"]
        for row in own:
            asked = template.replace("{prompt}", row["text"])
            assert row["rendered"] == f"<s>[INST] {asked} [/INST]"
            # BOS, once, and then the chat's own marks.
            assert row["token_ids"][0] == 1
            assert row["token_ids"].count(1) == 1
            assert 2 not in row["token_ids"]


@pytest.mark.parametrize("dataset", TEXT)
def test_responses_differ_and_hold_words(finished: Rehearsal, dataset: str) -> None:
    baseline = rows(finished, f"responses/{dataset}/baseline/part-1.parquet")
    assert len({row["response"] for row in baseline}) > len(baseline) / 2
    scaled = rows(finished, f"responses/{dataset}/scaled/part-1.parquet")
    for condition in ("somp-k16", "somp-k32", "random-k32-d09"):
        other = [row for row in scaled if row["condition"] == condition]
        assert [r["sample_id"] for r in other] == [r["sample_id"] for r in baseline]
        assert [r["response"] for r in other] != [r["response"] for r in baseline]


@pytest.mark.parametrize("dataset", TEXT)
def test_labels(finished: Rehearsal, dataset: str) -> None:
    labels = rows(finished, f"labels/{dataset}.parquet")
    assert Counter(row["status"] for row in labels)["ok"] > len(labels) / 2
    for row in labels:
        if "can't help" in row["reply"]:
            assert not row["words"] and row["status"] not in ("ok", "none", "absent")
        assert not any(set(word) & set("*<>") for word in row["words"])
    words = pd.read_csv(finished.path(f"words/{dataset}.csv"))
    assert 70 < len(words) <= 100
    assert (words["split"] == "selection").mean() == pytest.approx(0.7, abs=0.02)


def test_the_labelling_model_is_pulled(finished: Rehearsal) -> None:
    assert finished.ollama.pulls == 1
    replies = [row["reply"] for name in TEXT for row in rows(finished, f"labels/{name}.parquet")]
    for kind in ("I can't help", "**<answer>**", "On second thought"):
        assert any(kind in reply for reply in replies), kind
    cut = [text for text, times in Counter(finished.ollama.texts).items() if times > 1]
    assert cut  # and asked about again


@pytest.mark.parametrize("dataset", TEXT)
def test_the_dictionary_has_words_of_several_pieces(finished: Rehearsal, dataset: str) -> None:
    dictionary = pd.read_csv(finished.path(f"dictionaries/{dataset}.csv"), dtype=str)
    assert set(dictionary["split"]) == {"selection", "heldout"}
    forms = dictionary.groupby(["word", "form"]).size()
    assert (forms == 1).any() and (forms > 1).any()


# Images


def class_names(finished: Rehearsal, dataset: str) -> list[str]:
    schema = pq.read_schema(finished.path(f"samples/{dataset}.parquet"))
    return json.loads(schema.metadata[b"classes"])


@pytest.mark.parametrize(
    ("dataset", "names", "sizes", "form", "tokens"),
    [
        ("mnist", DIGITS, {(28, 28)}, "PNG", {21}),
        ("svhn", DIGITS, {(32, 32)}, "PNG", {21}),
        ("gtsrb", GTSRB, {(50, 48), (29, 30), (61, 59), (112, 108)}, "PNG", {21, 24}),
        ("eurosat", EUROSAT, {(64, 64)}, "JPEG", {21}),
        ("resisc45", [name.replace("_", " ") for name in RESISC45], {(256, 256)}, "JPEG", {21}),
        ("dtd", DTD, {(640, 480), (480, 640), (300, 300)}, "JPEG", None),
    ],
)
def test_images(
    finished: Rehearsal, dataset: str, names: list[str], sizes: set, form: str, tokens: set | None
) -> None:
    log = finished.path(f"logs/prepare_samples/{dataset}.log").read_text()
    origin = "the config" if dataset == "eurosat" else "the files' metadata"
    assert f"class names: {origin}\n" in log
    assert class_names(finished, dataset) == names
    words = pd.read_csv(finished.path(f"words/{dataset}.csv"), dtype=str, keep_default_na=False)
    assert words["word"].str.removeprefix("'").tolist() == names
    images = rows(finished, f"samples/{dataset}.parquet")
    assert Counter(row["part"] for row in images) == {
        "selection": len(names), "evaluation": len(names)
    }  # fmt: skip
    opened = [Image.open(io.BytesIO(row["image"])) for row in images]
    assert {image.size for image in opened} == sizes
    assert {image.format for image in opened} == {form}
    assert [row["class_name"] for row in images] == [names[row["label"]] for row in images]


@pytest.mark.parametrize("dataset", IMAGES)
def test_answers(finished: Rehearsal, dataset: str) -> None:
    baseline, scaled = (
        pd.DataFrame(rows(finished, f"responses/{dataset}/{kind}/part-1.parquet"))
        for kind in ("baseline", "scaled")
    )
    assert scaled["condition"].nunique() == 24  # 2 methods x 2 + 2 x 10 draws
    assert set(scaled.groupby("condition").size()) == {len(baseline)}
    assert "<" not in "".join([*baseline["response"], *scaled["response"]])
    assert baseline["response"].str.strip().isin(class_names(finished, dataset)).any()


# Tables


def full(found: pd.DataFrame, datasets: tuple, measures: tuple, *filled: str) -> None:
    """Fail unless a table of ratios has every row once, and these columns and its own filled."""
    keys = ["experiment", "measure", "method", "heads"]
    wanted = product(datasets, measures, ("somp", "logit_lens", "random"), ("16", "32"))
    assert sorted(found[keys].itertuples(index=False, name=None)) == sorted(wanted)
    always = ["value", "ci_low", "ci_high", "draws", "before", "after", "n", *filled]
    assert not found[always].isna().any(axis=None), found[always]
    among_draws = found.loc[found["method"] == "random", ["sd", "median", "q25", "q75"]]
    assert not among_draws.isna().any(axis=None)


def test_table2_is_full(finished: Rehearsal) -> None:
    found = table(finished, "table2")
    full(found, TEXT, ("occurrences", "expected"), "coverage")
    counts, expected = (
        found[found["measure"] == "occurrences"],
        found[found["measure"] == "expected"],
    )
    # The ratio of repetitions has no value here: the replica's responses may repeat nothing.
    once = ["length_ratio", "published", "published_source"]
    assert not counts[once].isna().any(axis=None), counts[once]
    assert not expected["nats_per_token"].isna().any()
    assert not found["flag"].eq("baseline is 0").any()
    assert set(found["draws"]) == {"1", "10"}


def test_table1_is_full(finished: Rehearsal) -> None:
    found = table(finished, "table1")
    assert Counter(zip(found["layer"], found["head"], found["method"], strict=True)) == {
        (layer, head, method): 1
        for layer, head in (("18", "27"), ("24", "20"), ("25", "14"), ("30", "28"))
        for method in ("somp", "logit_lens")
    }
    assert not found["tokens"].isna().any()
    somp = found[found["method"] == "somp"].dropna(axis=1, how="all")
    measured = {"rank", "score", "explained", "explained_null", "explained_high"}
    measured |= {"coherence", "coherence_null", "coherence_high", "coherence_p"}
    assert measured <= set(somp)
    assert not somp[[*measured, "published", "overlap"]].isna().any(axis=None)


def test_figure1_is_full(finished: Rehearsal) -> None:
    found = table(finished, "figure1")
    full(found, IMAGES, ("exact_match", "first_word"), "several", "none")
    assert not found[found["measure"] == "exact_match"]["published"].isna().any()
    for name in ("figure1.overlap", "figure1.draws", "concepts.overlap"):
        # Not all experiments share tokens.
        other = table(finished, name).drop(columns="tokens", errors="ignore")
        assert len(other) and not other.isna().any(axis=None), other[other.isna().any(axis=1)]


def test_every_published_value_has_its_counterpart(finished: Rehearsal) -> None:
    """But for the full version's 8 heads, classifier, models and captions: test_v2.py has these."""
    found = table(finished, "published")
    lacking = found[found["own"].isna()]
    of_seed = lacking[~lacking["artefact"].isin(["figure1_models", "captions"])]
    assert set(zip(of_seed["artefact"], of_seed["heads"], strict=True)) == {
        ("table2_lexical", "8"),
        ("figure1", "8"),
        *(("table2_classifier", k) for k in ("8", "16", "32")),
    }
    assert len(found) - len(of_seed) == 400 + 8 + 8 + 12 + 36  # of the others no value is lacking
    beside = found[~found["own"].isna()]
    assert (beside["own_model"] == beside["model"]).all()
    assert set(beside["model"]) == {MISTRAL, LLAVA}
    of_text = beside["artefact"].str.startswith("table2")
    assert set(beside[of_text]["labeller"]) == {"ollama: llama3.3:70b"}
    # The config is the paper's, and nothing is said to differ.
    assert beside["settings"].isna().all()
    ratios = beside[beside["measure"] != "tokens"]
    assert not ratios[["own_low", "own_high", "difference", "inside"]].isna().any(axis=None)
    assert len(beside) - len(ratios) == 8


def test_figures(finished: Rehearsal) -> None:
    names = ["table2", "figure1", "figure1.heads", "table1.heads", "table1.atoms"]
    names += ["concepts.heads", "table2.heads"]
    for name in names:
        assert finished.path(f"figures/{name}.pdf").stat().st_size > 1000
        pixels = np.asarray(Image.open(finished.path(f"figures/{name}.png")).convert("L"))
        assert pixels.std() > 5, name


# Afterwards


def test_every_file_is_as_the_manifest_says(finished: Rehearsal) -> None:
    assert finished.read("verify", "results/paper").startswith("All files are as")


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("table1", "triviaqa L18.H27", "L18.H27"),
        ("table2", "tet random 32 expected", "random-k32"),
        ("published", "figure1 dtd somp 16", "dtd"),
    ],
)
def test_trace(finished: Rehearsal, name: str, row: str, said: str) -> None:
    found = finished.read("trace", f"results/paper/tables/{name}.csv", *row.split())
    assert said in found
    assert len(found.splitlines()) > 5


def test_the_report(finished: Rehearsal) -> None:
    finished.snakemake("--report", "report.html")
    report = (finished.folder / "report.html").read_text(encoding="utf-8")
    for category in ("1 Published against reproduced", "2 table2", "2 table1", "2 figure1"):
        assert category in report
    assert len(report) > 10**6


def test_nothing_is_left_to_do(finished: Rehearsal) -> None:
    assert finished.planned(overlay="machine") == {}


def test_the_full_version_goes_on_from_here(finished: Rehearsal) -> None:
    """Of the files that are there, configs/v2.yaml makes anew only what 8 heads are added to."""
    files = finished.snakemake("--summary", overlay="v2 machine").splitlines()
    named = {line.split("\t")[0] for line in files if line.endswith("\tupdate pending")}
    again = {name for name in named if (finished.folder / name).exists()}
    stages = {"/".join(name.split("/")[2:3]) for name in again}
    assert stages == {
        *("heads", "responses", "expected", "scores", "tables", "figures", "report"),
        *("config.yaml", "preflight.json"),
    }
    assert not any("/baseline/" in name for name in again)
    assert len(named) > len(again) + 300
