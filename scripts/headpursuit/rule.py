"""What every rule's script does around its work: log, threads, and errors in plain words."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from headpursuit.files import UserError


def run_rule(main: Callable[[Any], None], snakemake: Any) -> None:
    """Run a script's ``main(snakemake)`` with its messages in the rule's log and on the terminal.

    A user's mistake ends with its message alone; anything else leaves its traceback in the log.
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[logging.FileHandler(snakemake.log[0], mode="w", encoding="utf-8")],
        force=True,
    )
    for noisy in ("httpx", "httpcore", "urllib3", "matplotlib", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if "torch" in sys.modules:
        # Results must not depend on how many processors a machine has.
        sys.modules["torch"].set_num_threads(snakemake.threads)
    started = time.monotonic()
    try:
        main(snakemake)
    except UserError as error:
        logging.error("%s", error)
        print(f"\n{snakemake.rule}: {error}\n", file=sys.stderr)
        sys.exit(1)
    except BaseException:
        logging.exception("%s failed", snakemake.rule)
        raise
    logging.info("%s done in %.1f s", snakemake.rule, time.monotonic() - started)
