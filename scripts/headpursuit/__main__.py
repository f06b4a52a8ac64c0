"""Read a finished run, follow its numbers, and take its heads elsewhere.

headpursuit claims results/demo
headpursuit trace results/demo/tables/table2.csv rtp somp 8
headpursuit checkpoint results/demo rtp somp-k8 /data/smollm2-inverted
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from headpursuit.run.files import ROOT, UserError

LOCK = """\
# The commits of this run's downloads from the Hub. To fetch the same elsewhere:
#   snakemake --cores all --configfile config.yaml revisions.yaml    both of this run's folder
"""

# Each command imports what it needs, so that --help comes at once. It returns its exit status.


def claims(results: Path, short: bool) -> int:
    """Print what a run found, and its verdicts on the paper's claims."""
    from headpursuit.publish.found import summary, verdicts
    from headpursuit.run.finished import read_run

    run = read_run(results)
    print("\n".join(summary(run)))
    if not short:
        print("\n".join(verdicts(run)))
    return 0


def open_(results: Path, name: str | None) -> int:
    """Show a run's report, or one of its tables, in the browser."""
    import webbrowser

    from headpursuit.run.finished import read_run

    path = read_run(results).page(name)
    with suppress(webbrowser.Error):
        if webbrowser.open(path.absolute().as_uri()):
            return 0
    print(f"No browser opens here. The page is {path.absolute()}")
    return 0


def pin(results: Path) -> int:
    """Write the commits of a run's downloads, as an overlay that fetches them again."""
    import yaml

    from headpursuit.run.files import write_text
    from headpursuit.run.finished import read_run

    run = read_run(results)
    found, path = run.revisions(), run.results / "revisions.yaml"
    write_text(path, f"{LOCK}{yaml.safe_dump(found, sort_keys=False)}")
    print(f"{len(found['sources'])} sources from the Hub: {path}")
    return 0


def trace(table: Path, row: Sequence[str], top: int, unmasked: bool) -> int:
    """Print what a row of a table stands on."""
    from headpursuit.run.trace import trace

    for line in trace(table, row, top, unmasked):
        print(line)
    return 0


def verify(results: Path) -> int:
    """Compare a run's files with its manifest."""
    from headpursuit.run.finished import run_folder
    from headpursuit.run.verify import verify

    lines, notes = verify(run_folder(results))
    said = lines or ["All files are as the manifest says."]
    print("\n".join([*said, *(f"Note: {note}" for note in notes)]))
    return int(bool(lines))


def diff(results: Path, other: Path) -> int:
    """Compare the manifests of two runs."""
    from headpursuit.run.finished import run_folder
    from headpursuit.run.verify import differences

    lines = differences(run_folder(results), run_folder(other))
    print("\n".join(lines or ["The runs differ in dates, hosts and times only."]))
    return int(bool(lines))


def estimate(configfile: Sequence[Path]) -> int:
    """Reckon tokens, hours, disk and memory that a config takes."""
    from headpursuit.run.estimate import estimate, measured, render

    config = _laid_over(configfile)
    print(render(estimate(config, measured(Path("results", config["run"], "benchmarks")))), end="")
    return 0


def _laid_over(files: Sequence[Path]) -> dict[str, Any]:
    """Return the config that Snakemake runs with these files laid over config.yaml."""
    from snakemake.common.configfile import load_configfile
    from snakemake.exceptions import WorkflowError
    from snakemake.utils import update_config

    from headpursuit.run.config import load_config

    config: dict[str, Any] = {}
    for file in (ROOT / "config.yaml", *files):
        try:
            update_config(config, load_configfile(file))
        except (WorkflowError, OSError, ValueError) as error:
            raise UserError(f"{file} cannot be laid over config.yaml: {error}") from error
    return load_config(config, files)


def checkpoint(results: Path, experiment: str, condition: str, to: Path, check: bool) -> int:
    """Save a run's model with the heads of a condition scaled."""
    from headpursuit.method.checkpoint import save_condition

    print("\n".join(save_condition(results, experiment, condition, to, check)))
    return 0


def apply(file: Path, model: Path, folder: Path, check: bool) -> int:
    """Save a model with heads scaled as a file of checkpoint says."""
    from headpursuit.method.checkpoint import apply_intervention

    print("\n".join(apply_intervention(file, model, folder, check)))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 if files differ, 2 for a mistake."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        return command(**options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # a pager that was closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _count(text: str) -> int:
    """Return a number of things to show."""
    if (number := int(text)) < 0:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=18)
    parser = argparse.ArgumentParser("headpursuit", description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(command: Callable[..., int]) -> Callable:
        said = str(command.__doc__).rstrip(".")
        own = commands.add_parser(command.__name__.rstrip("_"), help=said, description=f"{said}.")
        own.set_defaults(command=command)
        return own.add_argument

    run = {"type": Path, "help": "the run's folder: results/demo"}
    check = {"action": "store_true", "help": "load both models and compare their logits"}
    argument = add(claims)
    argument("results", **run)
    argument("--short", action="store_true", help="at most 15 lines, as at the end of a run")
    argument = add(open_)
    argument("results", **run)
    argument("name", nargs="?", help="a table or page: table2, claims, choices, run")
    add(pin)("results", **run)
    argument = add(trace)
    argument("table", type=Path, help="the table; of a run's folder the first of ratios")
    argument("row", nargs="*", help="what names the row: rtp somp 8; a wrong one lists all")
    argument("--top", type=_count, default=10, help="words, samples or atoms shown (10)")
    argument("--unmasked", action="store_true", help="print offensive words in full")
    add(verify)("results", **run)
    argument = add(diff)
    argument("results", type=Path, help="a run's folder: results/demo")
    argument("other", type=Path, help="another's")
    argument = add(estimate)
    overlays = {"type": Path, "nargs": "+", "default": [], "metavar": "FILE"}
    argument("--configfile", **overlays, help="laid over config.yaml, one after the other")
    argument = add(checkpoint)
    argument("results", **run)
    argument("experiment", help="of the run's config: rtp")
    argument("condition", help="of the experiment: somp-k8")
    argument("to", type=Path, help="a new folder for the edited model; or a file: heads.json")
    argument("--check", **check)
    argument = add(apply)
    argument("file", type=Path, help="what checkpoint wrote: heads.json")
    argument("model", type=Path, help="the model's folder: safetensors, tokenizer, config.json")
    argument("folder", type=Path, help="a new folder for the edited model")
    argument("--check", **check)
    return parser


if __name__ == "__main__":
    sys.exit(main())
