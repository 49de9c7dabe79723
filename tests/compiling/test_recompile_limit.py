"""More kinds of call than torch compiles for one function: slower, said once, and never an error."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from tests.harness import assert_same_bits, frozen

pytestmark = pytest.mark.usefixtures("fresh_compiler")

CALLS = 12  # torch compiles a function for 8


class Counted(nn.Module):
    """Its number changes from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.number = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (self.number + 1)


class Named(nn.Module):
    """What it computes depends on a text."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, name: str = "a") -> Tensor:
        return self.layer(x) * len(name)


def by_attribute(host: fxgraft.Host, i: int) -> Tensor:
    host.get_submodule("0").number = i
    return host(torch.ones(3, 4))


def by_text(host: fxgraft.Host, i: int) -> Tensor:
    return host(torch.ones(3, 4), "a" * (i + 1))


def by_size(host: fxgraft.Host, i: int) -> Tensor:
    return host(torch.ones(i + 2, 4))


WAYS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], dict[str, Any]]] = {
    "an attribute": (lambda: nn.Sequential(Counted()), by_attribute, {}),
    "a text": (Named, by_text, {}),
    "sizes": (lambda: nn.Sequential(nn.Linear(4, 4)), by_size, {"dynamic": False}),
}


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("granularity", ["host", "region"])
@pytest.mark.parametrize("way", WAYS)
def test_calls_beyond_torchs_limit_run_and_are_told_once(
    way: str, granularity: str, seeded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    make, call, options = WAYS[way]
    torch.manual_seed(0)
    model = make()
    host = fxgraft.trace(model, (torch.randn(3, 4),))
    manager = fxgraft.SeedManager(host)
    if seeded:
        manager.germinate("layer" if way == "a text" else "0", nn.Linear(4, 4), name="a")
    twin = [frozen(call(host, i)) for i in range(CALLS)]
    host.compile(backend="aot_eager", granularity=granularity, **options)
    for _ in range(2):
        for i in range(CALLS):
            out = call(host, i)
            out.sum().backward()
            assert_same_bits(frozen(out), twin[i], f"call {i}")
    limits = [r for r in caplog.records if r.name == "fxgraft" and "so many kinds of call" in r.message]
    assert len(limits) <= 1
    if way != "an attribute" or not seeded:  # with seeds the key of the code tells that attributes change
        assert len(limits) == 1
        assert limits[0].levelno == logging.WARNING
        assert "run uncompiled" in limits[0].message
        assert "recompile_limit" in limits[0].message
        assert any(row.at_limit for row in fxgraft.compile_report(host).variants)
        assert "limit" in str(fxgraft.compile_report(host))
