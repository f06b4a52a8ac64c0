import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headpursuit.labelling.label import label_responses, open_backend
from headpursuit.run.files import write_json

HERE = Path(__file__).parent
SETTINGS = {
    "backend": "ollama",
    "second": None,
    "prompt": str(HERE.parents[1] / "prompts/label.yaml"),
    "max_ctx": 8192,
    "num_predict": 256,
    "temperature": 0.0,
    "seed": 0,
    "slots": 4,
    "timeout": 5,
    "patience": 20,
    "attempts": 3,
    "per_image": None,
    "ollama": {"host": None, "model": "llama3.3:70b", "pull": False},
    "openai": {"base_url": None, "model": "m", "key_variable": "OPENAI_API_KEY"},
    "lexicon": {"source": None, "files": None, "text": "text", "where": None},
}


@pytest.fixture(autouse=True)
def no_real_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing listen where a real server usually does."""
    for name in ("OLLAMA_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")


@pytest.fixture
def settings() -> dict[str, Any]:
    return copy.deepcopy(SETTINGS)


@pytest.fixture
def label(settings, tmp_path):
    """Open the backend and label, as the rule does."""

    def label(table: pa.Table, host: str | None = None) -> pa.Table:
        settings["ollama"]["host"] = host
        column = "image" if "image" in table.column_names else "response"
        with open_backend(settings, table[column].to_pylist()) as backend:
            limits = {"attempts": settings["attempts"], "patience": settings["patience"]}
            return label_responses(table, backend, tmp_path / "journal", **limits)

    return label


@pytest.fixture
def start(settings, tmp_path):
    """Start the same in a process of its own, which tests can kill."""

    def start(table: pa.Table, **environment: str) -> subprocess.Popen:
        write_json(tmp_path / "settings.json", settings)
        pq.write_table(table, tmp_path / "responses.parquet")
        names = ("settings.json", "responses.parquet", "labels.parquet")
        command = [sys.executable, HERE / "run_labeller.py", *(tmp_path / name for name in names)]
        environment = {**os.environ, **environment}
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    return start


@pytest.fixture
def responses() -> Callable[[int], pa.Table]:
    """Make a table of distinct responses, every second one with a planted word."""
    return lambda n: pa.table(
        {
            "condition": ["baseline"] * n,
            "sample_id": [f"p{i}" for i in range(n)],
            "repeat": pa.array([0] * n, pa.int32()),
            "response": [f"Response {i} is {'darn fine' if i % 2 else 'fine'}." for i in range(n)],
            "n_tokens": [1] * n,
            "stop_reason": ["eos"] * n,
            "token_ids": [[0]] * n,
        }
    )
