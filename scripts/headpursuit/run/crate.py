"""The research object of a run: an RO-Crate of its files, and of the jobs that made them.

It follows the profile Provenance Run Crate 0.5: the Snakefile is the workflow, each rule's script a
tool, each job an action from its inputs to its outputs.
"""

import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from rocrate.model import ContextEntity
from rocrate.rocrate import ROCrate

from headpursuit.run.files import ROOT, atomic, read_json
from headpursuit.run.verify import PUBLISHED

RUNS = "https://w3id.org/ro/wfrun"
PROFILES = {
    f"{RUNS}/process/0.5": "Process Run Crate",
    f"{RUNS}/workflow/0.5": "Workflow Run Crate",
    f"{RUNS}/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
TERMS = "https://w3id.org/ro/terms/workflow-run#"
# The workflow's own files, as far as a checkout has them.
CODE = ("Snakefile", "config.yaml", "requirements.txt", "README.md", "LICENSE", "CITATION.cff")
CODE_FOLDERS = ("rules", "scripts", "schemas", "envs", "configs", "prompts", "report", "data")
WARNING = (
    "Prompts, responses, labels and word lists in here hold offensive language: that is what the "
    "experiment counts."
)
TYPES = {
    ".csv": "text/csv",
    ".md": "text/markdown",
    ".tex": "application/x-tex",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".yaml": "application/yaml",
    ".html": "text/html",
    ".png": "image/png",
    ".pdf": "application/pdf",
    ".parquet": "application/vnd.apache.parquet",
    ".safetensors": "application/octet-stream",
}


def write_crate(
    path: Path, results: Path, started_in: Path, limit: int, pages: Sequence[str]
) -> None:
    """Pack a run with a manifest into an RO-Crate.

    Tables and figures are packed whatever their size, and the report's pages; of the other files
    those of at most ``limit`` bytes, the larger ones are described only.

    Args:
        path: the zip file to write.
        results: the run's folder.
        started_in: the folder that the manifest's paths are relative to.
        limit: bytes.
        pages: of the report, relative to where Snakemake ran.
    """
    manifest = read_json(results / "audit/manifest.json")
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms.update(
        {"sha256": f"{TERMS}sha256", "contentRating": "http://schema.org/contentRating"}
    )
    _describe(crate, manifest, results)
    commit = manifest["workflow"].get("commit") or "no commit"
    version = f"{commit} and changes" if manifest["workflow"].get("changed") else commit
    code = _code(crate, version)
    files = _files(crate, manifest, started_in, limit, code)
    for page in [results / "audit/manifest.json", *(started_in / name for name in pages)]:
        name = page.relative_to(started_in).as_posix()
        files[name] = _add_file(crate, page, name, {})
    workflow = _workflow(crate, version)
    jobs = list(_jobs(crate, manifest, files, code))
    _run(crate, manifest, workflow, files, jobs)
    _zip(crate, path)


def _describe(crate: ROCrate, manifest: Mapping[str, Any], results: Path) -> None:
    """Say what the crate is, whose, and under which terms."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    root, run = crate.root_dataset, results.name
    root["name"] = f"{citation['title']}: run {run}"
    root["description"] = (
        f"Tables, figures, intermediates and code of the run {run}, with the jobs that made each "
        f"file. {WARNING} Intermediate files above a size limit are described, not packed."
    )
    root["datePublished"] = manifest["circumstances"]["date"]
    root["contentRating"] = "offensive language"
    root["keywords"] = "attention heads, interpretability, reproduction, offensive language"
    terms = (
        "Of the workflow and of what it derives. Sources have terms of their own, named with each."
    )
    root["license"] = _add(
        crate,
        f"https://spdx.org/licenses/{citation['license']}",
        {"@type": "CreativeWork", "name": citation["license"], "description": terms},
    )
    root["author"] = root["publisher"] = [
        _add(crate, f"#author-{n}", {"@type": "Organization", "name": author["name"]})
        for n, author in enumerate(citation["authors"], 1)
    ]
    root["citation"] = [
        _add(crate, paper["url"], {"@type": "ScholarlyArticle", "name": paper["title"]})
        for paper in citation["references"]
    ]
    root["conformsTo"] = [
        _add(crate, profile, {"@type": "CreativeWork", "name": name, "version": Path(profile).name})
        for profile, name in PROFILES.items()
    ]


def _add(crate: ROCrate, identifier: str, facts: Mapping[str, Any]) -> ContextEntity:
    return crate.add(ContextEntity(crate, identifier, facts))


def _add_file(crate: ROCrate, source: Path, name: str, facts: Mapping[str, Any]) -> Any:
    kind = TYPES.get(source.suffix, "text/plain")
    properties = {"name": name, "encodingFormat": kind, "contentSize": str(source.stat().st_size)}
    return crate.add_file(source, name, properties=properties | dict(facts))


def _code(crate: ROCrate, version: str) -> dict[str, Any]:
    """Pack the workflow's files below ``workflow/``; return them by their name in the checkout."""
    paths = [ROOT / name for name in CODE if (ROOT / name).exists()]
    for folder in CODE_FOLDERS:
        paths += [
            path
            for path in sorted((ROOT / folder).rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        ]
    code = {}
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        if name == "Snakefile":
            continue  # the main entity
        facts = {}
        if path.suffix == ".py":
            facts = {"@type": ["File", "SoftwareSourceCode"], "programmingLanguage": "Python"}
            facts |= {"version": version}
        code[name] = _add_file(crate, path, f"workflow/{name}", facts)
    return code


def _files(
    crate: ROCrate,
    manifest: Mapping[str, Any],
    started_in: Path,
    limit: int,
    code: Mapping[str, Any],
) -> dict[str, Any]:
    """Add the manifest's files, packed or described; return the entities by the manifest's name."""
    changing = manifest["circumstances"]["files"]
    sources = _sources(crate, manifest, started_in)
    files = {}
    for name, facts in manifest["files"].items():
        own = changing.get(name, facts)
        inside = name.removeprefix("<workflow>/")
        if inside in code and inside != name:
            files[name] = code[inside]
            continue
        properties = {"sha256": own["sha256"]}
        path = started_in / name
        packed = Path(name).parent.name in PUBLISHED or own["bytes"] <= limit
        # What lies outside the folder that Snakemake ran in is the user's own, and stays there.
        outside = PurePosixPath(os.path.normpath(name)).is_absolute() or name.startswith("..")
        held = facts.get("listed_in")
        if packed and not outside and not held:
            files[name] = _add_file(crate, path, name, properties)
        else:
            properties |= {"@type": "CreativeWork", "name": name, "contentSize": str(own["bytes"])}
            properties["description"] = "Not packed; the manifest has its hash."
            files[name] = _add(crate, f"#not-packed/{name}", properties)
        if source := sources.get(held or name):
            files[name]["isPartOf"] = source
    return files


def _sources(
    crate: ROCrate, manifest: Mapping[str, Any], started_in: Path
) -> dict[str, ContextEntity]:
    """Describe each download with its licence; return them by their provenance.json."""
    sources = {}
    for name in manifest["files"]:
        if not name.endswith("/provenance.json"):
            continue
        record = read_json(started_in / name)
        if "licence" not in record and "kind" not in record:
            continue
        folder = Path(name).parent.name
        facts = {
            "@type": "CreativeWork",
            "name": " ".join(filter(None, [record.get("id") or folder, record.get("version")])),
            "license": record.get("licence") or "not stated: the user's own files",
            "version": record.get("version") or record.get("commit"),
            "url": record.get("url"),
        }
        kept = {key: value for key, value in facts.items() if value}
        sources[name] = _add(crate, f"#source/{folder}", kept)
    return sources


def _workflow(crate: ROCrate, version: str) -> Any:
    facts = {
        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
        "name": "headpursuit",
        "version": version,
        "license": crate.root_dataset["license"],
        "author": crate.root_dataset["author"],
    }
    return crate.add_workflow(
        ROOT / "Snakefile", "workflow/Snakefile", main=True, lang="snakemake", properties=facts
    )


def _jobs(
    crate: ROCrate,
    manifest: Mapping[str, Any],
    files: Mapping[str, Any],
    code: Mapping[str, Any],
) -> Iterator[tuple[str, ContextEntity]]:
    """Add an action for each job, from its inputs to its outputs; yield rule and action."""
    jobs: dict[str, list[str]] = {}
    times = manifest["circumstances"]["jobs"]
    for name, facts in manifest["files"].items():
        if facts.get("script"):
            identity = [facts["rule"], facts["inputs"], facts["params"], times[name]["ended"]]
            jobs.setdefault(json.dumps(identity, sort_keys=True), []).append(name)
    for outputs in jobs.values():
        facts, when = manifest["files"][outputs[0]], times[outputs[0]]
        action = {
            "@type": "CreateAction",
            "name": f"{facts['rule']}: {outputs[0]}",
            "instrument": code[facts["script"]],
            "object": [files[name] for name in facts["inputs"] if name in files],
            "result": [files[name] for name in outputs],
            "actionStatus": "http://schema.org/CompletedActionStatus",
        }
        if when["ended"]:
            ended = datetime.fromisoformat(when["ended"])
            action["endTime"] = ended.isoformat()
            if when["seconds"] is not None:
                began = ended - timedelta(seconds=when["seconds"])
                action["startTime"] = began.isoformat(timespec="seconds")
        yield facts["rule"], _add(crate, f"#job/{outputs[0]}", action)


def _run(
    crate: ROCrate,
    manifest: Mapping[str, Any],
    workflow: Any,
    files: Mapping[str, Any],
    jobs: Sequence[tuple[str, ContextEntity]],
) -> None:
    """Add the run itself: the workflow's steps, and what Snakemake did."""
    steps, controls = {}, []
    for rule, action in jobs:
        if rule not in steps:
            step = {"@type": "HowToStep", "name": rule, "position": str(len(steps) + 1)}
            step["workExample"] = action["instrument"]
            steps[rule] = _add(crate, f"workflow/Snakefile#{rule}", step)
        control = {"@type": "ControlAction", "name": f"orchestrate {action['name']}"}
        control |= {"instrument": steps[rule], "object": action}
        controls.append(_add(crate, action.id.replace("#job/", "#control/", 1), control))
    tools = {action["instrument"].id: action["instrument"] for _, action in jobs}
    workflow["step"], workflow["hasPart"] = list(steps.values()), list(tools.values())
    config = f"{manifest['results']}/config.yaml"
    profile = {"@id": "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"}
    parameter = {"@type": "FormalParameter", "name": "config", "additionalType": "File"}
    workflow["input"] = _add(
        crate, "workflow/Snakefile#config", parameter | {"conformsTo": profile}
    )
    files[config]["exampleOfWork"] = workflow["input"]
    began = [action["startTime"] for _, action in jobs if action.get("startTime")]
    ended = [action["endTime"] for _, action in jobs if action.get("endTime")]
    run = {
        "@type": "CreateAction",
        "name": f"Run {Path(manifest['results']).name}",
        "description": f"On {_machine(manifest)}.",
        "instrument": workflow,
        "object": files[config],
        "result": [own for name, own in files.items() if Path(name).parent.name in PUBLISHED],
        **({"startTime": min(began), "endTime": max(ended)} if began and ended else {}),
    }
    engine = {"@type": "SoftwareApplication", "name": "Snakemake"}
    engine |= {
        "url": "https://snakemake.github.io",
        "softwareVersion": manifest["circumstances"]["snakemake"],
    }
    organised = {
        "@type": "OrganizeAction",
        "name": "Snakemake's part in the run",
        "instrument": _add(crate, "#snakemake", engine),
        "object": controls,
        "result": _add(crate, "#run", run),
    }
    _add(crate, "#snakemake-run", organised)
    crate.root_dataset["mentions"] = [organised["result"], *(action for _, action in jobs)]


def _machine(manifest: Mapping[str, Any]) -> str:
    host = manifest["circumstances"]["host"]
    return ", ".join(f"{key}: {value}" for key, value in host.items() if key != "name")


def _zip(crate: ROCrate, path: Path) -> None:
    """Write the crate, the same bytes for the same files."""
    for entity in crate.get_entities():
        for key in [key for key in entity if not key.startswith("@")]:
            # In compact JSON-LD one value is no list, and none is nothing.
            if isinstance(value := entity[key], list) and len(value) < 2:
                del entity[key]
                if value:
                    entity[key] = value[0]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, atomic(path) as part:
        crate.write(folder)
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(Path(folder).rglob("*")):
                if file.is_file():
                    entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, file.read_bytes())
