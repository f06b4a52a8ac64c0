import copy
from pathlib import Path
from typing import Any

import pytest
from headpursuit.run.config import load_config
from headpursuit.run.estimate import estimate, file_bytes, job_times, measured, models, render
from headpursuit.run.estimate import work as work_of_jobs
from headpursuit.run.roofline import DEVICES
from headpursuit.run.workload import HIGH, LOW, jobs_of
from snakemake.utils import update_config

HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
RTP = {"tables": {"table1": [], "table2": ["rtp"], "concepts": [], "figure1": []}}
SMALL = {**RTP, "samples": {"rtp": {"sample": 100}}}
UNLOADED = {
    "seconds until a job's libraries are loaded": 0,
    "bytes of weights a second from disk to device": float("inf"),
}
TWICE = {"samples": 2, "temperature": 1.0}
QUARTER = {"models": {"mistral": {"bits": 4}}}
COUNTED = 2 * 2 + 2 * 10  # methods and draws, for each of two k


def changed(config: dict[str, Any], over: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a config with an overlay and all keys."""
    config = copy.deepcopy(config)
    update_config(config, over or {})
    return load_config(config)


def work(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return work_of_jobs(jobs_of(config, given, DEVICES["H100"]))


def spans(config: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    low, high = work(config, LOW), work(config, HIGH)
    return {rule: {key: (own[key], high[rule][key]) for key in own} for rule, own in low.items()}


def test_tokens_follow_the_config(paper: dict):
    found = spans(changed(paper, SMALL | {"compute": {"parts": 3}}))
    assert {rule: own["jobs"][0] for rule, own in found.items()} == {
        "extract_weights": 1, "respond": 3, "cache_activations": 1, "label_responses": 1,
        "rank_heads": 1, "intervene": 3, "measure_expected": 3,
    }  # fmt: skip
    assert found["respond"]["read"] == pytest.approx((100 * 35, 100 * 55))
    assert found["respond"]["written"] == pytest.approx((100 * 0.7 * 128, 100 * 128))
    assert found["intervene"]["written"][1] == pytest.approx(COUNTED * 100 * 128)
    assert found["measure_expected"]["read"][1] == pytest.approx((1 + COUNTED) * 100 * (55 + 128))
    assert found["cache_activations"]["read"] == found["respond"]["read"]
    assert found["label_responses"]["written"] == (100 * 5, 100 * 20)


def test_a_jobs_time_is_that_of_its_costs(paper: dict):
    """The high end of 100 prompts, one batch of which is read and written on by 100 rows."""
    found = work(changed(paper, SMALL), HIGH)["respond"]
    weights, layers, width = 2 * 7241732096, 32, (7241732096 / 12 / 32) ** 0.5
    steps, tokens, kept = 128, 55 + 128, 2 * 2 * 32 * width / 4
    assert found["launches"] == pytest.approx((steps + 5500 / 32768) * layers * 43)
    moved = weights * (steps + 5500 / 32768) + (5500 + steps * 100) * 76 * layers * width * 2
    moved += steps * 100 * tokens * kept
    assert found["bytes"] == pytest.approx(moved)
    multiplied = (5500 + steps * 100) * weights
    assert multiplied < found["operations"] < 1.05 * multiplied  # and the attention's
    writing = steps * layers * 43 * 2e-5  # launches take longer than what is written in one
    assert 3600 * found["hours"] == pytest.approx(writing + 15 + weights / 1e9, rel=0.05)


def test_the_papers_run_is_known_within_a_factor_of_three(paper: dict):
    found = estimate(changed(paper), {})["devices"]
    assert list(found) == ["H100", "A100", "RTX 4090"]
    for own in found.values():
        low, high = own["hours"]
        assert low < high < 3 * low
        one, eight = own["wall_hours"][1], own["wall_hours"][8]
        assert all(a / 8 < b < a / 2 for a, b in zip(one, eight, strict=True))
    lacking = [own["no_room_for"] for own in found.values()]
    assert lacking == [[], [], ["llama3.3:70b"]]
    assert found["H100"]["wall_hours"][1][0] < 5 < found["RTX 4090"]["wall_hours"][1][0]


@pytest.mark.parametrize(
    ("over", "times"),
    [
        ({"generation": TWICE}, {"respond": 2, "intervene": 2, "measure_expected": 2}),
        ({"k": [16]}, {"intervene": 0.5, "measure_expected": (1 + COUNTED / 2) / (1 + COUNTED)}),
        ({"count_draws": 4}, {"intervene": (2 * 2 + 2 * 4) / COUNTED}),
        ({"positions": "response"}, {"cache_activations": (55 + 128) / 55}),
    ],
)
def test_a_key_changes_what_stands_on_it_and_nothing_else(paper: dict, over: dict, times: dict):
    before = work(changed(paper, SMALL), HIGH)
    after = work(changed(paper, {**SMALL, "experiments": {"rtp": over}}), HIGH)
    for rule in ("respond", "cache_activations", "intervene", "measure_expected"):
        expected = times.get(rule, 1) * before[rule]["read"]
        assert after[rule]["read"] == pytest.approx(expected), rule


def test_a_classifier_reads_every_response_once(paper: dict):
    rtp = {"measures": ["toxicity"], "classifier": "mine"}
    judge = {"mine": {"source": "mnist", "label": "toxic"}}
    over = {**SMALL, "experiments": {"rtp": rtp}, "classifiers": judge}
    found = spans(changed(paper, over))["measure"]
    assert found["read"] == pytest.approx([(1 + COUNTED) * 100 * own * 128 for own in (0.7, 1)])
    assert (found["jobs"], found["written"]) == ((1, 1), (0, 0))
    assert "measure" not in spans(changed(paper, SMALL))


def test_images_have_their_own_tokens(demo: dict):
    others = {table: [] for table in ("pronouns", "table1", "table2", "concepts")}
    only = {"tables": {**others, "figure1": ["digits"]}}
    found, images = spans(changed(demo, only)), 10 * 20
    asked = [16 + 30 + 10 * 2, 16 + 60 + 10 * 5]  # the question, and a class name's tokens
    assert found["cache_activations"]["read"] == tuple(images * own for own in asked)
    assert found["respond"]["written"] == pytest.approx((images * 4 * 0.3, images * 4 * 0.6))
    assert "measure_expected" not in found and "label_responses" not in found


def test_a_labeller_is_reckoned_where_its_name_gives_its_size(paper: dict):
    def hours(rule: str, **labeller: Any) -> float | None:
        found = work(changed(paper, {**SMALL, "labeller": labeller}), LOW | UNLOADED)
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
    found = work(changed(paper, over), LOW | UNLOADED)["label_responses"]
    images = 10 * 20  # classes, and images of each
    assert found["read"] == images * 256 and found["written"] == images * 5
    over["labeller"] = {"keywords": {"ollama": {"model": "a:48b"}}}
    larger = work(changed(paper, over), LOW | UNLOADED)
    assert larger["label_responses"]["hours"] == pytest.approx(2 * found["hours"])


def test_files_of_a_demo(demo: dict):
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


def test_quantised_weights_take_their_bits(paper: dict):
    whole = models(changed(paper, SMALL))["mistral"]
    quarter = models(changed(paper, SMALL | QUARTER))["mistral"]
    assert 4 * quarter["weight_bytes"] == whole["weight_bytes"]
    moved = [work(changed(paper, SMALL | over), LOW)["respond"]["bytes"] for over in ({}, QUARTER)]
    assert moved[1] < moved[0]


def test_an_estimate_stands_beside_what_was_measured(demo: dict, tmp_path: Path):
    for name, row in {
        "respond/rtp/part-1.tsv": "1800\t0\t500\t1\t1\t1\t1\t1\t1\t900\n",
        "respond/rtp/part-2.tsv": "1800\t0\t700\t1\t1\t1\t1\t1\t1\t900\n",
        "write_pages.tsv": "0.1\t0\tNA\t-\t-\t-\t-\t-\tNA\tNA\n",
        "measure/cut.tsv": "3600\t0",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(HEAD + row)
    took = measured(tmp_path)
    hours = {"hours": 1.0, "longest_hours": 0.5, "cpu_hours": 0.5}
    assert took["respond"] == {"jobs": 2, **hours, "max_rss_mb": 700.0}
    assert took["write_pages"]["max_rss_mb"] == 0
    hours = {"hours": 1.0, "longest_hours": 1.0, "cpu_hours": 0}
    assert took["measure"] == {"jobs": 1, **hours, "max_rss_mb": 0}
    assert measured(tmp_path / "none") == {}

    found = estimate(changed(demo), took)
    assert found["device"] == "this processor"
    low, high = found["rules"]["measure_expected"]["hours"]
    assert 0 < low < high
    rows = [" ".join(line.split()) for line in render(found).splitlines()]
    for rule in found["rules"]:
        assert any(row.startswith(f"| `{rule}` |") for row in rows)
    assert any(row.endswith("| 2 | 1.00 | 0.50 | 0.7 |") for row in rows)


def test_a_jobs_time_is_that_of_the_last_run(demo: dict):
    config = changed(demo)
    assert job_times(config, {}) == {}
    jobs = {"intervene": {"jobs": 4, "hours": 0.1}, "rank_heads": {"jobs": 0, "hours": 0}}
    jobs |= {"respond": {"jobs": 4, "hours": 0.01}, "measure": {"jobs": 1, "hours": 0}}
    expected = {"intervene": "2 min", "respond": "9 s", "measure": "1 s"}
    assert job_times(config, jobs) == {rule: f"{own} last time" for rule, own in expected.items()}


def test_a_jobs_time_on_a_gpu_is_the_estimates(paper: dict):
    config = changed(paper)
    found = job_times(config, {})
    ends = [work_of_jobs(jobs_of(config, given, DEVICES["A100"])) for given in (LOW, HIGH)]
    minutes = [end["intervene"]["hours"] / end["intervene"]["jobs"] * 60 for end in ends]
    assert 1.5 < minutes[0] < minutes[1]
    shown = [f"{m:.0f} min" if m < 90 else f"{m / 60:.0f} h" for m in minutes]
    assert found["intervene"] == f"{shown[0]} to {shown[1]} on an A100"
    jobs = {"intervene": {"jobs": 1, "hours": 2}}
    assert job_times(config, jobs) == {**found, "intervene": "2 h last time"}
