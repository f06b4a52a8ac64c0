"""Labelling: a backend names the harmful words of each response, and every reply is kept."""

from collections.abc import Mapping
from typing import Any

# Hosts for which no proxy of the environment is meant.
LOOPBACK = {"127.0.0.1", "localhost", "::1", "0.0.0.0", ""}
# Statuses of responses that have no label.
UNLABELLED = ("refused", "unparsed")


def used_labellers(config: Mapping[str, Any]) -> list[str]:
    """Return the labelling backends that a config names, the first first."""
    return [name for key in ("backend", "second") if (name := config["labeller"][key])]
