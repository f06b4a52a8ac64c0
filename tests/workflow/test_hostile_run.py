"""A run in which prompts, words, replies and the vocabulary are hostile, and secrets are around."""

import base64
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from checkout import Checkout, Preloaded, make_checkout
from hub_server import Repo, serve
from labeller.fake_ollama import FakeOllama
from test_tables import typeset
from tiny import WORDS

pytestmark = pytest.mark.xdist_group("hostile")

# Words that a labeller might name, each whole where it stands; and rows of the unembedding matrix,
# which are atoms and parts of responses.
HOSTILE, TOKENS = (
    text.split("¦")
    for text in (
        "=river+1¦<b>stone</b>¦$cloud$¦\\maple{x}¦{candle}¦{prompt}¦{input[0]}¦$(touch pwned)¦"
        "ladder|basket¦@pebble¦[meadow](http://x¦%s%copper%¦&amp;window¦~garden^¦#feather_x¦"
        "-harbour¦<script>alert(1)</script>¦\u202esaddle¦'=turnip",
        "\x1b[31mred\x1b[0m¦<img src=x onerror=alert(1)>¦=cmd|' /C calc'!A0¦\\input{/etc/passwd}¦"
        "$(touch pwned)¦`touch pwned`¦; touch pwned¦| a | b |¦[x](javascript:alert(1))¦"
        "{wildcards.x}¦{{x}}¦%(x)s¦-1+1¦@SUM(A1)¦\u202egnp¦\u2028¦&lt;b&gt;¦\\\\ \\hline¦"
        "\\end{tabular}¦$x^2$¦</table>¦\x07¦\x9b31m¦#_~^&%¦'\"¦--- ¦```¦\t¦\n",
    )
)
PROMPTS = [
    *(f"{first} says {second} to the river" for first, second in pairwise(HOSTILE)),
    *(
        "naïve 日本 👩‍👩‍👧 e\u0301",
        "مرحبا بالعالم",
        "nul \x00 and \x1b]0;title\x07 bell",
        "x" * 100_000,
    ),
    *("river", "river", "", " \n", "$HOME `touch pwned` ; touch pwned"),
]
SECRETS = {
    "token": "hf_canaryTokenZ01",
    "key": "sk-canary-key-02",
    "password": "canary.password-03",
}


@dataclass
class Done:
    """What a run left: its checkout, what the terminal showed, what the labeller was asked."""

    checkout: Checkout
    said: str
    asked: list[str]


def named(text: str, attempt: int) -> str:
    """Reply with all words that the text holds, between things that are none."""
    found = [word for word in [*HOSTILE, *WORDS] if word in text]
    return f"<think>\x1b[2J</think><answer>{', '.join(found) or 'None'}</answer>\x07"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    checkout = make_checkout(tmp_path_factory.mktemp("hostile"), Preloaded)
    own = checkout.folder / "own"
    tokenizer = json.loads((own / "model/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    replaced = [token for token in vocabulary if token.strip("Ġ").lower() in WORDS[-len(TOKENS) :]]
    for token, hostile in zip(replaced, TOKENS, strict=False):
        vocabulary[hostile] = vocabulary.pop(token)
    (own / "model/tokenizer.json").write_text(json.dumps(tokenizer))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in PROMPTS)
    repos = {
        "org/model": Repo({path.name: path.read_bytes() for path in (own / "model").iterdir()}),
        "org/prompts": Repo({"prompts.jsonl": lines.encode()}),
    }
    hub = {"kind": "hub", "revision": "main"}
    with serve(repos) as server, FakeOllama(reply=named) as labeller:
        checkout.configure(
            "hostile",
            sources={
                "model": {**hub, "id": "org/model", "repo_type": "model", "files": ["*"]},
                "prompts": {**hub, "id": "org/prompts", "repo_type": "dataset", "files": ["*"]},
            },
            models={"tiny": {"source": "model"}},
            samples={"rtp": {"source": "prompts", "text": "text", "where": None, "sample": None}},
            labeller={
                "backend": "openai",
                "openai": {"base_url": f"http://{labeller.host}/v1", "model": "<b>m</b>{x}"},
            },
            concepts={
                "toxic": {"labelled": {"texts": ["response", "prompt"]}, "top": 40, "rows": "all"},
                "markup": {"words": ["=river", "<b>", "\\maple{x}", "$(touch pwned)"]},
                "plain": {"words": ["river", "stone"]},
            },
            experiments={
                "asked": {
                    "model": "tiny",
                    "samples": "rtp",
                    "pursuit": {"iterations": 16},
                    "vocabulary": {"draws": 20, "neighbours": 60},
                },
                "markup": {"model": "tiny", "samples": "rtp", "concept": "markup"},
                "plain": {"like": "markup", "concept": "plain"},
            },
            tables={"table1": ["asked"], "concepts": ["markup", "plain"]},
        )
        said = checkout.snakemake(
            "all",
            "audit",
            overlay="hostile",
            HF_ENDPOINT=server.url.replace("//", f"//user:{SECRETS['password']}@"),
            HF_TOKEN=SECRETS["token"],
            OPENAI_API_KEY=SECRETS["key"],
        )
        keys = {headers.get("authorization") for headers in labeller.headers}
        assert keys == {f"Bearer {SECRETS['key']}"}  # it was in use
        yield Done(checkout, said, labeller.texts)


def files(done: Done, *suffixes: str) -> list[Path]:
    found = sorted(path for path in done.checkout.path("").rglob("*") if path.suffix in suffixes)
    assert found
    return found


def test_prompts_reach_the_model_and_the_labeller_as_they_are(done: Done) -> None:
    table = pq.read_table(done.checkout.path("samples/rtp.parquet"))
    kept = [text for text in dict.fromkeys(PROMPTS) if text.strip() and len(text) < 1000]
    assert table["text"].to_pylist() == kept
    assert set(kept) <= set(done.asked)
    atoms = set(
        pq.read_table(done.checkout.path("decompositions/asked.parquet"))["token"].to_pylist()
    )
    assert any(atom.startswith(("\\x1b", "\\x9b", "\\x07")) for atom in atoms)
    assert atoms & {"|␣a␣|␣b␣|", "$x^2$", "\\\\input{/etc/passwd}"}
    responses = pq.read_table(done.checkout.path("responses/rtp/baseline"))["response"]
    assert any(token in text for text in responses.to_pylist() for token in TOKENS[1:20])
    log = done.checkout.path("logs/prepare_samples/rtp.log").read_text()
    assert re.search(r"left out prompts\.jsonl:\d+, whose 100001 tokens are more than the 240", log)


def test_nothing_of_a_text_was_run(done: Done) -> None:
    assert not list(done.checkout.folder.rglob("pwned*"))
    assert not Path("pwned").exists()


def test_words_come_through_and_no_cell_is_a_formula(done: Done) -> None:
    with done.checkout.path("words/rtp.csv").open(newline="", encoding="utf-8") as handle:
        words = {row["word"] for row in csv.DictReader(handle)}
    assert {"<b>stone</b>", "{prompt}", "$(touch pwned)", "'=river+1", "'-harbour"} <= words
    for path in files(done, ".csv"):
        with path.open(newline="", encoding="utf-8") as handle:
            header, *rows = list(csv.reader(handle))
        assert all(len(row) == len(header) for row in rows), path
        for cell in (cell for row in rows for cell in row):
            assert not re.match(r"[=+@\t\r]|-(?![\d.]+(e-?\d+)?$)", cell), (path, cell)


def test_tables_keep_their_shape(done: Done) -> None:
    for path in files(done, ".md"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<(?!br>)", text), path
        lines = text.split("\n\n")[0].splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, path
    for path in files(done, ".tex"):
        text = path.read_text(encoding="utf-8")
        for line in text.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines():
            for cell in re.split(r"(?<!\\)&", line.removesuffix("\\\\")):
                typeset(cell.strip())  # fails where LaTeX would act


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, tuple(name for name, _ in attrs)))


def test_pages_hold_no_tag_of_a_text(done: Done) -> None:
    for path in files(done, ".html"):
        tags = _Tags()
        tags.feed(path.read_text(encoding="utf-8"))
        found = [tag for tag, _ in tags.seen]
        assert not {"b", "a", "iframe"} & set(found), path
        assert found.count("script") == (2 if path.name == "atlas.html" else 0), path  # its own
        assert not any(name.startswith("on") for _, names in tags.seen for name in names), path


def test_nothing_moves_the_terminal_s_cursor(done: Done) -> None:
    texts = {"the terminal": done.said}
    texts |= {str(path): path.read_text(encoding="utf-8") for path in files(done, ".log", ".csv")}
    texts |= {str(path): path.read_text(encoding="utf-8") for path in files(done, ".md", ".tex")}
    for name, text in texts.items():
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", text), name


def test_no_secret_is_in_any_file(done: Done) -> None:
    """Neither as it is, nor quoted, nor in base64 at any offset, nor in compressed columns."""
    needles = set()
    for secret in SECRETS.values():
        needles |= {secret.encode(), quote(secret, safe="").encode()}
        for offset in range(3):
            coded = base64.b64encode(b"\0" * offset + secret.encode())
            needles.add(coded[4 if offset else 0 : len(secret) // 3 * 4])
    held = {"the terminal": done.said.encode()}
    folder = done.checkout.folder
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        held[name] = path.read_bytes() + name.encode()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            held[name] += repr((table.schema.metadata, table.to_pydict())).encode()
    assert any(name.startswith(".snakemake/") for name in held)
    leaks = {name for name, content in held.items() for needle in needles if needle in content}
    assert not leaks
