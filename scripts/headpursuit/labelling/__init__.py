"""Labelling: a backend names harmful words of responses, or keywords of images; all is kept."""

from collections.abc import Mapping
from typing import Any


def used_labellers(config: Mapping[str, Any]) -> list[str]:
    """Return the labelling backends that a config names, the first first."""
    return [name for key in ("backend", "second") if (name := config["labeller"][key])]
