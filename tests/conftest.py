"""What every test gets: fixed seeds, memory that isn't quietly zero, its own kernel cache, and `.ring` files as tests."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from tests.filecheck import RingFile

TESTS = Path(__file__).parent

hypothesis.settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("thorough", parent=hypothesis.settings.get_profile("ci"), max_examples=1000)
# HYPOTHESIS_PROFILE=explore draws new examples each time, to look for what the fixed ones miss.
hypothesis.settings.register_profile("explore", deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores among pytest-xdist's workers; set before a back end starts its threads."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if hasattr(config, "workerinput"):
        threads = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(threads)
        for variable in ("OMP_NUM_THREADS", "TVM_NUM_THREADS"):
            os.environ.setdefault(variable, str(threads))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Each `.ring` file is a test, but for those in a folder named `data`."""
    if file_path.suffix == ".ring" and file_path.parent.name != "data":
        return RingFile.from_parent(parent, path=file_path)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests under `tests/device/` need a GPU, marked or not."""
    for item in items:
        if TESTS / "device" in item.path.parents:
            item.add_marker("device")
        if item.get_closest_marker("device") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Seed every global generator from the test's name: the same numbers whatever else runs, and in whatever order."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - hypothesis strategies and third-party code draw from the global generator
    torch.manual_seed(seed)


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """A CPU generator of the test's own."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty`, `empty_like`, `new_empty`, `resize_`, ... return with NaN, integers with their largest value.

    A kernel that doesn't write all of its output, or reads memory that nobody wrote, then fails every time and not
    by chance. PyTorch fills only in its deterministic mode, whose errors about operators are turned into warnings.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(scope="session", autouse=True)
def _own_kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile into a cache of this run, shared by its workers; a RINGC_CACHE_DIR set by the caller is kept."""
    if "RINGC_CACHE_DIR" in os.environ:
        yield
        return
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGC_CACHE_DIR", str(base / "ringc-cache"))
        yield
