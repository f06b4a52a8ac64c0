"""Offensive words masked in texts and tables that are printed."""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import regex

from headpursuit.data.prompts import read_rows
from headpursuit.data.sources import source_files
from headpursuit.labelling.audit import mask
from headpursuit.method.words import normalise, word_pattern
from headpursuit.publish.texts import bare
from headpursuit.run.experiments import concept_of, owners, running
from headpursuit.run.files import UserError, plain, read_parquet
from headpursuit.run.tables import read_csv
from headpursuit.run.uses import run_labellers

# A token of so many letters may give away a longer word that begins with it.
TELLING = 4


def is_offensive(config: Mapping[str, Any], experiment: str) -> bool:
    """Say whether an experiment's words are those that a labeller names."""
    return "labelled" in (concept_of(config, config["experiments"][experiment]) or {})


def offensive_words(config: Mapping[str, Any], results: Path) -> set[str]:
    """Return all words that a run's labellers named, and those of the concepts that have them.

    A file that is not there has no words.
    """
    words: set[str] = set()
    experiments = [name for name in running(config) if is_offensive(config, name)]
    folders = ["labels", "labels/second"][: len(run_labellers(config))]
    for owner in (owners(config)[name] for name in experiments):
        if (path := results / f"words/{owner['words']}.csv").exists():
            words |= set(read_csv(path, ["word"])["word"])
        for path in (results / folder / f"{owner['labels']}.parquet" for folder in folders):
            if path.exists():
                words.update(*read_parquet(path, ["words"])["words"].to_pylist())
    return words


def lexicon_words(config: Mapping[str, Any], results: Path) -> set[str]:
    """Return the words of the list that a run's labeller looks up, if it is still there."""
    spec, found = config["labeller"]["lexicon"], set()
    if "lexicon" in run_labellers(config):
        path = results.absolute().parents[1] / f"resources/{spec['source']}/provenance.json"
        with suppress(UserError):
            rows = read_rows(source_files(path, spec["files"]), spec, "")
            found = {word for _, word in rows}
    return found


def _longest_first(words: Collection[str]) -> list[str]:
    return sorted({normalise(word) for word in words}, key=len, reverse=True)


def _in_any_case(word: str, inflections: bool = False) -> regex.Pattern[str]:
    pattern = word_pattern(word, inflections).pattern
    return regex.compile(pattern, regex.IGNORECASE | regex.FULLCASE)


class Cover:
    """Shows texts on one line, words and their inflections masked."""

    def __init__(self, words: Collection[str]) -> None:
        """Take the words that are masked; without any, texts are shown as they are."""
        self.words = words

    @cached_property
    def _patterns(self) -> list[tuple[str, regex.Pattern[str]]]:
        longest = _longest_first(self.words)
        return [(word.split()[0], _in_any_case(word, inflections=True)) for word in longest]

    def __call__(self, text: Any) -> str:
        """Return a text on one line, as it is but for the words."""
        text = plain(text)
        folded, whole = normalise(text), normalise(text, case_sensitive=True)
        masked = whole
        for first, pattern in self._patterns:
            if first in folded:
                masked = pattern.sub(lambda match: mask(match.group()), masked)
        return text if masked == whole else masked

    def word(self, word: str) -> str:
        """Return one of the words themselves."""
        return plain(mask(plain(word))) if self.words else plain(word)


def token_cover(words: Collection[str]) -> Callable[[str], str]:
    """Return what shows a token: without the mark of a space, masked as :func:`mask_rows` does."""
    telling = _telling(words) | {normalise(word) for word in words}
    return lambda token: _masked_pieces(bare(token), 1, telling)


def _telling(words: Collection[str]) -> set[str]:
    """Return the pieces that may give away a word that begins with them."""
    folded = map(normalise, words)
    return {word[:end] for word in folded for end in range(TELLING, len(word) + 1)}


def _masked_pieces(
    text: str, least: int, telling: Collection[str], show: Callable[[str], str] = mask
) -> str:
    """Return a text with its pieces of so many letters masked, where they are telling."""
    return regex.sub(
        rf"\w{{{least},}}",
        lambda piece: show(piece.group()) if normalise(piece.group()) in telling else piece.group(),
        text,
    )


def mask_rows(text: str, words: Collection[str]) -> str:
    """Mask words, in any case, and longer pieces that they begin with in a Markdown table."""
    patterns, telling = list(map(_in_any_case, _longest_first(words))), _telling(words)

    def stars(word: str) -> str:
        return mask(word).replace("*", r"\*")

    def masked(line: str) -> str:
        for pattern in patterns:
            line = pattern.sub(lambda match: stars(match.group()), line)
        return _masked_pieces(line, TELLING, telling, stars)

    lines = text.splitlines()
    return "\n".join(masked(line) if line.startswith("|") else line for line in lines)
