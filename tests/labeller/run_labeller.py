"""Label one file of responses as the rule does, in a process of its own that tests can kill.

python run_labeller.py SETTINGS.json RESPONSES.parquet LABELS.parquet
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from headpursuit.labelling.label import label_file, read_texts
from headpursuit.run.files import UserError


def main(settings_path: str, responses: str, out: str) -> None:
    settings = json.loads(Path(settings_path).read_text())
    label_file(
        read_texts([responses], None), out, settings, [], Path(out).with_suffix(".server.log")
    )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
