"""F1 and CIDEr, against what public implementations gave for the same texts."""

import json
from pathlib import Path

import pandas as pd
import pytest
from headpursuit.method.answers import answered_by, best_f1
from headpursuit.method.captions import cider, tokenise
from headpursuit.method.score import score_cider, score_f1


def cases(name: str) -> list[dict]:
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_f1_is_that_of_squad() -> None:
    """Of get_raw_scores in transformers 4.57.1, which has evaluate-v2.0.py's."""
    known = cases("squad_f1.jsonl")
    assert len(known) > 100 and sum(0 < case["f1"] < 1 for case in known) > 30
    for case in known:
        assert best_f1(case["answer"], case["references"]) == pytest.approx(case["f1"]), case


@pytest.mark.parametrize(
    ("words", "references", "answered"),
    [
        (["Italy", "Peru"], ["Rome", "italy"], True),
        (["Italy", "Peru"], ["Northern Italy"], False),
        (["Netherlands"], ["The Netherlands", "Holland"], True),
        (["United States"], ["U.S.", "United  States."], True),
        (["Côte d’Ivoire"], ["cote d'ivoire"], False),
        (["The", "..."], ["?", "a"], False),  # nothing is left of either
        (["Turkey"], ["Turkey (bird)", "turkeys"], False),
    ],
)
def test_whether_a_right_answer_is_one_of_the_words(words, references, answered: bool) -> None:
    assert answered_by(words, references) == answered


def test_cider_is_that_of_pycocoevalcap() -> None:
    """Of Cider in pycocoevalcap 1.2, given the same tokens."""
    known = cases("cider.jsonl")
    texts = [text for case in known for text in (case["caption"], *case["references"])]
    assert [tokenise(text) for text in texts] == [text.split() for text in texts]
    score = cider({str(n): case["references"] for n, case in enumerate(known)})
    found = [score(str(n), case["caption"]) for n, case in enumerate(known)]
    assert found == pytest.approx([case["cider"] for case in known], abs=1e-9)
    assert sum(value > 0.5 for value in found) > 10 and found[0] == 0


# Tokens of the Java program that are others here.
OTHERS = {
    "-lrb- two": "( two", "woman -rrb-": "woman )", "gon na": "gonna",
    **{name: name[:-1] for name in ("ave.", "w.", "st.", "mr.", "dr.")},
}  # fmt: skip


def test_tokens_are_those_of_the_penn_treebank_but_for_abbreviations() -> None:
    """Of PTBTokenizer in pycocoevalcap 1.2, which is Stanford CoreNLP 3.4.1."""
    for case in cases("treebank.jsonl"):
        wanted = f" {case['tokens']} "
        for theirs, ours in OTHERS.items():
            wanted = wanted.replace(f" {theirs} ", f" {ours} ")
        assert tokenise(case["caption"]) == wanted.split()


def responses(**texts: list[str]) -> pd.DataFrame:
    samples = pd.DataFrame({"sample_id": ["q", "q", "p"], "repeat": [0, 1, 0]})
    return pd.concat(
        [samples.assign(condition=name, response=own) for name, own in texts.items()],
        ignore_index=True,
    )


def rows(table: pd.DataFrame) -> set[tuple]:
    return set(
        table[["condition", "sample_id", "measure", "before", "after"]].itertuples(
            index=False, name=None
        )
    )


def test_each_sample_is_in_one_group_and_its_responses_have_their_mean() -> None:
    right = {"p": ["Peru"], "q": ["Lake Como", "Como"]}
    own = responses(baseline=["Como", "Lake Como", "peru!"], a=["Como", "", "Chile"])
    table = score_f1(own, right, ["Peru", "Chile"])
    assert rows(table) == {("a", "p", "f1", 1, 0), ("a", "q", "f1_others", 1, 0.5)}


def test_captions_are_scored_against_all_samples_references() -> None:
    right = {"p": ["a red dog"], "q": ["a cat"]}
    own = responses(baseline=["a cat", "a dog", "a red dog"], a=["x", "x", "dog"])
    table = score_cider(own, right).set_index("sample_id")
    score = cider(right)
    assert set(table["measure"]) == {"cider"}
    assert table.loc["p", "before"] == score("p", "a red dog") > score("p", "dog") > 0
    assert table.loc["p", "after"] == score("p", "dog")
    assert table.loc["q", "before"] == (score("q", "a cat") + score("q", "a dog")) / 2
    assert table.loc["q", "after"] == 0
