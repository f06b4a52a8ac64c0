import json

import pytest
from checkout import Checkout

pytestmark = pytest.mark.xdist_group("workflow")


def test_an_estimate_stands_beside_what_a_finished_run_took(checkout: Checkout) -> None:
    said = checkout.snakemake("estimate")
    assert "# What the run `tiny` takes" in said
    rules = json.loads(checkout.path("estimate.json").read_text())["rules"]
    planned = checkout.planned("--forceall")
    planned.pop("all")
    assert {name: rule["jobs"] for name, rule in rules.items() if rule["jobs"]} == planned
    took = {name: rule for name, rule in rules.items() if rule["jobs"] and "measured" in rule}
    assert {"intervene", "measure", "publish_ratios"} <= set(took)
    for name, rule in took.items():
        assert rule["measured"]["jobs"] == rule["jobs"], name
        assert rule["measured"]["max_rss_mb"] < rule["mem_mb"], name
    assert checkout.planned("estimate") == {}
    checkout.path("benchmarks/publish_ratios/table2.tsv").unlink()
    assert checkout.planned("estimate") == {"estimate": 1}
