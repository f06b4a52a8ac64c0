"""What is refused before any job runs, and what the paper's config plans."""

import subprocess
import sys

import pytest
from checkout import TINY, Checkout, Preloaded, make_checkout

pytestmark = pytest.mark.xdist_group("workflow")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return make_checkout(tmp_path_factory.mktemp("fresh"), Preloaded)


def test_paper_dry_run_needs_no_network_gpu_or_secret(fresh: Checkout) -> None:
    nowhere = "http://127.0.0.1:9"
    said = fresh.snakemake(
        "-n", overlay="", HF_TOKEN="", HF_ENDPOINT=nowhere, HTTPS_PROXY=nowhere, HTTP_PROXY=nowhere
    )
    for target in ("rtp", "tet"):
        for name in ("labels/{}.parquet", "responses/{}/scaled/part-1.parquet"):
            assert f"results/paper/{name.format(target)}" in said
    assert "results/paper/tables/table2.csv" in said


def test_an_older_snakemake_is_told_which_one_is_needed(fresh: Checkout) -> None:
    """It knows neither the version asked for nor all of the language."""
    older = (
        "import sys, snakemake.common, snakemake.parser\n"
        "snakemake.common.__version__ = '8.30.0'\n"
        "del snakemake.parser.Python.subautomata['pathvars']\n"
        "from snakemake.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", older, "-n", "--configfile", "configs/tiny.yaml"],
        cwd=fresh.folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "Expecting Snakemake version 9.27.1 or higher" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("model", "name"),
    [("mistral", "mistralai/Mistral-7B-Instruct-v0.2"), ("wheel", "wheel")],
)
def test_a_package_is_no_repository_of_the_hub(fresh: Checkout, model: str, name: str) -> None:
    spec = {"kind": "wheel", "id": "some-package", "version": "1", "sha256": "0" * 64}
    wheel = {**TINY["models"]["tiny"], "source": "wheel"}
    fresh.configure("wheel", sources={"wheel": {**spec, "files": ["*"]}}, models={"wheel": wheel})
    asks = f'include: "Snakefile"\n\nprint("is", hub_id("{model}"), "there")\n'
    (fresh.folder / "asks.smk").write_text(asks)
    assert f"is {name} there" in fresh.snakemake("-n", "-s", "asks.smk", overlay="wheel")


def test_demo_dry_run(fresh: Checkout) -> None:
    assert fresh.planned(overlay="demo")["intervene"] == 4


def test_controls_dry_run(fresh: Checkout) -> None:
    """Each of six image data sets with its own heads, and with those of each other."""
    planned = fresh.planned(overlay="controls")
    assert planned["intervene"] == 2 + 6 + 30
    assert planned["rank_heads"] == 12


def test_mistakes_of_all_kinds_are_said_at_once(fresh: Checkout) -> None:
    fresh.configure(
        "wrong",
        experiments={"rtp": {"k": [2, 40], "alhpa": -1, "pursuit": {"norm": "l3"}}},
        concepts={"toxic": {"top": "many", "\x1b[31mred": 1}},
        tables={"table2": ["rtp", "poems"]},
    )
    code, said = fresh.run("-n", overlay="wrong")
    assert code != 0
    block = said.split("The config cannot run:\n")[1].split("\n  File ")[0].splitlines()
    said_first = [line.split(". ")[0] for line in block]
    for line in (
        "  - concepts.toxic.top: 'many' is not a whole number or null",
        "  - experiments.rtp.alhpa: unknown key; did you mean alpha?",
        "  - experiments.rtp.pursuit.norm: 'l3' is not one of l1, l2",
        "  - tables.table2: 'poems' is not under experiments; there are rtp, tet, triviaqa, "
        "countries, months, numbers, colours, mnist, svhn, gtsrb, eurosat, resisc45, dtd",
    ):
        assert line in said_first, block
    assert any(line.startswith("  - concepts.toxic.[31mred: unknown key") for line in block)
    assert "Traceback" not in said
    assert "\x1b[31mred" not in said
    assert not (fresh.folder / "results").exists()


def test_a_section_that_stands_twice_is_refused(fresh: Checkout) -> None:
    """YAML would take the second and say nothing of the first."""
    overlay = (fresh.folder / "configs/tiny.yaml").read_text() + "defaults: {alpha: 0}\n"
    (fresh.folder / "configs/twice.yaml").write_text(overlay)
    code, said = fresh.run("-n", overlay="twice")
    assert code != 0
    assert "configs/twice.yaml twice, in lines" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defaults": {"k": [40]}}, "experiments.rtp.k: 40 heads"),
        ({"samples": {"rtp": {"source": "nowhere"}}}, "samples.rtp.source: 'nowhere' is not"),
        ({"tables": {"table2": ["poems"]}}, "tables.table2: 'poems' is not under experiments"),
        ({"experiments": {"rtp": {"like": "tet"}}}, "experiments.tet.like: rtp is like tet itself"),
        (
            {"heads": {"k": [2]}},
            "heads: an older version's key; it says the same under experiments",
        ),
        ({"run": "../../elsewhere"}, "run: '../../elsewhere' does not match"),
        ({"run": None}, "run: null is not a text"),
        ({"score": None}, "score: null is not a mapping"),
    ],
)
def test_refused(fresh: Checkout, changes: dict, message: str) -> None:
    fresh.configure("wrong", **changes)
    code, said = fresh.run("-n", overlay="wrong")
    assert code != 0
    assert message in said, said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"samples": {"rtp": {"text": "query"}}},
            "has no column 'query'; it has prompt, challenging",
        ),
        ({"samples": {"rtp": {"sample": 1000}}}, "40 prompts are there, 1000 are wanted"),
        ({"models": {"tiny": {"heads": 8}}}, "but the config says 3 of 8"),
    ],
)
def test_a_mistake_that_only_the_data_show(fresh: Checkout, changes: dict, message: str) -> None:
    """The job ends with one message that says what would be right, and no traceback."""
    fresh.configure("wrong", run="wrong", **changes)
    target = "results/wrong/responses/rtp/baseline/part-1.parquet"
    code, said = fresh.run(target, "--cores", "1", overlay="wrong")
    assert code != 0
    assert message in said, said
    assert "Traceback" not in said


def test_a_machine_without_a_gpu_is_told_what_to_do(fresh: Checkout) -> None:
    """The paper's model is refused by the preflight, before anything is downloaded."""
    code, said = fresh.run("--cores", "2", overlay="", CUDA_VISIBLE_DEVICES="")
    assert code != 0
    assert "There is no GPU here" in said
    assert "make demo" in said
    assert "compute.allow_cpu: true" in said
    assert not (fresh.folder / "resources/mistral-7b-instruct-v0.2").exists()
