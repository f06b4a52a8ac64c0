"""Backend ``lexicon``: the terms of a word list that a text holds. Needs no server."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headpursuit.labelling.backend import Reply
from headpursuit.labelling.journal import journal_key
from headpursuit.labelling.prompt import render
from headpursuit.method.words import normalise, word_pattern
from headpursuit.run.files import UserError


@contextmanager
def connect(
    settings: Mapping[str, Any], texts: Sequence[str], terms: Sequence[str], log: Path | None
) -> Iterator["Lexicon"]:
    """Yield the backend of ``terms``; the rest is for backends that have a server."""
    yield Lexicon(terms)


class Lexicon:
    """Finds whole words and phrases, case-folded, in text of any script."""

    slots = 1
    mode = "json"
    room = None

    def __init__(self, terms: Sequence[str]):
        """Compile ``terms``, each once."""
        folded = dict.fromkeys(normalise(" ".join(term.split())) for term in terms)
        # Each pattern with its first word: a plain search for that rules most patterns out.
        self.patterns = {term: (term.split()[0], word_pattern(term)) for term in folded if term}
        if not self.patterns:
            raise UserError("labeller.lexicon: the word list is empty.")
        words = {"words": sorted(self.patterns)}
        self.identity = {"backend": "lexicon", "terms": journal_key("", words)}

    def ask(self, text: str, attempt: int) -> Reply:
        """Return the terms in ``text``, in the order of the list."""
        folded = normalise(text)
        found = [
            term
            for term, (probe, pattern) in self.patterns.items()
            if probe in folded and pattern.search(folded)
        ]
        return Reply(render(found, self.mode))

    def describe(self) -> dict[str, Any]:
        """Return the list's size and hash."""
        return {**self.identity, "n_terms": len(self.patterns)}
