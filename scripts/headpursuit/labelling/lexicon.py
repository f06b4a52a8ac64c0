"""Backend ``lexicon``: the terms of a word list that a text holds. Needs no server."""

from collections.abc import Sequence

from headpursuit.labelling.backend import Answer
from headpursuit.labelling.journal import journal_key
from headpursuit.labelling.prompt import render
from headpursuit.method.words import normalise, word_pattern
from headpursuit.run.files import UserError


class Lexicon:
    """Finds whole words and phrases, case-folded, in text of any script."""

    slots = 1
    mode = "json"
    room = None
    per_image = None

    def __init__(self, terms: Sequence[str]):
        """Compile ``terms``, each once."""
        folded = dict.fromkeys(normalise(" ".join(term.split())) for term in terms)
        # Each pattern with its first word: a plain search for that rules most patterns out.
        self.patterns = {term: (term.split()[0], word_pattern(term)) for term in folded if term}
        if not self.patterns:
            raise UserError("labeller.lexicon: the word list is empty.")
        words = {"words": sorted(self.patterns)}
        self.identity = {"backend": "lexicon", "terms": journal_key("", words)}
        self.facts = {**self.identity, "n_terms": len(self.patterns)}

    def ask(self, text: str, attempt: int) -> Answer:
        """Return the terms in ``text``, in the order of the list."""
        folded = normalise(text)
        found = [
            term
            for term, (probe, pattern) in self.patterns.items()
            if probe in folded and pattern.search(folded)
        ]
        return Answer(render(found, self.mode))
