"""A checkout, a Snakemake that is installed alone, and the stand-in for conda."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from checkout import ROOT, Checkout, make_checkout

HERE = Path(__file__).parent
# What `make test-conda` makes: Snakemake alone, and beside it the environments, kept between runs.
BARE = ROOT / ".venv-conda"
PATH = os.pathsep.join([str(HERE / "standin/bin"), str(BARE / "bin"), os.environ["PATH"]])


@dataclass
class CondaCheckout(Checkout):
    """A checkout that runs with ``--sdm conda``; scripts note in ``imports`` what they imported."""

    program: ClassVar[list[Path]] = [BARE / "bin/snakemake"]

    def start(self, *arguments: str, overlay: str = "tiny", **env: str) -> subprocess.Popen:
        """Start Snakemake as :meth:`Checkout.start` does, where nothing else is installed."""
        for package in (BARE / "envs").glob("*/lib/python*/site-packages"):
            shutil.copy(HERE / "record_imports.py", package)
            (package / "record_imports.pth").write_text("import record_imports\n")
        self.imports.mkdir(exist_ok=True)
        deployed = [] if "--sdm" in arguments else ["--sdm", "conda"]
        return super().start(
            *arguments,
            *deployed,
            *("--conda-prefix", str(BARE / "envs")),
            overlay=overlay,
            **{"PATH": PATH, "RECORDED": str(self.imports), **env},
        )

    @property
    def imports(self) -> Path:
        return self.folder / "imports"


def make_conda_checkout(folder: Path) -> CondaCheckout:
    """Make a checkout in which nothing has run yet."""
    assert CondaCheckout.program[0].exists(), "make test-conda installs what these tests need"
    return CondaCheckout(make_checkout(folder).folder)
