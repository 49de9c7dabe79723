"""A bare host in one of several processes: see unwrapped_worker.py for what is promised."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fxgraft
from tests.distributed.launch import cases, launch, passed


def test_a_host_without_its_wrapper_is_noticed() -> None:
    assert passed(launch("unwrapped_worker.py", 2)) == cases("unwrapped_worker.py")


def test_an_average_is_not_led() -> None:
    host = fxgraft.trace(nn.Linear(3, 3), (torch.zeros(2, 3),))
    with pytest.raises(TypeError, match=r"got its average, which fxgraft\.averaging\.follow leads"):
        fxgraft.SeedManager(AveragedModel(host))
