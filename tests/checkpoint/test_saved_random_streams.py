"""The global random streams in a checkpoint: tensors, and lists in files of earlier versions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxgraft.checkpoint import randomness
from fxgraft.checkpoint.packing import pack, unpack


def as_lists(saved: dict[str, Any]) -> dict[str, Any]:
    """As versions 1 and 2 had them."""
    return {
        **saved,
        **{
            name: [x.tolist() if isinstance(x, Tensor) else x for x in saved[name]]
            for name in ("python", "numpy")
        },
    }


def drawn() -> tuple[Any, ...]:
    return random.random(), random.gauss(0, 1), np.random.random(), np.random.randn(), torch.rand(3).tolist()


@pytest.mark.parametrize("form", [dict, as_lists], ids=["tensors", "lists"])
def test_streams_go_on_where_they_were(form: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    random.gauss(0, 1), np.random.randn()  # each has drawn a second number, which it keeps
    tensors: dict[str, Tensor] = {}
    packed = pack(form(randomness.state()), "random", tensors)
    expected = [drawn() for _ in range(3)]
    randomness.setter(unpack(packed, tensors))()
    assert [drawn() for _ in range(3)] == expected


def test_no_word_is_a_number_in_the_manifest() -> None:
    tensors: dict[str, Tensor] = {}
    assert len(repr(pack(randomness.state(), "random", tensors))) < 500
    assert {"random.python.1", "random.numpy.1"} <= tensors.keys()
