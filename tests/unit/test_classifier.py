"""Classifiers of texts, against transformers' own pipeline, one text at a time."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from headpursuit.data.download import download
from headpursuit.method import classifier
from headpursuit.method.classifier import label_probabilities
from headpursuit.run.files import UserError
from tiny import WORDS, make_classifier
from transformers import pipeline

TEXTS = [
    "apple river stone",
    "Stone, apple!",
    "  a candle\n\nof no use ",
    "lantern " * 12,
    "été “жук” \U0001f600 \x00",
    "<pad> and <s>",
    *WORDS,
]
LONG = "river stone " * 60
near = partial(pytest.approx, abs=1e-5)  # float32, and random weights much larger than real ones


def record(folder: Path, tmp_path: Path) -> Path:
    """Record a user's own folder as a source."""
    download("mine", {"kind": "local", "path": str(folder)}, tmp_path / "resources/mine")
    return tmp_path / "resources/mine/provenance.json"


def judged(folder: Path, tmp_path: Path, texts: list[str] = TEXTS, **changed: Any):
    spec = {"name": "mine", "path": "", "label": "toxic", "threshold": 0.5}
    spec |= {"device": "cpu", "batch_tokens": 200, **changed}
    return label_probabilities(texts, record(folder, tmp_path), spec)


def alone(folder: Path, texts: list[str], **more: Any) -> list[float]:
    """Have transformers judge texts one by one: how probable is toxic?"""
    reader = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    each = [reader([text], **more)[0] for text in texts]
    return [{own["label"]: own["score"] for own in found}["toxic"] for found in each]


@pytest.mark.parametrize(
    ("family", "labels", "more"),
    [
        ("roberta", ["neutral", "toxic"], {}),
        ("roberta", ["toxic"], {}),
        ("roberta", ["mild", "toxic", "rude"], {"problem_type": "multi_label_classification"}),
        ("bert", ["toxic", "neutral", "other"], {}),
        ("llama", ["neutral", "toxic"], {"num_key_value_heads": 2}),
    ],
)
def test_a_text_has_the_probability_that_transformers_gives_it(
    tmp_path: Path, family: str, labels: list[str], more: dict
):
    folder = make_classifier(tmp_path / "it", labels, family, **more)
    found, facts = judged(folder, tmp_path)
    wanted = alone(folder, TEXTS)
    assert [found[text] for text in TEXTS] == near(wanted)
    assert max(wanted) - min(wanted) > 0.05
    assert (facts["label"], facts["cut"], facts["empty"]) == ("toxic", 0, 0)


@pytest.mark.parametrize(("family", "limit"), [("roberta", 38), ("bert", 40)])
def test_a_long_text_is_cut_at_the_classifiers_limit_and_counted(
    tmp_path: Path, family: str, limit: int
):
    folder = make_classifier(tmp_path / "it", family=family)
    longest = "".join(f" {word}" for word in WORDS)
    found, facts = judged(folder, tmp_path, [LONG, "stone", LONG, longest[:50]])
    assert (facts["limit"], facts["cut"]) == (limit, 2)
    assert [found[LONG]] == near(alone(folder, [LONG], truncation=True, max_length=limit))


def test_equal_texts_are_judged_once_and_empty_ones_not_at_all(tmp_path: Path, monkeypatch):
    folder, read = make_classifier(tmp_path / "it"), []
    whole = torch.nn.Embedding.forward

    def counted(self, ids):
        read.append(ids.numel())
        return whole(self, ids)

    texts = ["apple", "", "river stone", " \n", "apple", "apple"]
    found, facts = judged(folder, tmp_path, texts)
    assert found[""] == found[" \n"] == 0 and found["apple"] > 0 and facts["empty"] == 2
    monkeypatch.setattr(torch.nn.Embedding, "forward", counted)
    judged(folder, tmp_path, texts)
    once, read[:] = sum(read), []
    judged(folder, tmp_path, ["apple", "river stone"])
    assert sum(read) == once > 0
    assert judged(folder, tmp_path, [""])[0] == {"": 0}
    assert judged(folder, tmp_path, [])[0] == {}


def test_batches_and_a_lack_of_memory_change_rounding_only(tmp_path: Path, monkeypatch, caplog):
    folder = make_classifier(tmp_path / "it")
    found, _ = judged(folder, tmp_path, batch_tokens=10_000)
    single, _ = judged(folder, tmp_path, batch_tokens=1)
    assert single == near(found)
    stack = torch.Tensor.softmax

    def scarce(self, *given):
        if len(self) > 2 and self.ndim == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stack(self, *given)

    monkeypatch.setattr(torch.Tensor, "softmax", scarce)
    with caplog.at_level(logging.WARNING):
        halved, _ = judged(folder, tmp_path, batch_tokens=10_000)
    assert halved == near(found)
    assert "going on with half" in caplog.text


@pytest.mark.parametrize(
    ("more", "label", "said"),
    [
        ({}, "Toxic", r"^classifiers\.mine\.label: .* no label 'Toxic'; it has neutral, toxic\."),
        ({"problem_type": "regression"}, "toxic", r"^classifiers\.mine\.source: .* gives a number"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(tmp_path: Path, more, label: str, said: str):
    folder = make_classifier(tmp_path / "it", **more)
    with pytest.raises(UserError, match=said):
        judged(folder, tmp_path, label=label)


def test_what_is_no_classifier_is_refused(model_path, tmp_path: Path):
    with pytest.raises(UserError, match=r"the classifier does not load: .*no weights for score"):
        judged(model_path("llama"), tmp_path)


def test_batches_hold_texts_of_one_length_and_no_more_tokens_than_told():
    lengths = [3, 5, 3, 0, 3, 9]
    assert list(classifier._same_length(lengths, 6)) == [[5], [1], [0, 2], [4], [3]]
