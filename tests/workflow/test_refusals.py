"""What is refused before any job runs, and what the paper's config plans."""

import json
import subprocess
import sys

import pytest
from checkout import TINY, Checkout, Preloaded, make_checkout
from headpursuit.publish.settings import shipped_config
from headpursuit.run.estimate import work
from headpursuit.run.experiments import stage_owners
from headpursuit.run.roofline import DEVICES
from headpursuit.run.workload import IN_PARTS, LOW, RULES, jobs_of

pytestmark = pytest.mark.xdist_group("workflow")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return make_checkout(tmp_path_factory.mktemp("fresh"), Preloaded)


# Rules with a job for each file of a stage, or for each part of it.
STAGE_OF = {
    "prepare_samples": "samples", "split_words": "words", "build_dictionary": "dictionary",
    "rank_heads": "rankings", "select_heads": "selected", "draw_controls": "random",
    "decompose_heads": "decomposition", "read_lens": "lens",
}  # fmt: skip
STAGE_OF |= {rule: stage for stage, rule in RULES.items()}


@pytest.mark.parametrize("overlay", ["", pytest.param("demo", marks=pytest.mark.long), "controls"])
def test_a_shipped_config_needs_no_network_gpu_or_secret_and_plans_what_is_reckoned(
    fresh: Checkout, overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    for name in ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    planned = fresh.planned(overlay=overlay)
    config = shipped_config(*([f"configs/{overlay}.yaml"] if overlay else []))
    files, parts = stage_owners(config), config["compute"]["parts"]
    for rule, stage in STAGE_OF.items():
        assert planned[rule] == len(files[stage]) * (parts if stage in IN_PARTS else 1), rule
    for rule, own in work(jobs_of(config, LOW, DEVICES["H100"])).items():
        assert planned[rule] == own["jobs"], rule
    assert planned["compare_published"] == 1


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


def test_mistakes_of_all_kinds_are_said_at_once(fresh: Checkout) -> None:
    fresh.configure(
        "wrong",
        run="../../elsewhere",
        experiments={"rtp": {"alhpa": -1}},
        concepts={"toxic": {"top": "many", "\x1b[31mred": 1}},
        tables={"table2": ["rtp", "tet", "poems"]},
        heads={"k": [2]},
    )
    twice = (fresh.folder / "configs/wrong.yaml").read_text() + "\nscore: {}\nscore: null\n"
    (fresh.folder / "configs/wrong.yaml").write_text(twice)
    said = fresh.refused("-n", overlay="wrong")
    block = said.split("The config cannot run:\n")[1].split("\n  File ")[0].splitlines()
    for start in (
        f"score: stands in {fresh.folder}/configs/wrong.yaml twice, in lines",
        "heads: an older version's key; it says the same under experiments",
        "run: '../../elsewhere' does not match",
        "concepts.toxic.top: 'many' is not a whole number or null. How many words are used",
        "concepts.toxic.[31mred: unknown key",
        "experiments.rtp.alhpa: unknown key; did you mean alpha?",
        "tables.table2: 'poems' is not under experiments; there are rtp, triviaqa, countries",
    ):
        assert any(line.startswith(f"  - {start}") for line in block), (start, block)
    assert "\x1b[31mred" not in said
    assert not (fresh.folder / "results").exists()


def test_a_machine_without_a_gpu_is_told_what_to_do(fresh: Checkout) -> None:
    """The paper's model is refused by the preflight, before anything is downloaded."""
    said = fresh.refused("--cores", "2", overlay="", CUDA_VISIBLE_DEVICES="")
    assert "There is no GPU here" in said
    assert "make demo" in said
    assert "compute.allow_cpu: true" in said
    assert not (fresh.folder / "resources/mistral-7b-instruct-v0.2").exists()


def test_jobs_have_the_checkout_s_library_whatever_pip_installed(fresh, tmp_path) -> None:
    other = tmp_path / "headpursuit"
    other.mkdir()
    (other / "__init__.py").write_text("raise RuntimeError('another copy')")
    plain = Checkout(fresh.folder)  # a process for each job
    plain.snakemake("results/tiny/config.yaml", PYTHONPATH=str(tmp_path))


def test_words_that_answer_no_question_are_told_before_a_model_is_loaded(fresh: Checkout) -> None:
    quiz = fresh.folder / "own/quiz.jsonl"
    asked = ({"question": f"Which is {number}?", "answer": "Rome"} for number in range(20))
    quiz.write_text("\n".join(map(json.dumps, asked)))
    like = {**TINY["experiments"]["rtp"], "concept": "cities", "positions": "prompt"}
    fresh.configure(
        "unanswered",
        run="unanswered",
        sources={"quiz": {"kind": "local", "path": "own/quiz.jsonl"}},
        samples={
            "quiz": {"source": "quiz", "files": "quiz.jsonl", "text": "question"},
            "asked": {"source": "quiz", "files": "quiz.jsonl", "text": "question"}
            | {"references": "answer"},
        },
        concepts={"cities": {"words": ["Paris", "Lima"]}},
        experiments={
            "quiz": {**like, "samples": "quiz", "measures": []},
            "asked": {**like, "samples": "asked", "measures": ["f1"], "heads_from": "quiz"},
        },
        tables={"table1": [], "table2": [], "concepts": [], "figure1": [], "quiz": ["asked"]},
    )
    said = fresh.refused("--cores", "1", overlay="unanswered")
    assert "none of its 2 words answers any of the 20 samples of asked" in said
    logs = {path.name for path in (fresh.folder / "results/unanswered/logs").iterdir()}
    assert "count_answered" in logs and not logs & {"respond", "cache_activations", "intervene"}
