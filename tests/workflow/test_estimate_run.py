import pytest
import yaml
from checkout import Checkout
from headpursuit.run.estimate import estimate, measured, render

pytestmark = pytest.mark.xdist_group("workflow")


@pytest.mark.long
def test_an_estimate_stands_beside_what_a_finished_run_took(checkout: Checkout) -> None:
    config = yaml.safe_load(checkout.path("config.yaml").read_text())
    found = estimate(config, measured(checkout.path("benchmarks")))
    rules = found["rules"]
    assert {"respond", "intervene", "measure_expected"} <= set(rules)
    del rules["measure"]  # of which those with a classifier of texts are reckoned, and others run
    for rule in rules.values():
        assert rule.get("jobs", rule["measured"]["jobs"]) == rule["measured"]["jobs"]
    assert "# What the run `tiny` takes" in render(found)
