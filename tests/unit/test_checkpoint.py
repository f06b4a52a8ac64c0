import subprocess
import sys
from pathlib import Path

import pytest
import torch
from headpursuit.method.checkpoint import save_scaled
from headpursuit.method.heads import write_conditions
from headpursuit.method.models import scaled_heads
from headpursuit.run.files import UserError
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
HEADS = [(0, 1), (2, 3)]
IDS = torch.arange(9)[None] * 7


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_any_engine_reads_the_edited_model(model, model_path, tmp_path: Path, family: str):
    write_conditions(tmp_path / "heads.csv", {"other": [(1, 0)], "somp-k2": HEADS})
    heads, folder = tmp_path / "heads.csv", tmp_path / "edited"
    save_scaled(model_path(family), heads, "somp-k2", -1.0, folder)
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
        save_scaled(model_path("llama"), tmp_path / "heads.csv", "somp-k2", -1.0, tmp_path)


@pytest.mark.parametrize(
    ("condition", "said"),
    [("somp-k1", "L99.H0 does not exist"), ("somp-k2", "no heads of somp-k2")],
)
def test_a_mistake_on_the_command_line_is_one_line(model_path, tmp_path: Path, condition, said):
    write_conditions(tmp_path / "heads.csv", {"somp-k1": [(99, 0)]})
    command = [sys.executable, "-m", "headpursuit.method.checkpoint", model_path("llama")]
    done = subprocess.run(
        [*command, tmp_path / "heads.csv", condition, "-1", tmp_path / "edited"],
        env={"PYTHONPATH": str(ROOT / "scripts"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "edited").exists()
