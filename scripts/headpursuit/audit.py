"""Follow a number back to its prompts, and see whether a run's files are as they were.

python -m headpursuit.audit trace results/demo rtp somp 8
python -m headpursuit.audit verify results/demo
"""

import argparse
import sys
from pathlib import Path

from headpursuit.files import UserError
from headpursuit.manifest import verify
from headpursuit.table2 import METRICS
from headpursuit.trace import trace


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, or 1 if files are not as they were."""
    options = _parser().parse_args(arguments)
    # A path into the run, such as tables/table2.csv, names the run too.
    results = options.results
    while results != results.parent and not (results / "config.yaml").exists():
        results = results.parent
    try:
        if not (results / "config.yaml").exists():
            raise UserError(f"{options.results} is no run's folder: it has no config.yaml.")
        if options.command == "verify":
            problems = verify(results)
            print("\n".join(problems) or "All files are as the manifest says.")
            return 1 if problems else 0
        for line in trace(
            results,
            options.dataset,
            options.method,
            options.heads,
            options.metric,
            options.top,
            options.unmasked,
        ):
            print(line)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m headpursuit.audit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("trace", help="say what a row of table 2 stands on")
    one.add_argument("results", type=Path, help="the run's folder, or a file in it")
    one.add_argument("dataset")
    one.add_argument("method", choices=["somp", "logit_lens", "random"])
    one.add_argument("heads", type=int)
    one.add_argument("metric", nargs="?", choices=METRICS, default="count")
    one.add_argument("--top", type=int, default=10, help="words and prompts shown")
    one.add_argument("--unmasked", action="store_true", help="print offensive words in full")
    other = commands.add_parser("verify", help="compare the files with the run's manifest")
    other.add_argument("results", type=Path, help="the run's folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
