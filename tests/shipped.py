"""The config as it is shipped."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from snakemake.utils import update_config

ROOT = Path(__file__).parents[1]


def config(*overlays: str) -> dict[str, Any]:
    """Return config.yaml with overlays of configs/ laid over it as Snakemake does."""
    found: dict[str, Any] = {}
    for name in ("config", *(f"configs/{own}" for own in overlays)):
        update_config(found, copy.deepcopy(_read(name)))
    return found


@cache
def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"{name}.yaml").read_text(encoding="utf-8"))
