import shutil
from pathlib import Path

import pytest
from checkout import Checkout, make_checkout


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Give a checkout in which the tiny run has ended. Not to be changed: copy it."""
    checkout = make_checkout(tmp_path_factory.mktemp("finished") / "checkout")
    checkout.snakemake()
    return checkout


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Give the same run, on one core, under a path with spaces, and in another language."""
    other = make_checkout(tmp_path_factory.mktemp("elsewhere") / "ein Ördner 路")
    other.snakemake("--cores", "1", LANG="C", TZ="Asia/Kathmandu")
    return other


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    """Give a copy of the finished checkout, to be changed at will."""
    shutil.copytree(finished.folder, tmp_path / "checkout")
    return Checkout(tmp_path / "checkout")
