"""The research object of a run: an RO-Crate of its files, and of the jobs that made them.

It follows the profile Provenance Run Crate 0.5: the Snakefile is the workflow, each rule's script a
tool, each job an action from its inputs to its outputs.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from rocrate.model import ContextEntity
from rocrate.rocrate import ROCrate

from headpursuit.run.files import ROOT, atomic, read_json
from headpursuit.run.verify import PUBLISHED

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
TERMS = {
    "sha256": "https://w3id.org/ro/terms/workflow-run#sha256",
    "contentRating": "http://schema.org/contentRating",
}
DESCRIPTION = (
    "Tables, figures, intermediates and code of the run {}, with the jobs that made each file. "
    "Prompts, responses, labels and word lists in here hold offensive language: that is what the "
    "experiment counts. Intermediate files above a size limit are described, not packed."
)


def write_crate(
    path: Path, results: Path, started_in: Path, limit: int, pages: Sequence[str]
) -> None:
    """Pack a run with a manifest into an RO-Crate, the same bytes for the same manifest.

    Args:
        path: the zip file to write.
        results: the run's folder.
        started_in: the folder that the manifest's paths are relative to.
        limit: bytes; of larger files only tables and figures are packed, others are described.
        pages: of the report, relative to ``started_in``; they are packed.
    """
    manifest = read_json(results / "audit/manifest.json")
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms.update(TERMS)
    _describe(crate, manifest, results.name)
    code = {}
    for name in manifest["workflow"]["files"]:
        kind = ["File", "SoftwareSourceCode"] if name.endswith(".py") else "File"
        properties = {"@type": kind, "name": name}
        if name != "Snakefile":  # it is the main entity
            code[name] = crate.add_file(ROOT / name, f"workflow/{name}", properties=properties)
    files = dict(_files(crate, manifest, started_in, limit, code))
    for name in [f"{manifest['results']}/audit/manifest.json", *pages]:
        crate.add_file(started_in / name, name, properties={"name": name})
    _add_run(crate, manifest, files, list(_jobs(crate, manifest, files, code)))
    with atomic(path) as part, zipfile.ZipFile(part, "w") as archive:
        for entity in [*crate.data_entities, *crate.default_entities]:
            if chunks := list(entity.stream()):
                entry = zipfile.ZipInfo(chunks[0][0])  # of a fixed date
                content = b"".join(chunk for _, chunk in chunks)
                archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


def _add(crate: ROCrate, identifier: str, kind: str, **facts: Any) -> ContextEntity:
    return crate.add(ContextEntity(crate, identifier, {"@type": kind, **facts}))


def _describe(crate: ROCrate, manifest: Mapping[str, Any], run: str) -> None:
    """Say what the crate is, whose, and under which terms."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    root, (author,), (paper,) = crate.root_dataset, citation["authors"], citation["references"]
    root["name"] = f"{citation['title']}: run {run}"
    root["description"] = DESCRIPTION.format(run)
    root["datePublished"] = manifest["circumstances"]["date"]
    root["contentRating"] = "offensive language"
    root["license"] = _add(
        crate,
        f"https://spdx.org/licenses/{citation['license']}",
        "CreativeWork",
        name=citation["license"],
        description="Of the workflow and of what it derives. Sources have terms of their own.",
    )
    root["author"] = _add(crate, "#author", "Organization", name=author["name"])
    root["citation"] = _add(crate, paper["url"], "ScholarlyArticle", name=paper["title"])
    root["conformsTo"] = [
        _add(crate, profile, "CreativeWork", name=name, version=Path(profile).name)
        for profile, name in PROFILES.items()
    ]


def _files(
    crate: ROCrate,
    manifest: Mapping[str, Any],
    started_in: Path,
    limit: int,
    code: Mapping[str, Any],
) -> Iterator[tuple[str, Any]]:
    """Add the manifest's files, packed or described; yield names and entities."""
    sources = [name for name in manifest["files"] if name.endswith("/provenance.json")]
    licences = {name: read_json(started_in / name).get("licence") for name in sources}
    for name, facts in manifest["files"].items():
        if name.startswith("<workflow>/") and name.removeprefix("<workflow>/") in code:
            yield name, code[name.removeprefix("<workflow>/")]
            continue
        own = {**facts, **manifest["circumstances"]["files"].get(name, {})}
        properties = {"name": name, "sha256": own["sha256"], "contentSize": str(own["bytes"])}
        if (source := facts.get("listed_in", name)) in sources:
            properties["license"] = licences[source] or "not stated: the user's own files"
        # What lies outside the folder that Snakemake ran in is the user's own, and stays there.
        elsewhere = "listed_in" in facts or name.startswith(("/", "..", "<workflow>/"))
        if not elsewhere and (Path(name).parent.name in PUBLISHED or own["bytes"] <= limit):
            yield name, crate.add_file(started_in / name, name, properties=properties)
        else:
            properties["description"] = "Not packed; the manifest has its hash."
            yield name, _add(crate, f"#not-packed/{quote(name)}", "CreativeWork", **properties)


def _jobs(
    crate: ROCrate, manifest: Mapping[str, Any], files: Mapping[str, Any], code: Mapping[str, Any]
) -> Iterator[ContextEntity]:
    """Add an action for each job, from its inputs to its outputs."""
    jobs: dict[str, list[str]] = {}
    times = manifest["circumstances"]["jobs"]
    for name, facts in manifest["files"].items():
        if facts.get("script"):
            job = [facts["rule"], facts["inputs"], facts["params"], times[name]["ended"]]
            jobs.setdefault(str(job), []).append(name)
    for first, *others in jobs.values():
        facts = manifest["files"][first]
        yield crate.add_action(
            code[facts["script"]],
            f"#job/{quote(first)}",
            object=[files[name] for name in facts["inputs"]],
            result=[files[name] for name in (first, *others)],
            properties={"name": f"{facts['rule']}: {first}", "endTime": times[first]["ended"]},
        )


def _add_run(
    crate: ROCrate,
    manifest: Mapping[str, Any],
    files: Mapping[str, Any],
    jobs: Sequence[ContextEntity],
) -> None:
    """Add the workflow with its tools, and the run of it."""
    commit, changed = (manifest["workflow"][key] for key in ("commit", "changed"))
    version = manifest["circumstances"]["snakemake"]
    engine = {"name": "Snakemake", "softwareVersion": version}
    workflow = {
        "name": "headpursuit",
        "version": f"{commit or 'no commit'}{' and changes' if changed else ''}",
        "license": crate.root_dataset["license"],
        "hasPart": list({job["instrument"].id: job["instrument"] for job in jobs}.values()),
        "softwareRequirements": _add(crate, "#snakemake", "SoftwareApplication", **engine),
    }
    run = crate.add_action(
        crate.add_workflow(
            ROOT / "Snakefile",
            "workflow/Snakefile",
            main=True,
            lang="snakemake",
            properties=workflow,
        ),
        "#run",
        object=files[f"{manifest['results']}/config.yaml"],
        result=[entity for name, entity in files.items() if Path(name).parent.name in PUBLISHED],
        properties={"name": f"Run {Path(manifest['results']).name}"},
    )
    crate.root_dataset["mentions"] = [run, *jobs]
