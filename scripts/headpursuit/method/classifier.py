"""Text classifiers: how probable a label, such as toxic, is for a response."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
import transformers

from headpursuit.data.sources import verify
from headpursuit.method.batches import Halving
from headpursuit.method.models import (
    identity_of,
    load_tokenizer,
    load_weights,
    longest_input,
    model_folder,
)
from headpursuit.run.files import UserError

UNLIMITED = 2**20  # tokens, where neither model nor tokenizer says how many it reads


@torch.inference_mode()
def label_probabilities(
    texts: Iterable[str], provenance: str | Path, spec: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the probability that a classifier gives a label for each text, and facts to keep.

    Equal texts are judged once, and a batch holds texts of one length, so that nothing is padded.
    A text that is longer than the classifier reads is cut by its tokenizer. A text of white space
    alone is not judged: there is nothing in it, so its probability is 0.

    Args:
        texts: any number of them.
        provenance: the record of the classifier's files.
        spec: the config's entry of ``classifiers``, with its ``name``, and with ``device`` and
            ``batch_tokens``.

    Returns:
        Text to probability; and what identifies the classifier, its label, threshold and limit
        (tokens), and how many of the given texts are cut, and how many are empty.

    Raises:
        UserError: if the files are no classifier of texts, or it does not have the label.
    """
    texts, folder = list(texts), model_folder(provenance, spec)
    verify(provenance)
    auto = transformers.AutoModelForSequenceClassification
    model = load_weights(auto, folder, "classifier", "float32", spec["device"])
    number, of_its_own = _find_label(model.config, folder, spec)
    tokenizer = load_tokenizer(folder)
    if model.config.pad_token_id is None:  # decoders ask for it to find a text's last token
        model.config.pad_token_id = tokenizer.pad_token_id
    limit = min(_positions(model, folder), tokenizer.model_max_length)

    known = dict.fromkeys(texts, 0.0)
    judged = [text for text in known if text.strip()]
    read = tokenizer(judged, truncation=True, max_length=limit) if judged else {"input_ids": []}
    lengths = list(map(len, read["input_ids"]))

    def judge(batch: Sequence[int]) -> list[float]:
        inputs = {key: torch.tensor([own[i] for i in batch]) for key, own in read.items()}
        inputs = {key: own.to(model.device) for key, own in inputs.items()}
        logits = model(**inputs).logits.double()
        return (logits.sigmoid() if of_its_own else logits.softmax(-1))[:, number].tolist()

    work = Halving(judge, lambda i: f"a response ({lengths[i]} tokens)")
    for batch in _same_length(lengths, spec["batch_tokens"]):
        shares = chain(*work(batch))
        known.update((judged[i], share) for i, share in zip(batch, shares, strict=True))
    full = [i for i, length in enumerate(lengths) if length == limit]
    whole = tokenizer([judged[i] for i in full], verbose=False).input_ids if full else []
    cut = {judged[i] for i, ids in zip(full, whole, strict=True) if len(ids) > limit}
    facts = {
        **identity_of(provenance, folder),
        **{key: spec[key] for key in ("label", "threshold")},
        "limit": limit,
        "cut": sum(text in cut for text in texts),
        "empty": sum(not text.strip() for text in texts),
    }
    return known, facts


def _find_label(config: Any, folder: Path, spec: Mapping[str, Any]) -> tuple[int, bool]:
    """Return a label's number, and whether its probability is of its own or one of a sum of 1."""
    key, labels = f"classifiers.{spec['name']}", dict(sorted(config.id2label.items()))
    if config.problem_type == "regression":
        raise UserError(
            f"{key}.source: {folder} gives a number, not the probability of a label, says its "
            "config.json. Take a classifier."
        )
    found = [number for number, label in labels.items() if label == spec["label"]]
    if not found:
        raise UserError(
            f"{key}.label: {folder} has no label {spec['label']!r}; it has "
            f"{', '.join(labels.values())}. Correct that key."
        )
    one = len(labels) == 1 or config.problem_type == "multi_label_classification"
    return found[0], one


def _positions(model: torch.nn.Module, folder: Path) -> int:
    """Return how many tokens a model reads at most."""
    for name, part in model.named_modules():
        # RoBERTa and its kin count positions from behind that of padding.
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return part.num_embeddings - part.padding_idx - 1
    return longest_input(folder) or UNLIMITED


def _same_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield batches of texts of one length, the longest first, of at most so many tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for length, same in groupby(order, key=lengths.__getitem__):
        own, size = list(same), max(1, batch_tokens // max(length, 1))
        yield from (own[start : start + size] for start in range(0, len(own), size))
