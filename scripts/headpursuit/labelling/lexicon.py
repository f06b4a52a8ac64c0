"""Backend ``lexicon``: the terms of a word list that a text holds. Needs no server."""

from collections.abc import Sequence
from itertools import compress

from headpursuit.labelling.backend import Answer
from headpursuit.labelling.journal import journal_key
from headpursuit.labelling.prompt import render
from headpursuit.method.words import count_words, normalise
from headpursuit.run.files import UserError


class Lexicon:
    """Finds whole words and phrases, case-folded, in text of any script."""

    slots = 1
    mode = "json"
    room = None
    per_image = None

    def __init__(self, terms: Sequence[str]):
        """Take ``terms``, each once."""
        folded = (normalise(" ".join(term.split())) for term in terms)
        self.terms = list(dict.fromkeys(filter(None, folded)))
        if not self.terms:
            raise UserError("labeller.lexicon: the word list is empty.")
        words = {"words": sorted(self.terms)}
        self.identity = {"backend": "lexicon", "terms": journal_key("", words)}
        self.facts = {**self.identity, "n_terms": len(self.terms)}

    def ask(self, text: str, attempt: int) -> Answer:
        """Return the terms in ``text``, in the order of the list."""
        found = compress(self.terms, count_words([text], self.terms)[0])
        return Answer(render(list(found), self.mode))
