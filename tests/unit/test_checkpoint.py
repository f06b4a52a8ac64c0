import json
import shutil
from pathlib import Path
from typing import Any

import headpursuit as hp
import pytest
import torch
import yaml
from checkout import ROOT, code_blocks
from headpursuit.__main__ import main
from headpursuit.method.checkpoint import compare_logits, save_condition, save_scaled
from headpursuit.method.decoder import scaled_heads
from headpursuit.method.models import load_model
from headpursuit.run.files import UserError
from safetensors.torch import load_file, save_file
from tiny import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

HEADS = [(0, 1), (2, 3)]
IDS = torch.arange(9)[None] * 7


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Give a model in several files of weights, beside files that no edited model needs."""
    folder = make_model(tmp_path / "sharded")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="30KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    for name in ("consolidated.safetensors", "model.gguf", "provenance.json"):
        (folder / name).write_text("no weights")
    return folder


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.3])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "sharded"])
def test_any_engine_reads_the_edited_model(
    model, model_path, request, tmp_path: Path, family: str, alpha: float
):
    source = request.getfixturevalue("sharded") if family == "sharded" else model_path(family)
    decoder, folder = model("llama" if family == "sharded" else family), tmp_path / "edited"
    save_scaled(source, HEADS, alpha, folder)
    with torch.inference_mode():
        saved = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
        plain = decoder.model(IDS).logits
        with scaled_heads(decoder, HEADS, alpha):
            rows = decoder.model(IDS).logits
    assert torch.equal(saved, rows) if alpha != 0.3 else torch.allclose(saved, rows, atol=1e-5)
    assert not torch.allclose(saved, plain, atol=1e-2)
    own, other = (AutoTokenizer.from_pretrained(path) for path in (folder, source))
    assert own("apple river")["input_ids"] == other("apple river")["input_ids"]
    files = {path.name for path in source.iterdir()}
    files -= {"consolidated.safetensors", "model.gguf", "provenance.json"}
    assert {path.name for path in folder.iterdir()} == files
    assert list(tmp_path.glob(".*")) == []


def test_an_image_text_models_tower_stays_as_it_is(model_path, tmp_path: Path):
    source = model_path("llava")
    save_scaled(source, HEADS, -1.0, tmp_path / "edited")
    before, after = (
        load_file(path / "model.safetensors") for path in (source, tmp_path / "edited")
    )
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 2 and all("language_model" in name for name in changed)
    assert load_model(tmp_path / "edited", "float32", "cpu")


def test_a_model_that_is_not_the_scaled_one_is_told(model_path, tmp_path: Path):
    save_scaled(model_path("llama"), HEADS, -1.0, tmp_path / "edited")
    assert compare_logits(model_path("llama"), HEADS, -1.0, tmp_path / "edited") == 0
    with pytest.raises(UserError, match="not those of scaled rows"):
        compare_logits(model_path("llama"), HEADS[:1], -1.0, tmp_path / "edited")
    assert compare_logits(model_path("llama"), HEADS[:1], 0.5, tmp_path / "edited") > 0


def quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))


def gguf_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


def without_a_layer(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if "layers.2.self_attn.o" not in k}, path)


@pytest.mark.parametrize(
    ("spoil", "heads", "said"),
    [
        (quantised, HEADS, "quantised"),
        (gguf_only, HEADS, "no model.safetensors, only .gguf"),
        (without_a_layer, HEADS, "no output projection of layer 2"),
        (None, [(99, 0)], "L99.H0 does not exist: 3 layers x 4 heads"),
        (None, [(0, 4)], "L0.H4 does not exist"),
    ],
)
def test_what_cannot_be_edited_is_refused(tmp_path: Path, spoil, heads, said):
    folder = make_model(tmp_path / "model")
    if spoil:
        spoil(folder)
    with pytest.raises(UserError, match=said):
        save_scaled(folder, heads, -1.0, tmp_path / "edited")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_runs_condition_becomes_a_model(made: Path, tmp_path: Path, capsys):
    """The run's model is in resources/ beside results/."""
    results = tmp_path / "results/made"
    results.parent.mkdir()
    results.symlink_to(made)
    config = yaml.safe_load((made / "config.yaml").read_text())
    source = config["models"]["mistral"]["source"]
    arguments = ["checkpoint", str(results), "rtp", "somp-k2", str(tmp_path / "edited"), "--check"]
    assert main(arguments) == 2
    record = tmp_path / f"resources/{source}/provenance.json"
    assert f"{record} is not there" in capsys.readouterr().err
    model = make_model(record.parent)
    files = [
        {"path": path.name, "size": path.stat().st_size, "sha256": ""} for path in model.iterdir()
    ]
    known = {"name": source, "kind": "hub", "id": config["sources"][source]["id"], "commit": "c0"}
    record.write_text(json.dumps({**known, "files": files}))
    for at, wrong, said in (
        (2, "none", "has no experiment none; there are triviaqa, rtp, "),
        (3, "somp-k9", "has no condition somp-k9; there are somp-k2"),
        (1, str(tmp_path / "elsewhere"), "is no run's folder"),
    ):
        assert main([*arguments[:at], wrong, *arguments[at + 1 :]]) == 2
        assert said in capsys.readouterr().err
    assert main(arguments) == 0
    assert "largest difference from the logits of scaled rows: 0\n" in capsys.readouterr().out
    assert main(arguments) == 2  # nothing is overwritten
    assert "exists already" in capsys.readouterr().err
    small = tmp_path / "heads.json"
    assert main([*arguments[:4], str(small)]) == 0
    assert f"{small}: 2 heads of {known['id']}, times -1" in capsys.readouterr().out
    assert main([*arguments[:4], str(small)]) == 2
    assert "heads.json exists already" in capsys.readouterr().err
    assert json.loads(small.read_text()) == {
        **{"model": known["id"], "revision": "c0", "layers": 2, "heads_per_layer": 4},
        **{"heads": [[1, 2], [0, 1]], "alpha": -1.0, "at": "all"},
    }


@pytest.mark.parametrize(
    ("changes", "condition", "said"),
    [
        ({}, "somp-k3", "^rtp has no condition somp-k3; there are somp-k2, random-k2-d00, random-"),
        ({"at": "response"}, "somp-k2-response", "in response alone, and weights act at all posi"),
        (
            {"signed": True},
            "somp-k2",
            "^rtp is signed: somp-k2 multiplies heads that write against",
        ),
    ],
)
def test_a_condition_that_no_weights_can_have(made, tmp_path, changes, condition, said):
    run = shutil.copytree(made, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["experiments"]["rtp"] |= changes
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=said):
        save_condition(run, "rtp", condition, tmp_path / "edited")


SHARED = {
    **{"model": "org/tiny", "revision": "c0", "layers": 3, "heads_per_layer": 4},
    **{"heads": [[0, 1], [2, 3]], "alpha": 0.0, "at": "all"},
}


def write_shared(path: Path, **changes: object) -> Path:
    """Write a small file of heads."""
    path.write_text(json.dumps({k: v for k, v in {**SHARED, **changes}.items() if v is not None}))
    return path


def test_a_small_file_of_heads_is_applied_to_a_model(
    model_path, tmp_path: Path, capsys, monkeypatch
):
    """By the command, in Python, and by the code of docs/recipes.md without this package."""
    monkeypatch.chdir(tmp_path)  # where the recipe looks for its file, and for its model's folder
    own, folder = str(model_path("llama")), tmp_path / "edited"
    file = write_shared(tmp_path / "heads.json", model=own)
    assert main(["apply", str(file), own, str(folder), "--check"]) == 0
    said = "with 2 heads times 0\nlargest difference from the logits of scaled rows: 0\n"
    assert said in capsys.readouterr().out
    [code] = [own for own in code_blocks(ROOT / "docs/recipes.md") if "pre_hook" in own]
    names: dict[str, Any] = {}
    exec(code, names)
    model = hp.load(own)
    with torch.inference_mode():
        plain = model.hf(IDS).logits
        with hp.scaled(model, **hp.intervention(model, file)):
            scaled = model.hf(IDS).logits
        for other in (AutoModelForCausalLM.from_pretrained(folder), names["model"]):
            assert torch.equal(other(IDS).logits, scaled)
    assert not torch.allclose(scaled, plain, atol=1e-2)
    in_response = write_shared(tmp_path / "response.json", at="response")
    with pytest.raises(hp.UserError, match="at: 'response' is none of all"):
        hp.scaled(model, **hp.intervention(model, in_response))
    written = hp.respond(model, ["apple river"], **hp.intervention(model, in_response))
    assert len(written) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 30}, "is for org/tiny, 30 layers x 4 heads; this model has 3 x 4"),
        ({"alpha": None}, "lacks a key of theirs: model, revision, layers"),
        ({"heads": [[9, 0]]}, "L9.H0 does not exist: 3 layers x 4 heads"),
        ({"heads": ["one"]}, "names no head"),
        ({"heads": 5}, "5 names no head"),
        ({"heads": [5]}, "5 names no head"),
        ({"alpha": "half"}, "alpha is a number, not 'half'"),
        ({"at": "response"}, "in response alone, and weights act at all positions"),
        (None, "is no readable JSON"),
    ],
)
def test_a_small_file_that_fits_no_model_is_told(model_path, tmp_path, capsys, changes, said):
    file = tmp_path / "heads.json"
    write_shared(file, **changes) if changes else file.write_text("no JSON")
    assert main(["apply", str(file), str(model_path("llama")), str(tmp_path / "edited")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "edited").exists()
