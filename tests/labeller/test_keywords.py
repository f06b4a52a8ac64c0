"""Keywords of images, asked of both kinds of server over real HTTP."""

import io
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_ollama import FakeOllama, keywords, usual_reply
from headpursuit.labelling.audit import agreement, summary
from headpursuit.run.files import UserError, write_parquet
from PIL import Image
from test_rule import ROOT, Run

MODEL = "mistral-small3.1:24b"
CLASSES = ["forest", "river"]


def encoded(shade: int, form: str = "PNG") -> bytes:
    """Return an image of one shade."""
    held = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 255 - shade, 7)).save(held, form)
    return held.getvalue()


def images(*own: bytes) -> pa.Table:
    columns = {"sample_id": [f"i{n}" for n in range(len(own))], "image": pa.array(own, pa.binary())}
    return pa.table(columns).add_column(1, "repeat", pa.array([0] * len(own), pa.int32()))


@pytest.fixture
def see(settings, label):
    """Ask about images, with the shipped prompt."""

    def see(server: FakeOllama, *own: bytes, backend: str = "ollama") -> pa.Table:
        settings.update(backend=backend, per_image=5, slots=1)
        settings["prompt"] = str(ROOT / "prompts/keywords.yaml")
        settings["ollama"]["model"] = MODEL
        settings["openai"] |= {"base_url": f"http://{server.host}/v1", "model": MODEL}
        return label(images(*own), server.host)

    return see


@pytest.mark.parametrize("backend", ["ollama", "openai"])
def test_each_image_arrives_whole_and_is_asked_about_once(see, backend):
    own = [encoded(1), encoded(99, "JPEG"), encoded(1), encoded(50, "GIF"), encoded(60, "WEBP")]
    with FakeOllama(models=(MODEL,)) as server:
        table = see(server, *own, backend=backend)
        see(server, *own, backend=backend)
    assert server.images == [own[0], own[1], own[3], own[4]]  # and a second run asks nothing
    for arrived in server.images:
        assert Image.open(io.BytesIO(arrived)).convert("RGB").size == (40, 30)
    asked = dict(zip(server.images, server.texts, strict=True))
    assert table["words"].to_pylist() == [keywords(asked[image]) for image in own]
    assert set(table["status"].to_pylist()) == {"ok"}
    assert table["repeat"].to_pylist() == [0] * 5 and not any(table["cut"].to_pylist())
    facts = summary(table)
    assert (facts["responses"], facts["distinct"], facts["retries"]) == (5, 4, 0)
    assert agreement(table, table)["both"].tolist()[0] == 5
    sent = json.dumps([body["messages"] for body in server.requests])
    assert "exactly 5 different" in sent and "{per_image}" not in sent
    if backend == "openai":
        for kind in ("png", "jpeg", "gif", "webp"):
            assert sent.count(f"data:image/{kind};base64,") == 1
    else:  # nothing bounds an image's tokens
        assert json.loads(table.schema.metadata[b"labeller"])["num_ctx"] == 8192


LONG = ["a large green field", "sky"]


@pytest.mark.parametrize(
    ("reply", "words", "dropped", "status"),
    [
        ("['Sky', \"GRASS\", 'a b']", ["sky", "grass", "a b"], [], "ok"),
        ('Sure:\n```python\n["sky", "sky"]\n```\nDone.', ["sky"], [], "ok"),
        ('["FOREST", "River"]', CLASSES, [], "ok"),  # which the model was never told
        (str([*"abcdefghij"]), [*"abcde"], [*"fghij"], "ok"),
        (str(LONG), ["sky"], LONG[:1], "ok"),
        (str(["s" * 51, "?!", "sky"]), ["sky"], ["s" * 51, "?!"], "ok"),
        (str(LONG[:1]), [], LONG[:1], "absent"),
        ("['s\x1b[1mk\x00y', 'gr\x07ass\u200b']", ["s[1mky", "grass"], [], "ok"),
        ('["s\nky", "\ud83d"]', ["s ky"], [], "ok"),
        ("[]", [], [], "none"),
        ("", [], [], "unparsed"),
        ("A field under a blue sky.", [], [], "unparsed"),
        ("sky, grass, water", [], [], "unparsed"),
        ("[['sky', 'grass'], ['water']]", [], [], "unparsed"),
        ("['sky'] or rather ['grass']", [], [], "unparsed"),
        ("['sky', 1]", [], [], "unparsed"),
        ("{'sky': ['grass'", [], [], "unparsed"),
        ("[__import__('os').getcwd()]", [], [], "unparsed"),
        ("[" * 50_000, [], [], "unparsed"),
        (str(["sky"] * 2_000_000), [], [], "unparsed"),  # 14 MB
        (str(["s" * 10_000_000]), [], [], "unparsed"),
        ("I'm sorry, I can't help with that.", [], [], "refused"),
    ],
    ids=lambda own: repr(own)[:20] if isinstance(own, str) else "",
)
def test_hostile_replies(settings, see, tmp_path, monkeypatch, reply, words, dropped, status):
    monkeypatch.setattr("fake_ollama.shorten", lambda reply, most: (reply, 9, "stop"))
    settings |= {"attempts": 2, "timeout": 60}
    with FakeOllama(lambda text, attempt: reply, models=(MODEL,)) as server:
        table = see(server, encoded(1))
    [row] = table.to_pylist()
    assert (row["words"], row["dropped"], row["status"]) == (words, dropped, status)
    assert row["attempts"] == (2 if status in ("unparsed", "refused") else 1)
    write_parquet(tmp_path / "results/r/labels/x.parquet", table)


def test_another_attempt_reminds_of_the_form(see):
    with FakeOllama(lambda *own: "sky" if own[1] == 1 else usual_reply(*own), (MODEL,)) as server:
        assert see(server, encoded(1))["attempts"].to_pylist() == [2]
    first, second = (body["messages"][-1] for body in server.requests)
    assert "Python list of 5 texts" in second["content"] and "list" not in first["content"]
    assert first["images"] == second["images"]


def test_a_model_that_sees_nothing_is_refused(see):
    """A server would read the text and leave out the image."""
    with FakeOllama(models=(MODEL,)) as server:
        server.sees = False
        with pytest.raises(UserError, match=rf"labeller\.keywords\.ollama\.model: {MODEL} sees no"):
            see(server, encoded(1))
        assert not server.requests
        server.modern = False  # it does not tell
        assert see(server, encoded(1))["status"].to_pylist() == ["ok"]


def test_the_words_of_all_images_become_the_concept(tmp_path, responses):
    """By the rules, with a second labeller, and without a response of the model."""
    shades = [*range(0, 200, 10)]
    ids = [f"digits/selection-{n:06d}" for n in range(len(shades))]
    samples = {
        "sample_id": [*ids, "digits/evaluation-000000"],
        "part": ["selection"] * len(ids) + ["evaluation"],
        "source": [f"a:{n}" for n in range(len(ids) + 1)],
        "label": [n % 2 for n in range(len(ids) + 1)],
        "class_name": [CLASSES[n % 2] for n in range(len(ids) + 1)],
        "references": pa.array([[]] * (len(ids) + 1), pa.list_(pa.string())),
        "image": [*map(encoded, shades), encoded(255)],
    }
    with FakeOllama(models=(MODEL, "other")) as server:
        night = Run(
            tmp_path,
            responses(1),
            second="openai",
            ollama={"host": server.host},
            openai={"base_url": f"http://{server.host}/v1"},
            keywords={"openai": {"model": "other"}},
            slots=1,
        )
        night.configure(
            concepts={"seen": {"keywords": {"per_image": 4}, "top": 12}},
            experiments={"seen": {"like": "digits", "concept": "seen"}},
            tables={"table2": [], "figure1": ["digits", "seen"]},
        )
        write_parquet(
            tmp_path / "results/night/samples/digits.parquet",
            pa.table(samples),
            {"classes": CLASSES},
        )
        night.targets = ["results/night/words/seen.csv", "results/night/labels/seen.agreement.csv"]
        assert night.finish() == 0, night.said()
    assert len(server.images) == 2 * len(shades)  # of selection alone, by both labellers
    assert {body["model"] for body in server.requests} == {MODEL, "other"}
    assert not any(name in json.dumps(server.requests[0]["messages"]) for name in CLASSES)
    labels = pq.read_table(night.labels / "seen.parquet").to_pandas()
    assert labels["sample_id"].tolist() == ids and set(labels["words"].str.len()) == {4}
    counted = labels["words"].explode().value_counts()
    words = pd.read_csv(tmp_path / "results/night/words/seen.csv")
    assert len(words) == 12 and words["count"].is_monotonic_decreasing
    assert words["count"].tolist() == counted[words["word"]].tolist()
    assert counted.drop(words["word"]).max() <= words["count"].min()
    assert set(words["split"]) == {"selection"}
    summed = json.loads((night.labels / "seen.summary.json").read_text())
    assert {own["word"] for own in summed["words"]} == set(counted.index)  # in clear
    both = pd.read_csv(night.labels / "seen.agreement.csv")
    assert (both["first"] == both["second"]).all() and both["responses"].unique() == [20]
