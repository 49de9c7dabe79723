"""Hypothesis profiles and what every test gets: a fixed random state, a clean compiler."""

import gc
import os
import shutil

# Inductor compiles in the process that asks for it; else each such process starts others, which import torch.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from fxgraft import _torch

pytest.register_assert_rewrite("tests.harness")

_COMMON = {
    # Tracing and eager autograd have slow first calls; a deadline on one example says nothing.
    "deadline": None,
    # Explaining a failure runs it hundreds of times more.
    "phases": [phase for phase in Phase if phase is not Phase.explain],
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("default", max_examples=10, stateful_step_count=10, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=1000, stateful_step_count=40, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("FXGRAFT_HYPOTHESIS", "default"))


@pytest.fixture(autouse=True, scope="session")
def _compiler():
    """Nearly every test imports it, as it makes an optimizer: then `_fast_collections` need not walk it."""
    _torch.import_compiler()


@pytest.fixture(autouse=True, scope="module")
def _fast_collections(_compiler):
    """What imports and earlier tests left is garbage or stays: collections in tests need not walk it.

    With the compiler alone one costs 80 ms, and tracing collects, as `fresh_compiler` does.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tensors of a few numbers: more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_randomness():
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def fresh_compiler():
    """Dynamo without a memory of earlier tests, before and after; its counts begin anew."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    gc.collect()


THERE = {
    "gpu": torch.cuda.is_available(),
    "graphviz": shutil.which("dot") is not None,
    "browser": shutil.which("chromium") is not None and shutil.which("chromedriver") is not None,
}
"""What some tests need, by their marker."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what needs what is not there: the header says so, and the count of deselected tests."""
    lacking = [marker for marker, there in THERE.items() if not there]
    needs = [item for item in items if any(map(item.get_closest_marker, lacking))]
    items[:] = [item for item in items if item not in needs]
    if needs:
        config.hook.pytest_deselected(items=needs)


def pytest_report_header() -> str:
    there = ", ".join(f"{name}: {'there' if found else 'MISSING'}" for name, found in THERE.items())
    return f"hypothesis: {settings().max_examples} examples; torch {torch.__version__}; {there}"
