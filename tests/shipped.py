"""The config as it is shipped."""

from copy import deepcopy
from functools import reduce
from typing import Any

from headpursuit.run.experiments import merge
from headpursuit.run.files import shipped


def config(*overlays: str) -> dict[str, Any]:
    """Return config.yaml with overlays of configs/ laid over it, to be changed at will."""
    own = (shipped(f"configs/{name}.yaml") for name in overlays)
    return deepcopy(reduce(merge, own, shipped("config.yaml")))
