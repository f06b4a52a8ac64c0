"""The report's pages: what a run published, chose and cost, each one HTML file.

A page needs no other file and may load nothing; only the atlas of heads holds a script, its own.
Every text is escaped; the words that the run labelled are masked.
"""

import hashlib
import os
from base64 import b64encode
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from math import nan
from pathlib import Path
from typing import Any

import regex
from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt

from headpursuit.publish import answer, claims
from headpursuit.publish.atlas import INTRODUCTION, atlas
from headpursuit.publish.masking import TELLING, mask_rows, offensive_words
from headpursuit.publish.settings import (
    DEMO,
    FULL,
    MISSING,
    in_force,
    key_name,
    labeller_name,
    leaves,
    sections,
    shipped_config,
    shown,
)
from headpursuit.publish.texts import number
from headpursuit.run.checks import PAGES
from headpursuit.run.estimate import measured
from headpursuit.run.experiments import (
    Config,
    kind_of,
    of_images,
    positions_of,
    ratio_tables,
    running,
)
from headpursuit.run.files import ROOT, read_json, sha256
from headpursuit.run.finished import Run, row_names
from headpursuit.run.manifest import describe_workflow
from headpursuit.run.rule import describe_host
from headpursuit.run.tables import read_csv
from headpursuit.run.uses import used_models, used_samples

# What a table holds, by its kind; and its parts on a page, by the end of the file's name.
KINDS = {
    "ratios": "measures after over before",
    "heads": "what single heads write",
    "overlaps": "heads that experiments share",
}
TRACED = (
    "trace prints what a row stands on, back to the prompts or images, with offensive words masked "
    "(--unmasked shows them)."
)
# The figure of atoms is not among them: its tokens are not masked.
PARTS = {
    "png": "After over before",
    "md": "The table",
    "tests.md": "Sets of heads over each other",
    "heads.png": "All heads; framed are those chosen",
    "overlap.md": "Chosen heads that experiments share",
}


@dataclass
class Section:
    """A part of a page: whatever it has is shown in this order."""

    heading: str = ""
    text: str = ""
    figure: Path | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    marked: Collection[int] = ()  # numbers of the rows that stand out
    markup: str = ""  # HTML
    commands: Sequence[str] = ()


def _parts(files: Any, table: str) -> dict[str, Path]:
    """Return a table's files and figures, by the end of their names."""
    own = [Path(path) for path in files.tables if Path(path).name.split(".")[0] == table]
    return {path.name.partition(".")[2]: path for path in own}


def write_page(name: str, run: Run, files: Any, started_in: Path) -> str:
    """Return a page as HTML.

    Args:
        name: ``answer``, ``published``, ``claims``, ``atlas``, ``choices``, ``run``, or a table of
            the config.
        run: the finished run.
        files: the rule's input: ``template``; ``script``, of the atlas; ``config``, the config in
            force, in the run's folder; ``tables``, all tables and figures; ``heads``, what the
            atlas shows; ``provenance``, of each source; ``summaries``, of labels.
        started_in: the folder that Snakemake runs in; paths are shown relative to it.
    """
    config = run.config
    sources, script, data = list(_parts(files, name).values()), "", None
    if name == "answer":
        title, parts = "What this run found", first_page(files, config)
        tables = [*ratio_tables(config)[:1], "claims"]
        sources = [path for table in tables for path in _parts(files, table).values()]
    elif name == "published":
        title, parts = "Published against reproduced", overview(files, config)
        sources.append(files.config)
    elif name == "claims":
        title = "The paper's claims, and what this run says of them"
        parts = claims_page(files, config)
    elif name == "choices":
        title, parts, sources = "The record of choices", choices(config), [files.config]
    elif name == "run":
        title, parts = "Time, memory, software, sources", cost(files)
        sources = [*files.provenance, *files.summaries]
    elif name == "atlas":
        title, parts = "Atlas of heads", [Section(text=INTRODUCTION)]
        data = atlas(run)
        script, sources = Path(files.script).read_text(encoding="utf-8"), files.heads
    else:
        title = f"{name}: {KINDS[kind_of(config, config['tables'][name])]}"
        parts = table_page(files, config, name)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(files.template).read_text(encoding="utf-8"))
    return template.render(
        title=title,
        run=config["run"],
        warnings=list(other_models(config)),
        sections=list(parts),
        sources={Path(os.path.relpath(p, started_in)).as_posix(): sha256(p) for p in sources},
        embedded=name == "answer",  # Snakemake's report begins with it, and has no such policy
        script=script,
        script_hash=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=data,
        picture=lambda path: "data:image/png;base64," + b64encode(path.read_bytes()).decode(),
    )


def other_models(config: Config) -> Iterator[str]:
    """Say which of the paper's models a run replaces: its numbers are then another model's."""

    def models(own: Config, images: bool) -> list[str]:
        experiments = [own["experiments"][name] for name in running(own)]
        alike = [e for e in experiments if of_images(own["samples"][e["samples"]]) == images]
        return list(dict.fromkeys(model_name(own, each["model"]) for each in alike))

    for images, what in ((False, "prompts"), (True, "images")):
        theirs = models(shipped_config(FULL), images)
        if others := [name for name in models(config, images) if name not in theirs]:
            yield (
                f"Another model reads the {what}: {', '.join(others)} here, {', '.join(theirs)} in "
                "the paper. Agreement and disagreement with published values say nothing about "
                "the paper."
            )


def model_name(config: Config, model: str) -> str:
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


def table_page(files: Any, config: Config, name: str) -> Iterator[Section]:
    """A table with its figures, labelled words masked, and the commands that trace its rows."""
    parts, kind = _parts(files, name), kind_of(config, config["tables"][name])
    masked = kind == "heads" or "overlap.md" in parts
    words = offensive_words(config, Path(files.config).parent) if masked else set()
    covered = False
    for end, heading in PARTS.items():
        if end in parts and end.endswith("png"):
            yield Section(heading, figure=parts[end])
        elif end in parts:
            text = parts[end].read_text(encoding="utf-8")
            safe = mask_rows(text, words)
            covered |= safe.splitlines() != text.splitlines()
            yield Section(heading, markup=render_markdown(safe))
    if covered:
        yield Section(
            text=f"Masked are tokens of the words that this run labelled, and tokens of {TELLING} "
            f"letters or more that begin such a word. The CSV files have all tokens as they are."
        )
    yield Section("Follow a row", TRACED, commands=_traces(files, config, name))


def _traces(files: Any, config: Config, table: str) -> list[str]:
    """Return the commands that follow the rows of a table, and of its overlaps."""
    kind = kind_of(config, config["tables"][table])
    commands = []
    for end, own in (("csv", kind), ("overlap.csv", "overlaps")):
        if path := _parts(files, table).get(end):
            rows = row_names(read_csv(path, []), own)
            commands += [f"headpursuit trace {path} {' '.join(row)}" for row in rows]
    return list(dict.fromkeys(commands))


def first_page(files: Any, config: Config) -> Iterator[Section]:
    """The answer: a picture, three numbers with intervals, and the verdicts on the claims."""
    verdicts = read_csv(_parts(files, "claims")["csv"])
    cells = claims.display(verdicts, config["score"]["confidence"])
    for table in ratio_tables(config)[:1]:
        parts = _parts(files, table)
        yield Section(f"{table}: after over before", figure=parts["png"])
        found = answer.numbers(read_csv(parts["csv"]), read_csv(parts["tests.csv"]), verdicts)
        level = f"{100 * config['score']['confidence']:g} % interval"
        yield Section("In numbers", columns=("", f"ratio, {level}"), rows=list(found))
    said, shown = answer.verdicts(verdicts, cells)
    rows = shown.to_numpy().tolist()
    yield Section("The paper's claims", said, columns=list(shown), rows=rows)
    others = [*PAGES, *(name for name, own in config["tables"].items() if own)][1:]
    show = f"headpursuit open {Path(files.config).parent}"
    yield Section("Further pages", commands=[f"{show} {name}" for name in others])


def overview(files: Any, config: Config) -> Iterator[Section]:
    """Every published value beside the run's, what the run is, and how to follow a number."""
    own, theirs = map(_described, (config, shipped_config()))
    rows = [[name, text, theirs.get(name, "")] for name, text in own.items()]
    workflow = describe_workflow()
    changed = f", with {len(workflow['changed'])} files changed" if workflow["changed"] else ""
    rows.append(["code", f"commit {workflow['commit'] or 'unknown'}{changed}", ""])
    yield Section("This run", columns=("", "this run", "config.yaml"), rows=rows)
    text = _parts(files, "published")["md"].read_text(encoding="utf-8")
    yield Section("Every published value beside this run's", markup=render_markdown(text))
    ratios = ratio_tables(config)[:1]
    first = [command for table in ratios for command in _traces(files, config, table)[:1]]
    yield Section(
        "Follow a number, check the files",
        f"{TRACED} verify names files that changed since the manifest was written, and what stands "
        "on them.",
        commands=[*first, f"headpursuit verify {Path(files.config).parent}"],
    )


def claims_page(files: Any, config: Config) -> Iterator[Section]:
    """The verdicts on each claim of the paper, a claim a section; those tested come first."""
    parts, confidence = _parts(files, "claims"), config["score"]["confidence"]
    cells = claims.display(read_csv(parts["csv"]), confidence)
    _, _, said = parts["md"].read_text(encoding="utf-8").rpartition("|\n")
    yield Section(markup=render_markdown(said))
    untested = cells["verdict"] == "untested"
    for (claim, place), own in cells[~untested].groupby(["claim", "in the paper"], sort=False):
        own = own.drop(columns=["claim", "in the paper"])
        yield Section(
            claim, f"In the paper: {place}.", columns=list(own), rows=own.to_numpy().tolist()
        )
    rows = cells.loc[untested, ["in the paper", "claim", "note"]]
    if len(rows):
        yield Section("Untested in this run", columns=list(rows), rows=rows.to_numpy().tolist())


def _described(config: Config) -> dict[str, str]:
    """Return each model, samples and experiment in a line, and what all have."""

    def of(own: Config, *keys: str) -> dict[str, Any]:
        return {key: own[key] for key in keys if own.get(key) not in (None, [])}

    said = {}
    for name in used_models(config):
        shape = of(config["models"][name], "layers", "heads", "dtype")
        said[f"model {name}"] = shown({"from": model_name(config, name)} | shape)
    for name in used_samples(config):
        drawn = of(config["samples"][name], "sample", "per_class", "references", "excluding")
        said[f"samples {name}"] = shown(drawn) or "all"
    for name in running(config):
        own = config["experiments"][name]
        facts = of(own, "samples", "model", "concept") | {"positions": positions_of(config, own)}
        if own["measures"]:
            facts |= of(own, "heads_from", "methods", "k", "alpha", "at", "draws", "measures")
        said[f"experiment {name}"] = shown(facts)
    score = config["score"]
    intervals = f"{100 * score['confidence']:g} %"
    said |= {"words labelled by": labeller_name(config), "intervals": intervals}
    return said | {"seed": str(config["seed"])}


# Choices


def choices(config: Config) -> Iterator[Section]:
    """The record of choices with the values in force."""
    rows = list(choices_in_force(config))
    columns = ("key", "in force", "config.yaml", "the paper", "what it is, and why so")
    apart = [number for number, row in enumerate(rows) if row[1] != row[2]]
    yield Section(
        f"What differs from config.yaml ({len(apart)} of {len(rows)})",
        "config.yaml is the paper's run as set up here. What the paper leaves open, or says "
        "otherwise, stands in the column of the paper.",
        columns=columns,
        rows=[rows[number] for number in apart],
        marked=range(len(apart)),
    )
    yield Section("All choices", columns=columns, rows=rows, marked=apart)


def choices_in_force(config: Config) -> Iterator[list[str]]:
    """Yield each choice: key, value in force, config.yaml's, the paper's word, and what it is."""
    for path, leaf in leaves({"properties": sections()}):
        value, default = in_force(config, path), in_force(shipped_config(), path)
        if "paper" not in leaf or value is MISSING:
            continue
        what = f"{leaf['description']} {leaf['reason']}"
        if "demo" in leaf and value != default and value == in_force(shipped_config(DEMO), path):
            what += f" Demo: {leaf['demo']}"
        yield [key_name(path), shown(value), shown(default), leaf["paper"], what]


# What it took


def cost(files: Any) -> Iterator[Section]:
    """Time and memory of each rule, the machine, the software, the sources, and the labelling."""
    rows = benchmarks(Path(files.config).parent / "benchmarks")
    yield Section(
        "Time and memory of each rule",
        "From benchmarks/, one file a job. Seconds are the jobs' own, added up; jobs side "
        "by side take less; those of earlier settings count too.",
        columns=("rule", "jobs", "seconds", "longest", "processor seconds", "peak memory, MB"),
        rows=rows,
        marked=[len(rows) - 1],
    )
    host = describe_host()
    host["memory"] = f"{host.pop('memory_bytes') / 2**30:.0f} GiB"
    rows = [[name, str(value)] for name, value in host.items() if name != "name"]
    yield Section("The machine that wrote this page", columns=("", ""), rows=rows)
    columns = ("source", "from", "licence", "files", "MB")
    rows = list(map(_source, files.provenance))
    yield Section("Sources", columns=columns, rows=rows)
    yield Section(
        "Software",
        "Pinned in requirements.txt; envs/ repeat it, a stage at a time (click a rule under "
        "Workflow). Installed is what the job that wrote this page found.",
        columns=("package", "pinned", "installed"),
        rows=_software(),
    )
    for path in files.summaries:
        facts, name = read_json(path), Path(path).name.removesuffix(".summary.json")
        words = [f"{own['word']} ({own['responses']})" for own in facts.pop("words")]
        facts = {**facts.pop("labeller"), **facts, "most frequent words": words}
        rows = [[key, shown(value)] for key, value in facts.items()]
        yield Section(f"Labels of {name}", "Harmful words are masked.", columns=("", ""), rows=rows)


def benchmarks(folder: Path) -> list[list[str]]:
    """Return what the jobs of each rule took, as :func:`cost` shows it, and of all."""
    rules = sorted(measured(folder).items(), key=lambda rule: -rule[1]["hours"])
    every = {key: sum(own[key] for _, own in rules) for key in ("jobs", "hours", "cpu_hours")}
    every["longest_hours"] = nan
    every["max_rss_mb"] = max((own["max_rss_mb"] for _, own in rules), default=0)
    units = {"jobs": 1, "hours": 3600, "longest_hours": 3600, "cpu_hours": 3600, "max_rss_mb": 1}
    return [
        [name, *(number(own[key] * unit, ",.0f") for key, unit in units.items())]
        for name, own in [*rules, ("all", every)]
    ]


def _source(path: str) -> list[str]:
    """Return what a provenance.json says: name, origin, licence, number of files and their MB."""
    record = read_json(path)
    edition = record.get("version") or record.get("commit")
    where = " ".join(filter(None, [record["kind"], record.get("id"), edition]))
    size = f"{sum(file['size'] for file in record['files']) / 1e6:,.1f}"
    licence, n = record.get("licence") or "", str(len(record["files"]))
    return [Path(path).parent.name, where, licence, n, size]


def _software() -> list[list[str]]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if "==" in line]
    installed = {name: next(distributions(name=name), None) for name, _ in pins}
    return [[name, pin, own.version if (own := installed[name]) else ""] for name, pin in pins]
