import subprocess
import sys
from pathlib import Path

import pytest
import torch
from headpursuit.checkpoint import save_scaled
from headpursuit.files import UserError
from headpursuit.heads import write_heads
from headpursuit.models import scaled_heads
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
HEADS = [(0, 1), (2, 3)]
IDS = torch.arange(9)[None] * 7


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_any_engine_reads_the_edited_model(model, model_path, tmp_path: Path, family: str):
    write_heads(tmp_path / "heads.csv", HEADS)
    save_scaled(model_path(family), tmp_path / "heads.csv", -1.0, tmp_path / "edited")
    with torch.inference_mode():
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")(IDS).logits
        plain = model(family).model(IDS).logits
        with scaled_heads(model(family), HEADS, -1.0):
            assert torch.equal(saved, model(family).model(IDS).logits)
    assert not torch.equal(saved, plain)
    own = AutoTokenizer.from_pretrained(tmp_path / "edited")("apple river")["input_ids"]
    assert own == AutoTokenizer.from_pretrained(model_path(family))("apple river")["input_ids"]
    assert list(tmp_path.glob(".*")) == []


def test_nothing_is_overwritten(model_path, tmp_path: Path):
    with pytest.raises(UserError, match="exists already"):
        save_scaled(model_path("llama"), tmp_path / "heads.csv", -1.0, tmp_path)


def test_a_mistake_on_the_command_line_is_one_line(model_path, tmp_path: Path):
    write_heads(tmp_path / "heads.csv", [(99, 0)])
    command = [sys.executable, "-m", "headpursuit.checkpoint", model_path("llama")]
    done = subprocess.run(
        [*command, tmp_path / "heads.csv", "-1", tmp_path / "edited"],
        env={"PYTHONPATH": str(ROOT / "scripts"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("L99.H0 does not exist")
    assert not (tmp_path / "edited").exists()
