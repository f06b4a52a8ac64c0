"""A finished run's decompositions against a direct implementation, over the whole vocabulary.

    .venv/bin/pytest tests/parity

It reads results/<run>/decompositions and activations of every run that is there, and the model's
safetensors, without the library; minutes, and 2 GB of memory. Llama-like models only.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
FILES = sorted(ROOT.glob("results/*/decompositions/*.parquet"))
HEADS = 5


def tensors(model: Path, names: list[str]) -> dict[str, np.ndarray]:
    found = {}
    for path in model.glob("*.safetensors"):
        with safe_open(path, "pt") as handle:
            for name in set(names) & set(handle.keys()):
                found[name] = handle.get_tensor(name).double().numpy()
    return found


def direct(
    h: np.ndarray, dictionary: np.ndarray, special: list[int], iterations: int, norm: str
) -> tuple[list[int], list[float]]:
    """SOMP as its authors wrote it: residual times dictionary, least-squares refit."""
    residual, support, explained = h, [], []
    for _ in range(iterations):
        scores = np.linalg.norm(residual @ dictionary.T, ord=int(norm[1]), axis=0)
        scores[special + support] = -1
        support.append(int(scores.argmax()))
        atoms = dictionary[support].T
        residual = h - (atoms @ np.linalg.lstsq(atoms, h.T, rcond=None)[0]).T
        explained.append(1 - (residual**2).sum() / (h**2).sum())
    return support, explained


@pytest.mark.skipif(not FILES, reason="no finished run under results/")
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_supports_equal_those_of_a_direct_implementation(path: Path) -> None:
    run = path.parents[1]
    config = yaml.safe_load((run / "config.yaml").read_text())
    name = config["experiments"][path.stem]["model"]
    pursuit = json.loads(pq.read_schema(path).metadata[b"pursuit"])
    folder = ROOT / "resources" / "models" / name
    if not folder.is_dir() or pursuit["fold_norm_gain"] or pursuit["normalise_atoms"]:
        pytest.skip("only converted models, plain atoms")
    found = pd.read_parquet(path)
    there = found[["layer", "head"]].drop_duplicates()
    chosen = there.sample(HEADS, random_state=0).sort_values(["layer", "head"]).values.tolist()
    projection = "model.layers.{}.self_attn.o_proj.weight"
    names = ["lm_head.weight", "model.embed_tokens.weight"]
    weights = tensors(folder, names + [projection.format(layer) for layer, _ in chosen])
    dictionary = weights[names[0] if names[0] in weights else names[1]]
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    special = [token["id"] for token in added if token["special"]]
    for layer, head in chosen:
        cache = run / f"activations/{path.stem}.parquet"
        table = pq.read_table(cache, filters=[("layer", "=", layer)])
        z = np.stack(table["z"].to_pylist()).astype(float)
        width = z.shape[1] // config["models"][name]["heads"]
        own = slice(head * width, (head + 1) * width)
        h = z[:, own] @ weights[projection.format(layer)][:, own].T
        h = h - h.mean(0) if pursuit["center"] else h
        ours = found[(found["layer"] == layer) & (found["head"] == head)].sort_values("step")
        support, explained = direct(h, dictionary, special, len(ours), pursuit["norm"])
        assert ours["token_id"].tolist() == support, f"L{layer}.H{head}"
        assert ours["explained"].to_numpy() == pytest.approx(explained, abs=1e-9)
