import sys
from pathlib import Path

import pytest
from headpursuit.estimate import estimate, file_bytes, measured, planned_jobs, render, tokens
from headpursuit.files import UserError


def test_jobs_are_those_that_snakemake_plans(paper: dict):
    jobs = planned_jobs(paper, sys.executable)
    assert jobs["draw_controls"]["jobs"] == 2 * 2 * 10  # data sets, numbers of heads, draws
    assert jobs["generate_intervened"]["gpu"] == 1
    assert jobs["plot_table2"] == {"jobs": 1, "mem_mb": 1000, "runtime": 10, "gpu": 0}
    assert "all" not in jobs


def test_a_run_that_cannot_be_planned_says_why(paper: dict):
    paper["run"] = 3
    with pytest.raises(UserError, match="run: 3 is not"):
        planned_jobs(paper, sys.executable)


def test_tokens_follow_the_config(paper: dict):
    paper["datasets"]["rtp"]["sample"] = 100
    paper["text"]["datasets"] = ["rtp"]
    before = tokens(paper)
    assert before["generate_baseline"]["written"] == (100 * 64, 100 * 128)
    paper["generation"]["samples"] = 2
    after = tokens(paper)
    for rule in ("generate_baseline", "generate_intervened", "measure_expected"):
        assert after[rule]["read"][1] == 2 * before[rule]["read"][1]
    assert after["answer_images"] == before["answer_images"]
    assert before["label_responses"]["parameters"] == 70e9  # llama3.3:70b
    paper["words"]["file"] = "own.txt"
    assert "label_responses" not in tokens(paper)


def test_the_cache_grows_with_the_samples(paper: dict):
    paper["activations"]["positions"] = "response"
    one = file_bytes(paper)["activations"]
    paper["generation"]["samples"] = 2
    two = file_bytes(paper)["activations"]
    own = 1000 / 7000  # the third data set pools prompts all the same
    assert two / one == pytest.approx(2 - own)


def test_benchmarks_are_summed_by_rule(tmp_path: Path):
    head = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
    for name, row in {
        "rank_heads/rtp/somp.tsv": "1800\t0\t500\t1\t1\t1\t1\t1\t1\t900\n",
        "rank_heads/rtp/logit_lens.tsv": "1800\t0\t700\t1\t1\t1\t1\t1\t1\t900\n",
        "plot_table2.tsv": "0.1\t0\tNA\t-\t-\t-\t-\t-\tNA\tNA\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(head + row)
    found = measured(tmp_path)
    assert found["rank_heads"] == {"jobs": 2, "hours": 1.0, "cpu_hours": 0.5, "max_rss_mb": 700.0}
    assert found["plot_table2"]["max_rss_mb"] == 0
    assert measured(tmp_path / "none") == {}


def test_an_estimate_is_a_table_with_a_row_for_each_rule(demo: dict):
    found = estimate(demo, sys.executable, {"rank_heads": measured_once()})
    said = render(found)
    for rule in found["rules"]:
        assert f"| `{rule}` |" in said
    assert found["device"] == "core"
    low, high = found["rules"]["measure_expected"]["hours"]
    assert 0 < low < high


def measured_once() -> dict[str, float]:
    return {"jobs": 2, "hours": 0.1, "cpu_hours": 0.1, "max_rss_mb": 900.0}
