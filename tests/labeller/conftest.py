import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

PROMPT = Path(__file__).parents[2] / "prompts" / "label.yaml"

SETTINGS = {
    "backend": "ollama",
    "second": None,
    "prompt": str(PROMPT),
    "max_ctx": 8192,
    "num_predict": 256,
    "temperature": 0.0,
    "seed": 0,
    "slots": 4,
    "timeout": 5,
    "patience": 20,
    "attempts": 3,
    "ollama": {"host": None, "model": "llama3.3:70b", "pull": False},
    "openai": {"base_url": None, "model": None, "key_variable": "OPENAI_API_KEY"},
    "lexicon": {"source": None, "files": None, "text": "text", "where": None},
}


@pytest.fixture(autouse=True)
def no_real_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLLAMA_HOST", "OLLAMA_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def settings() -> dict[str, Any]:
    return copy.deepcopy(SETTINGS)


@pytest.fixture
def responses():
    """Make a table of distinct responses, every second one with a planted word."""

    def make(n: int) -> pa.Table:
        texts = [f"Response {i} is {'darn fine' if i % 2 else 'fine'}." for i in range(n)]
        ids = [f"p{i}" for i in range(n)]
        told = {"n_tokens": [1] * n, "stop_reason": ["eos"] * n, "token_ids": [[0]] * n}
        return pa.table(
            {
                "condition": ["baseline"] * n,
                "sample_id": ids,
                "repeat": pa.array([0] * n, pa.int32()),
                "response": texts,
                **told,
            }
        )

    return make
