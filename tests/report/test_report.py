"""The report and the crate of a real run whose texts are hostile, in a browser and a validator."""

import csv
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from checkout import Checkout, Preloaded, make_checkout
from tiny import HEADS, LAYERS, WORDS
from tiny_vision import make_vlm, write_pixels

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv-report" / "bin"
CHROMIUM = shutil.which("chromium")
SCREENSHOTS = ROOT / ".screenshots"

# Each would change a page that took it for anything but text.
HOSTILE = [
    "<script>window.hit=1</script>",
    "</script><script>window.hit=1</script>",
    "</td></tr></table><table border=9><tr><td>",
    '<img src=x onerror="window.hit=1">',
    "<iframe src='javascript:parent.hit=1'></iframe>",
    "`x` | y | **z** [a](javascript:window.hit=1) ~~q~~",
    r"\input{x} $x^2$ \textbf{y} % & #",
    '=HYPERLINK("x:")',
    "\x1b[31mred\x1b[0m \x07",
    "\u202eright\u200f to \u2066left\u2069",
    "&lt;b&gt; &#60;b&#62;",
    "{{ 7 * 7 }} {% raw %}",
    "\"'><b>quoted</b>",
]
# What pages of this project consist of.
TAGS = {"HTML", "HEAD", "META", "TITLE", "STYLE", "BODY", "H1", "H2", "P", "SECTION", "FIGURE"}
TAGS |= {"IMG", "DIV", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "PRE", "FOOTER"}
# The atlas of heads has a script, its own, and what that makes.
BUILT = {"SCRIPT", "LABEL", "INPUT", "OUTPUT", "BUTTON", "FIGCAPTION", "SPAN", "SMALL", "I"}
BUILT |= {"DL", "DT", "DD"}
ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "class", "alt", "src", "style"}


BUILT_ATTRIBUTES = {"id", "type", "for", "autocomplete", "role", "scope", "tabindex"}
BUILT_ATTRIBUTES |= {"aria-label", "aria-live", "aria-pressed"}


def make_hostile(folder: Path) -> Checkout:
    """Make a checkout with hostile prompts, words, tokens, concepts and class names."""
    checkout = make_checkout(folder, Preloaded)
    own = folder / "own"
    _hostile_tokens(own / "model/tokenizer.json")
    make_vlm(own / "vlm", "llava")
    prompts = [json.loads(line) for line in (own / "prompts.jsonl").read_text().splitlines()]
    for number, row in enumerate(prompts):
        text = HOSTILE[number // 2 % len(HOSTILE)]
        row["prompt"]["text"] = f"{text} {row['prompt']['text']} {text}"
    lines = [json.dumps(row) for row in prompts]
    (own / "prompts.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    with (own / "words.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([["word"], *([word] for word in [*HOSTILE, *WORDS[::2]])])
    write_pixels(own / "pixels.csv.gz", np.random.default_rng(0), 60)
    part = {"files": "pixels.csv.gz"}
    signs = {
        **{"source": "pixels", "object": "sign", "image": None, "label": None},
        "classes": {0: HOSTILE[0], 1: HOSTILE[2], 2: HOSTILE[6]},
        "template": "{image} What {object} is it? One of: {classes}. Answer:",
        "per_class": {"selection": 4, "evaluation": 4},
        **{"selection": {**part, "rows": [1, 30]}, "evaluation": {**part, "rows": [31, 60]}},
    }
    asked = {
        **{"model": "vlm", "samples": "signs", "concept": "classes", "methods": ["somp"]},
        **{"measures": ["exact_match"], "positions": "image"},
        "generation": {"max_new_tokens": 3, "temperature": 0.0},
    }
    vocabulary = {"top": 6, "draws": 20, "neighbours": 50}
    text = {"model": "tiny", "samples": "rtp"}
    model = {"layers": LAYERS, "heads": HEADS, "parameters": 100000, "dtype": "float32"}
    checkout.configure(
        "hostile",
        sources={
            "vlm": {"kind": "local", "path": "own/vlm"},
            "pixels": {"kind": "local", "path": "own/pixels.csv.gz"},
        },
        models={"vlm": {"source": "vlm", "chat": False, **model}},
        samples={"signs": signs},
        concepts={
            "toxic": {"labelled": {"texts": ["response", "prompt"]}, "rows": "first"},
            "fruit": {"words": [*HOSTILE, "apple", "lemon"], "rows": "first"},
            "tools": {"words": ["hammer", "needle"], "rows": "first"},
        },
        experiments={
            "rtp": {"methods": ["somp"]},
            "asked": {**text, "pursuit": {"iterations": 6}, "vocabulary": vocabulary},
            "fruit": {**text, "concept": "fruit"},
            "tools": {"like": "fruit", "concept": "tools", "first_layer": 1},
            "signs": asked,
        },
        tables={"table1": ["asked"], "table2": ["rtp"], "concepts": ["fruit", "tools"]}
        | {"figure1": ["signs"]},
        compute={"parts": 1},
        publish={"crate_mb": 0.008},
    )
    return checkout


def _hostile_tokens(path: Path) -> None:
    """Put hostile texts into a tokenizer's vocabulary, in the place of capitalised words."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    capitals = [word for word in vocabulary if word.lstrip("Ġ").isalpha() and word.isupper()]
    texts = [text.replace(" ", "Ġ") for text in HOSTILE if text.isascii() and text.isprintable()]
    for number, word in enumerate(word for word in capitals if len(word) > 3):
        vocabulary[f"{texts[number % len(texts)]}{number}"] = vocabulary.pop(word)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = make_hostile(tmp_path_factory.mktemp("report") / "checkout")
    checkout.snakemake(overlay="hostile")
    return checkout


@pytest.fixture(scope="module")
def seen(ran: Checkout) -> dict[str, Any]:
    """Give what a browser saw of the report, made by the command that docs/report.md gives."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (tests/report/make_tools.sh)")
    config = ["--configfile", "results/tiny/config.yaml"]
    ran.snakemake("--report", "results/tiny/report.html", *config, overlay="")
    # Elsewhere, so that nothing beside it can be loaded.
    report = ran.folder.parent / "alone" / "report.html"
    report.parent.mkdir()
    shutil.copy2(ran.path("report.html"), report)
    shutil.rmtree(SCREENSHOTS, ignore_errors=True)
    code, said = tool("browse.py", report, SCREENSHOTS, CHROMIUM)
    assert code == 0, said
    facts = json.loads(said)
    assert "failed" not in facts, facts["failed"]
    return facts


def tool(script: str, *arguments: Any) -> tuple[int, str]:
    """Run a script beside this file in the tools' environment."""
    path = Path(__file__).with_name(script)
    command = [TOOLS / "python", path, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600)
    return done.returncode, done.stdout


def pages(seen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give the facts of each page, by its category."""
    own = [(name, facts) for name, facts in seen["results"].items() if "html" in facts["mime"]]
    return {name.split(" / ")[0]: facts for name, facts in own}


def test_every_result_is_there_and_drawn(seen: dict[str, Any]) -> None:
    tables = ["2 concepts", "2 figure1", "2 table1", "2 table2"]
    first = ["0 What was found", "1 Published against reproduced", "1 The paper's claims"]
    wanted = [*first, "2 Atlas of heads", *tables, "3 Choices", "4 Time, memory, software"]
    assert list(pages(seen)) == seen["categories"] == wanted
    images = [facts for facts in seen["results"].values() if facts["mime"] == "image/png"]
    assert len(images) == 5
    shown = [own for facts in images for own in facts["pictures"][1:]]
    shown += [own for name in tables for own in pages(seen)[name]["pictures"]]
    assert len(shown) >= 2 * len(tables)
    for width, height, across in shown:
        assert width > 300 and height > 200 and across > 200
    assert {name for name, facts in pages(seen).items() if facts["pictures"]} == {
        first[0],
        *tables,
    }
    assert (seen["workflow"]["drawn"], seen["statistics"]["drawn"]) == (1, 2)


def test_hostile_texts_change_nothing(ran: Checkout, seen: dict[str, Any]) -> None:
    # Otherwise the rest would prove nothing.
    words = set(pd.read_csv(ran.path("words/rtp.csv"))["word"])
    assert sum("hit=1" in word for word in words) >= 3
    tokens = "".join(pd.read_csv(ran.path("tables/table1.csv"))["tokens"])
    assert "window.hit" in tokens or "<" in tokens
    assert "hit=1" in "".join(pd.read_csv(ran.path("words/signs.csv"))["word"])
    # No error, nothing requested but the file itself, and pages are what they are made of.
    assert {kind for kind, _ in seen["messages"]} <= {"warning", "log"}
    (only,) = {url for url in seen["requests"] if not url.startswith(("data:", "about:", "blob:"))}
    assert only.startswith("file://") and only.endswith("/alone/report.html")
    for name, facts in pages(seen).items():
        assert not facts["scripted"] and not facts["navigation"]["scripted"], name
        built = name == "2 Atlas of heads"
        assert set(facts["tags"]) <= TAGS | (BUILT if built else set()), name
        assert set(facts["attributes"]) <= ATTRIBUTES | (BUILT_ATTRIBUTES if built else set()), name
        assert all(len(widths) == 1 for widths in facts["tables"]), name
        assert facts["overflow"] <= 0, name
        assert not set("\x1b\x07\u202e\u2066") & set(facts["text"]), name


def test_the_report_opens_with_what_was_found(ran: Checkout, seen: dict[str, Any]) -> None:
    landing = seen["landing"]
    assert "CANVAS" not in landing["tags"]  # the graph of rules
    rows = pd.read_csv(ran.path("tables/table2.csv"))
    row = rows[(rows["method"] == "somp") & rows["flag"].isna()].iloc[0]
    number = f"{row.value:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]"
    place = landing["text"].index("2 heads by SOMP, alpha -1: ")
    assert number in landing["text"][place : place + 200]
    drawn = landing["text"].index("as many random heads of the same layers")
    over = landing["text"].index("the former over the latter")
    verdicts = landing["text"].index("of the paper's 15 claims: ")
    assert place < drawn < over < verdicts < landing["text"].index("arXiv 2510.21518")
    assert max(width for width, _, _ in landing["pictures"]) > 300
    assert not landing["scripted"] and landing["overflow"] <= 0
    assert landing["top"] >= 0  # what is taller than the window begins at its top


def test_a_head_is_found_by_mouse_by_keyboard_and_by_its_token(
    ran: Checkout, seen: dict[str, Any]
) -> None:
    found = seen["atlas"]
    assert found["live"] == "polite" and not found["scripted"]
    for way in ("mouse", "keyboard"):
        label, said = found[way]
        head = label.split(":")[0]
        assert said.startswith(f"{head} of tiny") and "of its variance" in said
        layer, number = map(int, head.removeprefix("L").split(".H"))
        (own,) = pd.read_csv(ran.path("specialists/asked.csv")).query(
            f"layer == {layer} and head == {number}"
        )["rank"]
        assert f"rank {own} of {LAYERS * HEADS}" in said
        assert re.search(r"rtp, toxic\nrank \d+ \(SOMP\)", said)
    assert found["mouse"][0].startswith(f"L{LAYERS - 1}.H1:")  # the last layer is on top
    assert found["keyboard"][0].startswith(f"L{LAYERS - 2}.H1:")
    assert found["next"].startswith("rtp, toxic: ")  # Tab goes from map to map
    outside = {own.split(":")[0] for own in found["outside"]}  # of the map of tools
    assert outside == {f"L0.H{head}" for head in range(HEADS)}
    number, cells = found["found"]
    assert 0 < int(number.split()[0]) <= cells
    assert "<" in found["token"]  # as text
    selected = pd.read_csv(ran.path("heads/rtp/selected.csv"))
    heads = {f"L{own.layer}.H{own.head}" for own in selected.itertuples()}
    assert found["row"][:3] == ["table2", "rtp", "2 by SOMP, alpha -1"]
    assert {own.split(":")[0] for own in found["framed"]} == heads


def test_words_are_masked(ran: Checkout, seen: dict[str, Any]) -> None:
    words = set(pd.read_csv(ran.path("words/rtp.csv"))["word"]) & set(WORDS)
    words -= {"pillow"}  # a package, too
    assert len(words) > 5
    shown = {name: facts["text"] for name, facts in pages(seen).items()}
    shown["head"] = seen["atlas"]["mouse"][1]
    for name in ("head", "2 table1", "4 Time, memory, software"):  # which tells of the labels
        text = shown[name]
        assert "***" in text, name
        assert not words & set(text.casefold().replace("␣", " ").split()), name


def test_every_page_names_the_model_and_captions_are_rendered(seen: dict[str, Any]) -> None:
    for name, facts in pages(seen).items():
        assert "Another model reads the prompts: tiny here, mistralai/" in facts["text"], name
    captions = {name: facts["caption"] for name, facts in seen["results"].items()}
    assert not [name for name, text in captions.items() if "{" in text or "System Message" in text]
    for part in ("times -1.0", "model tiny", "top 2 heads", "rtp (30)", "score interval", "Seed 0"):
        assert part in captions["2 table2 / figure"]


# The research object


@pytest.fixture(scope="module")
def crate(ran: Checkout) -> Path:
    (ran.folder / "requirements.txt").write_text("snakemake==0.1\n")
    ran.path("report/leftover.html").write_text("of earlier settings")
    ran.snakemake("crate", overlay="hostile")
    return ran.path("audit/crate.zip")


@pytest.fixture(scope="module")
def entities(crate: Path) -> dict[str, dict[str, Any]]:
    with zipfile.ZipFile(crate) as archive:
        read = json.loads(archive.read("ro-crate-metadata.json"))
    return {entity["@id"]: entity for entity in read["@graph"]}


def test_the_crate_is_of_the_snakemake_that_ran_and_of_this_run_s_pages(entities: Any) -> None:
    assert entities["#snakemake"]["softwareVersion"] == version("snakemake")
    assert any(name.endswith("report/published.html") for name in entities)
    assert not any("leftover" in name for name in entities)


def validate(crate: Path, folder: Path) -> tuple[int, str]:
    context = TOOLS.parent / "context/rocrate/data/ro-crate.jsonld"
    return tool("validate.py", crate, context, folder / "cache")


def test_the_formats_own_validator_passes_the_crate_and_no_damaged_one(
    crate: Path, tmp_path: Path
) -> None:
    code, said = validate(crate, tmp_path)
    assert code == 0 and int(said.split()[0]) > 80, said
    damaged = tmp_path / "crate.zip"
    with zipfile.ZipFile(crate) as archive, zipfile.ZipFile(damaged, "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name == "ro-crate-metadata.json":
                data = data.replace(b'"instrument"', b'"name2"')
            copy.writestr(name, data)
    code, said = validate(damaged, tmp_path)
    assert code == 1 and "instrument" in said


def values(entity: dict[str, Any], key: str) -> Iterator[str]:
    value = entity.get(key, [])
    yield from (own["@id"] for own in (value if isinstance(value, list) else [value]))


def test_a_table_leads_back_to_the_prompts(entities: Any) -> None:
    jobs = [own for name, own in entities.items() if name.startswith("#job/")]
    waiting, reached = {"results/tiny/tables/table2.csv"}, set()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        makers = [job for job in jobs if name in values(job, "result")]
        waiting |= {own for job in makers for own in values(job, "object")} - reached
    ends = {"samples/rtp.parquet", "responses/rtp/baseline/part-1.parquet", "words/rtp.csv"}
    assert {f"results/tiny/{name}" for name in ends} <= {
        name.removeprefix("#not-packed/") for name in reached
    }
    assert "resources/tiny-prompts/provenance.json" in reached


def test_what_is_packed_is_what_is_described(ran: Checkout, crate: Path, entities: Any) -> None:
    with zipfile.ZipFile(crate) as archive:
        names = set(archive.namelist()) - {"ro-crate-metadata.json"}
        for name in names:
            wanted = entities[name].get("sha256")
            assert wanted in (None, sha256(archive.read(name)).hexdigest())
    for part in ("tables", "figures"):
        for path in ran.path(part).iterdir():
            assert path.relative_to(ran.folder).as_posix() in names
    sizes = {name: int(own["contentSize"]) for name, own in entities.items() if "sha256" in own}
    left_out = {name for name in sizes if name.startswith("#not-packed/results/")}
    assert left_out and all(sizes[name] > 8_000 for name in left_out)
    assert entities["./"]["contentRating"] == "offensive language"
    assert "offensive language" in entities["./"]["description"]
    assert entities["./"]["license"] == {"@id": "https://spdx.org/licenses/MIT"}


def test_the_same_manifest_gives_the_same_crate(ran: Checkout, crate: Path) -> None:
    before = crate.read_bytes()
    crate.unlink()
    ran.snakemake("crate", overlay="hostile")
    assert crate.read_bytes() == before
