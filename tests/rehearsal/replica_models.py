"""The models of config.yaml in small: real config keys, files and weight names, random weights.

Both have the real numbers of layers and heads, and are narrow: heads of 4 values in place of 128.
All weights are random but for the unembedding, which is fitted by least squares to what the random
layers leave (:func:`fit_unembedding`): else greedy responses repeat one token, and no answer about
an image is ever right, so that ratios would not be defined. As in real models, the heads that
speak of words are in the upper layers: below the last :data:`UPPER`, heads write to the first
:data:`LOWER` values of the residual stream, which the fitted rows do not read; nor do LLaVA's other
rows, so that no head of these layers is chosen and a condition reads few layers anew.
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from headpursuit.publish.settings import shipped_config
from replica_names import PLAIN
from replica_sources import (
    challenging,
    queries,
    question,
)
from replica_tokenizer import as_json, mistral_files
from safetensors.torch import save
from tiny import make_classifier
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

HEAD_DIM = 4
WIDTH = 32 * HEAD_DIM
LOWER = WIDTH // 4
UPPER = 4  # layers
RIDGE = 1e-3  # of the fit, beside the states' mean square
EOS = 2
Sequences = Iterable[tuple[Tensor, list[int]]]

MISTRAL_CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vocab_size": 32000,
}


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int, gain: float) -> None:
    """Fill a model with random numbers of such sizes that each part makes a difference.

    Args:
        model: in float32.
        seed: of the numbers.
        gain: how much the upper layers' heads write, so that an intervention is seen, and does not
            destroy what is fitted.
    """
    generator = torch.Generator().manual_seed(seed)
    lower = model.config.get_text_config().num_hidden_layers - UPPER
    gemma = model.config.model_type == "gemma3"
    for name, values in sorted(model.state_dict().items()):
        if values.ndim == 1:
            less = gemma and "vision_tower" not in name  # its norms store the gain less one
            centre = 1.0 if "norm" in name and name.endswith("weight") and not less else 0.0
            values.normal_(centre, 0.1, generator=generator)
            continue
        size = 1.0 if "embed_tokens" in name else values[0].numel() ** -0.5
        upper = "layers." in name and int(name.split("layers.")[1].split(".")[0]) >= lower
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            size *= gain if upper and "o_proj" in name else 0.3
        values.normal_(0.0, size, generator=generator)
        if name.endswith("o_proj.weight") and not upper:
            values[LOWER:] = 0


@torch.no_grad()
def fit_unembedding(head: torch.nn.Linear, sequences: Sequences, first: float) -> None:
    """Fit the unembedding so that each final state gives its next token, by least squares.

    Args:
        head: the unembedding; rows of other tokens stay random and small.
        sequences: final states (positions x width) and the token that each is to give.
        first: the weight of a sequence's first token, which depends on the prompt, beside the
            others, which mostly depend on the token before.
    """
    states, targets, weights = [], [], []
    for hidden, tokens in sequences:
        states.append(hidden[:, LOWER:].double())
        targets += tokens
        weights += [first] + [1.0] * (len(tokens) - 1)
    x, weight = torch.cat(states), torch.tensor(weights, dtype=torch.float64)[:, None]
    known = sorted(set(targets))
    wanted = torch.zeros(len(x), len(known), dtype=torch.float64)
    wanted[torch.arange(len(x)), [known.index(token) for token in targets]] = 1
    gram = x.T @ (weight * x)
    gram += RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
    rows = torch.linalg.solve(gram, x.T @ (weight * wanted)).T
    scores = (x @ rows.T)[torch.arange(len(x)), [known.index(token) for token in targets]]
    head.weight.mul_(0.1)
    fitted = torch.cat([torch.zeros(len(known), LOWER), rows.float()], dim=1)
    head.weight[known] = (fitted * (15 / scores.median().float())).to(head.weight.dtype)


def _tokenizer(files: dict[str, bytes], folder: Path) -> PreTrainedTokenizerFast:
    write(files, folder)
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def write(files: dict[str, bytes], folder: Path) -> None:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def sharded(weights: dict[str, Tensor], shards: int) -> dict[str, bytes]:
    """Return weights as shards with their index."""
    names = list(weights)
    step = -(-len(names) // shards)
    files, where = {}, {}
    for number in range(shards):
        own = {name: weights[name].contiguous() for name in names[number * step :][:step]}
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        files[file] = save(own, {"format": "pt"})
        where |= dict.fromkeys(own, file)
    total = sum(values.numel() * values.element_size() for values in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    return {**files, "model.safetensors.index.json": as_json(index)}


def mistral(folder: Path, questions: int = 0) -> dict[str, bytes]:
    """mistralai/Mistral-7B-Instruct-v0.2, and the weights in other forms that it has beside.

    It learns to answer some ``questions``, too.
    """
    files = mistral_files() | {"config.json": as_json(MISTRAL_CONFIG)}
    tokenizer = _tokenizer(files, folder)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomise(model, 1, gain=1.0)
    # In bfloat16, as in the run: responses hang on small differences.
    fit_unembedding(model.lm_head, _responses(model.bfloat16(), tokenizer, questions), first=20)
    weights = model.state_dict()
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
    others = ["consolidated.safetensors", "pytorch_model.bin.index.json", "README.md"]
    others += [f"pytorch_model-{number:05d}-of-00003.bin" for number in (1, 2, 3)]
    return {
        **files,
        "generation_config.json": as_json({**generation, "transformers_version": "4.36.0"}),
        **sharded(weights, 3),
        **dict.fromkeys(others, b"not to be fetched"),
    }


def walk(rng: random.Random, tokenizer: Any) -> dict[int, int]:
    """Return which token follows which in a response: chains of 40 words and an end."""
    chain = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in PLAIN]
    rng.shuffle(chain)
    return {
        here: EOS if number % 40 == 39 else after
        for number, (here, after) in enumerate(zip(chain, [*chain[1:], EOS], strict=True))
    }


@torch.no_grad()
def _responses(model: Any, tokenizer: Any, questions: int) -> Sequences:
    """Yield what the random layers make of prompts and the responses that are to come."""
    rng = random.Random(0)
    follows = walk(rng, tokenizer)
    template = shipped_config()["samples"]["rtp"]["template"]
    asked = [template.replace("{prompt}", text) for text in challenging()] + queries()
    for text in asked:
        ids = tokenizer(f"[INST] {text} [/INST]").input_ids
        told = [rng.choice(list(follows))]
        while told[-1] != EOS:
            told.append(follows[told[-1]])
        yield _heard(model, ids, told)
    template = shipped_config()["samples"]["triviaqa"]["template"]
    for number in range(questions):
        text, answer = question(rng, number)
        ids = tokenizer(f"[INST] {template.replace('{prompt}', text)} [/INST]").input_ids
        yield _heard(model, ids, [*tokenizer(answer, add_special_tokens=False).input_ids, EOS])


def _heard(model: Any, ids: list[int], told: list[int]) -> tuple[Tensor, list[int]]:
    states = model.model(torch.tensor([ids + told[:-1]])).last_hidden_state[0]
    return states[len(ids) - 1 :], told


@torch.no_grad()
def roberta_toxicity(folder: Path) -> dict[str, bytes]:
    """s-nlp/roberta_toxicity_classifier: 50,265 tokens in vocab.json and merges.txt, 512 of them.

    Of the prompts that are known to provoke it calls half toxic. Whether the real repository has
    safetensors is not known.
    """
    make_classifier(folder, vocab_size=50265, max_position_embeddings=514)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary |= {f"filler{number}": number for number in range(len(vocabulary), 50264)}
    (folder / "vocab.json").write_bytes(as_json({**vocabulary, "<mask>": 50264}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in challenging()]
    model.classifier.out_proj.bias -= torch.stack(logits).median(0).values
    # Older versions of transformers saved the positions, too.
    positions = {"roberta.embeddings.position_ids": torch.arange(514)[None]}
    names = ("<s>", "bos"), ("</s>", "eos"), ("<unk>", "unk"), ("</s>", "sep"), ("<pad>", "pad")
    named = {f"{name}_token": token for token, name in (*names, ("<s>", "cls"), ("<mask>", "mask"))}
    return {
        **{path.name: path.read_bytes() for path in folder.iterdir()},
        "model.safetensors": save({**model.state_dict(), **positions}, {"format": "pt"}),
        "special_tokens_map.json": as_json(named),
        "pytorch_model.bin": b"not to be fetched",
        "README.md": b"---\n---\n",
    }
