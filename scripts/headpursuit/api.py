"""What heads write and what scaling them changes, in memory: the library for notebooks.

docs/api.md has an example of each function. Heads are named ``"L18.H27"`` or (18, 27), both from 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from headpursuit.data.prompts import render_prompts
from headpursuit.method.activations import Inputs, gather, pooled_inputs, pooled_positions
from headpursuit.method.batches import InMemory, pad
from headpursuit.method.check import self_check
from headpursuit.method.checkpoint import intervention
from headpursuit.method.decoder import Decoder, ScaledRows, scaled_heads
from headpursuit.method.decompose import vocabulary
from headpursuit.method.expected import covered_words, measure_expected
from headpursuit.method.heads import Condition, Head, draw_control, named_condition, named_head
from headpursuit.method.models import load_model, load_tokenizer, local_folder, refuse_foreign
from headpursuit.method.ranking import METHODS, rank_heads
from headpursuit.method.responses import Prompts, write_responses
from headpursuit.method.score import score_counts, score_expected, score_lengths
from headpursuit.method.somp import pursue as pursue_head
from headpursuit.method.special import special_tokens as tokens_of_no_text
from headpursuit.method.tokens import token_texts
from headpursuit.method.weights import LoadedWeights
from headpursuit.method.words import one_token_forms, token_rows
from headpursuit.run.experiments import head_name
from headpursuit.run.files import UserError, refuse_unknown
from headpursuit.run.finished import read_run
from headpursuit.run.schema import with_defaults

__all__ = ["Model", "UserError", "Writes", "cache", "intervention", "load", "measure", "pursue"]
__all__ += ["random_heads", "rank", "read_run", "respond", "scaled"]

HeadLike = str | Head
Heads = HeadLike | Iterable[HeadLike]
Texts = Sequence[str] | pd.Series  # of a series, the index names the samples
BATCH_TOKENS = 4096
WRITTEN = ("written",)  # of written, lower, title, upper: the cases in which words are looked up
RESPONSE = ["sample_id", "repeat", "token_ids"]


@dataclass(frozen=True)
class Model:
    """A language model whose heads are understood, and its tokenizer.

    Attributes:
        decoder: where the heads are; ``decoder.model`` is the Hugging Face model.
        tokenizer: pads on the left.
        chat: whether texts go through the chat template, as a user's message.
    """

    decoder: Decoder
    tokenizer: Any
    chat: bool = False

    @property
    def hf(self) -> PreTrainedModel:
        """The Hugging Face model; what :func:`scaled` does holds for it, too."""
        return self.decoder.model

    @cached_property
    def weights(self) -> LoadedWeights:
        """The output projections, the unembedding and the gains of norms."""
        return LoadedWeights(self.decoder)

    @torch.inference_mode()
    def generate(self, texts: str | Texts, max_new_tokens: int = 20, **options: Any) -> Any:
        """Return how the model goes on: a text for a text, a list for several.

        This is the Hugging Face model's own ``generate``, greedy unless the ``options`` say more.
        """
        rows = _prompts(self, [texts] if isinstance(texts, str) else texts)["token_ids"].to_pylist()
        padding = self.tokenizer.pad_token_id
        ids, mask = pad(rows, padding, left=True, device=self.decoder.device)
        given = {"do_sample": False, "pad_token_id": padding, "max_new_tokens": max_new_tokens}
        made = self.hf.generate(inputs=ids, attention_mask=mask, **{**given, **options})
        written = self.tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
        return written[0] if isinstance(texts, str) else written


def load(
    model: str | Path | PreTrainedModel,
    tokenizer: Any = None,
    *,
    dtype: str = "float32",
    device: str = "auto",
    chat: bool = False,
) -> Model:
    """Load a model and check that its heads are where this library looks for them.

    Args:
        model: a folder of config.json, safetensors and tokenizer; a repository in the Hub's cache
            on this machine (``hf download``); or a model that transformers has loaded.
        tokenizer: its folder or the tokenizer itself; left out, it is the model's own.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu`` or ``cuda``.
        chat: whether texts go through the chat template, as a user's message.

    Raises:
        UserError: if there is no such model, it is not supported, its heads are not where they
            should be, or the tokenizer is another model's.
    """
    if isinstance(model, PreTrainedModel):
        name, decoder = model.config.name_or_path, Decoder(model.eval())
        self_check(decoder)
    else:
        name = local_folder(model)
        decoder = load_model(name, dtype, device)
    there = tokenizer is None or Path(name).is_dir()
    own = load_tokenizer(local_folder(name)) if there else None
    tokenizer = own if tokenizer is None else tokenizer
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(local_folder(tokenizer))
    refuse_foreign(decoder, own, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Model(decoder, tokenizer, chat)


def _condition(model: Model, heads: Any, alpha: float = 1.0, at: str = "all") -> Condition:
    """Return heads as a condition; UserError if one is no head of the model."""
    refuse_unknown("at", at, ("all", "prompt", "response"))
    return named_condition(heads, alpha, at, *model.decoder.shape)


def _prompts(model: Model, texts: Texts) -> pa.Table:
    """Return what the model reads of each text, as prepare_samples does."""
    if isinstance(texts, str | pd.DataFrame) or not isinstance(texts, Iterable):
        raise UserError("Texts are a list or a series: put a single one into a list.")
    texts = texts if isinstance(texts, pd.Series) else pd.Series([*texts], dtype=object)
    names, texts = [*map(str, texts.index)], texts.tolist()
    if not texts:
        raise UserError("There are no texts.")
    for name, text in zip(names, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"Text {name} is empty or no text: {text!r}.")
    if len(set(names)) < len(names):
        raise UserError("Several texts have one name: the series' index needs a reset_index.")
    table = pa.table({"sample_id": names, "text": texts})
    return render_prompts(table, "{prompt}", model.tokenizer, model.chat)


@dataclass(frozen=True)
class Writes:
    """What the heads of a model write over texts, averaged over each text's positions."""

    model: Model
    inputs: Inputs

    def __getitem__(self, head: HeadLike) -> Tensor:
        """Return what a head writes to the residual stream: float32, texts x d."""
        [(layer, number)] = _condition(self.model, named_head(head)).heads
        return self.z(layer, number) @ self.model.weights.layer_columns(layer)[number].T

    def z(self, layer: int, head: int) -> Tensor:
        """Return a head's slice of what its output projection reads: texts x head_dim."""
        return torch.from_numpy(self.inputs.layers[layer][:, head])


def cache(
    model: Model,
    texts: Texts,
    positions: str = "prompt",
    *,
    responses: pd.DataFrame | None = None,
    max_new_tokens: int = 20,
    special_tokens: bool = False,
) -> Writes:
    """Read texts and keep what every head writes, averaged over positions.

    Args:
        model: of :func:`load`.
        texts: a list, or a series whose index names the samples.
        positions: ``prompt`` averages over the text's tokens, ``last`` takes the last, ``response``
            averages over the model's response to it.
        responses: for ``response``, those of :func:`respond` or of a run; without them the model
            writes some.
        max_new_tokens: of these.
        special_tokens: whether BOS and what the chat template writes count, too.
    """
    refuse_unknown("positions", positions, ("prompt", "last", "response"))
    prompts, written = _prompts(model, texts), None
    if positions == "response":
        written = _paired(model, prompts, responses, max_new_tokens)
    special = None if special_tokens else tokens_of_no_text(model.tokenizer)
    names, rows, where = pooled_positions(prompts, written, positions, special)
    pooled = pooled_inputs(model.decoder, rows, where, model.tokenizer.pad_token_id, BATCH_TOKENS)
    return Writes(model, gather(model.decoder, pooled, names))


def pursue(
    writes: Writes,
    head: HeadLike,
    words: Iterable[str] | Iterable[int] | None = None,
    *,
    cases: Sequence[str] = WRITTEN,
    strict: bool = True,
    iterations: int = 10,
    **options: Any,
) -> pd.DataFrame:
    """Explain what a head writes by a few tokens: SOMP over rows of the unembedding.

    Args:
        writes: of :func:`cache`.
        head: ``"L18.H27"`` or (18, 27).
        words: the tokens to choose from: words, token ids, or None for the whole vocabulary.
        cases: in which words are looked up: written, lower, title, upper.
        strict: refuse words that are no single token; else they are left out.
        iterations: how many tokens at most.
        options: norm, center, normalise_atoms, fold_norm_gain, as in docs/choices.md.

    Returns:
        step (from 1), token_id, token, and explained: the share of the head's variance that the
        tokens so far explain.
    """
    [(layer, number)] = _condition(writes.model, named_head(head)).heads
    chosen = with_defaults("pursuit", {"iterations": iterations, **options})
    fold, weights = chosen.pop("fold_norm_gain"), writes.model.weights
    if words is None:
        ids, rows = vocabulary(weights, writes.model.tokenizer, fold)
    else:
        ids = token_rows(writes.model.tokenizer, words, cases, strict, writes.model.weights.rows)
        rows = weights.unembedding(ids, fold)
    z, columns = writes.z(layer, number), weights.layer_columns(layer)[number]
    found = pursue_head(z, columns, rows, **chosen)
    tokens = [int(ids[row]) for row in found.support]
    texts = token_texts(writes.model.tokenizer, tokens)
    table = {"token_id": tokens, "token": texts, "explained": found.explained}
    return pd.DataFrame({"step": range(1, len(tokens) + 1), **table})


def rank(
    writes: Writes,
    words: Iterable[str] | Iterable[int],
    method: str = "somp",
    *,
    cases: Sequence[str] = WRITTEN,
    strict: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Rank all heads by how much of what they write is about words.

    Args:
        writes: of :func:`cache`.
        words: words, or token ids.
        method: ``somp`` (the variance that the words' tokens explain), ``logit_lens`` (their mean
            logit) or ``size`` (how much a head writes, whatever it is).
        cases: in which words are looked up: written, lower, title, upper.
        strict: refuse words that are no single token; else they are left out.
        options: iterations, norm, center, normalise_atoms, fold_norm_gain, as in docs/choices.md.

    Returns:
        name, layer, head, score, rank (from 1), atoms and what docs/columns.md says of rankings,
        best first.
    """
    refuse_unknown("method", method, [name for name in METHODS if name != "unrelated"])
    ids = token_rows(writes.model.tokenizer, words, cases, strict, writes.model.weights.rows)
    model, chosen = writes.model, with_defaults("pursuit", options)
    table = rank_heads(model.weights, model.tokenizer, writes.inputs, {method: ids}, chosen)
    table["method"] = list(map(head_name, table["layer"], table["head"]))
    return table.rename(columns={"method": "name"})


def scaled(model: Model, heads: Heads, alpha: float = -1.0, at: str = "all") -> ScaledRows:
    """Multiply what heads write by ``alpha`` while a ``with`` block runs; no weight is edited.

    Inside it ``model.generate``, ``model.hf`` and all that calls them give the scaled model's.
    """
    refuse_unknown("at", at, ["all"])  # here; respond and measure know where a response begins
    found = _condition(model, heads, alpha)
    return scaled_heads(model.decoder, found.heads, found.alpha)


def random_heads(model: Model, heads: Heads, seed: int = 0) -> list[Head]:
    """Draw the control: as many random heads in each layer (or near it), none of those given."""
    chosen, (layers, n_heads) = list(_condition(model, heads).heads), model.decoder.shape
    return draw_control(chosen, n_heads, seed, "api", "random", (0, layers - 1))


def respond(
    model: Model,
    texts: Texts,
    heads: Heads = (),
    alpha: float = -1.0,
    *,
    at: str = "all",
    max_new_tokens: int = 20,
) -> pd.DataFrame:
    """Write a greedy response to each text, of the model as it is or with heads scaled.

    ``at`` is where they are: ``all`` positions, the ``prompt``'s or the ``response``'s.

    Returns:
        sample_id, repeat (0), response, n_tokens, stop_reason and token_ids, in the texts' order.
    """
    prompts = _prompts(model, texts)
    conditions = {"own": _condition(model, heads, alpha, at)}
    return _respond(model, prompts, conditions, max_new_tokens).drop(columns="condition")


def _respond(
    model: Model, prompts: pa.Table, conditions: Mapping[str, Condition], max_new_tokens: int
) -> pd.DataFrame:
    generation = with_defaults("generation", {"temperature": 0, "max_new_tokens": max_new_tokens})
    file = InMemory({"generation": generation, "seed": 0}, BATCH_TOKENS)
    reader = Prompts(model.decoder, model.tokenizer, prompts, generation, BATCH_TOKENS)
    write_responses(file, model.decoder, reader, conditions)
    table = file.table.to_pandas().set_index("sample_id")
    return table.loc[prompts["sample_id"].to_pylist()].reset_index()


def _paired(
    model: Model, prompts: pa.Table, responses: pd.DataFrame | None, max_new_tokens: int
) -> pa.Table:
    """Return responses to prompts as the library's table; those given are to be theirs."""
    if responses is None:
        responses = _respond(model, prompts, {"own": Condition()}, max_new_tokens)
    columns = getattr(responses, "columns", ())  # none of a list of texts
    if lacking := {*RESPONSE} - {*columns} or (not len(responses) and {"any row"}):
        raise UserError(f"The responses lack {', '.join(sorted(lacking))}; respond gives them.")
    keys = responses[RESPONSE].astype({"sample_id": str})
    if strange := sorted({*keys["sample_id"]} - {*prompts["sample_id"].to_pylist()}):
        raise UserError(
            f"The responses are not to these texts: there is no text {strange[0]}. The index of a "
            "series of texts names them."
        )
    highest = max(map(max, filter(len, keys["token_ids"])), default=0)
    if highest >= model.hf.get_input_embeddings().num_embeddings:
        raise UserError(f"The responses are another model's: this one has no token {highest}.")
    return pa.Table.from_pandas(keys, preserve_index=False)


def measure(
    model: Model,
    texts: Texts,
    words: Iterable[str],
    heads: Heads,
    alpha: float = -1.0,
    *,
    at: str = "all",
    measures: Sequence[str] = ("expected", "occurrences"),
    responses: pd.DataFrame | None = None,
    max_new_tokens: int = 20,
    cases: Sequence[str] = WRITTEN,
    strict: bool = True,
) -> pd.DataFrame:
    """Measure words in the responses to texts before and after heads are scaled.

    Args:
        model: of :func:`load`.
        texts: a list, or a series whose index names the samples.
        words: what is measured.
        heads: what is scaled.
        alpha: by what.
        at: where: ``all`` positions, the ``prompt``'s or the ``response``'s.
        measures: ``expected`` is the probability of the words at the positions of the responses
            before; it sees words of one token. ``occurrences`` counts them in new responses.
        responses: those before, of :func:`respond` or of a run; without them the model writes some.
        max_new_tokens: of responses.
        cases: in which `expected` looks words up; counting folds case.
        strict: refuse words that are no single token; else ``expected`` does not see them.

    Returns:
        Summed over texts, a row a measure with before, after and ratio: expected; nll (nats that
        the responses before cost: what the intervention does to the model) and positions;
        occurrences, with tokens and repeated (pairs of neighbouring tokens that stood earlier).
    """
    for own in [measures] if isinstance(measures, str) else measures or [None]:
        refuse_unknown("measures", own, ("expected", "occurrences"))
    strict &= "expected" in measures
    table, dictionary = one_token_forms(model.tokenizer, words, cases, strict)
    conditions = {"baseline": Condition(), "scaled": _condition(model, heads, alpha, at)}
    if not conditions["scaled"].heads:
        raise UserError("No head is named, so nothing would change.")
    prompts = _prompts(model, texts)
    written = _paired(model, prompts, responses, max_new_tokens)
    found = []
    if "expected" in measures:
        file = InMemory({}, BATCH_TOKENS)
        covered = covered_words(table, dictionary)
        measure_expected(file, model.decoder, prompts, written, covered, conditions)
        by = [(name, "ascending") for name in ("condition", "sample_id", "repeat")]
        found.append(score_expected(file.table.sort_by(by), table)[1])
    if "occurrences" in measures:
        both = _respond(model, prompts, conditions, max_new_tokens)
        found += [score_counts(both, table, {})[1], score_lengths(both)]
    sums = pd.concat(found).groupby("measure", sort=False)[["before", "after"]].sum()
    return sums.assign(ratio=sums["after"] / sums["before"])
