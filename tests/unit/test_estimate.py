import copy
from pathlib import Path
from typing import Any

import pytest
from headpursuit.run.config import load_config
from headpursuit.run.estimate import HIGH, LOW, estimate, file_bytes, measured, models, render, work
from snakemake.utils import update_config

HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
RTP = {"tables": {"table1": [], "table2": ["rtp"], "concepts": [], "figure1": []}}
SMALL = {**RTP, "samples": {"rtp": {"sample": 100}}}
COUNTED = 2 * 2 + 2 * 10  # methods and draws, for each of two k


def changed(config: dict[str, Any], over: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a config with an overlay and all keys."""
    config = copy.deepcopy(config)
    update_config(config, over or {})
    return load_config(config)


def spans(config: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    low, high = work(config, LOW), work(config, HIGH)
    return {rule: {key: (own[key], high[rule][key]) for key in own} for rule, own in low.items()}


def test_tokens_follow_the_config(paper: dict):
    found = spans(changed(paper, SMALL | {"compute": {"parts": 3}}))
    assert {rule: own["jobs"][0] for rule, own in found.items()} == {
        "respond": 3, "cache_activations": 1, "label_responses": 1, "intervene": 3,
        "measure_expected": 3,
    }  # fmt: skip
    assert found["respond"]["read"] == (100 * 15, 100 * 200)
    assert found["respond"]["written"] == (100 * 64, 100 * 128)
    assert found["intervene"]["written"] == (COUNTED * 100 * 64, COUNTED * 100 * 128)
    assert found["measure_expected"]["read"][1] == (1 + COUNTED) * 100 * (200 + 128)
    assert found["cache_activations"]["read"] == found["respond"]["read"]
    assert found["label_responses"]["written"] == (100 * 2, 100 * 30)
    read, written = found["respond"]["read"][1], found["respond"]["written"][1]
    slowest = 2 * 7241732096 * (read / 5e13 + written / 3e12) + 3 * 120
    assert found["respond"]["hours"][1] == pytest.approx(slowest / 3600)


@pytest.mark.parametrize(
    ("over", "rule", "times"),
    [
        ({"generation": {"samples": 2, "temperature": 1.0}}, "respond", 2),
        ({"generation": {"samples": 2, "temperature": 1.0}}, "intervene", 2),
        ({"generation": {"samples": 2, "temperature": 1.0}}, "cache_activations", 1),
        ({"k": [16]}, "intervene", 0.5),
        ({"k": [16]}, "respond", 1),
        ({"count_draws": 4}, "intervene", (2 * 2 + 2 * 4) / COUNTED),
        ({"count_draws": 4}, "measure_expected", 1),
        ({"positions": "response"}, "cache_activations", (200 + 128) / 200),
    ],
)
def test_a_key_changes_what_stands_on_it(paper: dict, over: dict, rule: str, times: float):
    before = work(changed(paper, SMALL), HIGH)[rule]["read"]
    after = work(changed(paper, {**SMALL, "experiments": {"rtp": over}}), HIGH)[rule]["read"]
    assert after == pytest.approx(times * before)


def test_a_classifier_reads_every_response_once(paper: dict):
    rtp = {"measures": ["toxicity"], "classifier": "mine"}
    judge = {"mine": {"source": "mnist", "label": "toxic"}}
    over = {**SMALL, "experiments": {"rtp": rtp}, "classifiers": judge}
    found = spans(changed(paper, over))["measure"]
    assert found["read"] == ((1 + COUNTED) * 100 * 64, (1 + COUNTED) * 100 * 128)
    assert (found["jobs"], found["written"]) == ((1, 1), (0, 0))
    assert "measure" not in spans(changed(paper, SMALL))


def test_images_have_their_own_tokens(demo: dict):
    others = {table: [] for table in ("pronouns", "table1", "table2", "concepts")}
    only = {"tables": {**others, "figure1": ["digits"]}}
    found, images = spans(changed(demo, only)), 10 * 20
    assert found["cache_activations"]["read"] == (images * (16 + 60), images * (16 + 400))
    assert found["respond"]["written"] == (images * 1, images * 4)
    assert "measure_expected" not in found and "label_responses" not in found


def test_a_labeller_is_reckoned_where_its_name_gives_its_size(paper: dict):
    def hours(rule: str, **labeller: Any) -> float | None:
        found = work(changed(paper, {**SMALL, "labeller": labeller}), LOW | {LOADED: 0})
        return found[rule]["hours"] if rule in found else None

    whole = hours("label_responses")
    assert hours("label_responses", ollama={"model": "tiny:7b"}) == pytest.approx(whole / 10)
    assert hours("label_responses", ollama={"model": "tiny"}) is None
    lexicon = {"source": "real-toxicity-prompts", "files": "prompts.jsonl"}
    second = {"backend": "lexicon", "second": "ollama", "lexicon": lexicon}
    assert hours("label_responses", **second) is None and hours("label_second", **second) == whole


def test_keywords_are_of_the_images_that_choose_heads(paper: dict):
    over = {"concepts": {"seen": {"keywords": {}}}, "tables": {**RTP["tables"], "table2": []}}
    over["experiments"] = {"eurosat": {"concept": "seen"}}
    over["tables"]["figure1"] = ["eurosat"]
    found = work(changed(paper, over), LOW | {LOADED: 0})["label_responses"]
    images = 10 * 20  # classes, and images of each
    assert found["read"] == images * 1176 and found["written"] == images * 2
    larger = work(
        changed(paper, {**over, "labeller": {"keywords": {"ollama": {"model": "a:48b"}}}}),
        LOW | {LOADED: 0},
    )
    assert larger["label_responses"]["hours"] == pytest.approx(2 * found["hours"])


LOADED = "seconds until a job's model is loaded"


def test_files_of_a_demo(paper: dict, demo: dict):
    found = file_bytes(changed(demo))
    assert found["converted models (resources)"] == 4 * 134515008
    assert found["assembled models (resources)"] == 4 * 135354624
    words = 100 + 2 * 24  # toxic ones, and pronouns inverted and enhanced
    assert found["expected"] == 400 * (1 + 2 * 2 + 2 * 10) * words * 8


def test_a_models_memory_is_that_of_its_largest_batch(demo: dict):
    found = models(changed(demo))
    assert found["smollm2"]["batch"] == "compute.batch_tokens.responding"
    assert found["smollm2-digits"]["batch"] == "compute.batch_images"
    assert found["smollm2-digits"]["experiment"] == "digits"
    less = models(changed(demo, {"compute": {"batch_images": 1}}))["smollm2-digits"]
    assert less["batch"] == "compute.batch_tokens.responding"
    assert less["weight_bytes"] < less["work_bytes"] < found["smollm2-digits"]["work_bytes"]


def test_an_estimate_stands_beside_what_was_measured(demo: dict, tmp_path: Path):
    for name, row in {
        "respond/rtp/part-1.tsv": "1800\t0\t500\t1\t1\t1\t1\t1\t1\t900\n",
        "respond/rtp/part-2.tsv": "1800\t0\t700\t1\t1\t1\t1\t1\t1\t900\n",
        "write_pages.tsv": "0.1\t0\tNA\t-\t-\t-\t-\t-\tNA\tNA\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(HEAD + row)
    took = measured(tmp_path)
    assert took["respond"] == {"jobs": 2, "hours": 1.0, "cpu_hours": 0.5, "max_rss_mb": 700.0}
    assert took["write_pages"]["max_rss_mb"] == 0
    assert measured(tmp_path / "none") == {}

    found = estimate(changed(demo), took)
    assert found["device"] == "core"
    low, high = found["rules"]["measure_expected"]["hours"]
    assert 0 < low < high
    rows = [" ".join(line.split()) for line in render(found).splitlines()]
    for rule in found["rules"]:
        assert any(row.startswith(f"| `{rule}` |") for row in rows)
    assert any(row.endswith("| 2 | 1.00 | 0.50 | 0.7 |") for row in rows)
