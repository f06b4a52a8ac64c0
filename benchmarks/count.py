"""Count what writing responses takes: decoding steps, passes, rows and tokens. No model is loaded.

    python benchmarks/count.py [OVERLAY ...] [--memory-gb 80]

The workflow's own planner (headpursuit.method.batches.plan_loops) is run over the samples of each
experiment of a run, config.yaml's or that of overlays over it. What no config says is assumed: the
data sets of config.yaml have the images' sizes and class names of their replicas in
tests/rehearsal, in the replica's tokens, an answer is the class's name and an end token, and texts
are as many and as long as `headpursuit estimate` assumes at its high end.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import timing
import torch
import yaml
from headpursuit.method.batches import Asked, plan_batches, plan_loops, read_together
from headpursuit.method.decoder import Decoder
from headpursuit.method.vision import load_processor, render_question
from headpursuit.method.writing import room_of
from headpursuit.run.config import load_config
from headpursuit.run.experiments import conditions, of_images, stage_owners
from headpursuit.run.sizes import size_of
from headpursuit.run.workload import HIGH
from snakemake.utils import update_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlavaNextConfig,
    MistralConfig,
)

sys.path[:0] = [str(timing.ROOT / "tests" / part) for part in ("", "rehearsal", "unit")]
GOAL = 20_000  # steps of figure 1
Found = dict[tuple[str, str], Counter]  # by experiment and rule


class Sample(NamedTuple):
    """A sample as loops see it: place, name, repeat; its tokens, and those of its answer."""

    place: int
    name: str
    repeat: int
    asked: int
    answer: int  # the end token included


# What a loop does


def count(
    loops: Iterable[Sequence[Asked]],
    asked: Callable[[Sequence[Any]], int],
    written: Callable[[Asked], int],
    batch_tokens: int,
    new: int,
) -> Counter:
    """Count what the model does to read and write loops.

    Args:
        loops: of :func:`plan_loops`.
        asked: the tokens of the longest of some samples.
        written: the tokens of a row's response, the end token included if there is one.
        batch_tokens: see :func:`headpursuit.method.writing.respond`.
        new: the most tokens of a response.

    Returns:
        loops, rows; passes (calls of the language model that read) and the tokens of their rows,
        padding included; steps (calls that write) and their tokens, rows that have ended included
        as long as they are in the loop.
    """
    found: Counter = Counter()
    last = None
    for loop in loops:
        found.update(loops=1, rows=len(loop))
        for samples, names in read_together(loop):
            tokens = len(samples) * asked(samples)
            scaled = [name for name in names if name != "baseline"]  # which a plain pass has read
            size = max(1, batch_tokens // tokens)
            again = int(samples != last)  # a plain pass serves a batch's later loops, too
            found.update(passes=again - (-len(scaled) // size), read=tokens * (again + len(scaled)))
            last = samples
        steps = list(rows_of_steps([written(row) for row in loop], new))
        found.update(steps=len(steps), written=sum(steps))
    return found


def rows_of_steps(lengths: Sequence[int], new: int) -> Iterator[int]:
    """Yield how many rows each step of a loop has, of responses so long; the first token is read.

    Rows that have ended leave as soon as they are half of the loop.
    """
    there = list(lengths)
    for step in range(1, new):
        left = [length for length in there if length > step]
        if not left:
            return
        if 2 * len(left) <= len(there):
            there = left
        yield len(there)


# What is asked


@cache
def model(images: bool) -> Decoder:
    """Return the paper's model without its weights' values."""
    text = MistralConfig(vocab_size=32064 if images else 32000, dtype=torch.bfloat16)
    with torch.device("meta"):
        if images:
            config = LlavaNextConfig(text_config=text.to_dict(), dtype=torch.bfloat16)
            return Decoder(AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16))
        return Decoder(AutoModelForCausalLM.from_config(text, dtype=torch.bfloat16))


def image_samples(config: Mapping[str, Any], name: str) -> list[Sample] | None:
    """Return the images of one of the paper's data sets; None of another."""
    import replica_images
    from replica_sources import LOOKS
    from replica_tokenizer import LLAVA_CHAT, as_json, llava_files

    own = config["experiments"][name]
    samples, dataset = config["samples"][own["samples"]], own["samples"]
    if dataset not in replica_images.NAMES:
        return None
    with TemporaryDirectory() as folder:
        files = llava_files(LLAVA_CHAT, "chat_template.json", 14)
        files["config.json"] = as_json(replica_images.llava_config(14))
        for file, content in files.items():
            (Path(folder) / file).write_bytes(content)
        processor = load_processor(folder)
    listed = replica_images.NAMES[dataset]
    shown = [(samples["classes"] or {}).get(own, own.replace("_", " ")) for own in listed]
    question = render_question(processor, samples["template"], samples["object"], shown, True)
    beside = len(processor.tokenizer(question)["input_ids"]) - 1  # all but the image's mark
    sizes = [(height, width) for width, height in LOOKS[dataset].sizes]
    images = processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens
    answers = list(map(len, processor.tokenizer(shown, add_special_tokens=False)["input_ids"]))
    return [
        Sample(i, f"{i}", 0, beside + images[i % len(images)], answers[i % len(shown)] + 1)
        for i in range(len(shown) * samples["per_class"]["evaluation"])
    ]


def text_samples(config: Mapping[str, Any], name: str) -> list[Sample]:
    """Return samples of the number and lengths that are assumed."""
    size = size_of(config, name, HIGH)
    lengths = int(size.asked), int(size.answer)
    return [Sample(i, f"{i}", 0, *lengths) for i in range(int(size.responses))]


def batches_of(
    config: Mapping[str, Any], name: str, samples: Sequence[Sample]
) -> list[list[Sample]]:
    """Return an experiment's batches."""
    compute, own = config["compute"], config["experiments"][name]
    if of_images(config["samples"][own["samples"]]):
        size = compute["batch_images"]
        return [list(samples[at : at + size]) for at in range(0, len(samples), size)]
    new = own["generation"]["max_new_tokens"]
    lengths = [sample.asked for sample in samples]
    batches = plan_batches(lengths, compute["batch_tokens"]["responding"], new)
    return [[samples[i] for i in batch] for batch in batches]


def counted(config: Mapping[str, Any], memory_gb: float) -> Found:
    """Return, by experiment and rule, what is done; its steps at the longest are ``longest``.

    At the longest means that some row of each loop goes on to the last token that it may have.
    """
    found: Found = {}
    stages = stage_owners(config)
    asked = {"respond": stages["baseline"], "intervene": stages["scaled"]}
    for rule, name in ((rule, name) for rule, names in asked.items() for name in names):
        own = config["experiments"][name]
        images = of_images(config["samples"][own["samples"]])
        samples = (image_samples(config, name) if images else None) or text_samples(config, name)
        names = ["baseline"] if rule == "respond" else list(conditions(config, name, "occurrences"))
        batches, new = batches_of(config, name, samples), own["generation"]["max_new_tokens"]
        tokens = config["compute"]["batch_tokens"]["responding"]
        room = room_of(model(images), tokens, memory_gb)

        def longest(some: Sequence[Sample]) -> int:
            return max(sample.asked for sample in some)

        def in_the_end(some: Sequence[Sample], new: int = new) -> int:
            return longest(some) + new

        loops = list(plan_loops(batches, names, in_the_end, room))
        does = count(loops, longest, lambda row: row.sample.answer, tokens, new)
        found[name, rule] = does | Counter(longest=len(loops) * (new - 1))
    return found


HEADER = ["experiment", "rule", "rows", "loops", "rows a loop", "steps", "at the longest"]
HEADER += ["passes", "tokens read, M"]


def table(found: Found) -> str:
    """Return a Markdown table."""
    lines = [HEADER, ["---"] * len(HEADER)]
    for (name, rule), own in found.items():
        cells = [own["rows"], own["loops"], own["rows"] / own["loops"], own["steps"]]
        cells += [own["longest"], own["passes"], own["read"] / 1e6]
        lines.append([name, rule, *(f"{cell:,.0f}" for cell in cells)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Count, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overlays", nargs="*", type=Path)
    parser.add_argument("--memory-gb", type=float, default=80, help="of the GPU")
    chosen = parser.parse_args()
    config: dict[str, Any] = {}
    for path in [timing.ROOT / "config.yaml", *chosen.overlays]:
        update_config(config, yaml.safe_load(path.read_text(encoding="utf-8")))
    config = load_config(config)
    found = counted(config, chosen.memory_gb)
    if figure := config["tables"].get("figure1"):
        own = (counts for (name, _), counts in found.items() if name in figure)
        found["figure 1", "both"] = sum(own, Counter())
    print(table(found))
    if not chosen.overlays and figure:
        now = found["figure 1", "both"]
        of = "decoding steps of figure 1, config.yaml"
        n = f"{now['rows']:,} responses, {chosen.memory_gb:g} GiB"
        checked = "tests/unit/test_benchmarks.py: the count is what the loop does"
        rows = [
            timing.row(of, f"{GOAL:,}", "<= 1", [now["steps"]], [GOAL], checked, n=n),
            timing.row(
                f"{of}, all answers at their longest", f"{GOAL:,}", "<= 1", [now["longest"]],
                [GOAL], checked, n=n,
            ),
        ]  # fmt: skip
        timing.write("count", rows, table=table(found))


if __name__ == "__main__":
    main()
