"""What holds of every rule, read from the workflow as Snakemake loads it."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.iocontainers import Wildcards

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
# No scheduler kills what runs where Snakemake does; the others there are less work than a job.
FIXED = {"write_config", "preflight", "download_source", "audit"}
LOCAL = FIXED | {"split_words", "count_answered", "select_heads", "draw_controls"}
# Seconds before the first result, whose code is no part of a result.
PREPARATION = {"write_config", "preflight"}
# Rules that run another rule's script: those that use it.
SHARED = {"intervene": "respond", "label_second": "label_responses"}


@cache
def workflow() -> Any:
    """Return Snakemake's workflow of the shipped config."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import OutputSettings, Quietness, ResourceSettings

    with pytest.MonkeyPatch.context() as patch, SnakemakeApi(
        OutputSettings(quiet={Quietness.ALL})
    ) as api:  # fmt: skip
        patch.setattr(os, "environ", os.environ.copy())
        loading = api.workflow(
            resource_settings=ResourceSettings(cores=1), snakefile=ROOT / "Snakefile"
        )
        loaded = loading._get_workflow(check_envvars=False)
        loaded.include(loading.snakefile, overwrite_default_target=True)
        return loaded


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    """Give the rules that make something, by name."""
    return {rule.name: rule for rule in workflow().rules if rule.output}


def script(rule: Any) -> str:
    return Path(rule.script).name


def texts() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))


def test_every_script_has_its_rule(rules: dict[str, Any]) -> None:
    assert {path.name for path in SCRIPTS.glob("*.py")} == set(map(script, rules.values()))
    for name, rule in rules.items():
        assert script(rule) == f"{SHARED.get(name, name)}.py"


def test_a_rule_has_its_docstring_log_benchmark_environment_and_resources(
    rules: dict[str, Any],
) -> None:
    for name, rule in rules.items():
        assert len(rule.docstring) > 10, name
        assert rule.log[0].startswith(f"results/paper/logs/{name}"), name
        if name not in PREPARATION:
            assert rule.benchmark.startswith(f"results/paper/benchmarks/{name}"), name
        assert (ROOT / "rules" / str(rule.conda_env)).is_file(), name
        assert {"mem_mb", "runtime"} <= set(rule.resources), name
        assert not rule.is_checkpoint, name  # the config names every target


def test_a_job_killed_for_memory_or_time_gets_more_on_its_next_attempt(
    rules: dict[str, Any],
) -> None:
    wildcards = Wildcards(fromdict={"experiment": "rtp"})
    for name, rule in rules.items():
        for resource in ("mem_mb", "runtime"):
            found = rule.resources[resource]
            first, second = (found.evaluate(wildcards, attempt=number).value for number in (1, 2))
            assert second == (1 if name in FIXED else 2) * first > 0, name


def test_a_job_says_in_one_line_what_it_does_and_to_what(rules: dict[str, Any]) -> None:
    """Two jobs of a rule are told apart by it."""
    for name, rule in rules.items():
        named = set(re.findall(r"{wildcards\.(\w+)}", rule.message))
        assert named == set(rule.wildcard_names), name
        assert "\n" not in rule.message and len(rule.message) < 120, name
    messages = [rule.message for rule in rules.values()]
    assert len(set(messages)) == len(messages)
    # Of a rule that runs a model it says how long that takes, before any has run.
    takes = r" \(\d+ (s|min|h)( to \d+ (s|min|h) on an A100| last time)\)$"
    timed = {name for name, rule in rules.items() if re.search(takes, rule.message)}
    with_model = {"respond", "cache_activations", "label_responses", "intervene"}
    assert timed >= {*with_model, "measure_expected"}


def test_only_the_rules_known_as_local_are_local() -> None:
    """Each says so itself: a list of names would not hold in a workflow that renames them."""
    assert workflow()._localrules == LOCAL
    assert "localrules:" not in texts()


def test_two_jobs_of_a_rule_never_write_into_the_same_file(rules: dict[str, Any]) -> None:
    for name, rule in rules.items():
        if name != "write_pages":  # the report's pages, of which there is one a table
            for path in [*rule.output, *rule.log, *filter(None, [rule.benchmark])]:
                assert set(re.findall(r"{(\w+)", path)) == rule.wildcard_names, path


def test_paths_are_literal() -> None:
    """What a rule writes can be found by searching for it."""
    blocks = re.findall(r"^    (?:output|log|benchmark):\n((?: {8}.*\n)+)", texts(), re.MULTILINE)
    written = [block for block in blocks if "<results>/report/{page}.html" not in block]
    assert len(written) == len(blocks) - 1 > 80
    for block in written:
        assert not re.search(r'f"<|" \+|\+ "|lambda|os\.path', block)


def test_a_script_reads_what_its_rule_gives_and_no_param_is_unread(rules: dict[str, Any]) -> None:
    """A param that nothing reads makes a job run again for nothing, unless it is there for that."""
    for name, rule in rules.items():
        text = (SCRIPTS / script(rule)).read_text(encoding="utf-8")
        for section in ("snakemake.input", "snakemake.output", "params"):
            read = set(re.findall(rf"\b{re.escape(section)}\.(\w+)", text))
            given = set(getattr(rule, section.removeprefix("snakemake.")).keys())
            assert read - {"get", "items"} <= given, f"{name} lacks {section}"
        # The hashes of code and of a user's file; and an intervention's, which the script may lack.
        unread = given - read
        assert unread <= {"code", "content", "conditions"}, name


def test_the_slurm_profile_names_the_rules_that_ask_for_a_gpu(rules: dict[str, Any]) -> None:
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    asking = {name for name, rule in rules.items() if "gpu" in rule.resources}
    assert set(profile["set-resources"]) == asking
