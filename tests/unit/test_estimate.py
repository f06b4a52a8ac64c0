import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from headpursuit.run.config import load_config
from headpursuit.run.estimate import (
    estimate,
    file_bytes,
    measured,
    models,
    planned_jobs,
    render,
    tokens,
)
from headpursuit.run.experiments import stage_owners
from headpursuit.run.files import UserError
from snakemake.utils import update_config

ROOT = Path(__file__).parents[2]
HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
# Rules with a job for each file of a stage, or for each part of it.
JOBS = {
    "prepare_samples": "samples",
    "respond": "baseline",
    "label_responses": "labels",
    "split_words": "words",
    "build_dictionary": "dictionary",
    "cache_activations": "activations",
    "rank_heads": "rankings",
    "select_heads": "selected",
    "draw_controls": "random",
    "intervene": "scaled",
    "measure_expected": "expected",
    "decompose_heads": "decomposition",
    "read_lens": "lens",
}
IN_PARTS = {"respond", "intervene", "measure_expected"}


def changed(config: dict[str, Any], over: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a config with an overlay and all keys."""
    config = copy.deepcopy(config)
    update_config(config, over or {})
    return load_config(config)


@pytest.mark.parametrize("overlay", [None, "demo", "controls"])
def test_each_shared_file_is_reckoned_once_as_snakemake_plans_it(paper: dict, overlay: str | None):
    file = ROOT / f"configs/{overlay}.yaml"
    config = changed(paper, yaml.safe_load(file.read_text()) if overlay else {})
    jobs, files = planned_jobs(config, sys.executable), stage_owners(config)
    parts = config["compute"]["parts"]
    for rule, stage in JOBS.items():
        assert jobs[rule]["jobs"] == len(files[stage]) * (parts if rule in IN_PARTS else 1), rule
    assert jobs["compare_published"] == {"jobs": 1, "mem_mb": 1000, "runtime": 10, "gpu": 0}
    assert jobs["intervene"]["gpu"] == (overlay != "demo")
    assert jobs["rank_heads"]["gpu"] == 0
    assert "all" not in jobs


def test_a_run_that_cannot_be_planned_says_why(paper: dict):
    with pytest.raises(UserError, match="run: 3 is not"):
        planned_jobs({**changed(paper), "run": 3}, sys.executable)


RTP = {"tables": {"table1": [], "table2": ["rtp"], "concepts": [], "figure1": []}}
SMALL = {**RTP, "samples": {"rtp": {"sample": 100}}}
COUNTED = 2 * 2 + 2 * 10  # methods and draws, for each of two k


def test_tokens_follow_the_config(paper: dict):
    found = tokens(changed(paper, SMALL))
    assert set(found) == {
        *("respond", "cache_activations", "label_responses", "intervene", "measure_expected"),
    }
    assert found["respond"]["read"] == (100 * 15, 100 * 200)
    assert found["respond"]["written"] == (100 * 64, 100 * 128)
    assert found["intervene"]["written"] == (COUNTED * 100 * 64, COUNTED * 100 * 128)
    assert found["measure_expected"]["read"][1] == (1 + COUNTED) * 100 * (200 + 128)
    assert found["cache_activations"]["read"] == found["respond"]["read"]
    assert found["label_responses"]["written"] == (100 * 2, 100 * 30)
    read, written = found["respond"]["read"][1], found["respond"]["written"][1]
    slowest = 2 * 7241732096 * (read / 5e13 + written / 3e12)
    assert found["respond"]["seconds"][1] == pytest.approx(slowest)


@pytest.mark.parametrize(
    ("over", "rules", "times"),
    [
        ({"generation": {"samples": 2, "temperature": 1.0}}, {"respond", "intervene"}, 2),
        ({"generation": {"samples": 2, "temperature": 1.0}}, {"cache_activations"}, 1),
        ({"k": [16]}, {"intervene"}, 0.5),
        ({"k": [16]}, {"respond"}, 1),
        ({"count_draws": 4}, {"intervene"}, (2 * 2 + 2 * 4) / COUNTED),
        ({"count_draws": 4}, {"measure_expected"}, 1),
        ({"positions": "response"}, {"cache_activations"}, (200 + 128) / 200),
    ],
)
def test_a_key_changes_what_stands_on_it(paper: dict, over: dict, rules: set[str], times: float):
    before = tokens(changed(paper, SMALL))
    after = tokens(changed(paper, {**SMALL, "experiments": {"rtp": over}}))
    for rule in rules:
        assert after[rule]["read"][1] == pytest.approx(times * before[rule]["read"][1]), rule


def test_a_variant_costs_what_it_does_not_share(paper: dict):
    both = {"tables": {**RTP["tables"], "table2": ["rtp", "variant"]}}
    variant = {"experiments": {"variant": {"like": "rtp", "pursuit": {"norm": "l2"}}}}
    before, after = tokens(changed(paper, RTP)), tokens(changed(paper, {**variant, **both}))
    for rule in ("respond", "cache_activations", "label_responses"):
        assert after[rule] == before[rule]
    assert after["intervene"]["read"][1] == 2 * before["intervene"]["read"][1]


def test_images_have_their_own_tokens(demo: dict):
    only = {"tables": {"table1": [], "table2": [], "concepts": [], "figure1": ["digits"]}}
    found = tokens(changed(demo, only))
    images = 10 * 20
    assert found["cache_activations"]["read"] == (images * (16 + 60), images * (16 + 400))
    assert found["respond"]["written"] == (images * 1, images * 4)
    assert "measure_expected" not in found and "label_responses" not in found


def test_a_labeller_is_reckoned_where_its_name_gives_its_size(paper: dict):
    one = tokens(changed(paper, SMALL))["label_responses"]["seconds"]
    ollama = {"labeller": {"ollama": {"model": "tiny:7b"}}}
    small = tokens(changed(paper, {**SMALL, **ollama}))["label_responses"]["seconds"]
    assert small[1] == pytest.approx(one[1] / 10)
    unnamed = {"labeller": {"ollama": {"model": "tiny"}}}
    assert "label_responses" not in tokens(changed(paper, {**SMALL, **unnamed}))
    second = {"labeller": {"backend": "lexicon", "second": "ollama", "lexicon": LEXICON}}
    found = tokens(changed(paper, {**SMALL, **second}))
    assert "label_responses" not in found and found["label_second"]["seconds"] == one


LEXICON = {"source": "real-toxicity-prompts", "files": "prompts.jsonl"}


def test_the_cache_grows_with_the_samples(paper: dict):
    def cached(repeats: int) -> int:
        generation = {"samples": repeats, "temperature": 1.0}
        over = {"rtp": {"positions": "response", "generation": generation}}
        return file_bytes(changed(paper, {**RTP, "experiments": over}))["activations"]

    assert cached(2) == pytest.approx(2 * cached(1))


def test_models_that_are_made_here_are_counted(paper: dict):
    assert not [kind for kind in file_bytes(changed(paper)) if "models" in kind]


def test_files_of_a_demo(demo: dict):
    found = file_bytes(changed(demo))
    assert found["converted models (resources)"] == 4 * 134515008
    assert found["assembled models (resources)"] == 4 * 135354624
    assert found["expected"] == 400 * (1 + 2 * 2 + 2 * 10) * 100 * 8


def test_a_models_memory_is_that_of_its_largest_batch(demo: dict):
    found = models(changed(demo))
    assert found["smollm2"]["batch"] == "compute.batch_tokens.responding"
    assert found["smollm2-digits"]["batch"] == "compute.batch_images"
    assert found["smollm2-digits"]["experiment"] == "digits"
    less = models(changed(demo, {"compute": {"batch_images": 1}}))["smollm2-digits"]
    assert less["batch"] == "compute.batch_tokens.responding"
    assert less["weight_bytes"] < less["work_bytes"] < found["smollm2-digits"]["work_bytes"]


def test_benchmarks_are_summed_by_rule(tmp_path: Path):
    for name, row in {
        "respond/rtp/part-1.tsv": "1800\t0\t500\t1\t1\t1\t1\t1\t1\t900\n",
        "respond/rtp/part-2.tsv": "1800\t0\t700\t1\t1\t1\t1\t1\t1\t900\n",
        "write_pages.tsv": "0.1\t0\tNA\t-\t-\t-\t-\t-\tNA\tNA\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(HEAD + row)
    found = measured(tmp_path)
    assert found["respond"] == {"jobs": 2, "hours": 1.0, "cpu_hours": 0.5, "max_rss_mb": 700.0}
    assert found["write_pages"]["max_rss_mb"] == 0
    assert measured(tmp_path / "none") == {}


def test_an_estimate_is_a_table_with_a_row_for_each_rule(demo: dict):
    took = {"jobs": 2, "hours": 0.1, "cpu_hours": 0.2, "max_rss_mb": 900.0}
    found = estimate(changed(demo), sys.executable, {"rank_heads": took, "gone": took})
    said = render(found).splitlines()
    for rule in found["rules"]:
        assert any(line.startswith(f"| `{rule}` |") for line in said)
    assert found["device"] == "core"
    low, high = found["rules"]["measure_expected"]["hours"]
    assert 0 < low < high
    [total] = [line for line in said if line.startswith("| all |") and line.count("|") > 4]
    assert total.endswith("| 4 | 0.20 | 0.40 | 0.9 |")
