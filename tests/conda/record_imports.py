"""Put into an environment, with a .pth file: what a script imports, and from where.

Every job of Snakemake's that runs a script writes a JSON file into $RECORDED: the script, the
environment's prefix, and the file of each module that is reached from the workflow's own by
imports. What Snakemake alone imports for a script, out of its own environment, is not.
"""

import atexit
import builtins
import importlib
import importlib.util
import json
import os
import sys
import sysconfig
from pathlib import Path

imports: dict[str, set[str]] = {}  # the importing file, and the modules that it names


def note(scope, name, fromlist=()):
    """Note an import of a file."""
    if file := scope.get("__file__"):
        named = imports.setdefault(file, set())
        named.add(name)
        named.update(f"{name}.{member}" for member in fromlist or () if member != "*")


def watch():
    """Note every import statement and every call of importlib.import_module from now on."""
    real_import, real_module = builtins.__import__, importlib.import_module

    def import_statement(name, globals=None, locals=None, fromlist=(), level=0):
        if globals:
            package = globals.get("__package__") or ""
            full = importlib.util.resolve_name("." * level + name, package) if level else name
            note(globals, full, fromlist)
        return real_import(name, globals, locals, fromlist, level)

    def import_module(name, package=None):
        note(sys._getframe(1).f_globals, importlib.util.resolve_name(name, package))
        return real_module(name, package)

    builtins.__import__, importlib.import_module = import_statement, import_module


def reached(scripts):
    """Return the modules, name to file, that the files under a folder lead to."""
    waiting = [file for file in imports if file.startswith(scripts)]
    seen, found = set(waiting), {}
    while waiting:
        for name in imports.get(waiting.pop(), ()):
            parts = name.split(".")
            for whole in (".".join(parts[: end + 1]) for end in range(len(parts))):
                file = getattr(sys.modules.get(whole), "__file__", None)
                if file:
                    found[whole] = file
                    if file not in seen:
                        seen.add(file)
                        waiting.append(file)
    return found


def write():
    """Write what was imported, if a script of Snakemake's ran."""
    job = getattr(sys.modules["__main__"], "snakemake", None)
    if job is not None:
        folder = os.path.realpath(job.scriptdir)
        [script] = [Path(file).stem for file in imports if str(Path(file).parent) == folder]
        record = {
            "script": script,
            "prefix": sys.prefix,
            "stdlib": sysconfig.get_path("stdlib"),
            "workflow": folder,
            "files": reached(folder),
        }
        Path(os.environ["RECORDED"], f"{script}-{os.getpid()}.json").write_text(json.dumps(record))


if "RECORDED" in os.environ:
    watch()
    atexit.register(write)
