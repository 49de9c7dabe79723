from __future__ import annotations

import pytest
from sklearn.datasets import load_digits

from tests.integration.digits import Digits, split


@pytest.fixture(scope="session")
def digits() -> Digits:
    return split(load_digits())
