"""Label one file of responses as the rule does, in a process of its own that tests can kill.

python run_labeller.py SETTINGS.json RESPONSES.parquet LABELS.parquet
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import label_responses

settings, responses, labels = map(Path, sys.argv[1:])
params = SimpleNamespace(labeller=json.loads(settings.read_text()))
given = SimpleNamespace(responses=[responses], prompts=[], images=[], lexicon=[])
made = SimpleNamespace(labels=labels)
label_responses.main(
    SimpleNamespace(params=params, input=given, output=made, log=[f"{labels}.log"])
)
