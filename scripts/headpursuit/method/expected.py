"""The `expected` metric: the probability of words, teacher-forced, under every condition."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from headpursuit.method.batches import SMALLER, Halving, journaled, pad, plan_batches
from headpursuit.method.heads import Head
from headpursuit.method.models import Decoder, ScaledRows, gains
from headpursuit.method.reading import first_edited, groups, read, read_rows

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
    decoder: Decoder,
    pad_id: int,
    prompts: pa.Table,
    responses: pa.Table,
    words: Mapping[str, Sequence[int]],
    conditions: Mapping[str, Sequence[Head]],
    alpha: float,
    batch_tokens: int,
    journal: Path,
    identity: Any,
    part: int = 1,
    parts: int = 1,
) -> pa.Table:
    """Measure the probability that each word gets at the positions of the baseline's responses.

    The responses are teacher-forced: every condition reads the same tokens, so nothing is sampled
    and all conditions are measured at the same positions.

    Args:
        decoder: the model.
        pad_id: padding token.
        prompts: table with sample_id and token_ids.
        responses: the baseline's, with sample_id, repeat and token_ids.
        words: word to its token ids (:func:`covered_words`).
        conditions: condition to its heads; none for the model as it is.
        alpha: what the heads' writes are multiplied by.
        batch_tokens: tokens of a batch, padding included; conditions share it where there is room.
        journal: file that keeps finished batches, so that a killed job goes on where it was.
        identity: whatever else decides the result (the model); a journal of another identity is
            not used.
        part: which part of the responses, from 1; it takes every ``parts``-th batch, so that
            batches are the same however many parts there are.
        parts: how many there are.

    Returns:
        Table with condition, sample_id, repeat, positions (response tokens), nll (negative
        log-likelihood of the response, nats, summed) and mass (for each word, in the order of
        ``words``, its probability summed over the positions).
    """
    ids = dict(zip(prompts["sample_id"].to_pylist(), prompts["token_ids"].to_pylist(), strict=True))
    records = responses.select(["sample_id", "repeat", "token_ids"]).to_pylist()
    # A response's last token is not read: what follows it is not scored.
    rows = [ids[record["sample_id"]] + record["token_ids"][:-1] for record in records]
    every = [i for own in words.values() for i in own]  # none, where no form has a space before it
    tokens = torch.tensor(every, dtype=torch.long, device=decoder.device)
    firsts = set(first_edited(decoder, conditions).values())
    owner = torch.tensor([w for w, own in enumerate(words.values()) for _ in own], dtype=torch.long)

    def measure_batch(batch: Sequence[int]) -> list[dict[str, Any]]:
        # Padding is on the right, where causal attention never looks.
        inputs, _ = pad([rows[i] for i in batch], pad_id, left=False, device=decoder.device)
        scored = torch.zeros_like(inputs, dtype=torch.bool)
        n_scored = [len(records[i]["token_ids"]) for i in batch]
        for row, (i, n) in enumerate(zip(batch, n_scored, strict=True)):
            # The logits at a position speak of the next token.
            scored[row, len(rows[i]) - n : len(rows[i])] = n > 0
        follows = [token for i in batch for token in records[i]["token_ids"]]
        target = torch.tensor(follows, dtype=torch.long, device=decoder.device)
        row_of = scored.nonzero()[:, 0]

        plain = read(decoder, firsts, cached=False, input_ids=inputs)
        measured, size = {}, max(1, batch_tokens // inputs.numel())
        for names, first, heads in groups(decoder, conditions, size):
            by_row = gains(decoder, heads, alpha).repeat_interleave(len(batch), 0)
            with ScaledRows(decoder, by_row):
                _, hidden = read_rows(decoder, plain, first, len(names))
            for name, own in zip(names, hidden.split(len(batch)), strict=True):
                logits = decoder.logits(own[scored])
                mass = word_mass(logits, target, row_of, len(batch), tokens, owner, len(words))
                measured[name] = mass
        return [
            {
                "condition": condition,
                **{key: records[i][key] for key in ("sample_id", "repeat")},
                "positions": n_scored[row],
                "nll": float(measured[condition][0][row]),
                "mass": measured[condition][1][row].tolist(),
            }
            for condition in conditions
            for row, i in enumerate(batch)
        ]

    work = Halving(
        measure_batch,
        "compute.batch_tokens.reading",
        lambda i: f"prompt {records[i]['sample_id']} with its response ({len(rows[i])} tokens)",
        SMALLER,
    )
    batches = list(enumerate(plan_batches([len(r) for r in rows], batch_tokens)))[part - 1 :: parts]
    listed = [list(words.items()), list(conditions.items())]  # whose order counts
    decides = [identity, *listed, alpha, batch_tokens, rows, records]
    bar = tqdm(batches if conditions else [], unit="batch")
    done = journaled(journal, decides, bar, lambda batch: list(chain.from_iterable(work(batch))))
    out = [record for _, measured in done for record in measured]
    return pa.Table.from_pylist(out, schema=SCHEMA)


def word_mass(
    logits: Tensor,
    target: Tensor,
    row_of: Tensor,
    n_rows: int,
    tokens: Tensor,
    owner: Tensor,
    n_words: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the log-likelihood of the targets and the words' probabilities over each row.

    Args:
        logits: positions x vocabulary.
        target: the token that follows each position.
        row_of: the row of the batch that each position belongs to.
        n_rows: rows of the batch.
        tokens: token ids of all words.
        owner: the word of each of them.
        n_words: number of words.

    Returns:
        nll (rows) in nats, and mass (rows x words), both float64.
    """
    # In blocks: a float32 copy of all logits would be the largest thing in memory. A processor's
    # cache holds a small one; a GPU would spend its time on starting and copying many.
    size = 64 if logits.device.type == "cpu" else 1024
    nll = np.zeros(n_rows)
    mass = np.zeros((n_rows, n_words))
    for part in torch.arange(len(logits), device=logits.device).split(size):
        scores = logits[part].float()
        norm = scores.logsumexp(-1, keepdim=True)
        surprise = norm[:, 0] - scores.gather(-1, target[part, None])[:, 0]
        probability = (scores[:, tokens] - norm).exp()
        rows = row_of[part].cpu().numpy()
        np.add.at(nll, rows, surprise.double().cpu().numpy())
        by_word = np.zeros((len(part), n_words))
        np.add.at(by_word.T, owner.numpy(), probability.double().cpu().numpy().T)
        np.add.at(mass, rows, by_word)
    return nll, mass
