import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The same examples in each run, and no clock: a loaded machine is not a failure. FUZZ_CASES asks
# for more of them, and others each time.
CASES = os.environ.get("FUZZ_CASES")
settings.register_profile(
    "steady",
    max_examples=int(CASES or 200),
    deadline=None,
    derandomize=CASES is None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a tiny model of a family, of text or images, made once."""
    from headpursuit.method.decoder import FAMILIES

    def make(family: str) -> Path:
        if FAMILIES[family].reads_images:
            from tiny_vision import make_vlm as make_model
        else:
            from tiny import make_model
        return make_model(tmp_path_factory.mktemp(family), family)

    return cache(make)


@pytest.fixture(scope="session")
def model(model_path: Callable[[str], Path]) -> Callable[[str], Any]:
    """Give a tiny model of a family as a Decoder, loaded once."""
    from headpursuit.method.models import load_model

    return cache(lambda family: load_model(model_path(family), "float32", "cpu"))


@pytest.fixture(scope="session")
def weights(model: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory):
    """Give a tiny model's weights file, opened, made once."""
    from headpursuit.method.weights import HeadWeights, write_weights

    def make(family: str) -> HeadWeights:
        path = tmp_path_factory.mktemp("weights") / f"{family}.safetensors"
        write_weights(path, model(family), {"name": family})
        return HeadWeights(path)

    return cache(make)


@pytest.fixture(scope="session")
def tokenizer(model_path: Callable[[str], Path]) -> Any:
    """Give the tokenizer that all tiny models share."""
    from headpursuit.method.models import load_tokenizer

    return load_tokenizer(model_path("llama"))


@pytest.fixture
def paper() -> dict[str, Any]:
    """Give the shipped config.yaml, to be changed at will."""
    import shipped

    return shipped.config()


@pytest.fixture
def demo() -> dict[str, Any]:
    """Give the same with the demo laid over it."""
    import shipped

    return shipped.config("demo")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a run made by hand (made_run.py)."""
    from made_run import make_run

    return make_run(tmp_path_factory.mktemp("runs") / "made")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """Give a copy of the run made by hand, to be changed at will."""
    return shutil.copytree(made, tmp_path / "run")
