"""Label one file of responses as the rule does, in a process of its own that tests can kill.

python run_labeller.py SETTINGS.json RESPONSES.parquet JOURNAL OUT.parquet
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from headpursuit.files import UserError, read_parquet, write_parquet
from headpursuit.labellers import label_responses, open_backend


def main(settings_path: str, responses_path: str, journal: str, out: str) -> None:
    """Label."""
    settings = json.loads(Path(settings_path).read_text())
    responses = read_parquet(responses_path, ["prompt_id", "sample", "response"])
    limits = {"attempts": settings["attempts"], "patience": settings["patience"]}
    with open_backend(settings, responses["response"].to_pylist()) as backend:
        labels = label_responses(responses, backend, Path(journal), **limits)
    write_parquet(out, labels)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
