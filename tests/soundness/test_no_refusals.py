"""What a forward may ask of sizes, types and layouts, and still be a graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft.util.bits import same_bits


class FunctionBetween(nn.Module):
    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.between = nn.Linear(6, 8), nn.Linear(8, 8), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)), self.between(self, self.a(x))


def _resized(h: Tensor, size: Any) -> Tensor:
    return F.interpolate(h[:, None], size=size)[:, 0]


def _contiguous(m: Any, h: Tensor) -> Tensor:
    h = h.transpose(0, 1)
    return h if h.is_contiguous() else h.contiguous() * 2


def _autocast(m: Any, h: Tensor) -> Tensor:
    with torch.autocast(h.device.type, dtype=torch.bfloat16):
        h = m.b(h)
    return m.b(h.float())


def _no_autocast(m: Any, h: Tensor) -> Tensor:
    with torch.autocast(device_type=h.device.type, enabled=False):
        return m.b(h.float())


ASKED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "round": lambda m, h: h[: round(h.shape[0] * 0.6)],
    "ceil": lambda m, h: h[: math.ceil(h.shape[0] / 2)],
    "floor": lambda m, h: h[: math.floor(h.size(0) / 2)],
    "int": lambda m, h: h[: int(h.shape[0] * 0.5)],
    "int as a size": lambda m, h: _resized(h, int(h.shape[1] * 1.5)),
    "a branch on int": lambda m, h: h * 2 if int(h.shape[0] / 2) > 2 else h,
    "numel": lambda m, h: h / h.shape.numel(),
    "numel of a part": lambda m, h: h.reshape(h.shape[1:].numel(), -1),
    "sum of sizes": lambda m, h: h.new_zeros(h.shape[:1] + (3,)),  # noqa: RUF005
    "is_contiguous": _contiguous,
    "is_contiguous of an input": lambda m, h: h if h.is_contiguous() else h * 2,
    "is_tensor": lambda m, h: h * 2 if torch.is_tensor(h) else h,
    "torch.Size": lambda m, h: h * 2 if isinstance(h.shape, torch.Size) else h,
    "type of sizes": lambda m, h: h * 2 if type(h.shape) is torch.Size else h,
    "a number that is an int": lambda m, h: h * 2 if isinstance(h.shape[0], int) else h,
    "autocast": _autocast,
    "no autocast": _no_autocast,
    "sqrt": lambda m, h: h / math.sqrt(h.size(-1)),
    "product": lambda m, h: h / math.prod(h.shape),
    "maximum": lambda m, h: h / max(h.shape[0], 5),
}


@pytest.mark.parametrize("asked", ASKED)
def test_is_a_graph(asked: str):
    model = FunctionBetween(ASKED[asked])
    host = fxgraft.trace(model, (torch.randn(6, 6),))
    assert not host.opaque
    fxgraft.SeedManager(host, check_every=0).germinate("a", "low_rank")
    for rows in (6, 8, 3, 5):
        x = torch.randn(rows, 6)
        assert all(map(same_bits, host(x), model(x)))
        assert rows != 6 or host.explain().fallbacks == 0
    for dtype in (torch.bfloat16, torch.float16)[
        : 1 if asked == "autocast" else 2
    ]:  # two dtypes torch cannot
        with torch.autocast("cpu", dtype):
            x = torch.randn(6, 6)
            assert all(map(same_bits, host(x), model(x)))
    host.double(), model.double()
    x = torch.randn(4, 6, dtype=torch.float64)
    if "autocast" not in asked:
        assert all(map(same_bits, host(x), model(x)))


def test_sizes_are_rounded_in_a_part_too():
    class Same(nn.Conv2d):
        """Pads so that strides divide: as in models that come from TensorFlow."""

        def forward(self, x: Tensor) -> Tensor:
            pads = []
            for size, kernel, stride in zip(x.size()[-2:], self.weight.size()[-2:], self.stride, strict=True):
                pads.append(max((math.ceil(size / stride) - 1) * stride + kernel - size, 0))
            if pads[0] > 0 or pads[1] > 0:
                x = F.pad(x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2])
            return F.conv2d(x, self.weight, self.bias, self.stride)

    torch.manual_seed(1)
    model = nn.Sequential(Same(3, 4, 3, stride=2), Same(4, 4, 3))
    host = fxgraft.trace(model, (torch.randn(2, 3, 8, 8),))
    assert not host.opaque
    fxgraft.SeedManager(host, check_every=0).germinate("0.pad", lambda slot: nn.Identity())
    for height, width in ((8, 8), (9, 7), (16, 5)):
        x = torch.randn(2, 3, height, width)
        assert same_bits(host(x), model(x))


def test_autocast_is_left_where_the_graph_raises():
    model = FunctionBetween(lambda m, h: _autocast(m, h) @ h)
    host = fxgraft.trace(model, (torch.randn(8, 6),))
    assert not host.opaque
    fxgraft.SeedManager(host, check_every=0).germinate("a", "low_rank")
    with pytest.raises(RuntimeError), torch.autocast("cpu", enabled=False):
        host(torch.randn(3, 6))
    assert not torch.is_autocast_enabled("cpu")
    assert torch.autocast_increment_nesting() == 1
    torch.autocast_decrement_nesting()


def test_autocast_in_compiled_code(fresh_compiler: None):
    model = FunctionBetween(_autocast)
    host = fxgraft.trace(model, (torch.randn(8, 6),))
    fxgraft.SeedManager(host, check_every=0).germinate("a", "low_rank")
    host.compile(backend="aot_eager", fullgraph=True)
    x = torch.randn(8, 6)
    assert all(map(same_bits, host(x), model(x)))
