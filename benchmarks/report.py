"""Write docs/benchmarks.md and its plot from results/bench/*.json."""

import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import timing

matplotlib.use("agg")
import matplotlib.pyplot as plt

# In this order.
GROUPS = ("pursuit", "caching", "generating", "jobs", "memory", "count", "label_slots", "demo")
INTRODUCTION = """
# Benchmarks

    make bench    # about an hour on two free cores

measures everything below (but the demo: `.venv/bin/python benchmarks/demo.py`), writes
`results/bench/*.json` (every single time, the machine, the versions) and this page. A figure is the
ratio of two medians over rounds. A round times all rivals one after the other, so that a busy
machine slows them alike; brackets hold the lowest and the highest ratio of any round. Results are
compared before times are: a benchmark whose results differ fails. Memory is the most that a fresh
process had by the operating system's count (`VmHWM`). Goals that were missed stay in the table.

The direct algorithm (`benchmarks/pursuit.py`) is SOMP as it is written down: residual times
dictionary, L1 norms, least squares on all atoms, in float32. TransformerLens and nnsight run in an
environment of their own, `.venv-bench`, which adds `benchmarks/requirements.txt` to `.venv`.
"""
NOTES = """
## Reading the table

- *Gaussian* samples are the worst case of the pursuit's screening: no direction matters more than
  another, so that at first half of the vocabulary could win, and certifying that an atom cannot
  takes a share of its correlations. That share does not shrink as samples are added, so the goal
  for growth is missed on them. *Decaying* samples have what real heads have: a few directions that
  matter most, and samples of different size. The rows on the demo's layers are a real cache, of 400
  samples and a model of width 576; the goals are for a width of 4,096, where what both ways share
  weighs less.
- The direct algorithm is timed on one head a round, a new one each time; the layer's pursuit is
  divided by its heads, and so is the product D W_O, which is one for the layer.
- Writing the activation cache takes no longer than the bare forward pass that it needs, so it is
  faster than TransformerLens by what TransformerLens adds to that pass, and no more. The same holds
  for generation: scaled columns cost nothing, and nnsight calls the same `generate`, whose time is
  mostly matrix products that all three compute. Goals above those factors are missed. A job's
  conditions share a batch's prompts below their first scaled head (here layer 12 of 30) and its
  random numbers, so that each takes less than it would alone.
- TransformerLens and nnsight keep what they return in memory and store nothing; this workflow's
  time includes averaging and writing the files. TransformerLens's results are counted as it
  returns them, a value for each position; averaged by hand they would take as many times the
  files' size as a layer has heads.
- TransformerLens draws its own random numbers, so its sampled responses cannot be compared; nnsight
  is given this workflow's.
- In bfloat16 another token is taken where two were close; the row says how many responses stayed.
- A job of all conditions is timed from the start of its process, imports and loading included, and
  set beside generation alone, one condition after the other.
- The demo's goals are older than its size: it has grown until its counts show an effect
  ([demo.md](demo.md)), and takes 103 minutes of processor time where AVX-512 is lacking.
"""
COUNTED = """
## Counted, not timed

    .venv/bin/python benchmarks/count.py    # a minute; with overlays, of another run; --memory-gb

runs the workflow's own planner over the samples of `config.yaml` and counts what the model would be
called for. Steps are calls that write a token for each row of a loop, passes those that read.
Images have the sizes and class names of the rehearsal's replicas, in the replica's tokens, and
LLaVA-NeXT's real numbers. An answer is the class's name and its end token; *at the longest*, some
row of each loop goes on to its last token. Texts are those of `estimate`'s high end. Loops are
planned for 80 GiB.
"""


def main(to: Path) -> None:
    """Write benchmarks.md and benchmarks.png into a folder."""
    found = {
        name: json.loads((timing.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in GROUPS
        if (timing.RESULTS / f"{name}.json").exists()
    }
    if not found:
        raise SystemExit(f"{timing.RESULTS} is empty: run `make bench`.")
    rows = [row for record in found.values() for row in record["rows"]]
    plot(rows, to / "benchmarks.png")
    parts = [INTRODUCTION.strip(), machine(found), table(rows), checks(rows)]
    parts += ["![Ratios beside their goals; time by samples](benchmarks.png)", NOTES.strip()]
    if "count" in found:
        parts += [COUNTED.strip(), found["count"]["table"]]
    (to / "benchmarks.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def machine(found: dict[str, Any]) -> str:
    """Say what the figures were measured on."""
    first = next(iter(found.values()))["machine"]
    loads = [record["machine"]["load"] for record in found.values()]
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    text = (
        f"Measured on {first['date']}: {first['processor']}, {first['cores']} cores, "
        f"{first['memory_gib']} GiB, {first['system']}, Python {first['python']}, {versions}; "
        f"{first['threads']} threads. Load average after each part: "
        f"{', '.join(f'{load:g}' for load in loads)} ({first['threads']} is what the benchmark "
        "itself makes)."
    )
    return textwrap.fill(text, 100)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of all ratios."""
    lines = ["| work | beside | ratio | goal | met | rounds |", "|---|---|---|---|---|---|"]
    for row in rows:
        met = {None: "", True: "yes", False: "**no**"}[row["met"]]
        ratio = f"{row['ratio']:.3g}"
        if row["rounds"] > 1:
            ratio += f" [{row['low']:.3g}, {row['high']:.3g}]"
        cells = [row["work"], row["beside"], ratio, row["goal"] or "", met, str(row["rounds"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def checks(rows: list[dict[str, Any]]) -> str:
    """Return sizes and how results were found equal, once for each."""
    said = dict.fromkeys((row["work"], row["n"], row["checked"]) for row in rows)
    lines = ["| work | n | checked |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(cells)} |" for cells in said])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot each ratio over its goal, and the pursuit's time by the number of samples."""
    judged = [row for row in rows if row["goal"]]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 0.32 * len(judged) + 1.5), width_ratios=[2, 1], layout="constrained"
    )
    for place, row in enumerate(judged):
        sign, bound = row["goal"].split()
        share = row["ratio"] / float(bound)
        better = share if sign == ">=" else 1 / max(share, 0.1)  # less than nothing is no ratio
        left.barh(place, better, color="tab:blue" if row["met"] else "tab:orange")
    names = [f"{row['work']} | {row['beside']} {row['goal']}" for row in judged]
    left.set_yticks(range(len(judged)), names, fontsize=6)
    left.invert_yaxis()
    left.set_xscale("log")
    left.axvline(1, color="black", linewidth=0.8)
    left.set_xlabel("times better than the goal (orange: missed)")
    for row in rows:
        if "curve" in row:
            sizes = [int(size) for size in row["curve"]]
            right.plot(sizes, list(row["curve"].values()), marker="o", label=row["work"])
    right.margins(y=0.15)  # room for the legend
    right.set(xlabel="samples", ylabel="seconds a head", xscale="log")
    right.set_ylim(bottom=0)
    if right.lines:
        right.legend(fontsize=6)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(timing.ROOT / "docs")
