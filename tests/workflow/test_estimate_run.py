import json

import pytest
from checkout import Checkout

pytestmark = pytest.mark.xdist_group("workflow")


@pytest.mark.long
def test_an_estimate_stands_beside_what_a_finished_run_took(checkout: Checkout) -> None:
    assert "# What the run `tiny` takes" in checkout.snakemake("estimate")
    rules = json.loads(checkout.path("estimate.json").read_text())["rules"]
    assert {"respond", "intervene", "measure_expected"} <= set(rules)
    for rule in rules.values():
        assert rule.get("jobs", rule["measured"]["jobs"]) == rule["measured"]["jobs"]
    assert checkout.planned("estimate") == {}
    checkout.path("benchmarks/publish_ratios/table2.tsv").unlink()
    assert checkout.planned("estimate") == {"estimate": 1}
