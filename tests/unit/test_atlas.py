"""What the atlas of heads shows: the same as the run's files, offensive words masked."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from headpursuit.publish import pages
from headpursuit.publish.atlas import atlas
from headpursuit.publish.masking import token_cover
from headpursuit.run.finished import read_run
from made_run import HEADS, LAYERS, write

HOSTILE = ["<img src=x onerror=hit()>", "</script><script>hit()", "<!--", "\u202eright\u2066 left"]


@pytest.fixture(scope="module")
def data(made: Path):
    return atlas(read_run(made))


def texts(data, model: str, head: str) -> dict[str, str]:
    """Give what is said of a head, by what it is of."""
    (own,) = [own for own in data["models"] if own["name"] == model]
    return dict(own["heads"][head])


def test_maps_have_every_head_of_each_ranking_and_of_table_1(made: Path, data):
    maps = {own["name"]: own["maps"] for own in data["models"]}
    titles = {model: [each["title"] for each in own] for model, own in maps.items()}
    text = ["triviaqa, all tokens", "rtp, toxic", "fruit", "tools"]
    assert titles == {"mistral": text, "llava-next": ["mnist, classes"]}
    for each in (each for own in maps.values() for each in own):
        assert [len(each["values"]), *map(len, each["values"])] == [LAYERS, *[HEADS] * LAYERS]
    fruit = maps["mistral"][2]
    ranking = pd.read_csv(made / "rankings/fruit.csv").set_index(["layer", "head"])
    for (layer, head), row in ranking.iterrows():
        assert fruit["ranks"][layer][head] == row["rank"]
        assert fruit["values"][layer][head] == round(row["score"], 4)
    assert set(fruit["framed"]) == {"L1.H2", "L0.H1"}  # those that are ranked first
    assert maps["mistral"][0]["framed"] == ["L1.H2"]  # which the config names
    assert maps["mistral"][0]["candidates"] == [0, LAYERS - 1]
    assert fruit["candidates"] == (0, read_run(made).config["models"]["mistral"]["layers"] - 1)
    assert len(set(data["colours"])) == 64


def test_a_head_has_its_tokens_ranks_null_and_the_ratios_it_took_part_in(made: Path, data):
    own = texts(data, "mistral", "L1.H2")
    assert "tokens explain 0.25 of its variance, random tokens 0.25" in own["triviaqa, all tokens"]
    assert own["triviaqa, all tokens"].endswith(": t1 t2 t3")
    assert own["fruit"].startswith("rank 1 (SOMP) of 8; score 1, writes along the concept")
    assert own["fruit"].endswith(": apple")
    assert "against the concept" in texts(data, "mistral", "L0.H1")["fruit"]
    row = pd.read_csv(made / "tables/table2.csv").query("method == 'somp'").iloc[-1]
    ratio = f"2 by SOMP, alpha -1: {row.measure} {row.value:.2f} [{row.ci_low:.2f}, "
    assert own["scaled, rtp"].startswith(ratio)
    drawn = texts(data, "mistral", "L0.H0")["scaled, rtp"]
    assert drawn.startswith("2 by random, alpha -1 (1 of 2 draws): ")
    assert "scaled, rtp" not in texts(data, "mistral", "L1.H3")


def test_every_row_of_ratios_names_its_heads(made: Path, data):
    rows = sum(len(pd.read_csv(made / f"tables/{name}.csv")) for name in ("table2", "figure1"))
    assert len(data["ratios"]) == rows
    chosen = pd.read_csv(made / "heads/rtp/selected.csv")
    for row in data["ratios"]:
        if row["cells"][1] == "rtp" and "SOMP" in row["cells"][2]:
            assert row["heads"] == [f"L{own.layer}.H{own.head}" for own in chosen.itertuples()]


def test_offensive_words_are_masked(data):
    assert texts(data, "mistral", "L1.H2")["rtp, toxic"].endswith(": c*** s* x")
    show = token_cover({"candle", "ash"})
    shown = [show(token) for token in ("Ġcandle", "▁Cand", "␣can", "ash", "Ash,", "ashore")]
    assert shown == ["c*****", "C***", "can", "a**", "A**,", "ashore"]


def test_hostile_tokens_are_text_in_the_page(run: Path, tmp_path: Path):
    path = run / "decompositions/triviaqa.parquet"
    atoms = pd.read_parquet(path)
    write(path, atoms.assign(token=[HOSTILE[n % len(HOSTILE)] for n in range(len(atoms))]))
    files = SimpleNamespace(
        template=pages.ROOT / "report/page.html.jinja",
        script=pages.ROOT / "report/atlas.js",
        config=run / "config.yaml",
        tables=[],
        heads=[path],
    )
    html = pages.write_page("atlas", read_run(run), files, tmp_path)
    assert html.count("<script") == html.count("</script") == 2
    assert "<img" not in html and "<!--" not in html
    block = re.search(r'id="atlas-data">(.*?)</script>', html, re.DOTALL)[1]
    said = json.dumps(json.loads(block)["models"][0]["heads"]["L0.H0"])
    assert HOSTILE[0] in said and HOSTILE[1] in said and "\\u202e" not in said
    assert "script-src &#39;sha256-" in html and "unsafe-eval" not in html
