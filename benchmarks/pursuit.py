"""SOMP beside the direct algorithm, the one product that no exact method avoids, and itself.

    .venv-bench/bin/python benchmarks/pursuit.py [--smoke]

The shapes are those of Mistral-7B. ``gaussian`` samples have no structure at all: every direction
is as likely as any other, the worst case for a method that leaves out what cannot win. ``decaying``
ones have what a head's have, a few directions that matter most and samples that differ in size.
The cache of the demo (SmolLM2) is real. --smoke runs it all on small shapes, and writes nothing.
"""

import argparse
from pathlib import Path

import timing
import torch
from headpursuit.method.activations import read_layer
from headpursuit.method.somp import Pursuit, pursue, pursue_layer
from torch import Tensor

SHAPES = {
    "heads": 32, "samples": 2000, "head_dim": 128, "width": 4096, "tokens": 32_000, "atoms": 10,
    "words": 100, "word_atoms": 50, "growth": [500, 2000, 8000, 20_000], "rounds": 3,
}  # fmt: skip
SMOKE = SHAPES | {
    "heads": 3, "samples": 300, "head_dim": 16, "width": 96, "tokens": 900, "words": 10,
    "word_atoms": 8, "growth": [50, 300], "rounds": 1,
}  # fmt: skip
KINDS = ("gaussian", "decaying")
CACHE = timing.ROOT / "results/demo/activations/rtp-prompts.parquet"
WEIGHTS = timing.ROOT / "resources/models/smollm2/model.safetensors"
CLOSE = 1e-5  # explained variances that differ by no more are the same


def direct(h: Tensor, dictionary: Tensor, iterations: int) -> Pursuit:
    """SOMP as it is written down: residual times dictionary, then least squares on all atoms."""
    h = h - h.mean(0)
    residual, support, explained = h, [], []
    for _ in range(iterations):
        scores = (residual @ dictionary.T).abs_().sum(0)
        scores[support] = -1
        support.append(int(scores.argmax()))
        atoms = dictionary[support].T
        residual = h - (atoms @ torch.linalg.lstsq(atoms, h.T).solution).T
        explained.append(float(1 - residual.square().sum() / h.square().sum()))
    return Pursuit(support, explained)


def draw(kind: str, samples: int, heads: int, head_dim: int, seed: int = 0) -> Tensor:
    """Return random inputs of a layer's output projection, samples x heads x head_dim."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, heads, head_dim, generator=g)
    if kind == "decaying":
        z *= torch.arange(1, head_dim + 1) ** -0.5
        z *= torch.rand(samples, 1, 1, generator=g).clamp_min(1e-4) ** -0.3
    return z


def weights(heads: int, head_dim: int, width: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return random output projections (heads x width x head_dim) and dictionary (rows x width)."""
    g = torch.Generator().manual_seed(1)
    w_o = 0.02 * torch.randn(heads, width, head_dim, generator=g)
    return w_o, torch.randn(rows, width, generator=g).mul_(0.02)


def require_equal(found: Pursuit, expected: Pursuit) -> None:
    """Fail unless two pursuits took the same atoms, which explain the same."""
    apart = [abs(a - b) for a, b in zip(found.explained, expected.explained, strict=True)]
    if found.support != expected.support or max(apart) > CLOSE:
        raise SystemExit(f"The results differ: {found} is not {expected}")


def beside_direct(
    name: str, goal: str | None, z, w_o, dictionary, iterations, rounds, product=None
):
    """Compare a layer's pursuit with the direct algorithm, and with the product D W_O.

    The direct algorithm is given one head a round, another each time; all are by head.
    """
    expected, heads = {}, len(w_o)
    turn = iter(range(rounds))
    stacked = w_o.permute(1, 0, 2).flatten(1)
    found = []

    def run_direct() -> None:
        head = next(turn) % heads
        expected[head] = direct(z[:, head] @ w_o[head].T, dictionary, iterations)

    works = {
        "ours": lambda: found.append(pursue_layer(z, w_o, dictionary, iterations)),
        "direct": run_direct,
        "product": lambda: dictionary @ stacked,
    }
    seconds = timing.interleave(works, rounds)
    for head, own in expected.items():
        require_equal(found[0][head], own)
    ours = [s / heads for s in seconds["ours"]]
    more = {
        "n": f"{len(z)} samples, {len(dictionary)} atoms of {dictionary.shape[1]}, "
        f"{heads} heads, {iterations} steps",
        "checked": f"support equal, explained variance within {CLOSE:g}, on {len(expected)} heads",
    }
    rows = [
        timing.row(name, "direct algorithm, times faster", goal, seconds["direct"], ours, **more)
    ]
    if product:
        share = [s / heads for s in seconds["product"]]
        more["checked"] = "part of the same round"
        rows.append(timing.row(name, "the one product D W_O", product, ours, share, **more))
    return rows


def growth(kind: str, shapes: dict) -> list[dict]:
    """Time and memory of one head as the samples grow."""
    few, many = shapes["growth"][0], shapes["growth"][-1]
    w_o, dictionary = weights(1, shapes["head_dim"], shapes["width"], shapes["tokens"])
    data = {n: draw(kind, n, 1, shapes["head_dim"]) for n in shapes["growth"]}
    works = {
        str(n): lambda z=z: pursue(z[:, 0], w_o[0], dictionary, shapes["atoms"])
        for n, z in data.items()
    }
    seconds = timing.interleave(works, shapes["rounds"] + 2)
    peaks = {n: timing.alone("pursuit", "pursue_alone", kind, n, shapes) for n in (few, many)}
    name, n = f"full-vocabulary SOMP, {kind} samples", f"{few} to {many} samples, one head"
    itself = {"checked": "one algorithm throughout", "n": n}
    curve = {size: sorted(own)[len(own) // 2] for size, own in seconds.items()}
    timed, peak = seconds[str(many)], [peaks[many]["peak"]]
    return [
        timing.row(
            name, "time at the fewest samples", "<= 1.5", timed, seconds[str(few)], curve=curve,
            **itself,
        ),
        timing.row(
            name, "memory at the fewest samples", "<= 1.2", peak, [peaks[few]["peak"]], **itself
        ),
    ]  # fmt: skip


def pursue_alone(kind: str, samples: int, shapes: dict) -> None:
    """Pursue one head and do nothing else, so that the process's peak memory is its own."""
    torch.set_num_threads(timing.THREADS)
    w_o, dictionary = weights(1, shapes["head_dim"], shapes["width"], shapes["tokens"])
    z = draw(kind, samples, 1, shapes["head_dim"])
    pursue(z[:, 0], w_o[0], dictionary, shapes["atoms"])


def demo_layer(layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return z, output projections and the unembedding of the demo's model and its real cache."""
    from safetensors import safe_open

    z = torch.from_numpy(read_layer(CACHE, layer)[1])
    with safe_open(WEIGHTS, "pt") as tensors:
        dictionary = tensors.get_tensor("model.embed_tokens.weight").float()
        w_o = tensors.get_tensor(f"model.layers.{layer}.self_attn.o_proj.weight").float()
    return z, w_o.unflatten(1, (z.shape[1], -1)).permute(1, 0, 2).contiguous(), dictionary


def main(smoke: bool) -> list[dict]:
    """Run all comparisons and return the rows."""
    torch.set_num_threads(1 if smoke else timing.THREADS)
    shapes = SMOKE if smoke else SHAPES
    sizes = (shapes["heads"], shapes["head_dim"])
    rows = []
    w_o, dictionary = weights(*sizes, shapes["width"], shapes["tokens"])
    for kind in KINDS:
        rows += beside_direct(
            f"full-vocabulary SOMP, {kind} samples", ">= 40", draw(kind, shapes["samples"], *sizes),
            w_o, dictionary, shapes["atoms"], shapes["rounds"], "<= 3",
        )  # fmt: skip
    if not smoke:
        for layer in (5, 26):
            rows += beside_direct(
                f"full-vocabulary SOMP, the demo's layer {layer}", None, *demo_layer(layer),
                shapes["atoms"], 9,
            )  # fmt: skip
    words = dictionary[: shapes["words"]]
    rows += beside_direct(
        "concept ranking of a layer", ">= 20", draw("gaussian", shapes["samples"], *sizes), w_o,
        words, shapes["word_atoms"], shapes["rounds"],
    )  # fmt: skip
    del w_o, dictionary, words
    for kind in KINDS[:1] if smoke else KINDS:
        rows += growth(kind, shapes)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small shapes; nothing is written")
    asked = parser.parse_args()
    if not asked.smoke and not Path(WEIGHTS).exists():
        raise SystemExit(f"{WEIGHTS} is not there: run `make bench`, which makes it first.")
    measured = main(asked.smoke)
    if not asked.smoke:
        timing.write("pursuit", measured)
