"""Mistral-7B's exact shapes, once, on a processor: every stage of the text experiment, measured.

    python tests/rehearsal/full.py FOLDER    # `make rehearsal-full`; 24 GiB of memory, 30 of disk

Builds the model with random bfloat16 weights (14.5 GB) and the replica's tokenizer, runs the
workflow's own jobs on eight prompts (activations, the ranking of all heads, a response under two
conditions), decomposes one layer over the whole vocabulary, and prints what each took beside what
`headpursuit estimate` reckons.
"""

import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from checkout import Checkout, make_checkout  # noqa: E402
from headpursuit.method.somp import pursue_layer  # noqa: E402
from headpursuit.run.estimate import estimate, measured  # noqa: E402
from replica_models import MISTRAL_CONFIG  # noqa: E402
from replica_names import PLAIN  # noqa: E402
from replica_tokenizer import as_json, mistral_files  # noqa: E402

MISTRAL = MISTRAL_CONFIG | {"hidden_size": 4096, "intermediate_size": 14336}
SHARD_BYTES = 5e9  # as the Hub's
PROMPTS, RESPONSE, SAMPLES, ATOMS = 8, 4, 1000, 50
PATIENCE = 7200  # seconds that a slow processor may take
# What differs from config.yaml: a local model and prompts, words without a labeller, few of each.
OVERLAY = {
    "run": "full",
    "sources": {
        "mistral-7b-instruct-v0.2": {"kind": "local", "path": "own/mistral"},
        "real-toxicity-prompts": {"kind": "local", "path": "own/prompts.jsonl"},
    },
    "samples": {"rtp": {"sample": PROMPTS}},
    "concepts": {"own": {"file": "own/words.txt"}},
    "defaults": {
        "generation": {"max_new_tokens": RESPONSE},
        "methods": ["somp"],
        "k": [16],
        "draws": 2,
        "count_draws": 1,
    },
    "experiments": {"rtp": {"concept": "own"}},
    "tables": {"table1": [], "table2": ["rtp"], "concepts": [], "figure1": []},
    "compute": {
        "device": "cpu",
        "allow_cpu": True,
        "threads": os.cpu_count(),
        "batch_tokens": {"reading": 2048, "responding": 2048},
    },
}
JOBS = ["cache_activations", "extract_weights", "rank_heads"]
JOBS += ["respond", "intervene"]


def shards(shapes: dict[str, torch.Size]) -> Iterator[dict[str, torch.Size]]:
    """Divide weights among files as the Hub's are: whole, in order, at most so many bytes each."""
    own: dict[str, torch.Size] = {}
    for name, shape in shapes.items():
        if own and 2 * sum(s.numel() for s in [*own.values(), shape]) > SHARD_BYTES:
            yield own
            own = {}
        own[name] = shape
    yield own


def make_model(folder: Path) -> int:
    """Write a model of Mistral-7B's shapes with random weights; return how many there are."""
    from transformers import AutoModelForCausalLM, MistralConfig

    config = MistralConfig(**MISTRAL)
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(config)
    shapes = {name: weight.shape for name, weight in meta.state_dict().items()}
    files = list(shards(shapes))
    where = {}
    torch.manual_seed(0)
    for number, own in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        weights = {key: random_weight(key, shape) for key, shape in own.items()}
        save_file(weights, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(own, name)
    size = 2 * sum(map(torch.Size.numel, shapes.values()))
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, content in {**mistral_files(), "config.json": as_json(MISTRAL)}.items():
        (folder / name).write_bytes(content)
    return size // 2


def random_weight(name: str, shape: torch.Size) -> torch.Tensor:
    """Return a gain of 1, or normal numbers of Mistral's own initial spread."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)


def decompose_layer() -> dict[str, float]:
    """Time SOMP of one layer's 32 heads over 32,000 atoms of 4,096, and its peak memory.

    The activations are normal numbers, the slowest case (docs/benchmarks.md): as many samples as
    table 1 has questions, none of which is like another.
    """
    torch.set_num_threads(os.cpu_count())
    heads, width = MISTRAL["num_attention_heads"], MISTRAL["hidden_size"]
    torch.manual_seed(0)
    z = torch.randn(SAMPLES, heads, width // heads)
    w_o = 0.02 * torch.randn(heads, width, width // heads)
    dictionary = 0.02 * torch.randn(MISTRAL["vocab_size"], width)
    started, before = time.monotonic(), time.process_time()
    pursue_layer(z, w_o, dictionary, ATOMS)
    return {
        "s": time.monotonic() - started,
        "cpu_s": time.process_time() - before,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def run(folder: Path) -> Checkout:
    """Build the model and run the workflow's jobs on it in a checkout."""
    checkout = make_checkout(folder / "checkout")
    checkout.patience = PATIENCE
    model = checkout.folder / "own/mistral"
    model.mkdir()
    print(f"building {make_model(model) / 1e9:.3f} billion weights", flush=True)
    texts = (" ".join(random.Random(i).choices(PLAIN, k=15)) for i in range(PROMPTS))
    rows = [{"prompt": {"text": text}, "challenging": True} for text in texts]
    own = checkout.folder / "own"
    (own / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (own / "words.txt").write_text("\n".join(sorted(PLAIN)[:100]))
    (checkout.folder / "configs/full.yaml").write_text(yaml.safe_dump(OVERLAY))
    targets = ["config.yaml", "rankings/rtp.csv", "responses/rtp/scaled/part-1.parquet"]
    print("running the workflow's jobs", flush=True)
    checkout.snakemake(*(f"results/full/{name}" for name in targets), overlay="full")
    return checkout


def report(checkout: Checkout, layer: Mapping[str, float]) -> str:
    """Return what was measured beside what the estimate says, as Markdown."""
    results = checkout.folder / "results/full"
    config = yaml.safe_load((results / "config.yaml").read_text())
    found = estimate(config, measured(results / "benchmarks"))
    lines = ["| work | seconds | core seconds | peak, GB | estimate: seconds | memory, GB |"]
    lines.append("|" + "---|" * 6)
    memory = max(model["work_bytes"] for model in found["models"].values()) / 1e9
    for name, rule in found["rules"].items():
        took = rule.get("measured")
        if name not in JOBS or not took:
            continue
        span = " to ".join(f"{3600 * end:.0f}" for end in rule.get("hours", []))
        lines.append(
            f"| `{name}` | {3600 * took['hours']:.0f} | {3600 * took['cpu_hours']:.0f} "
            f"| {took['max_rss_mb'] / 1000:.1f} | {span} | {memory:.1f} |"
        )
    lines.append(
        f"| SOMP of one layer, {SAMPLES} samples, {ATOMS} atoms of 32,000 | {layer['s']:.0f} "
        f"| {layer['cpu_s']:.0f} | {layer['peak_gb']:.1f} | | |"
    )
    return "\n".join(lines)


def main() -> None:
    """Run and report."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    started = time.monotonic()
    with ProcessPoolExecutor(1) as fresh:  # whose memory is its own
        layer = fresh.submit(decompose_layer).result()
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        print(report(run(Path(folder)), layer))
    print(f"all of it: {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
