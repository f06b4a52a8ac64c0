"""Words counted, split and turned into rows; test_fuzz.py has the properties of any text."""

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from headpursuit.labelling.reply import sift_words
from headpursuit.method.words import (
    build_dictionary,
    count_words,
    distinct_classes,
    distinct_words,
    label_counts,
    measured_words,
    most_frequent,
    normalise,
    read_word_list,
    spellings,
    split_words,
    tidy_word,
    variants,
)
from headpursuit.run.files import UserError
from hypothesis import given
from hypothesis import strategies as st
from tiny import TEMPLATES, make_asking, make_sentencepiece


def count(text: str, word: str, **options: bool) -> int:
    return int(count_words([text], [word], **options)[0, 0])


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("Apple APPLE apple pineapple apples", "apple", 3),
        ("apple,apple.apple(apple)", "apple", 4),
        ("apple_pie apple2", "apple", 0),
        ("apple apple apple", "apple apple", 1),  # occurrences do not overlap
        ("stone  \n cold\u00a0stone stone\u3000cold", "stone cold", 2),
        ("stone-cold", "stone cold", 0),
        ("the river's stone", "river", 1),
        ("don’t and don't and dont", "don't", 2),
        ("DON'T", "don’t", 1),
        ("STRASSE Straße", "straße", 2),
        ("café CAFÉ cafe\u0301 cafe", "cafe\u0301", 3),
        ("cafe\u0301", "cafe", 0),
        ("x\u0302 x", "x", 1),  # no single character for it, so the mark stays apart
        ("क कि", "क", 1),  # a vowel sign is part of the word
        ("İSTANBUL i̇stanbul", "İstanbul", 2),
        ("ISTANBUL", "istanbul", 1),
        ("ıstanbul", "istanbul", 0),  # a dotless i is another letter
        ("a.b a+b", "a.b", 1),
        ("$$$ $$$", "$$$", 2),
        ("(river)", "(river)", 1),
        ("J\u030c\u0323", "\u01f0\u0323", 1),  # folding leaves their marks in another order
        ("anything", "", 0),
        ("a b", " ", 0),
        ("", "apple", 0),
    ],
)
def test_known_counts(text: str, word: str, expected: int):
    assert count(text, word) == expected


def test_phrases_case_and_inflections():
    # A phrase does not hide the words inside.
    assert count_words(["stone cold"], ["stone cold", "stone", "cold"]).tolist() == [[1, 1, 1]]
    assert count("Apple apple", "Apple", case_sensitive=True) == 1
    text = "hammer hammers hammer's hammered hammering hammerin' hammerin’ hammerer hammerly"
    assert count(text, "hammer") == 2  # an apostrophe ends a word
    assert count(text, "hammer", inflections=True) == 8
    assert count("boxes box", "box", inflections=True) == 2


@pytest.mark.parametrize(
    ("case_sensitive", "expected"),
    [
        (False, ["Apple", "stone cold", "apple[31m", "#stone", r"\stone #"]),
        (True, ["Apple", "stone cold", "apple[31m", "#stone", r"\stone #", "APPLE", "apple"]),
    ],
)
def test_words_of_a_list_keep_their_case_and_are_distinct(tmp_path, case_sensitive, expected):
    r"""A line that begins with # is a comment, one that begins with \# is a word."""
    path = tmp_path / "words.txt"
    path.write_bytes(
        "\ufeffApple\r\n\r\n  stone \t cold\r\n#stone\n # stone\napple\x1b[31m\r\n"
        "\\#stone\n\\stone #\nAPPLE\napple\n #\n".encode()
    )
    words = read_word_list(path, "concepts.x.file")
    assert distinct_words(words, case_sensitive) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"caf\xe9\n", r"UTF-8 \(byte 3\)"),
        (None, "No such file"),
    ],
)
def test_a_word_list_that_is_none(tmp_path: Path, content: bytes | None, said: str):
    key = "concepts.x.file"
    if content is not None:
        (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"concepts\.x\.file: .*{said}"):
        read_word_list(tmp_path / "words.txt", key)


@given(st.text(max_size=10))
def test_a_tidy_word_is_tidy(word: str):
    tidy = tidy_word(word)
    assert tidy_word(tidy) == tidy == " ".join(tidy.split())
    assert not any(unicodedata.category(c) == "Cc" for c in tidy)
    assert normalise(tidy) == tidy


def test_labels_count_once_a_response():
    labels = [["Apple", "apple", " stone  cold"], ["apple", ""], [], ["stone cold"]]
    assert label_counts(labels) == {"apple": 2, "stone cold": 2}
    cased = label_counts(labels, case_sensitive=True)
    assert cased == {"Apple": 1, "apple": 2, "stone cold": 2}
    assert most_frequent(Counter("bbaacdd"), 3) == [("a", 2), ("b", 2), ("d", 2)]


@pytest.mark.parametrize(
    ("text", "word", "forms"),
    [
        ("Straße STRASSE strasse", "strasse", ["Straße", "STRASSE", "strasse"]),
        ("Don’t, DON'T", "don't", ["Don't", "DON'T"]),
        ("undarned", "darn", []),
    ],
)
def test_spellings_are_those_of_the_text(text: str, word: str, forms: list[str]):
    assert spellings(text, normalise(word)) == forms


def test_case_is_kept_up_to_the_counts():
    kept = sift_words(["darn", "naïve fool"], "DARN it, Darn! You Naïve\nfool, darn, darn’t.")[0]
    assert kept == ["DARN", "Darn", "darn", "Naïve fool"]
    assert label_counts([kept, ["Darn"]], case_sensitive=True)["Darn"] == 2
    assert label_counts([kept, ["Darn"], ["darn"]]) == {"darn": 3, "naïve fool": 1}


# The split


HUNDRED = [(f"word{i:03d}", 200 - i) for i in range(100)]


def test_the_paper_s_split_is_70_to_30():
    table = split_words(HUNDRED, 0.7, 0, "rtp")
    assert table["split"].value_counts().to_dict() == {"selection": 70, "heldout": 30}
    assert list(zip(table["word"], table["count"], strict=True)) == HUNDRED
    assert list(table["rank"]) == list(range(1, 101))
    assert list(measured_words(table)) == list(table["split"] == "heldout")


@pytest.mark.parametrize("n", [1, 3, 100])
def test_words_that_are_not_split_select_and_are_measured(n: int):
    """Such as colours, of which there are too few to hold any out."""
    table = split_words([(word, None) for word, _ in HUNDRED[:n]], 1, 0, "colours")
    assert table["word"].tolist() == [word for word, _ in HUNDRED[:n]]
    assert set(table["split"]) == {"selection"} and table["count"].isna().all()
    assert measured_words(table).tolist() == [True] * n


def test_the_split_depends_on_seed_name_and_number_and_not_on_the_rank():
    def heldout(seed: int, *which: str | int) -> np.ndarray:
        table = split_words(HUNDRED, 0.7, seed, *(which or ("rtp",)))
        return (table["split"] == "heldout").to_numpy()

    assert (heldout(0) == heldout(0)).all() and (heldout(0) != heldout(0, "tet")).any()
    splits = [heldout(0, "rtp", number) for number in range(20)]
    assert (splits[0] == heldout(0)).all() and len({own.tobytes() for own in splits}) == 20
    assert {own.sum() for own in splits} == {30}
    held = np.mean([heldout(seed) for seed in range(300)], axis=0)
    assert abs(held.mean() - 0.3) < 1e-12
    # Five standard errors of a share of 0.3 over 300 seeds.
    assert np.abs(held - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 300)


@pytest.mark.parametrize(
    ("n", "share", "step"),
    [(9, 0.7, "10 are the least.*, or set selection_share: 1"), (0, 1, "1 are")],
)
def test_too_few_words_are_refused_with_a_way_out(n: int, share: float, step: str):
    said = rf"concepts\.x: {n} different words are too few, {step}"
    with pytest.raises(UserError, match=said):
        split_words(HUNDRED[:n], share, 0, "rtp", key="concepts.x")


# The dictionary


def words(**splits: str) -> pd.DataFrame:
    pairs = [(word, split) for split, own in splits.items() for word in own.split(",")]
    return pd.DataFrame(pairs, columns=["word", "split"])


BOTH = {"cases": ["lower"], "leading_space": [True, False]}
BARE = {"cases": ["lower"], "leading_space": [False]}


def tokens_of(table: pd.DataFrame, word: str) -> list[tuple[str, str, bool]]:
    own = table[table["word"] == word]
    return list(zip(own["form"], own["token"], own["starts_word"], strict=True))


def test_variants_are_cases_with_and_without_a_space():
    assert variants("apple", ["lower", "title", "upper"], [True, False]) == [
        *(" apple", "apple", " Apple", "Apple", " APPLE", "APPLE")
    ]
    assert variants("don't stop", ["title"], [False]) == ["Don't Stop"]
    assert variants("42", ["lower", "title", "upper"], [False]) == ["42"]


def test_single_rows_of_a_byte_level_tokenizer(tokenizer):
    asked = words(selection="apple,wren", heldout="river")
    table = build_dictionary(asked, tokenizer, "single", **BOTH)
    assert tokens_of(table, "apple") == [(" apple", "Ġapple", True), ("apple", "apple", False)]
    assert tokens_of(table, "wren") == []  # several tokens
    assert not table["shared"].any()
    assert list(table["token_id"]) == tokenizer.convert_tokens_to_ids(list(table["token"]))


def test_first_and_all_rows_and_what_splits_share(tokenizer):
    asked = words(selection="wren,apple", heldout="wolf,river")
    first = build_dictionary(asked, tokenizer, "first", **BARE)
    assert [token for _, token, _ in tokens_of(first, "wren")] == ["w"]
    shared = dict(zip(first["word"], first["shared"], strict=True))
    assert shared == {"wren": True, "wolf": True, "apple": False, "river": False}
    within = build_dictionary(words(selection="wren,wolf"), tokenizer, "first", **BARE)
    assert not within["shared"].any()
    every = build_dictionary(asked, tokenizer, "all", **BARE)
    assert [token for _, token, _ in tokens_of(every, "wren")] == list("wren")
    own = every[every["word"] == "wolf"]
    assert dict(zip(own["token"], own["shared"], strict=True)) == {
        **dict.fromkeys("olf", False), "w": True
    }  # fmt: skip
    spaced = build_dictionary(asked, tokenizer, "all", ["lower"], [True])
    starts = dict(zip(spaced["token"], spaced["starts_word"], strict=True))
    assert starts == {**dict.fromkeys("wrenolf", False), "Ġapple": True, "Ġriver": True}


def test_a_sentencepiece_tokenizer_s_own_space_is_not_the_word_s():
    asked = words(selection="apple", heldout="river,zebra")
    table = build_dictionary(asked, make_sentencepiece(), "single", **BOTH)
    assert tokens_of(table, "apple") == [(" apple", "▁apple", True), ("apple", "apple", False)]
    assert tokens_of(table, "river") == [(" river", "▁river", True), ("river", "river", False)]
    assert tokens_of(table, "zebra") == []


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("single", [("0", "<0x30>")]),
        ("first", [(" 0", "<0x30>"), ("0", "<0x30>"), (" rn", "r"), ("rn", "r")]),
        ("all", [(" 0", "<0x30>"), ("0", "<0x30>"),
                 (" rn", "r"), (" rn", "n"), ("rn", "r"), ("rn", "n")]),
    ],
)  # fmt: skip
def test_a_piece_that_is_a_space_alone_is_no_row(rows: str, expected: list[tuple[str, str]]):
    table = build_dictionary(words(selection="0,rn"), make_sentencepiece(), rows, **BOTH)
    assert list(zip(table["form"], table["token"], strict=True)) == expected


@pytest.mark.parametrize("family", ["plain", *TEMPLATES])
@pytest.mark.parametrize("rows", ["single", "first", "all"])
def test_special_and_unknown_tokens_are_no_rows(tokenizer, family: str, rows: str):
    """Neither of a word that spells one nor of those that a tokenizer adds."""
    tokenizer = tokenizer if family == "plain" else make_asking(family)
    marks = [tokenizer.bos_token, tokenizer.eos_token, f"apple{tokenizer.eos_token}"]
    frame = pd.DataFrame({"word": [*marks, "apple"], "split": "selection"})
    assert set(build_dictionary(frame, tokenizer, rows, **BOTH)["word"]) == {"apple"}
    narrow = make_sentencepiece(byte_fallback=False)
    table = build_dictionary(words(selection="apple,язык"), narrow, rows, **BOTH)
    assert narrow.unk_token_id not in set(table["token_id"])


def test_a_split_without_rows_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"concepts\.\*\.rows: single leaves no row .* heldout"):
        build_dictionary(words(selection="apple", heldout="wren"), tokenizer, "single", **BOTH)


@pytest.mark.parametrize(
    ("classes", "kept"),
    [
        ("wren,wolf,window", [*"wrenwolf", "window"]),  # "w" is not in all
        ("wr,wo", [*"ro"]),
        ("wr,w", "The classes w have no token of their own"),
        ("wr,rw,wo", "The classes wr and rw share all their tokens"),
        ("wren", [*"wren"]),
    ],
)
def test_rows_that_all_classes_share_say_nothing(tokenizer, classes: str, kept):
    table = build_dictionary(words(selection=classes), tokenizer, "all", **BARE)
    if isinstance(kept, str):
        with pytest.raises(UserError, match=kept):
            distinct_classes(table)
    else:
        assert distinct_classes(table)["token"].tolist() == kept
