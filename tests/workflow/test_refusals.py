"""What is refused before any job runs, and what the paper's config plans."""

import subprocess
import sys

import pytest
from checkout import TINY, Checkout, make_checkout

pytestmark = pytest.mark.xdist_group("workflow")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return make_checkout(tmp_path_factory.mktemp("fresh"))


def test_paper_dry_run_needs_no_network_gpu_or_secret(fresh: Checkout) -> None:
    nowhere = "http://127.0.0.1:9"
    said = fresh.snakemake(
        "-n", overlay="", HF_TOKEN="", HF_ENDPOINT=nowhere, HTTPS_PROXY=nowhere, HTTP_PROXY=nowhere
    )
    for target in ("rtp", "tet"):
        for name in ("labels/{}.parquet", "generations/{}/random-k32-d09.parquet"):
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
    [("mistral", "mistralai/Mistral-7B-Instruct-v0.2"), ("wheel", None)],
)
def test_a_package_is_no_repository_of_the_hub(
    fresh: Checkout, model: str, name: str | None
) -> None:
    spec = {"kind": "wheel", "id": "some-package", "version": "1", "sha256": "0" * 64}
    wheel = {**TINY["models"]["tiny"], "source": "wheel"}
    fresh.configure("wheel", sources={"wheel": {**spec, "files": ["*"]}}, models={"wheel": wheel})
    asks = f'include: "Snakefile"\n\nprint("is", hub_id("{model}"), "there")\n'
    (fresh.folder / "asks.smk").write_text(asks)
    assert f"is {name} there" in fresh.snakemake("-n", "-s", "asks.smk", overlay="wheel")


def test_demo_dry_run(fresh: Checkout) -> None:
    assert fresh.planned(overlay="demo")["generate_intervened"] == 2


def test_mistakes_of_all_kinds_are_said_at_once(fresh: Checkout) -> None:
    fresh.configure(
        "wrong",
        heads={"k": [2, 40], "alhpa": -1},
        pursuit={"norm": "l3"},
        words={"top": "many", "\x1b[31mred": 1},
        text={"datasets": ["rtp", "poems"]},
    )
    code, said = fresh.run("-n", overlay="wrong")
    assert code != 0
    block = said.split("The config cannot run:\n")[1].split("\n  File ")[0].splitlines()
    assert [line.split(". ")[0] for line in block] == [
        "  - heads.alhpa: unknown key; did you mean alpha?",
        "  - pursuit.norm: 'l3' is not one of l1, l2",
        "  - words.[31mred: unknown key; known are file, texts, top, selection_share, "
        "case_sensitive, inflections",
        "  - words.top: 'many' is not a whole number",
        "  - text.datasets: 'poems' is not under datasets; there are rtp, tet, triviaqa",
        "  - heads.k: 40 heads and as many disjoint random ones do not fit into the 12 heads of "
        "tiny's layers 0 to 2; at most 6",
    ]
    assert "Traceback" not in said
    assert "\x1b[31mred" not in said
    assert not (fresh.folder / "results").exists()


def test_a_section_that_stands_twice_is_refused(fresh: Checkout) -> None:
    """YAML would take the second and say nothing of the first."""
    overlay = (fresh.folder / "configs/tiny.yaml").read_text() + "heads: {alpha: 0}\n"
    (fresh.folder / "configs/twice.yaml").write_text(overlay)
    code, said = fresh.run("-n", overlay="twice")
    assert code != 0
    assert "configs/twice.yaml twice, in lines" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": {"k": [40]}}, "heads.k: 40 heads"),
        ({"datasets": {"rtp": {"source": "nowhere"}}}, "datasets.rtp.source: 'nowhere' is not"),
        ({"text": {"datasets": ["poems"]}}, "text.datasets: 'poems' is not under datasets"),
        ({"run": "../../elsewhere"}, "run: '../../elsewhere' does not match"),
        ({"run": None}, "run: null is not a text"),
        ({"heads": None}, "heads: null is not a mapping"),
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
            {"datasets": {"rtp": {"text": "query"}}},
            "has no column 'query'; it has prompt, challenging",
        ),
        ({"datasets": {"rtp": {"sample": 1000}}}, "40 prompts are there, 1000 are wanted"),
        ({"models": {"tiny": {"heads": 8}}, "heads": {"k": [2]}}, "but the config says 3 of 8"),
    ],
)
def test_a_mistake_that_only_the_data_show(fresh: Checkout, changes: dict, message: str) -> None:
    """The job ends with one message that says what would be right, and no traceback."""
    fresh.configure("wrong", run="wrong", **changes)
    target = "results/wrong/generations/rtp/baseline.parquet"
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
