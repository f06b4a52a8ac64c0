"""The `expected` metric: the probability of words, teacher-forced, under every condition."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from headpursuit.method.batches import PartFile, pad, plan_batches
from headpursuit.method.decoder import Decoder
from headpursuit.method.reading import Conditions, begin, each_condition, refuse_broken

SCHEMA = pa.schema(
    {
        "condition": pa.string(),
        "sample_id": pa.string(),
        "repeat": pa.int32(),
        "positions": pa.int64(),
        "nll": pa.float64(),
        "mass": pa.list_(pa.float64()),
    }
)


def covered_words(words: pd.DataFrame, dictionary: pd.DataFrame) -> dict[str, list[int]]:
    """Return the token ids whose probability is a word's: its one-token forms that start a word.

    Words without such a form have an empty list; `expected` cannot see them.
    """
    starts = dictionary[dictionary["starts_word"].astype(bool)]
    ids = starts.groupby("word")["token_id"].unique()
    return {word: [int(i) for i in ids.get(word, [])] for word in words["word"]}


@torch.inference_mode()
def measure_expected(
    file: PartFile,
    decoder: Decoder,
    prompts: pa.Table,
    responses: pa.Table,
    words: Mapping[str, Sequence[int]],
    conditions: Conditions,
) -> None:
    """Measure the probability that each word gets at the positions of the baseline's responses.

    The responses are teacher-forced: every condition reads the same tokens, so nothing is sampled
    and all conditions are measured at the same positions.

    Args:
        file: of :data:`SCHEMA`: positions are the response's tokens, nll its negative
            log-likelihood (nats, summed), and mass the probability of each word, in the order of
            ``words``, summed over the positions. Its settings hold whatever decides the other
            arguments.
        decoder: the model.
        prompts: table with sample_id and token_ids.
        responses: the baseline's, with sample_id, repeat and token_ids.
        words: word to its token ids (:func:`covered_words`).
        conditions: what is scaled, by the condition's name.

    Raises:
        UserError: if a condition's logits are not finite.
    """
    ids = dict(zip(prompts["sample_id"].to_pylist(), prompts["token_ids"].to_pylist(), strict=True))
    records = responses.select(["sample_id", "repeat", "token_ids"]).to_pylist()
    # A response's last token is not read: what follows it is not scored.
    rows = [ids[record["sample_id"]] + record["token_ids"][:-1] for record in records]
    device = decoder.device

    def measure(batch: Sequence[int], pending: Conditions) -> list[dict[str, Any]]:
        # Padding is on the right, where causal attention never looks.
        inputs, _ = pad([rows[i] for i in batch], 0, left=False, device=device)
        scored = torch.zeros_like(inputs, dtype=torch.bool)
        read = torch.tensor([len(ids[records[i]["sample_id"]]) for i in batch], device=device)
        written = torch.arange(inputs.shape[1], device=device) >= read[:, None]
        places = {"all": torch.ones_like(written), "prompt": ~written, "response": written}
        n_scored = [len(records[i]["token_ids"]) for i in batch]
        for row, (i, n) in enumerate(zip(batch, n_scored, strict=True)):
            # The logits at a position speak of the next token.
            scored[row, len(rows[i]) - n : len(rows[i])] = True
        follows = [token for i in batch for token in records[i]["token_ids"]]
        target = torch.tensor(follows, dtype=torch.long, device=device)
        row_of = scored.nonzero()[:, 0]
        size = max(1, file.batch_tokens // inputs.numel())
        measured = {}
        begun = begin(decoder, {"input_ids": inputs}, pending, places, cached=False)
        for names, own in each_condition(decoder, begun, pending, size):
            for name, hidden in zip(names, own.hidden.split(len(batch)), strict=True):
                logits = decoder.logits(hidden[scored])
                nll, mass = word_mass(logits, target, row_of, len(batch), words)
                if not (np.isfinite(nll).all() and np.isfinite(mass).all()):
                    refuse_broken(decoder, name)
                measured[name] = nll, mass
        return [
            {
                "condition": condition,
                **{key: records[i][key] for key in ("sample_id", "repeat")},
                "positions": n_scored[row],
                "nll": float(nll[row]),
                "mass": mass[row].tolist(),
            }
            for condition, (nll, mass) in measured.items()
            for row, i in enumerate(batch)
        ]

    def name(i: int) -> str:
        return f"prompt {records[i]['sample_id']} with its response ({len(rows[i])} tokens)"

    batches = plan_batches([len(row) for row in rows], file.batch_tokens)
    file.add(SCHEMA, conditions, batches, measure, name, tokens=list(words.values()))


def word_mass(
    logits: Tensor, target: Tensor, row_of: Tensor, n_rows: int, words: Mapping[str, Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the log-likelihood of the targets and the words' probabilities over each row.

    Given are logits (positions x vocabulary), the token that follows each position and the row
    that it belongs to. Returns nll (rows) in nats, and mass (rows x words), both float64.
    """
    tokens = [i for own in words.values() for i in own]  # none, where no form has a space before it
    tokens = torch.tensor(tokens, dtype=torch.long, device=logits.device)
    owner = [word for word, own in enumerate(words.values()) for _ in own]
    # In blocks: a float32 copy of all logits would be the largest thing in memory. A processor's
    # cache holds a small one; a GPU would spend its time on starting and copying many.
    size = 64 if logits.device.type == "cpu" else 1024
    nll, mass = np.zeros(n_rows), np.zeros((n_rows, len(words)))
    for part in torch.arange(len(logits), device=logits.device).split(size):
        scores = logits[part].float()
        norm = scores.logsumexp(-1, keepdim=True)
        surprise = norm[:, 0] - scores.gather(-1, target[part, None])[:, 0]
        probability = (scores[:, tokens] - norm).exp()
        rows = row_of[part].cpu().numpy()
        np.add.at(nll, rows, surprise.double().cpu().numpy())
        by_word = np.zeros((len(part), len(words)))
        np.add.at(by_word.T, owner, probability.double().cpu().numpy().T)
        np.add.at(mass, rows, by_word)
    return nll, mass
