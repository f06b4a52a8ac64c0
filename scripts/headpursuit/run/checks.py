"""What no schema sees in a config: keys that name other keys, and numbers that bound each other.

A check gets the config and an entry, and finds: the key inside the entry, whether it is wrong, what
to say.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headpursuit.run.expand import multiverse
from headpursuit.run.experiments import (
    Config,
    candidate_layers,
    concept_of,
    head_of,
    heads_of,
    kind_of,
    of_classes,
    of_images,
    running,
    scalings,
)
from headpursuit.run.files import beside
from headpursuit.run.schema import shown
from headpursuit.run.uses import (
    labelled,
    run_labellers,
    used_classifiers,
    used_concepts,
    used_models,
    used_samples,
    used_sources,
)

Findings = Iterator[tuple[str, Any, str]]
Entry = Mapping[str, Any]
# Keys of an entry that name one elsewhere.
NAMING = {"model": "models", "samples": "samples", "concept": "concepts", "source": "sources"}
NAMING |= {"heads_from": "experiments", "excluding": "samples", "classifier": "classifiers"}
# Pages of the report beside those of the tables: category (they go by its name) and label.
PAGES = {
    "answer": ("0 What was found", "answer"),
    "published": ("1 Published against reproduced", "overview"),
    "claims": ("1 The paper's claims", "verdicts"),
    "atlas": ("2 Atlas of heads", "atlas"),
    "choices": ("3 Choices", "choices in force"),
    "run": ("4 Time, memory, software", "time, memory, software, sources"),
}


def _absent(config: Config, catalogue: str, name: Any) -> tuple[bool, str]:
    there = ", ".join(config[catalogue].keys()) or "none"
    said = f"{shown(name)} is not under {catalogue}; there are {there}"
    return name not in config[catalogue], said


def _no_file(path: str, folders: bool = False, find: Callable = beside) -> tuple[bool, str]:
    if signs := sorted(set(path) & set("{}<>\n")):
        return True, f"a path with {shown(signs)} is none for Snakemake; rename what is there"
    try:
        there = find(path).exists() if folders else find(path).is_file()
    except OSError as error:
        return True, f"{shown(path)}: {error.strerror}"
    home = "; ~ is not expanded, write the folder out" if path.startswith("~") else ""
    return not there, f"there is no file {'or folder ' if folders else ''}{shown(path)}{home}"


def _table(config: Config, names: Sequence[str]) -> Findings:
    for name in names:
        yield "", *_absent(config, "experiments", name)
    kinds = {kind_of(config, [name]) for name in names}
    kind = "measures, with a concept alone and with neither"
    yield "", len(kinds) > 1, f"experiments with {kind} make tables of their own"


def _table_names(config: Config, own: Entry) -> Findings:
    for name in PAGES:
        yield name, own.get(name), "the report has a page of that name; use another name"


def _like(config: Config, own: Entry) -> Findings:
    if "like" in own:
        name, seen = own["like"], []
        yield "like", *_absent(config, "experiments", name)
        late = name in config["experiments"] and "like" not in config["experiments"][name]
        yield "like", late, f"{name} is made of splits or choices; name what it is made of"
        while name in config["experiments"] and name not in seen:
            seen.append(name)
            name = config["experiments"][name].get("like")
        yield "like", name in seen, f"leads back, in a circle: {', '.join(seen)}"


def _splits(config: Config, own: Entry) -> Findings:
    every = config["experiments"]
    name = next(name for name, entry in every.items() if entry is own)
    for split in range(own["split"] + 1, own["split"] + own["splits"]):
        twin = f"{name}-split{split}"
        other = every[twin] != {**own, "split": split, "splits": 1}
        yield "splits", other, f"{twin} is one of these, and says otherwise; give it another name"


def _of_multiverse(config: Config, own: Entry) -> Findings:
    for name in own["of"]:
        yield "of", *_absent(config, "experiments", name)
    for name, variants in multiverse(config).items():
        lost = 1 + sum(map(len, own["choices"].values())) + len(own["together"]) - len(variants)
        yield "choices", lost > 0, f"{lost} variants of {name} have the name of another"


def _references(config: Config, own: Entry) -> Findings:
    for key, catalogue in NAMING.items():
        if own.get(key) is not None:
            yield key, *_absent(config, catalogue, own[key])


def _own_source(config: Config, own: Entry) -> Findings:
    if own["kind"] == "local":  # download_source looks in the working directory only
        yield "path", *_no_file(own["path"], folders=True, find=Path)


def _concept(config: Config, own: Entry) -> Findings:
    if own.get("file"):
        yield "file", *_no_file(own["file"])


def _labeller(config: Config, own: Entry) -> Findings:
    used, lacks = run_labellers(config), "missing; labeller.backend or second needs it"
    concepts = labelled(config).values()
    images = any("keywords" in concept for concept in concepts)
    for key in ("backend", "second"):
        blind = images and own[key] == "lexicon"
        yield key, blind, "a word list sees no image, and a concept asks for keywords of images"
    if "lexicon" in used:
        yield "lexicon.source", *_absent(config, "sources", own["lexicon"]["source"])
        yield "lexicon.files", own["lexicon"]["files"] is None, lacks
    if "openai" in used:
        yield "openai.base_url", own["openai"]["base_url"] is None, lacks
    asked = {"": own} if any("labelled" in concept for concept in concepts) else {}
    for place, said in (asked | ({"keywords.": own["keywords"]} if images else {})).items():
        if {"ollama", "openai"} & set(used):
            yield f"{place}prompt", *_no_file(said["prompt"])
        nameless = "openai" in used and said["openai"]["model"] is None
        yield f"{place}openai.model", nameless, lacks
    again = own["second"] == own["backend"]
    yield "second", again, f"{own['second']} is the first already; null, or another"


def _words(config: Config, own: Entry) -> Findings:
    samples, read = config["samples"][own["samples"]], own["samples"]
    images, concept = of_images(samples), concept_of(config, own)
    usual = "images: image" if images else "prompts: prompt, last or response"
    strange = own["positions"] is not None and (own["positions"] == "image") != images
    yield "positions", strange, f"{own['positions']} is none of {read}, {usual}"
    nowhere = not images and "image" in [at for _, at in scalings(own)]
    yield "at", nowhere, f"{read} are prompts, which have no image tokens"
    alone = own["measures"] and concept is None
    yield "measures", alone, "nothing can be measured without a concept"
    toxic = "toxicity" in own["measures"] and own["classifier"] is None
    there = ", ".join(config["classifiers"]) or "none"
    yield "classifier", toxic, f"toxicity is measured by one; under classifiers there are {there}"
    again = images and own["generation"]["samples"] > 1
    yield "generation.samples", again, f"{read} are images, which are asked about once; 1"
    classed = "images of classes" if of_classes(samples) else "images with references"
    kind = classed if images else "prompts"
    fitting = {"exact_match": "images of classes", "expected": "prompts"}
    for measure in own["measures"]:
        needed = fitting.get(measure, kind)
        yield "measures", needed != kind, f"{measure} is measured on {needed}; {read} are {kind}"
        lacking = measure in ("f1", "cider") and not samples.get("references")
        yield (
            "measures",
            lacking,
            f"{measure} needs right answers or captions: references of {read}",
        )
    if concept is None:
        return
    unnamed = concept.get("class_names") and not of_classes(samples)
    yield "concept", unnamed, f"{read} are {kind}, which have no classes"
    whole = max(own["split"], own["splits"] - 1) and concept["selection_share"] == 1
    said = "another split, but the concept's words are not split (selection_share is 1)"
    yield "split" if own["split"] else "splits", whole, said
    unread = images and "prompt" in concept.get("labelled", {}).get("texts", [])
    yield "concept", unread, "labelled.texts has prompt, but images have no prompts of their own"
    imageless = not images and "keywords" in concept
    yield "concept", imageless, f"keywords are asked about images; {read} are {kind}"
    yield "pursuit.unrelated_words", *_no_file(own["pursuit"]["unrelated_words"])


def _heads(config: Config, own: Entry) -> Findings:
    generation = own["generation"]
    same = generation["samples"] > 1 and generation["temperature"] == 0
    alike = f"{generation['samples']} greedy responses of a sample are all the same"
    yield "generation.samples", same, f"{alike}; 1, or a temperature above 0"
    same = generation["seed"] > 0 and generation["temperature"] == 0
    yield "generation.seed", same, "greedy responses use no random numbers; a temperature above 0"
    if own["concept"] is None:
        return
    model = config["models"][own["model"]]
    first, last = candidate_layers(own, model)
    end = model["layers"] - 1
    yield "last_layer", last > end, f"{last}, but the last layer of {own['model']} is {end}"
    yield "first_layer", first > last, f"{first} comes after the last candidate layer, {last}"
    there = (last - first + 1) * model["heads"]
    room = f"the {there} heads of {own['model']}'s layers {first} to {last}; at most {there // 2}"
    for k in own["k"]:
        yield "k", 0 < there < 2 * k, f"{k} heads and as many other ones do not fit into {room}"
    more = (own["count_draws"] or 0) > own["draws"]
    yield "count_draws", more, f"{own['count_draws']} is above draws, {own['draws']}"


def _heads_from(config: Config, own: Entry) -> Findings:
    if own["heads_from"] is None:
        return
    chooser = heads_of(config, own["heads_from"])
    theirs = config["experiments"][chooser]
    circle = theirs["heads_from"] in config["experiments"]
    yield "heads_from", circle, f"{chooser} has its heads from {theirs['heads_from']}, in a circle"
    none = theirs["concept"] is None
    yield "heads_from", none, f"{chooser} asks for the whole vocabulary and chooses no heads"
    idle = own["concept"] is None
    yield "heads_from", idle, "nothing is scaled where the whole vocabulary is asked for; null"
    another = theirs["model"] != own["model"]
    yield "heads_from", another, f"{chooser} is of another model, {theirs['model']}"
    words = [(each["samples"], each["concept"], each["split"]) for each in (own, theirs)]
    leaks = words[0][:2] == words[1][:2] and words[0] != words[1]
    said = f"words that are measured here choose heads in {chooser}, whose split is"
    yield "heads_from", leaks, f"{said} {theirs['split']}, not {own['split']}"
    for key in ("k", "methods"):
        for value in [value for value in own[key] if value not in theirs[key]]:
            there = ", ".join(map(str, theirs[key]))
            said = f"{value} is not among the {key} of {chooser}, whose heads it has: {there}"
            yield key, True, said
    more = f"{own['draws']} is above the draws of {chooser}, whose heads it has, {theirs['draws']}"
    yield "draws", own["draws"] > theirs["draws"], more


def _vocabulary(config: Config, own: Entry) -> Findings:
    if own["concept"] is not None:
        return
    spec, model = own["vocabulary"], config["models"][own["model"]]
    has = f"{own['model']} has {model['layers']} layers of {model['heads']} heads, from 0"
    for name in spec["heads"] or []:
        layer, head = head_of(name)
        beyond = layer >= model["layers"] or head >= model["heads"]
        yield "vocabulary.heads", beyond, f"{name}, but {has}; null takes the most specialised"
    atoms = own["pursuit"]["iterations"]
    many = f"{spec['tokens']} is above pursuit.iterations, {atoms}"
    yield "vocabulary.tokens", spec["tokens"] > atoms, many
    few = f"{spec['neighbours']} leave no choice for sets of pursuit.iterations, {atoms}"
    yield "vocabulary.neighbours", spec["neighbours"] < 2 * atoms, f"{few}; at least {2 * atoms}"


def _samples(config: Config, own: Entry) -> Findings:
    if not of_images(own):
        if (name := own["excluding"]) is not None:
            other = config["samples"][name]
            yield "excluding", other is own, "no prompt would be left"
            yield "excluding", of_images(other), f"{name} are images, which have no text"
        return
    for part in ("selection", "evaluation"):
        first, last = own[part]["rows"] or (1, 1)
        yield f"{part}.rows", first > last, f"the first, {first}, is after the last"
    for field in ("{image}", "{classes}") if of_classes(own) else ("{image}",):
        yield "template", own["template"].count(field) != 1, f"{field} has to be in it once"
    for field in () if of_classes(own) else ("{classes}", "{object}"):
        yield "template", field in own["template"], f"{field}, but images with references have none"


def _build(config: Config, own: Entry) -> Findings:
    if not (build := own["build"]):
        return
    yield "gguf", own["gguf"], "null, since build makes this model"
    yield "build.language_model", *_absent(config, "models", build["language_model"])
    yield "build.samples", *_absent(config, "samples", build["samples"])
    classes = of_classes(config["samples"][build["samples"]])
    yield "build.samples", not classes, f"{build['samples']} have no classes to be learnt"
    if build["trained"]:
        yield "build.trained", *_no_file(build["trained"])
    tower = build["tower"]
    for whole, part in (("image_size", "patch_size"), ("hidden_size", "heads")):
        broken = tower[whole] % tower[part]
        yield f"build.tower.{whole}", broken, f"{tower[whole]} is no multiple of {part}"


# Those that look whether a name is there come first. Each looks at the entries that are used.
CHECKS: list[tuple[str, Callable[[Config], Iterable[Any]], Callable[..., Findings]]] = [
    ("tables", lambda config: [None], _table_names),
    ("tables", lambda config: config["tables"], _table),
    ("multiverse", lambda config: [None], _of_multiverse),
    ("experiments", lambda config: config["experiments"], _like),
    ("experiments", lambda config: config["experiments"], _references),  # rules look at them all
    ("models", lambda config: config["models"], _references),  # tables have the Hub's id of all
    ("models", used_models, _build),
    ("samples", used_samples, _references),
    ("classifiers", used_classifiers, _references),
    ("labeller", lambda config: [None], _labeller),
    ("sources", used_sources, _own_source),
    ("samples", used_samples, _samples),
    ("concepts", used_concepts, _concept),
    *(("experiments", running, check) for check in (_splits, _words, _heads)),
    *(("experiments", running, check) for check in (_heads_from, _vocabulary)),
]
