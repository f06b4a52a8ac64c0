"""Verdicts on the paper's claims, on made tables: what a run supports, and what noise does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from headpursuit.publish.against import Key, Measured, comparisons
from headpursuit.publish.claims import Run, display, judge, notes, read_claims
from headpursuit.publish.texts import MEASURE_NAMES
from headpursuit.run.tables import lay_out, write_csv

CLAIMS = read_claims(Path(__file__).parents[2] / "data/claims.yaml")
K, DRAWS, N = (16, 32), 10, 300
FACTS = {
    "rtp": {"samples": "rtp", "concept": "toxic", "reads": "prompts", "held_out": True},
    "mnist": {"samples": "mnist", "concept": "classes", "reads": "images", "held_out": False},
    "svhn": {"samples": "svhn", "concept": "classes", "reads": "images", "held_out": False},
}
FACTS = {name: own | {"signed": False} for name, own in FACTS.items()}
MEASURE = {"rtp": "occurrences", "mnist": "exact_match", "svhn": "exact_match"}
EFFECTS = {"somp": 0.5, "logit_lens": 0.9, "random": 1.0}
OVERLAP = {"heads": 16, "one": "mnist", "other": "svhn", "shared": 9, "jaccard": 0.39}


def compared(
    effects: dict[str, float] = EFFECTS,
    seed: int = 0,
    draws: int = DRAWS,
    alpha: float = -1.0,
    count: float = 0.5,
    **heads_from: str,
) -> pd.DataFrame:
    """Give comparisons of experiments whose sets of heads have these effects, at twice the k more.

    Random draws differ from each other, and so does what stands in SOMP's place.
    """
    rng = np.random.default_rng(seed)
    experiments, sets, flags = {}, {}, {}
    for name, measure in MEASURE.items():
        facts = {"samples": name, "model": "mistral", "heads_from": heads_from.get(name)}
        experiments[name] = facts | {"methods": ["somp"], "differs": None}
        flags[name, measure] = ""
        rate = rng.gamma(0.5, 2.0, N) * count
        before = rng.poisson(rate).astype(float) if measure == "occurrences" else rate > 0.1
        sets[name] = {}
        for method, effect in effects.items():
            for k in K:
                n = draws if method == "random" else 1
                each = effect ** (k / 16) * np.exp(rng.normal(0, 0.1, (n, 1)))
                after = rng.poisson(rate * each) if measure == "occurrences" else (
                    before & (rng.random((n, N)) < each)
                )  # fmt: skip
                if alpha == 1:
                    after = np.stack([before] * n)
                key = Key(method, k, alpha, "all", measure)
                sets[name][key] = Measured([], [], before * 1.0, after * 1.0)
    return comparisons(sets, experiments, flags, 0.95)


def judged(tests: pd.DataFrame, **changed: Any) -> pd.DataFrame:
    shared = lay_out("tables/{table}.overlap.csv", [OVERLAP | {"chance": 0.03, "p": 1e-20}])
    own = {"overlaps": shared, "experiments": FACTS, "published_heads": None, "confidence": 0.95}
    return judge(CLAIMS, Run(tests, **(own | changed)))


def verdicts(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    return {
        (row.claim, row.experiment if isinstance(row.experiment, str) else ""): row.verdict
        for row in table.itertuples()
    }


def test_a_run_that_has_the_effects_supports_them(tmp_path: Path):
    table = judged(compared())
    found = verdicts(table)
    for claim, names in {
        "heldout-random": ["rtp"], "heldout-more": ["rtp"], "heldout-lens": ["rtp"],
        "classes-random": ["mnist", "svhn"], "classes-lens": ["mnist", "svhn"],
        "related-share": ["mnist, svhn"],
    }.items():  # fmt: skip
        assert {name: found[claim, name] for name in names} == dict.fromkeys(names, "supported")
    assert found["random-raises", "rtp"] == "undecided"
    untested = {claim for (claim, name), own in found.items() if own == "untested"}
    assert untested == set(CLAIMS) - {claim for claim, name in found if name}
    assert {"toxicity-random", "captions-enhanced", "tokens-coherent"} <= untested
    assert set(table["claim"]) == set(CLAIMS)
    reasons = table.set_index("claim")["remarks"]
    assert reasons["toxicity-random"] == "none of its experiments measures toxicity"
    assert reasons["related-break"] == (
        "no such heads of another experiment are compared with random heads"
    )
    write_csv(tmp_path / "tables/claims.csv", table)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("count", [0.05, 0.5])
def test_random_heads_in_somps_place_support_nothing(seed: int, count: float):
    """Nor does chance make the two rankings share heads."""
    none = dict.fromkeys(EFFECTS, 1.0)
    chance = lay_out("tables/{table}.overlap.csv", [OVERLAP | {"chance": 0.3, "p": 0.4}])
    table = judged(compared(none, seed=seed, count=count), overlaps=chance)
    assert set(table["verdict"]) <= {"undecided", "contradicted", "untested"}


def test_alpha_1_supports_nothing():
    table = judged(compared(alpha=1.0))
    own = table[table["claim"] != "related-share"]
    assert set(own["verdict"]) == {"untested"}
    # Even under the name of another alpha: before and after are then the same.
    table = judged(compared(alpha=1.0).assign(alpha=-1.0))
    own = table[table["claim"] != "related-share"]
    assert set(own["verdict"]) == {"undecided", "untested"}


def test_an_effect_the_other_way_contradicts():
    found = verdicts(judged(compared({"somp": 1.6, "logit_lens": 1.0, "random": 0.7})))
    assert found["heldout-random", "rtp"] == found["heldout-lens", "rtp"] == "contradicted"
    assert found["random-raises", "rtp"] == "contradicted"


def test_a_draw_beyond_somp_keeps_the_opposite_undecided_too():
    tests = compared({"somp": 1.6, "logit_lens": 1.0, "random": 0.7})
    assert verdicts(judged(tests.assign(above=1, below=9)))["heldout-random", "rtp"] == "undecided"


def test_the_test_that_keeps_a_claim_undecided_is_shown():
    """It may lie further beyond its bound than those that agree."""
    tests = compared()
    of_random = tests["against"].eq("random")
    ends = {"value": 0.9, "low": 0.8, "high": 0.99, "p": 0.03}  # at 16 heads; 32 lie far lower
    faint = of_random & tests["heads"].eq(16)
    for key, value in ends.items():
        tests[key] = tests[key].mask(faint, value)
    tests["above"] = tests["above"].mask(of_random, tests["heads"].map({16: 10, 32: 9}))
    row = judged(tests).set_index(["claim", "experiment"]).loc[("heldout-random", "rtp")]
    assert (row["heads"], row["agreeing"]) == (32, 1) and pd.isna(row["samples"])


def test_what_would_decide_is_said_and_does():
    weak = {"somp": 0.7, "logit_lens": 1.0, "random": 1.0}
    table = judged(compared(weak, count=0.2)).set_index(["claim", "experiment"])
    row = table.loc[("heldout-lens", "rtp")]
    assert row["verdict"] == "undecided" and row["samples"] > row["n"] == N
    assert table.loc[("heldout-random", "rtp"), "samples"] > N
    text = display(table.reset_index(), 0.95)
    assert f"{row['samples']:,d}" in set(text["samples that would decide"])
    assert not text.isin(["nan", "None", "<NA>"]).any(axis=None)


@pytest.mark.parametrize("draws", [1, 4])
def test_few_random_draws_decide_nothing(draws: int):
    table = judged(compared(draws=draws)).set_index(["claim", "experiment"])
    row = table.loc[("heldout-random", "rtp")]
    assert row["verdict"] == "undecided"
    assert row["remarks"] == f"too few random draws: {draws}, and 5 are needed"
    # Then no comparison with another method supports anything either.
    row = table.loc[("heldout-lens", "rtp")]
    assert (row["verdict"], row["agreeing"]) == ("undecided", 0)
    assert row["remarks"] == f"too few random draws: {draws}, and 5 are needed"


def test_why_a_comparison_with_another_method_supports_nothing():
    tests = compared({"somp": 0.5, "logit_lens": 0.9, "random": 0.5})
    without = tests[tests["against"] != "random"]
    for own, said in (
        (tests, "random heads do as much, or nearly"),
        (without, "these heads are not compared with random ones"),
    ):
        row = judged(own).set_index(["claim", "experiment"]).loc[("heldout-lens", "rtp")]
        assert (row["verdict"], row["remarks"]) == ("undecided", said)


def test_a_draw_beyond_somp_keeps_a_claim_undecided():
    tests = compared()
    of_random = tests["against"].eq("random") & tests["heads"].eq(32)
    table = judged(tests.assign(below=tests["below"].mask(of_random, 1), above=9))
    row = table.set_index(["claim", "experiment"]).loc[("heldout-random", "rtp")]
    assert row["verdict"] == "undecided"
    assert (row["tests"], row["agreeing"]) == (2, 0)


@pytest.mark.parametrize(
    ("changed", "claim", "remark"),
    [
        ({"published_heads": {16: 4, 32: 6}}, "heldout-random", "none .* has heads 16 or 32"),
        ({"overlaps": pd.DataFrame()}, "related-share", "no two of its experiments"),
        (
            {"experiments": {**FACTS, "rtp": FACTS["svhn"]}},
            "heldout-lens",
            "experiments reads prompts",
        ),
    ],
)
def test_what_a_run_lacks_is_untested_and_said(changed: dict, claim: str, remark: str):
    table = judged(compared(), **changed).set_index("claim")
    assert table.loc[claim, "verdict"] == "untested"
    assert pd.Series([table.loc[claim, "remarks"]]).str.contains(remark).all()


def test_heads_of_another_experiment_are_no_test_of_its_own():
    table = judged(compared(mnist="svhn")).set_index(["claim", "experiment"])
    assert ("classes-random", "mnist") not in table.index
    assert table.loc[("related-break", "mnist"), "verdict"] == "supported"
    assert table.loc[("classes-random", "svhn"), "verdict"] == "supported"


@pytest.mark.parametrize(("concept", "tested"), [("countries", True), ("months", False)])
def test_questions_are_tested_with_heads_that_others_chose(concept: str, tested: bool):
    """As configs/v2.yaml has it: questions that choose heads do not measure them."""
    tests = compared(rtp="asked")
    own = tests[tests["experiment"] == "rtp"].assign(measure="f1")
    others = compared({"somp": 1.0, "random": 1.0}, rtp="asked", count=3.0)
    others = others[others["experiment"] == "rtp"].assign(measure="f1_others")
    facts = {"rtp": FACTS["rtp"] | {"concept": "countries"}}
    facts["asked"] = FACTS["rtp"] | {"concept": concept, "samples": "asked"}
    table = judged(pd.concat([own, others]), experiments=FACTS | facts)
    found = table.groupby("claim")["verdict"].first()
    assert (found["answers-target"] == "supported") == tested
    assert (found["answers-others"] != "untested") == tested
    assert found["heldout-random"] == "untested"


def test_other_dictionaries_are_no_test_of_class_names():
    """Keywords of the images (v2, figure 9) choose other heads, of which the claim says nothing."""
    keywords = {name: own | {"concept": "keywords"} for name, own in FACTS.items()}
    table = judged(compared(), experiments=keywords).set_index("claim")
    assert set(table.loc[["classes-random", "classes-lens"], "verdict"]) == {"untested"}
    assert table.loc["classes-random", "remarks"] == "none of its experiments has concept classes"


def test_an_experiment_in_two_tables_is_tested_once():
    tests = compared()
    twice = judged(pd.concat([tests, tests]))
    pd.testing.assert_frame_equal(twice, judged(tests))


def test_variants_are_not_judged():
    tests = compared()
    variant = tests.assign(experiment=tests["experiment"].replace("rtp", "rtp-l2"))
    both = pd.concat([tests, variant, variant[:1].assign(against="original", against_heads=16)])
    facts = {**FACTS, "rtp-l2": FACTS["rtp"]}
    pd.testing.assert_frame_equal(judged(both, experiments=facts), judged(tests))


def test_a_run_without_tables_leaves_all_untested():
    empty = Run(pd.DataFrame(), pd.DataFrame(), {}, None, 0.95)
    table = judge(CLAIMS, empty)
    assert list(table["verdict"]) == ["untested"] * len(CLAIMS)
    display(table, 0.95)
    said = " ".join(notes(table, "mine", [], 0.95))
    assert f"0 verdicts on 0 of the paper's {len(CLAIMS)} claims: 0 supported, 0 contrad" in said


def test_the_claims_use_known_words_only():
    """A misspelt key would test something else."""
    where = {"reads", "held_out", "samples", "concept", "measure", "method", "heads", "alpha"}
    measures = {*MEASURE_NAMES, "toxicity", "f1", "f1_others", "cider"}
    for name, claim in CLAIMS.items():
        assert claim["claim"].endswith(".") and claim["place"], name
        if "where" in claim:
            assert set(claim["where"]) <= where and set(claim["where"]["measure"]) <= measures
            keys = {"claim", "place", "where", "against", "is", "than", "also", "except"}
            keys |= {"crossed", "fewer", "heads_of"}
            assert set(claim) <= keys and set(claim.get("also", ())) <= {"measure", "against", "is"}
            assert claim["against"] in {"baseline", "random", "logit_lens", "fewer"}
            assert claim["is"] in {"lower", "higher"}
        else:
            assert {"pairs", "heads"} <= set(claim) or "untested" in claim
