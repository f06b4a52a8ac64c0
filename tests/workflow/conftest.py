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


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    """Give a copy of the finished checkout, to be changed at will."""
    shutil.copytree(finished.folder, tmp_path / "checkout")
    return Checkout(tmp_path / "checkout")
