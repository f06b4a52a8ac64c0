"""How near labelling comes to the ideal time against a server of a fixed latency.

A scripted server on the loopback (tests/labeller/fake_ollama.py) speaks Ollama's HTTP API and
answers each request after the latency, any number at once. The ideal is responses x latency /
slots; opening the backend is not counted, writing the journal is.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import timing
import yaml
from headpursuit.labelling.label import label_responses, open_backend
from headpursuit.run.config import load_config
from headpursuit.run.experiments import labeller_of

RESPONSES, LATENCY, SLOTS = 200, 0.2, 8  # latency in seconds


def main() -> None:
    """Measure how many times the ideal labelling takes, and write it."""
    config = yaml.safe_load((timing.ROOT / "config.yaml").read_text(encoding="utf-8"))
    settings = labeller_of(load_config(config), {})
    texts = [f"Response {i} is fine." for i in range(RESPONSES)]
    names = [str(i) for i in range(RESPONSES)]
    columns = {"sample_id": names, "repeat": [0] * RESPONSES, "response": texts}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    settings |= {"slots": SLOTS, "ollama": {**settings["ollama"], "host": host}}
    command = [sys.executable, timing.ROOT / "tests/labeller/fake_ollama.py", "serve"]
    env = {**os.environ, "OLLAMA_HOST": host, "FAKE_DELAY": str(LATENCY)}
    server = subprocess.Popen(command, env=env)
    try:
        with tempfile.TemporaryDirectory() as folder, open_backend(settings, texts) as backend:
            started = time.monotonic()
            labels = label_responses(pa.table(columns), backend, Path(folder) / "journal.jsonl")
            took = time.monotonic() - started
    finally:
        server.terminate()
        server.wait()
    if labels["sample_id"].to_pylist() != names:
        raise SystemExit("Not every response was labelled.")
    ideal = RESPONSES * LATENCY / SLOTS
    row = timing.row(
        "labelling through a server", "requests x latency / slots", None, [took], [ideal],
        checked="every response has its reply",
        n=f"{RESPONSES} responses, {LATENCY * 1000:g} ms, {SLOTS} slots",
    )  # fmt: skip
    timing.write("label_slots", [row])


if __name__ == "__main__":
    main()
