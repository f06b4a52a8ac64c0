"""Captions: CIDEr, how far a caption says what an image's reference captions say.

It is CIDEr-D as pycocoevalcap has it (there ``Cider``), with n-grams of one to four tokens: each is
weighted by how few images' references hold it, the cosine of caption and reference is clipped where
the caption repeats itself and shrinks as their lengths differ, and ten times its mean over
references and the four n is the score. Tokens are near those of the Penn Treebank, which
pycocoevalcap has of a Java program (docs/answers.md has the differences).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import exp, log, sqrt

import regex

from headpursuit.method.words import normalise

LONGEST, SIGMA = 4, 6.0  # of the n-grams; of the penalty for another length
# Clitics are tokens of their own, what hyphens and the like join is one, and of other signs only
# punctuation is none.
_TOKEN = regex.compile(
    r"""can(?=not(?!\w)) | \w+?(?=n't(?!\w)) | n't(?!\w) | '(?:s|re|ve|ll|d|m)(?!\w)
    | (?:[a-z]\.){2,} | \w+(?:[-./,:]\w+)* | [^\w\s.,;:?!'"`“”‘–—…-]""",
    regex.VERBOSE,
)

NGram = tuple[str, ...]
Vector = Mapping[NGram, float]


def tokenise(caption: str) -> list[str]:
    """Return a caption's tokens, in lower case and without punctuation."""
    return _TOKEN.findall(normalise(caption))


def cider(references: Mapping[str, Sequence[str]]) -> Callable[[str, str], float]:
    """Return what scores a caption, given its sample and text.

    Args:
        references: each sample's; document frequencies are over all of these samples.
    """
    tokens = {sample: list(map(tokenise, own)) for sample, own in references.items()}
    held = Counter(
        gram
        for own in tokens.values()
        for gram in {gram for each in own for n in range(LONGEST) for gram in _grams(each, n + 1)}
    )

    def vectors(words: Sequence[str]) -> list[Vector]:
        return [
            {gram: times * log(len(tokens) / max(1, held[gram])) for gram, times in own.items()}
            for own in (Counter(_grams(words, n + 1)) for n in range(LONGEST))
        ]

    known = {sample: [(len(each), vectors(each)) for each in own] for sample, own in tokens.items()}

    def score(sample: str, caption: str) -> float:
        words = tokenise(caption)
        own, total = vectors(words), 0.0
        for length, theirs in known[sample]:
            # pycocoevalcap counts bigrams, of which no words have as many as one.
            apart = max(len(words), 1) - max(length, 1)
            alike = sum(map(_clipped_cosine, own, theirs)) / LONGEST
            total += alike * exp(-(apart**2) / (2 * SIGMA**2))
        return 10 * total / len(known[sample])

    return score


def _grams(words: Sequence[str], n: int) -> list[NGram]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _clipped_cosine(own: Vector, theirs: Vector) -> float:
    shared = own.keys() & theirs.keys()
    product = sum(min(own[gram], theirs[gram]) * theirs[gram] for gram in shared)
    lengths = sqrt(sum(w * w for w in own.values()) * sum(w * w for w in theirs.values()))
    return product / lengths if lengths else 0.0
