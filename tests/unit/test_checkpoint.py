import sys
from pathlib import Path

import pytest
import torch
from headpursuit.method import checkpoint
from headpursuit.method.decoder import scaled_heads
from headpursuit.method.heads import write_conditions
from transformers import AutoModelForCausalLM, AutoTokenizer

HEADS = [(0, 1), (2, 3)]
IDS = torch.arange(9)[None] * 7


@pytest.fixture
def save(tmp_path: Path, monkeypatch):
    """Save a model with a condition's heads inverted, from the command line."""
    write_conditions(tmp_path / "heads.csv", {"other": [(99, 0)], "somp-k2": HEADS})

    def save(model: Path, condition: str) -> Path:
        given = [model, tmp_path / "heads.csv", condition, "-1", tmp_path / "edited"]
        monkeypatch.setattr(sys, "argv", ["checkpoint", *map(str, given)])
        checkpoint.main()
        return tmp_path / "edited"

    return save


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_any_engine_reads_the_edited_model(model, model_path, save, tmp_path: Path, family: str):
    folder = save(model_path(family), "somp-k2")
    with torch.inference_mode():
        saved = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
        plain = model(family).model(IDS).logits
        with scaled_heads(model(family), HEADS, -1.0):
            assert torch.equal(saved, model(family).model(IDS).logits)
    assert not torch.equal(saved, plain)
    own, other = (AutoTokenizer.from_pretrained(path) for path in (folder, model_path(family)))
    assert own("apple river")["input_ids"] == other("apple river")["input_ids"]
    assert list(tmp_path.glob(".*")) == []
    with pytest.raises(SystemExit, match="exists already"):  # nothing is overwritten
        save(model_path(family), "somp-k2")


@pytest.mark.parametrize(
    ("condition", "said"), [("other", "L99.H0 does not exist"), ("none", "no heads of none")]
)
def test_a_mistake_on_the_command_line_is_one_line(model_path, save, tmp_path, condition, said):
    with pytest.raises(SystemExit, match=f"^[^\n]*{said}[^\n]*$"):
        save(model_path("llama"), condition)
    assert not (tmp_path / "edited").exists()
