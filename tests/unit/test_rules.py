import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "scripts" / "headpursuit"
# What never leaves the machine that Snakemake runs on: no scheduler kills it.
LOCAL = {"write_config", "preflight", "download_source", "write_manifest", "estimate"}
# What runs before the first result, in seconds, and whose code is no part of a result.
PREPARATION = {"write_config", "preflight", "download_source", "estimate"}


@dataclass
class Rule:
    name: str
    docstring: str
    sections: dict[str, str]
    path: Path


def parse(path: Path) -> list[Rule]:
    """Read rules as snakefmt lays them out: sections indented by four spaces."""
    found = []
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"^rule \w+:\n(?:(?: .*)?\n)+", text + "\n", re.MULTILINE):
        name = re.match(r"rule (\w+):", block)[1]
        docstring = re.search(r'\A[^\n]*\n    """(.*?)"""', block, re.DOTALL)
        body = block[docstring.end() :] if docstring else block.split("\n", 1)[1]
        parts = re.split(r"^    (\w+):", body, flags=re.MULTILINE)
        sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        found.append(Rule(name, docstring[1] if docstring else "", sections, path))
    return found


RULES = [rule for path in sorted((ROOT / "rules").glob("*.smk")) for rule in parse(path)]
# A rule without output only names files.
WORKING = {rule.name: rule for rule in RULES if "output" in rule.sections}
working = pytest.mark.parametrize("rule", WORKING.values(), ids=WORKING)


def names(section: str) -> set[str]:
    """Return the names before the values of a section."""
    return set(re.findall(r"^\s{8}(\w+)=", section, re.MULTILINE))


# Rules that run another rule's script.
SHARED = {"intervene": "respond"}
RULED = list(WORKING.values())


def script(rule: Rule) -> str:
    return re.fullmatch(r'\s*"\.\./scripts/(.*)"\s*', rule.sections["script"])[1]


def test_the_parser_finds_all_rules():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))
    assert len(RULES) == len(re.findall(r"^\s*(?:rule|checkpoint) ", text, re.MULTILINE))
    assert len({rule.name for rule in RULES}) == len(RULES) > 15
    assert not re.search(r"^\s*checkpoint ", text, re.MULTILINE)  # the config names every target


def test_every_script_has_its_rule():
    assert {path.name for path in (ROOT / "scripts").glob("*.py")} == set(map(script, RULED))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_says_what_it_makes(rule: Rule):
    assert len(rule.docstring) > 10


@working
def test_a_rule_has_a_script_of_its_name(rule: Rule):
    assert script(rule) == f"{SHARED.get(rule.name, rule.name)}.py"


@working
def test_a_rule_has_log_environment_and_resources(rule: Rule):
    assert f"<logs>/{rule.name}" in rule.sections["log"]
    environment = re.fullmatch(r'\s*"(.*)"\s*', rule.sections["conda"])[1]
    assert (rule.path.parent / environment).is_file()
    assert {"mem_mb", "runtime"} <= names(rule.sections["resources"])
    if rule.name not in PREPARATION:
        assert f"<benchmarks>/{rule.name}" in rule.sections["benchmark"]


@working
def test_a_job_killed_for_memory_or_time_gets_more_on_its_next_attempt(rule: Rule):
    for resource in ("mem_mb", "runtime"):
        value = re.search(rf"{resource}=(.*),\n", rule.sections["resources"])[1]
        grows = value.startswith(("by_attempt(", "lambda wildcards, attempt: attempt", "model_mb"))
        assert grows != (rule.name in LOCAL)


def test_only_the_rules_known_as_local_are_local():
    """Each says so itself: a list of names would not hold in a workflow that renames them."""
    found = {rule.name for rule in RULES if "localrule" in rule.sections}
    assert found == LOCAL | {"split_words", "select_heads", "draw_controls"}
    assert not any("localrules:" in path.read_text() for path in (ROOT / "rules").glob("*.smk"))


@working
def test_a_rule_is_made_again_when_its_code_changes(rule: Rule):
    found = re.findall(r'code=code_hash\("(\w+)"\)', rule.sections.get("params", ""))
    assert found == ([] if rule.name in PREPARATION else [SHARED.get(rule.name, rule.name)])


# But for the report's pages, of which there is one a table.
literal = pytest.mark.parametrize(
    "rule", [rule for rule in WORKING.values() if rule.name != "write_pages"], ids=lambda r: r.name
)


@literal
def test_wildcards_of_outputs_are_in_log_and_benchmark(rule: Rule):
    """Two jobs of a rule never write into the same file."""

    def wildcards(section: str) -> set[str]:
        return set(re.findall(r"(?<!\{)\{(\w+)\}(?!\})", section)) | (
            set(re.findall(r"\{\{(\w+)\}\}", section)) if "collect" in section else set()
        )

    made = wildcards(rule.sections["output"]) - (
        {"layer"} if "collect" in rule.sections["output"] else set()
    )
    for section in ("log", "benchmark"):
        if section in rule.sections:
            assert wildcards(rule.sections[section]) == made


@literal
def test_paths_are_literal(rule: Rule):
    """What a rule writes can be found by searching for it."""
    for section in ("output", "log", "benchmark"):
        assert not re.search(r'f"<|" \+|\+ "|lambda|os\.path', rule.sections.get(section, ""))


class Uses(ast.NodeVisitor):
    """Which members of ``snakemake`` a module reads: {"params": {"seed", ...}, ...}."""

    def __init__(self) -> None:
        self.found: dict[str, set[str]] = {"params": set(), "input": set(), "output": set()}
        self.whole: set[str] = set()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = node.value
        if isinstance(owner, ast.Name) and owner.id == "params":
            self.found["params"].add(node.attr)
        elif (
            isinstance(owner, ast.Attribute)
            and isinstance(owner.value, ast.Name)
            and owner.value.id == "snakemake"
            and owner.attr in self.found
        ):
            self.found[owner.attr].add(node.attr)


def uses(rule: Rule) -> dict[str, set[str]]:
    """Return what a rule's script, and a module that it hands snakemake to, read."""
    visitor = Uses()
    text = (ROOT / "scripts" / script(rule)).read_text(encoding="utf-8")
    visitor.visit(ast.parse(text))
    for module in re.findall(r"from headpursuit\.(\w+) import", text):
        text = (LIBRARY / module / "__init__.py") if (LIBRARY / module).is_dir() else (
            LIBRARY / f"{module}.py"
        )  # fmt: skip
        if module != "rule" and "snakemake.params" in text.read_text(encoding="utf-8"):
            visitor.visit(ast.parse(text.read_text(encoding="utf-8")))
    for read in visitor.found.values():
        read -= {"get", "items"}
    return visitor.found


@working
def test_a_script_reads_what_its_rule_gives(rule: Rule):
    for section, read in uses(rule).items():
        given = names(rule.sections.get(section, ""))
        if "unpack(" in rule.sections.get(section, ""):  # a function names them
            continue
        assert read <= given, f"{rule.name} lacks {section}: {read - given}"


@working
def test_a_rule_gives_no_parameter_that_nothing_reads(rule: Rule):
    """A parameter that nothing reads makes a job run again for nothing, unless it is there for it.

    These are the hashes of the rule's code and of a user's file.
    """
    unread = names(rule.sections.get("params", "")) - uses(rule)["params"]
    # An intervention's, which the script may lack.
    assert unread <= {"code", "content", "conditions", "alpha"}


def test_the_snakefile_includes_every_file():
    text = (ROOT / "Snakefile").read_text(encoding="utf-8")
    included = set(re.findall(r'include: "rules/(\w+\.smk)"', text))
    assert included == {path.name for path in (ROOT / "rules").glob("*.smk")}


def test_the_slurm_profile_names_the_rules_that_ask_for_a_gpu():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))
    asking = {rule.name for rule in RULES if "gpu" in names(rule.sections.get("resources", ""))}
    asking |= {
        own for first, own in re.findall(r"^use rule (\w+) as (\w+)", text, re.M) if first in asking
    }
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    assert set(profile["set-resources"]) == asking
