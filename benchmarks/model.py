"""The activation cache and generation under an intervention, beside what a user would pick instead.

The model is the demo's SmolLM2-135M, on two threads, in float32, and the prompts are the demo's.
TransformerLens and nnsight (benchmarks/requirements.txt) get the same model, the same batches and
the same padding, and results are compared before any time is.
"""

import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import timing
import torch
from headpursuit.method import writing
from headpursuit.method.activations import pooled_inputs, read_layer, write_cache
from headpursuit.method.batches import InMemory, PartFile, pad, plan_batches
from headpursuit.method.decoder import fast_products
from headpursuit.method.heads import Condition
from headpursuit.method.models import load_model, load_tokenizer
from headpursuit.method.responses import Prompts, write_responses
from headpursuit.method.sampling import GumbelMax, greedy
from headpursuit.run.files import read_parquet
from torch import Tensor
from transformers import LogitsProcessor

torch.set_num_threads(timing.THREADS)
MODEL = timing.ROOT / "resources/models/smollm2"
PROMPTS = timing.ROOT / "results/demo/samples/rtp-prompts.parquet"
LAYERS, HEAD_DIM, WIDTH = 30, 64, 576  # of the model
CACHED, BATCH_TOKENS = 128, 4096  # prompts, and what a batch of them holds, in the cache
GENERATED, STEPS = 64, 24  # prompts in one batch, new tokens
HEADS = [(layer, layer % 9) for layer in range(12, 28, 2)]  # which ones does not matter here
CONDITIONS, RESPONDED = 13, 50  # conditions of a job (baseline, 2 methods, 10 draws), prompts
PLANNED, FILLING = (0.5, 0.75, 1.0), 24  # GiB for a loop, and prompts that fill the largest
SHARING = 4  # conditions that share a batch beside other libraries' one
ROUNDS, GENERATING = 5, 3  # of the cache, and of generation, which takes longer
SAMPLER = GumbelMax(range(GENERATED), 1.0, 1.0)  # at temperature 1, the same numbers each time
SCRATCH = tempfile.TemporaryDirectory()  # of this process
SAMPLED = {"max_new_tokens": STEPS, "temperature": 1.0, "top_p": 1.0, "samples": 1, "seed": 0}


def samples(count: int) -> pa.Table:
    """Return the first prompts: sample_id and token_ids."""
    return read_parquet(PROMPTS, ["sample_id", "token_ids"])[:count]


def ours():
    """Load the model and its tokenizer as the workflow does."""
    return load_model(MODEL, "float32", "cpu"), load_tokenizer(MODEL)


def lens():
    """Load the model into TransformerLens, and its tokenizer."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(MODEL), dtype=torch.float32, device="cpu")
    return bridge, load_tokenizer(MODEL)


def traced():
    """Load the model, wrapped in nnsight, and its tokenizer."""
    from nnsight import TransformersModel

    decoder, tokenizer = ours()
    model = TransformersModel(decoder.model, tokenizer=tokenizer, task="text-generation")
    return model, tokenizer


def batches(tokenizer) -> list[tuple[list[int], Tensor, Tensor]]:
    """Return the cache's batches: indices of prompts, token ids and mask."""
    rows = samples(CACHED)["token_ids"].to_pylist()
    planned = plan_batches([len(row) for row in rows], BATCH_TOKENS)
    return [
        (own, *pad([rows[i] for i in own], tokenizer.pad_token_id, left=False, device="cpu"))
        for own in planned
    ]


def forward(decoder, tokenizer) -> None:
    """Run the model over the batches, and keep nothing."""
    with torch.inference_mode():
        for _, ids, mask in batches(tokenizer):
            decoder.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)


def cache(decoder, tokenizer) -> Path:
    """Write the activation cache as cache_activations does; return its file."""
    rows = samples(CACHED)["token_ids"].to_pylist()
    where = [list(range(len(row))) for row in rows]
    pooled = pooled_inputs(decoder, rows, where, tokenizer.pad_token_id, BATCH_TOKENS)
    path = Path(SCRATCH.name) / "activations.parquet"
    write_cache(path, pooled, list(map(str, range(CACHED))), "float32", {"heads": decoder.n_heads})
    return path


def pool(z: Tensor, mask: Tensor) -> Tensor:
    """Average over the positions that are not padding: rows x positions x anything."""
    weights = mask / mask.sum(1, keepdim=True)
    return torch.einsum("bp,bp...->b...", weights, z)


def cache_by_nnsight(model, tokenizer) -> list[tuple[list[int], dict[int, Tensor]]]:
    """Return, of each batch, indices, and each layer's pooled projection inputs out of a trace."""
    found = []
    with torch.inference_mode():
        for own, ids, mask in batches(tokenizer):
            inputs = {}
            with model.trace({"input_ids": ids, "attention_mask": mask}):
                for layer in range(LAYERS):
                    inputs[layer] = model.model.layers[layer].self_attn.o_proj.input.save()
            found.append((own, {layer: pool(z, mask) for layer, z in inputs.items()}))
    return found


def cache_by_lens(model, tokenizer) -> list[tuple[list[int], Tensor, dict[str, Tensor]]]:
    """Return TransformerLens's caches of per-head results: indices, mask, cache of each batch."""
    model.set_use_attn_result(True)
    found = []
    with torch.inference_mode():
        for own, ids, mask in batches(tokenizer):
            _, kept = model.run_with_cache(
                ids, attention_mask=mask, names_filter=lambda name: name.endswith("hook_result")
            )
            found.append((own, mask, kept))
    model.set_use_attn_result(False)
    return found


# Each kind of caching: what loads a model and its tokenizer, and what is done with them.
CACHES = {
    "forward": (ours, forward),
    "ours": (ours, cache),
    "nnsight": (traced, cache_by_nnsight),
    "lens": (lens, cache_by_lens),
}


def cache_alone(what: str) -> dict[str, int]:
    """Do one kind of caching in this process; return its memory when loaded."""
    load, work = CACHES[what]
    loaded = load()
    before = timing.memory("VmRSS")
    work(*loaded)
    return {"before": before}


def caching() -> list[dict]:
    """Compare the activation cache with a bare forward pass, nnsight and TransformerLens."""
    decoder, tokenizer = ours()
    works = {what: partial(work, *load()) for what, (load, work) in CACHES.items()}
    path = works["ours"]()
    stored = []  # each layer's z (prompts x heads x head_dim) in the order of the prompts
    for layer in range(LAYERS):
        names, z = read_layer(path, layer)
        stored.append(torch.from_numpy(z[np.argsort([int(name) for name in names])]))
    for own, inputs in works["nnsight"]():
        for layer, z in inputs.items():
            torch.testing.assert_close(stored[layer][own].flatten(1), z, rtol=1e-4, atol=1e-4)
    size, size_by_lens = path.stat().st_size, 0
    for own, mask, kept in works["lens"]():
        size_by_lens += sum(z.nbytes for z in kept.values())
        for layer in range(LAYERS):
            result = pool(kept[f"blocks.{layer}.attn.hook_result"], mask)
            write = torch.einsum("nhk,hdk->nhd", stored[layer][own], decoder.layer_columns(layer))
            torch.testing.assert_close(result, write, rtol=1e-3, atol=1e-3)
    seconds = timing.interleave(works, ROUNDS)
    peaks = {what: [timing.alone("model", "cache_alone", what) for _ in range(3)] for what in works}
    above = {what: [one["peak"] - one["before"] for one in runs] for what, runs in peaks.items()}
    one_layer = max(ids.numel() for _, ids, _ in batches(tokenizer)) * WIDTH * 4
    ideal = CACHED * LAYERS * WIDTH * 4
    compare = partial(
        timing.row,
        "activation cache",
        n=f"{CACHED} prompts, {LAYERS} layers of {WIDTH} values, float32",
        checked="pooled inputs equal nnsight's, and times W_O TransformerLens's, within 1e-4",
    )
    more = [own - bare for own, bare in zip(above["ours"], above["forward"], strict=True)]
    results = "TransformerLens with per-head results"
    loaded = "times less memory above the loaded model"
    return [
        compare("bare forward pass, time", "<= 1.10", seconds["ours"], seconds["forward"]),
        compare("bare forward pass, memory more, in layers", "<= 1", more, [one_layer] * 3),
        compare("n x layers x d x bytes, size of the files", "<= 1.05", [size], [ideal]),
        compare(f"{results}, times faster", ">= 2", seconds["lens"], seconds["ours"]),
        compare(f"{results}, {loaded}", ">= 10", above["lens"], above["ours"]),
        compare(f"{results}, times less disk", ">= 10", [size_by_lens], [size]),
        compare("nnsight, times faster", ">= 1", seconds["nnsight"], seconds["ours"]),
        compare(f"nnsight, {loaded}", None, above["nnsight"], above["ours"]),
    ]


def draws(count: int) -> dict[str, Condition]:
    """Return conditions of as many heads in the same layers; the first is ``HEADS``."""
    return {
        f"condition-{i}": Condition([(layer, (head + i) % 9) for layer, head in HEADS])
        for i in range(count)
    }


def asked(tokenizer) -> tuple[Tensor, Tensor]:
    """Return the batch that is responded to: token ids and mask."""
    rows = samples(GENERATED)["token_ids"].to_pylist()
    return pad(rows, tokenizer.pad_token_id, left=True, device="cpu")


def respond(decoder, tokenizer, conditions, sampled: bool, products=None) -> list[list[int]]:
    """Generate by the workflow's code; return the first condition's new tokens of each prompt."""
    with fast_products(decoder, products):
        ids, mask = asked(tokenizer)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        stops = writing.end_tokens(decoder, tokenizer)
        pick = SAMPLER if sampled else greedy
        how = writing.Writing(STEPS, stops, pick)
        begun = writing.ask(decoder, inputs, conditions)
        (found,) = writing.respond(decoder, [(begun, conditions)], how, BATCH_TOKENS)
    return [tokens for tokens, _ in next(iter(found.values()))]


class Sampled(LogitsProcessor):
    """Leaves the token possible that :data:`SAMPLER` takes."""

    step = -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (rows x vocabulary) that are -inf but for the sampled token."""
        self.step += 1
        token = SAMPLER(scores, torch.arange(len(scores)), self.step)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token[:, None], 0.0)


def respond_by_nnsight(model, tokenizer, stops, sampled: bool) -> list[list[int]]:
    """Generate by nnsight, with the heads inverted at every step."""
    ids, mask = asked(tokenizer)
    drawn = [Sampled()] if sampled else []
    options = {
        "max_new_tokens": STEPS, "do_sample": False, "eos_token_id": stops,
        "pad_token_id": tokenizer.pad_token_id, "logits_processor": drawn,
    }  # fmt: skip
    with (
        torch.inference_mode(),
        model.generate({"input_ids": ids, "attention_mask": mask}, **options) as tracer,
    ):
        for _ in tracer.iter[:STEPS]:
            for layer, head in HEADS:
                own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
                model.model.layers[layer].self_attn.o_proj.input[..., own] *= -1
        result = tracer.result.save()
    return [writing.until_stop(row, stops)[0] for row in result[:, ids.shape[1] :].tolist()]


def respond_by_lens(model, tokenizer, stops) -> list[list[int]]:
    """Generate greedily by TransformerLens, with the heads inverted by hooks."""
    ids, mask = asked(tokenizer)

    def invert(z: Tensor, hook: Any, head: int) -> Tensor:
        z = z.clone()
        z[:, :, head] *= -1
        return z

    hooks = [(f"blocks.{layer}.attn.hook_z", partial(invert, head=head)) for layer, head in HEADS]
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, stop_at_eos=False,
            return_type="tokens", verbose=False,
        )  # fmt: skip
    return [writing.until_stop(row, stops)[0] for row in out[:, ids.shape[1] :].tolist()]


def generating() -> list[dict]:
    """Compare generation under an intervention with plain generation, nnsight, TransformerLens."""
    decoder, tokenizer = ours()
    (bridge, _), (tracer, _) = lens(), traced()
    stops = writing.end_tokens(decoder, tokenizer)
    rows: list[dict] = []
    none, one, many = {"baseline": Condition()}, draws(1), draws(SHARING)
    with fast_products(decoder, "bfloat16") as fast:
        pass  # it is only asked what it gives
    for sampled in (False, True):
        kind = "sampled" if sampled else "greedy"
        run = partial(respond, decoder, tokenizer, sampled=sampled)
        expected = run(one)
        if expected == run(none):
            raise SystemExit("The intervention changes no response.")
        works = {
            "plain": partial(run, none),
            "ours": partial(run, one),
            "shared": partial(run, many),
            "nnsight": partial(respond_by_nnsight, tracer, tokenizer, stops, sampled),
        }
        if fast == "bfloat16":  # else the processor lacks it
            works[fast] = partial(run, one, products=fast)
        if not sampled:  # TransformerLens draws numbers of its own
            works["lens"] = partial(respond_by_lens, bridge, tokenizer, stops)
        same = {
            name: sum(a == b for a, b in zip(expected, works[name](), strict=True))
            for name in set(works) & {"nnsight", "lens", "shared", "bfloat16"}
        }
        for name, count in same.items():
            if name != "bfloat16" and count < len(expected):
                raise SystemExit(f"{name}, {kind}: {count} of {len(expected)} responses are ours")
        seconds = timing.interleave(works, GENERATING)
        each = [whole / SHARING for whole in seconds["shared"]]
        n = f"{GENERATED} prompts, {STEPS} tokens, one batch"
        name = f"{kind} generation, 8 heads inverted"
        compare = partial(timing.row, n=n, checked="all responses equal, token by token")
        plain, changed = "un-intervened, same code", "the interventions change responses"
        shared = f"{name}, each of {SHARING} conditions of a job"
        rows += [
            compare(name, plain, "<= 1.02", seconds["ours"], seconds["plain"], checked=changed)
        ]
        rows += [
            compare(work, f"{title} with hooks, times faster", ">= 1.5", seconds[key], own)
            for work, own in ((name, seconds["ours"]), (shared, each))
            for key, title in (("lens", "TransformerLens"), ("nnsight", "nnsight"))
            if key in seconds
        ]
        if fast in seconds:
            beside = "in bfloat16 (compute.products), times faster"
            kept = f"{same[fast]} of {GENERATED} responses are float32's"
            rows.append(compare(name, beside, None, seconds["ours"], seconds[fast], checked=kept))
    return rows


def conditions_alone() -> dict[str, float]:
    """Return the seconds of a job of all conditions, process and all, and of each's generation."""
    decoder, tokenizer = ours()
    conditions = {"baseline": Condition(), **draws(CONDITIONS - 1)}
    settings = SAMPLED | {"max_new_tokens": 20}
    reader = Prompts(decoder, tokenizer, samples(RESPONDED), settings, BATCH_TOKENS)

    def write(name: str, some: dict) -> pa.Table:
        path = Path(SCRATCH.name) / f"{name}.parquet"
        made_with = {"generation": settings, "seed": 0}
        write_responses(PartFile(path, made_with, BATCH_TOKENS), decoder, reader, some)
        return read_parquet(path, ["condition", "sample_id", "token_ids"])

    together = write("together", conditions)
    total = time.time() - psutil.Process().create_time()
    apart, pure = [], 0.0
    for name, condition in conditions.items():
        started = time.perf_counter()
        apart.append(write(name, {name: condition}))
        pure += time.perf_counter() - started
    if pa.concat_tables(apart).to_pylist() != together.to_pylist():
        raise SystemExit("A job of all conditions gives other responses than each alone.")
    return {"total": total, "pure": pure}


def jobs() -> list[dict]:
    """Compare a job of all conditions with the generation in it."""
    found = timing.alone("model", "conditions_alone")
    return [
        timing.row(
            f"{CONDITIONS} conditions in one job", "the sum of pure generation, each alone",
            "<= 1.05", [found["total"]], [found["pure"]], checked="all responses equal",
            n=f"{RESPONDED} prompts, 20 tokens, sampled",
        )
    ]  # fmt: skip


def loop_alone(gib: float) -> dict[str, float]:
    """Write responses in loops for which so many GiB are planned; return memory when loaded."""
    decoder, tokenizer = ours()
    weights = sum(own.nbytes for own in decoder.model.parameters())
    memory_gb = (gib + weights / writing.GIB) / (1 - writing.SPARED)
    file = InMemory({"generation": SAMPLED, "seed": 0}, BATCH_TOKENS)
    file.room = writing.room_of(decoder, BATCH_TOKENS, memory_gb)
    reader = Prompts(decoder, tokenizer, samples(FILLING), SAMPLED, BATCH_TOKENS)
    before = timing.memory("VmRSS")
    write_responses(file, decoder, reader, draws(CONDITIONS))
    return {"before": before}


def memory() -> list[dict]:
    """Compare the memory of loops with what was planned for them."""
    found = [(gib, timing.alone("model", "loop_alone", gib)) for gib in PLANNED]
    above = [own["peak"] - own["before"] for _, own in found]
    return [
        timing.row(
            "writing in loops", "the memory planned for it, above the loaded model", "<= 1.15",
            above, [gib * writing.GIB for gib in PLANNED],
            checked="none: memory alone is measured",
            n=f"{FILLING} prompts, {CONDITIONS} conditions, {STEPS} tokens; {PLANNED} GiB",
        )
    ]  # fmt: skip


if __name__ == "__main__":
    if not (MODEL.is_dir() and PROMPTS.exists()):
        raise SystemExit(f"{MODEL} or {PROMPTS} is not there: run `make bench`, which makes them.")
    for part in sys.argv[1:] or ("caching", "generating", "jobs", "memory"):
        timing.write(part, globals()[part]())
