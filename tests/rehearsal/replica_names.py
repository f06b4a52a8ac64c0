"""Names and words that the replicas share."""

from pathlib import Path

import yaml

NAMES = yaml.safe_load(Path(__file__).with_name("names.yaml").read_text(encoding="utf-8"))
DIGITS = [str(number) for number in range(10)]
EUROSAT, GTSRB, RESISC45, DTD = (NAMES[name] for name in ("eurosat", "gtsrb", "resisc45", "dtd"))
GTSRB_CORRUPTED, PLAIN, BROKEN = (NAMES[name] for name in ("gtsrb_corrupted", "plain", "broken"))
