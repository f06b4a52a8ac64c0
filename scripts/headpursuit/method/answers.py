"""Answers: which class a model's answer names, and its F1 against right answers."""

import re
import string
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from headpursuit.method.words import normalise, word_pattern

STEPS = ("case", "space", "punctuation")


def normalise_answer(text: str, steps: Collection[str] = STEPS) -> str:
    """Return the form in which answers and class names are compared.

    Of the steps, ``case`` folds it, ``space`` trims it and makes runs one space, ``punctuation``
    takes it off both ends.
    """
    text = normalise(text, case_sensitive="case" not in steps)
    if "punctuation" in steps:
        marks = re.escape(string.punctuation + "“”‘’…。")
        text = re.sub(rf"^(\s*)[{marks}\s]*[{marks}]|[{marks}][{marks}\s]*(\s*)$", r"\1\2", text)
    return " ".join(text.split()) if "space" in steps else text


def judge(answer: str, classes: Sequence[str], steps: Collection[str]) -> tuple[int, int, str]:
    """Say which class an answer is, begins with, and names.

    A class name inside a longer one ("crop" in "permanent crop") does not count beside it.

    Returns:
        The class that the answer is, exactly but for ``steps`` (strict); the class with which it
        begins (first word); both -1 for none; and whether it names one ``class``, ``several`` or
        ``none``.
    """
    own = normalise_answer(answer, steps)
    names = [normalise_answer(name, steps) for name in classes]
    strict = names.index(own) if own in names else -1
    longest = sorted(range(len(names)), key=lambda i: -len(names[i]))
    # A blank for each name that was found, so that shorter names inside it are not.
    found: dict[int, int] = {}
    rest = own
    for i in longest:
        pattern = word_pattern(names[i])
        if match := pattern.search(rest):
            found[i] = match.start()
            rest = pattern.sub(lambda hit: "\0" * len(hit[0]), rest)
    start = len(own) - len(own.lstrip())
    first = next((i for i, at in found.items() if at == start), -1)
    return strict, first, {0: "none", 1: "class"}.get(len(found), "several")


# F1, as in SQuAD's evaluate-v2.0.py


def answer_tokens(text: str) -> tuple[str, ...]:
    """Return a text's tokens: lower case, without ASCII punctuation, then without articles."""
    bare = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return tuple(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def best_f1(answer: str, references: Iterable[str]) -> float:
    """Return the largest F1 of an answer's tokens against those of each right answer.

    Right answers without a token do not count beside others. Alone, they are given by an answer
    without one, and by no other.
    """
    own = answer_tokens(answer)
    right = list(filter(None, map(answer_tokens, references))) or [()]
    return max(_f1(own, tokens) for tokens in right)


def _f1(own: Sequence[str], right: Sequence[str]) -> float:
    if not own or not right:
        return float(own == right)
    shared = (Counter(own) & Counter(right)).total()
    return 2 * shared / (len(own) + len(right))


def answered_by(words: Iterable[str], references: Iterable[str]) -> bool:
    """Say whether a right answer, in any spelling listed, is one of the words by its tokens."""
    right = set(map(answer_tokens, references)) - {()}
    return not right.isdisjoint(map(answer_tokens, words))
