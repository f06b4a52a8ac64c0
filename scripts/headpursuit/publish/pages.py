"""The report's pages: what a run published, chose and cost, each one HTML file.

A page needs no other file, holds no script and may load nothing. Every text is escaped; the words
that the run labelled are masked.
"""

import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import regex
import yaml
from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt

from headpursuit.publish.masking import TELLING, mask_rows, offensive_words
from headpursuit.publish.ratio import number
from headpursuit.publish.settings import (
    MISSING,
    PAPER,
    labeller_name,
    leaves,
    paper,
    schema,
    value_at,
)
from headpursuit.run.config import load_config, used_models, used_samples
from headpursuit.run.experiments import kind_of, merge, of_images, positions_of, running, tables_of
from headpursuit.run.files import ROOT, read_json, sha256
from headpursuit.run.finished import row_names
from headpursuit.run.manifest import describe_workflow
from headpursuit.run.rule import describe_host
from headpursuit.run.tables import read_csv

# What a table holds, by its kind; and its parts on a page, by the end of the file's name.
KINDS = {
    "ratios": "measures after over before",
    "heads": "what single heads write",
    "overlaps": "heads that experiments share",
}
# The figure of atoms is not among them: its tokens are not masked.
PARTS = {
    "png": "After over before",
    "md": "The table",
    "heads.png": "All heads; framed are those chosen",
    "overlap.md": "Chosen heads that experiments share",
}


@dataclass
class Table:
    """Cells of text; the rows whose numbers are in ``marked`` stand out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: set[int] = field(default_factory=set)


@dataclass
class Section:
    """A part of a page: whatever it has is shown in this order."""

    heading: str = ""
    text: str = ""
    figure: Path | None = None
    table: Table | None = None
    markup: str = ""  # HTML
    commands: Sequence[str] = ()


@dataclass
class Run:
    """What pages are made of."""

    files: Any
    config: Mapping[str, Any]
    paper: Mapping[str, Any]
    results: Path

    def parts(self, table: str) -> dict[str, Path]:
        """Return a table's files and figures, by the end of their names."""
        own = [Path(path) for path in self.files.tables if Path(path).name.split(".")[0] == table]
        return {path.name.partition(".")[2]: path for path in own}


def write_page(name: str, files: Any, started_in: Path) -> str:
    """Return a page as HTML.

    Args:
        name: a key of :data:`PAGES`, or a table of the config.
        files: the rule's input: ``template``; ``config``, the config in force, in the run's
            folder; ``tables``, all tables and figures; ``provenance``, of each source.
        started_in: the folder that Snakemake runs in; paths are shown relative to it.
    """
    run = Run(files, _load(files.config), paper(), Path(files.config).parent)
    if name in PAGES:
        title, build = PAGES[name]
        shown = {"published": [*run.parts(name).values(), files.config], "run": files.provenance}
        sources, sections = shown.get(name, [files.config]), build(run)
    else:
        title = f"{name}: {KINDS[kind_of(run.config, run.config['tables'][name])]}"
        sources, sections = run.parts(name).values(), table_page(run, name)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(files.template).read_text(encoding="utf-8"))
    return template.render(
        title=title,
        run=run.config["run"],
        warnings=list(_warnings(run.config, run.paper)),
        sections=list(sections),
        sources={Path(os.path.relpath(p, started_in)).as_posix(): sha256(p) for p in sources},
        picture=lambda path: "data:image/png;base64," + b64encode(path.read_bytes()).decode(),
    )


def _load(path: str | Path) -> Any:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


@cache
def demo() -> dict[str, Any]:
    """Return the demo's config, with all its keys."""
    return load_config(merge(_load(PAPER), _load(ROOT / "configs/demo.yaml")))


def _warnings(config: Mapping[str, Any], paper: Mapping[str, Any]) -> Iterator[str]:
    """Say which of the paper's models a run replaces: its numbers are then another model's."""

    def models(own: Mapping[str, Any], images: bool) -> dict[str, None]:
        experiments = [own["experiments"][name] for name in running(own)]
        return dict.fromkeys(
            model_name(own, each["model"])
            for each in experiments
            if of_images(own["samples"][each["samples"]]) == images
        )

    for images, what in ((False, "prompts"), (True, "images")):
        theirs = models(paper, images)
        if others := [name for name in models(config, images) if name not in theirs]:
            yield (
                f"Another model reads the {what}: {', '.join(others)} here, {', '.join(theirs)} in "
                "the paper. Agreement and disagreement with published values say nothing about "
                "the paper."
            )


def model_name(config: Mapping[str, Any], model: str) -> str:
    """Return a model's name with where it comes from."""
    source = config["sources"][config["models"][model]["source"]]
    if source["kind"] == "hub":
        return source["id"]
    package = " ".join(filter(None, [source.get("id"), source.get("version")]))
    return f"{model} ({package})" if package else model


# Tables as they were published


def render_markdown(text: str) -> str:
    """Turn a table's Markdown file into HTML; HTML inside of it stays text."""
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    # A number stays on one line with its interval.
    return regex.sub(r"(?<=\d) (\[[-\d.]+,) (?=[-\d.]+\])", r"&nbsp;\1&nbsp;", html)


def table_page(run: Run, name: str) -> Iterator[Section]:
    """A table with its figures, labelled words masked, and the commands that trace its rows."""
    parts, kind = run.parts(name), kind_of(run.config, run.config["tables"][name])
    words = offensive_words(run.config, run.results) if kind == "heads" else set()
    for end, heading in PARTS.items():
        if end not in parts:
            continue
        if end.endswith("png"):
            yield Section(heading, figure=parts[end])
        else:
            text = parts[end].read_text(encoding="utf-8")
            yield Section(heading, markup=render_markdown(mask_rows(text, words)))
    if words:
        yield Section(
            text=f"Masked are tokens of the words that this run labelled, and tokens of {TELLING} "
            f"letters or more that begin such a word. tables/{name}.csv has all tokens as they are."
        )
    yield Section(
        "Follow a row",
        "trace prints what a row stands on, back to the prompts or images, with offensive words "
        "masked (--unmasked shows them).",
        commands=_traces(run, name),
    )


def _traces(run: Run, table: str) -> list[str]:
    """Return the commands that follow the rows of a table, and of its overlaps."""
    kind = kind_of(run.config, run.config["tables"][table])
    commands = {"export PYTHONPATH=scripts": None}
    for end, own in (("csv", kind), ("overlap.csv", "overlaps")):
        if path := run.parts(table).get(end):
            start = f"python -m headpursuit trace {path}"
            for row in row_names(read_csv(path, []), own):
                commands[f"{start} {' '.join(row)}"] = None
    return list(commands)


def overview(run: Run) -> Iterator[Section]:
    """Every published value beside the run's, what the run is, and how to follow a number."""
    yield Section("This run", table=Table(("", "this run", "config.yaml"), _facts(run)))
    text = run.parts("published")["md"].read_text(encoding="utf-8")
    yield Section("Every published value beside this run's", markup=render_markdown(text))
    ratios = list(tables_of(run.config, "ratios"))[:1]
    first = [command for table in ratios for command in _traces(run, table)[:2]]
    yield Section(
        "Follow a number, check the files",
        "trace prints what a row of a table stands on, back to the prompts or images, with "
        "offensive words masked. verify names files that changed since the manifest was written, "
        "and what stands on them.",
        commands=[*first, f"python -m headpursuit verify {run.results}"],
    )


def _facts(run: Run) -> list[list[str]]:
    """Return the settings that a reader asks for first, of this run and of config.yaml."""
    own, theirs = map(_described, (run.config, run.paper))
    workflow = describe_workflow()
    changed = f", with {len(workflow['changed'])} files changed" if workflow["changed"] else ""
    code = [["code", f"commit {workflow['commit'] or 'unknown'}{changed}", ""]]
    return [[name, text, theirs.get(name, "")] for name, text in own.items()] + code


def _described(config: Mapping[str, Any]) -> dict[str, str]:
    """Return each model and experiment in a line, and what all have."""
    said = {}
    for name in used_models(config):
        own = config["models"][name]
        shape = f"{own['layers']} layers of {own['heads']} heads, {own['dtype']}"
        said[f"model {name}"] = f"{model_name(config, name)} ({shape})"
    for name in running(config):
        own = config["experiments"][name]
        samples = config["samples"][own["samples"]]
        n = samples.get("sample") or "all"
        if of_images(samples):
            n = f"of each class at most {_text(samples['per_class'])}"
        parts = [f"{own['samples']} ({n})", f"model {own['model']}"]
        parts += [f"positions averaged: {positions_of(config, own)}"]
        parts += [f"concept {own['concept']}"] * bool(own["concept"])
        if own["measures"]:
            parts += [f"top {_text(own['k'])} by {_text(own['methods'])}"]
            parts += [f"times {own['alpha']:g}", f"{own['draws']} random draws"]
            parts += [f"measures {_text(own['measures'])}"]
        said[f"experiment {name}"] = "; ".join(parts)
    score = config["score"]
    intervals = f"{100 * score['confidence']:g} %, {score['resamples']} resamples"
    said |= {"words labelled by": labeller_name(config), "intervals": intervals}
    return said | {"seed": str(config["seed"])}


# Choices


def choices(run: Run) -> Iterator[Section]:
    """The record of choices with the values in force."""
    rows = list(_choices(run))
    columns = ("key", "in force", "config.yaml", "the paper", "what it is, and why so")
    apart = {n: row for n, row in enumerate(rows) if row[1] != row[2]}
    yield Section(
        f"What differs from config.yaml ({len(apart)} of {len(rows)})",
        "config.yaml is the paper's run as set up here. What the paper leaves open, or says "
        "otherwise, stands in the column of the paper.",
        table=Table(columns, list(apart.values()), set(range(len(apart)))),
    )
    yield Section("All choices", table=Table(columns, rows, set(apart)))


def _choices(run: Run) -> Iterator[list[str]]:
    sections = {name: own for name, own in schema()["properties"].items() if name != "defaults"}
    for path, leaf in leaves({"properties": sections}):
        value, default = _in_force(run.config, path), _in_force(run.paper, path)
        if "paper" not in leaf or value is MISSING:
            continue
        reason = leaf.get("reason", "")
        if "demo" in leaf and value != default and value == _in_force(demo(), path):
            reason = f"{reason} Demo: {leaf['demo']}"
        key = ".".join("<name>" if part == "*" else part for part in path)
        what = " ".join(filter(None, [leaf.get("description"), reason]))
        yield [key, _text(value), _text(default), leaf["paper"], what]


def _in_force(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return a key's value; of a catalogue's key, those of the entries that the run uses.

    Where all these have the same, it is that value alone.
    """
    if "*" not in path:
        return value_at(config, path)
    experiments = running(config)
    names = {
        "experiments": experiments,
        "models": used_models(config),
        "samples": used_samples(config),
        "concepts": {config["experiments"][name]["concept"]: None for name in experiments},
    }.get(path[0], ())
    values = {name: value_at(config, (path[0], name, *path[2:])) for name in names}
    values = {name: value for name, value in values.items() if value is not MISSING}
    first = next(iter(values.values()), MISSING)
    return first if all(value == first for value in values.values()) else values


def _text(value: Any) -> str:
    """Return a config's value as a person would write it."""
    if value is MISSING:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_text(own)}" for name, own in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return yaml.safe_dump(value).splitlines()[0]


# What it took


def cost(run: Run) -> Iterator[Section]:
    """Time and memory of each rule, the machine, the software, and the sources."""
    yield Section(
        "Time and memory of each rule",
        "From benchmarks/, one file a job. Seconds are the jobs' own, added up; jobs side "
        "by side take less; those of earlier settings count too.",
        table=_benchmarks(run.results / "benchmarks"),
    )
    host = describe_host()
    del host["name"]
    host["memory"] = f"{host.pop('memory_bytes') / 2**30:.0f} GiB"
    yield Section(
        "The machine that wrote this page",
        table=Table(("", ""), [[name, str(value)] for name, value in host.items()]),
    )
    yield Section("Sources", table=_sources(run.files.provenance))
    yield Section(
        "Software",
        "Pinned in envs/, a stage at a time. Installed is what the job that wrote this page found.",
        table=_software(),
    )


def _benchmarks(folder: Path) -> Table:
    rows = []
    for part in sorted(folder.iterdir()):
        paths = [part] if part.is_file() else sorted(part.rglob("*.tsv"))
        jobs = pd.concat(pd.read_csv(path, sep="\t", na_values="-") for path in paths)
        rows.append((part.stem, len(jobs), jobs["s"].sum(), jobs["s"].max()))
        rows[-1] += (jobs["cpu_time"].sum(), jobs["max_rss"].max())
    rows.sort(key=lambda row: row[2], reverse=True)
    _, jobs, seconds, _, busy, memory = zip(*rows, strict=True)
    rows.append(("all", sum(jobs), sum(seconds), float("nan"), sum(busy), pd.Series(memory).max()))
    columns = ("rule", "jobs", "seconds", "longest", "processor seconds", "peak memory, MB")
    shown = [[name, str(n), *(number(value, ",.0f") for value in own)] for name, n, *own in rows]
    return Table(columns, shown, {len(shown) - 1})


def _sources(paths: Sequence[str]) -> Table:
    """Return what each provenance.json says of a source."""
    rows = []
    for path in paths:
        record = read_json(path)
        name, files = Path(path).parent.name, record["files"]
        edition = record.get("version") or record.get("commit")
        where = " ".join(filter(None, [record["kind"], record.get("id"), edition]))
        size = f"{sum(file['size'] for file in files) / 1e6:,.1f}"
        rows.append([name, where, record.get("licence") or "", str(len(files)), size])
    return Table(("source", "from", "licence", "files", "MB"), rows)


def _software() -> Table:
    stages: dict[str, list[str]] = {"snakemake": []}
    for path in sorted((ROOT / "envs").glob("*.yaml")):
        for part in _load(path)["dependencies"]:
            for pin in part["pip"] if isinstance(part, dict) else []:
                stages.setdefault(pin, []).append(path.stem)
    return Table(
        ("package", "installed", "environments"),
        [[pin, _installed(pin), ", ".join(own)] for pin, own in sorted(stages.items())],
    )


def _installed(pin: str) -> str:
    try:
        return version(pin.split("=")[0])
    except PackageNotFoundError:
        return ""


# The pages that are no table's: title, and what builds them.
PAGES: dict[str, tuple[str, Callable[[Run], Iterator[Section]]]] = {
    "published": ("Published against reproduced", overview),
    "choices": ("The record of choices", choices),
    "run": ("Time, memory, software, sources", cost),
}
