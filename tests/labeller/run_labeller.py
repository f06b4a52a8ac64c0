"""Label one file of responses as the rule does, in a process of its own that tests can kill.

python run_labeller.py SETTINGS.json RESPONSES.parquet LABELS.parquet
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from headpursuit.labelling.label import label_file, read_texts

settings, responses, labels = map(Path, sys.argv[1:])
texts = read_texts([responses], [])
label_file(texts, labels, json.loads(settings.read_text()), [], labels.with_suffix(".log"))
