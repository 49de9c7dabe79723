"""One thread: these models are too small for two, which mostly wait for each other."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quiet_transformers():
    """transformers says errors only."""
    import transformers

    transformers.logging.set_verbosity_error()
