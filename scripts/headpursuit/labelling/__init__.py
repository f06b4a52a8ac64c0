"""Labelling: a backend names the harmful words of each response, and every reply is kept.

:mod:`~headpursuit.labelling.label` asks and keeps; :mod:`~headpursuit.labelling.backend` says what
a backend is; :mod:`~headpursuit.labelling.audit` sums up. docs/labelling.md is for users.
"""

from collections.abc import Mapping
from typing import Any

# Hosts for which no proxy of the environment is meant.
LOOPBACK = {"127.0.0.1", "localhost", "::1", "0.0.0.0", ""}
# Statuses of responses that have no label.
UNLABELLED = ("refused", "unparsed")


def used_labellers(config: Mapping[str, Any]) -> list[str]:
    """Return the labelling backends that a config names, the first first."""
    labeller = config["labeller"]
    return [labeller["backend"], *filter(None, [labeller["second"]])]
