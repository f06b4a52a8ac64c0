"""The report's pages: what a run published, chose and cost, each one HTML file.

A page needs no other file, holds no script and may load nothing. Every text is escaped; the words
that the run labelled are masked.
"""

import os
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import regex
import yaml
from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt

from headpursuit.config import SCHEMA, pooled_where, used_datasets
from headpursuit.files import ROOT, read_json, read_parquet, sha256
from headpursuit.labellers.audit import mask
from headpursuit.manifest import describe_workflow
from headpursuit.rule import describe_host
from headpursuit.settings import MISSING, labeller_name, leaves, value_at
from headpursuit.table1 import head_name
from headpursuit.table2 import number
from headpursuit.tables import read_csv
from headpursuit.words import normalise, word_pattern

# A token of so many letters may give away a longer word that begins with it.
TELLING = 4


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
    figures: Mapping[str, Path] = field(default_factory=dict)
    table: Table | None = None
    markup: str = ""  # HTML
    commands: list[str] = field(default_factory=list)


def write_page(name: str, files: Any, started_in: Path) -> str:
    """Return a page as HTML.

    Args:
        name: a key of :data:`PAGES`.
        files: the rule's input: paths, or lists of paths, by name; ``config`` is the config in
            force, in the run's folder.
        started_in: the folder that Snakemake runs in; paths are shown relative to it.
    """
    results = Path(files.config).parent
    config, paper = _load(files.config), _load(ROOT / "config.yaml")
    title, build, names = PAGES[name]
    shown = [path for each in names for path in _list(getattr(files, each))]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(files.template).read_text(encoding="utf-8"))
    return template.render(
        title=title,
        run=config["run"],
        warnings=list(_warnings(config, paper)),
        sections=list(build(files, config, paper, results)),
        sources={_relative(path, started_in): sha256(path) for path in shown},
        picture=lambda path: "data:image/png;base64," + b64encode(path.read_bytes()).decode(),
    )


def _load(path: str | Path) -> Any:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def _list(paths: Any) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)


def _relative(path: str | Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _warnings(config: Mapping[str, Any], paper: Mapping[str, Any]) -> Iterator[str]:
    """Say which of the paper's models a run replaces: its numbers are then another model's."""
    for section, what in (("text", "tables 1 and 2"), ("vision", "figure 1")):
        if not config[section]:
            continue
        own, theirs = (model_name(each, each[section]["model"]) for each in (config, paper))
        if own != theirs:
            yield (
                f"Another model for {what}: {own} here, {theirs} in the paper. Agreement and "
                "disagreement with published values say nothing about the paper."
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


def _published(path: str | Path) -> str:
    return render_markdown(Path(path).read_text(encoding="utf-8"))


def overview(files: Any, config: dict, paper: dict, results: Path) -> Iterator[Section]:
    """Every published value beside the run's, what the run is, and how to follow a number."""
    yield Section("This run", table=Table(("", "this run", "config.yaml"), _facts(config, paper)))
    yield Section("Every published value beside this run's", markup=_published(files.published))
    first = [config["text"]["datasets"][0], config["heads"]["methods"][0], config["heads"]["k"][-1]]
    follow = _traces(results, "table2", [first])
    follow.heading = "Follow a number, check the files"
    follow.text += " verify names files that changed since the manifest was written, and what "
    follow.text += "stands on them."
    follow.commands.append(f"python -m headpursuit.audit verify {results}")
    yield follow


def _traces(results: Path, table: str, rows: Iterable[Sequence[Any]]) -> Section:
    """Return the commands that follow rows of a table."""
    start = f"python -m headpursuit.audit trace {results}/tables/{table}.csv"
    return Section(
        "Follow a row",
        "trace prints what a row stands on, back to the prompts or images, with offensive words "
        "masked (--unmasked shows them).",
        commands=[
            "export PYTHONPATH=scripts",
            *(f"{start} {' '.join(map(str, row))}" for row in rows),
        ],
    )


def _facts(config: Mapping[str, Any], paper: Mapping[str, Any]) -> list[list[str]]:
    """Return the settings that a reader asks for first, of this run and of config.yaml."""

    def facts(own: Mapping[str, Any]) -> dict[str, str]:
        def model(name: str) -> str:
            spec = own["models"][name]
            shape = f"{spec['layers']} layers of {spec['heads']} heads, {spec['dtype']}"
            return f"{model_name(own, name)} ({shape})"

        def prompts(name: str) -> str:
            n = own["datasets"][name]["sample"]
            return f"{name}: {'all' if n is None else n} ({pooled_where(own, name)})"

        heads, vision = own["heads"], own["vision"]
        said = {
            "text model": model(own["text"]["model"]),
            "prompts (positions averaged)": "; ".join(map(prompts, used_datasets(own))),
            "words labelled by": labeller_name(own),
            "heads": f"top {_text(heads['k'])} by {_text(heads['methods'])}, times "
            f"{heads['alpha']:g}",
            "random draws": f"{heads['draws']}, {heads['count_draws']} of them also generate",
            "image model": model(vision["model"]) if vision else "left out",
        }
        if vision:
            images = vision["images"]
            said["images"] = (
                f"{_text(vision['datasets'])}: at most {images['selection']} of each class select, "
                f"{images['evaluation']} evaluate"
            )
        said["intervals"] = (
            f"{100 * own['score']['confidence']:g} %, {own['score']['resamples']} resamples"
        )
        return said | {"seed": str(own["seed"])}

    own, theirs = facts(config), facts(paper)
    workflow = describe_workflow()
    changed = f", with {len(workflow['changed'])} files changed" if workflow["changed"] else ""
    code = [["code", f"commit {workflow['commit'] or 'unknown'}{changed}", ""]]
    return [[name, text, theirs.get(name, "")] for name, text in own.items()] + code


def table2(files: Any, config: dict, paper: dict, results: Path) -> Iterator[Section]:
    """Table 2 and its figure, with the command that follows each row."""
    yield Section(figures={"Held-out words, after over before": Path(files.figures)})
    yield Section("The table", markup=_published(files.table2))
    yield _traces(results, "table2", _identities(results / "tables/table2.csv"))


def _identities(path: Path) -> list[list[Any]]:
    columns = ["dataset", "method", "heads", "metric"]
    return read_csv(path, columns)[columns].to_numpy().tolist()


def table1(files: Any, config: dict, paper: dict, results: Path) -> Iterator[Section]:
    """Table 1, labelled words masked."""
    words = {word for path in _list(files.words) for word in read_csv(path, ["word"])["word"]}
    for path in _list(files.labels or []):
        words |= {
            word for own in read_parquet(path, ["words"])["words"].to_pylist() for word in own
        }
    text = Path(files.table1).read_text(encoding="utf-8")
    yield Section(markup=render_markdown(mask_rows(text, words)))
    yield Section(
        text=f"Masked are tokens of the words that this run labelled, and tokens of {TELLING} "
        "letters or more that begin such a word. tables/table1.csv has all tokens as they are."
    )
    rows = read_csv(results / "tables/table1.csv", ["dataset", "layer", "head"])
    names = [(row.dataset, head_name(row.layer, row.head)) for row in rows.itertuples()]
    yield _traces(results, "table1", dict.fromkeys(names))


def mask_rows(text: str, words: set[str]) -> str:
    """Mask words in the rows of a Markdown table, and longer pieces that they begin with.

    Args:
        text: Markdown.
        words: what is masked, in any case.
    """
    words = {normalise(word) for word in words}
    starts = {word[:end] for word in words for end in range(TELLING, len(word) + 1)}
    whole = [
        regex.compile(word_pattern(word).pattern, regex.IGNORECASE)
        for word in sorted(words, key=len, reverse=True)
    ]

    def stars(match: regex.Match[str]) -> str:
        return mask(match.group()).replace("*", r"\*")

    def piece(match: regex.Match[str]) -> str:
        return stars(match) if normalise(match.group()) in starts else match.group()

    lines = []
    for line in text.splitlines():
        if line.startswith("|"):
            for pattern in whole:
                line = pattern.sub(stars, line)
            line = regex.sub(rf"\w{{{TELLING},}}", piece, line)
        lines.append(line)
    return "\n".join(lines)


def concepts(files: Any, config: dict, paper: dict, results: Path) -> Iterator[Section]:
    """The overlap of the concepts' heads."""
    yield Section(markup=_published(files.concepts))


def figure1(files: Any, config: dict, paper: dict, results: Path) -> Iterator[Section]:
    """Figure 1 with its numbers."""
    bars, overlap = map(Path, files.figures)
    yield Section(figures={"Right answers, after over before": bars})
    yield Section("The numbers", markup=_published(files.figure1))
    yield Section("Heads of one data set, answers on another", figures={"Overlap": overlap})
    yield _traces(results, "figure1", _identities(results / "tables/figure1.csv"))


# Choices


def choices(files: Any, config: dict, paper: dict, results: Path) -> Iterator[Section]:
    """The record of choices with the values in force."""
    rows = list(_choices(config, paper))
    columns = ("key", "in force", "config.yaml", "the paper", "what it is, and why so")
    apart = [row for row in rows if row[1] != row[2]]
    yield Section(
        f"What differs from config.yaml ({len(apart)} of {len(rows)})",
        "config.yaml is the paper's run as set up here. What the paper leaves open, or says "
        "otherwise, stands in the column of the paper.",
        table=Table(columns, apart, set(range(len(apart)))),
    )
    if not config["vision"]:
        yield Section(text="The image experiment is left out, and with it the keys of vision.")
    yield Section(
        "All choices",
        table=Table(columns, rows, {n for n, row in enumerate(rows) if row[1] != row[2]}),
    )


def _choices(config: Mapping[str, Any], paper: Mapping[str, Any]) -> Iterator[list[str]]:
    schema, demo = _load(SCHEMA), _load(ROOT / "configs/demo.yaml")
    for section, own in schema["properties"].items():
        for path, leaf in leaves(own, schema["$defs"], (section,)):
            if "paper" not in leaf:
                continue
            value, default = _in_force(config, path), _in_force(paper, path)
            if value is MISSING:
                continue
            reason = leaf.get("reason", "")
            if "demo" in leaf and value != default and value == _in_force(demo, path, config):
                reason = f"{reason} Demo: {leaf['demo']}"
            key = ".".join("<name>" if part == "*" else part for part in path)
            what = " ".join(filter(None, [leaf.get("description"), reason]))
            yield [key, _text(value), _text(default), leaf["paper"], what]


def _in_force(
    config: Mapping[str, Any], path: tuple[str, ...], run: Mapping[str, Any] | None = None
) -> Any:
    """Return a key's value; of a catalogue's key, the value of each entry that the run uses.

    Args:
        config: where the value stands.
        path: of the key; ``*`` is any entry of a catalogue.
        run: the config that says which entries are used; by default the same.
    """
    if "*" not in path:
        return value_at(config, path)
    names = _used(config if run is None else run, path[0])
    values = {name: value_at(config, (path[0], name, *path[2:])) for name in names}
    return {name: value for name, value in values.items() if value is not MISSING} or MISSING


def _used(config: Mapping[str, Any], catalogue: str) -> list[str]:
    """Return the entries of a catalogue that a run uses."""
    vision = config["vision"] or {}
    if catalogue == "datasets":
        return used_datasets(config)
    if catalogue == "image_datasets":
        return vision.get("datasets", [])
    built = (vision.get("build") or {}).get("language_model")
    names = [config["text"]["model"], vision.get("model"), built]
    return list(dict.fromkeys(filter(None, names)))


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


def run(files: Any, config: dict, paper: dict, results: Path) -> Iterator[Section]:
    """Time and memory of each rule, the machine, the software, and the sources."""
    yield Section(
        "Time and memory of each rule",
        "From benchmarks/, one file a job. Seconds are the jobs' own, added up; jobs side "
        "by side take less; those of earlier settings count too.",
        table=_benchmarks(results / "benchmarks"),
    )
    host = {name: value for name, value in describe_host().items() if name != "name"}
    host["memory"] = f"{host.pop('memory_bytes') / 2**30:.0f} GiB"
    yield Section(
        "The machine that wrote this page",
        table=Table(("", ""), [[name, str(value)] for name, value in host.items()]),
    )
    yield Section("Sources", table=_sources(_list(files.provenance)))
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


# A page's title, what builds it and the inputs whose hashes it gives, by its file's name.
PAGES: dict[str, tuple[str, Callable[..., Iterator[Section]], Sequence[str]]] = {
    "published": ("Published against reproduced", overview, ["published", "config"]),
    "table2": ("Table 2: held-out words", table2, ["table2", "figures"]),
    "table1": ("Table 1: what single heads write", table1, ["table1"]),
    "concepts": ("The heads of concepts", concepts, ["concepts"]),
    "figure1": ("Figure 1: image classes", figure1, ["figure1", "figures"]),
    "choices": ("The record of choices", choices, ["config"]),
    "run": ("Time, memory, software, sources", run, ["provenance"]),
}
