"""Follow a number back to its prompts, and see whether a run's files are as they were.

python -m headpursuit trace results/demo/tables/table2.csv rtp somp 8
python -m headpursuit verify results/demo
python -m headpursuit diff results/demo /elsewhere/results/demo
"""

import argparse
import os
import sys
from pathlib import Path

from headpursuit.run.files import UserError
from headpursuit.run.finished import ROWS, run_folder
from headpursuit.run.trace import trace
from headpursuit.run.verify import differences, verify


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 if files differ, 2 for a mistake."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "trace":
            for line in trace(options.path, options.row, options.top, options.unmasked):
                print(line)
            return 0
        if options.command == "verify":
            lines, notes = verify(run_folder(options.results))
            done = "All files are as the manifest says."
        else:
            lines, notes = differences(run_folder(options.results), run_folder(options.other)), []
            done = "The runs differ in dates, hosts and times only."
        print("\n".join([*(lines or [done]), *(f"Note: {note}" for note in notes)]))
        return 1 if lines else 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # a pager that was closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m headpursuit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    rows = "; ".join(f"of {kind}: {' '.join(row)}" for kind, row in ROWS.items())
    one = commands.add_parser("trace", help="say what a row of a table stands on")
    one.add_argument("path", type=Path, help="the table; of a run's folder the first of ratios")
    one.add_argument("row", nargs="*", help=f"what names the row, {rows}")
    one.add_argument("--top", type=int, default=10, help="words, samples or atoms shown")
    one.add_argument("--unmasked", action="store_true", help="print offensive words in full")
    other = commands.add_parser("verify", help="compare the files with the run's manifest")
    other.add_argument("results", type=Path, help="the run's folder")
    both = commands.add_parser("diff", help="compare the manifests of two runs")
    both.add_argument("results", type=Path, help="a run's folder")
    both.add_argument("other", type=Path, help="another's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
