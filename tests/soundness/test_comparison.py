"""A trace that tracing itself finds no fault in, and that computes something else than the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.host import engine
from fxgraft.util.bits import same_bits
from tests.harness import gradients

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return -3 * grad


KEPT = Reversed.apply


def _doubled(x: Tensor) -> Tensor:
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t)
    torch._C._autograd._push_saved_tensors_default_hooks(hooks.pack_hook, hooks.unpack_hook)
    try:
        return x.tanh()
    finally:
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _counts(m: Any, h: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        m._buffers["calls"].add_(1)
    return h


DIFFERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "kept by the module": lambda m, h: m.apply_it(h),
    "kept in a list": lambda m, h: m.applied[0](h),
    "kept in a global": lambda m, h: KEPT(h),
    "hooks on saved tensors": lambda m, h: _doubled(h),
    "an operation that is not seen": _counts,
}


class FunctionInside(nn.Module):
    def __init__(self, between: Callable[[Any, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(6, 6), nn.Linear(6, 6), between
        self.apply_it, self.applied = Reversed.apply, [Reversed.apply]
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h if self.between is None else self.between(self, h))


class Model(nn.Module):
    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(map(FunctionInside, [None, between, None]))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def _same_training(host: nn.Module, model: nn.Module) -> None:
    for one in (host, model):
        one.zero_grad()
        one(X).square().sum().backward()
    ours = {n: g for n, g in gradients(host).items() if not n.startswith("_seeds.")}
    assert ours.keys() == gradients(model).keys()
    assert all(same_bits(ours[name], grad) for name, grad in gradients(model).items())
    assert all(map(same_bits, engine.trees(host)[0].buffers(), model.buffers()))


@pytest.mark.parametrize("kind", DIFFERS)
def test_what_differs_is_refused_by_name_and_the_rest_is_not(kind: str):
    model, plain = Model(DIFFERS[kind]), Model(DIFFERS[kind])
    host = fxgraft.trace(model, (X,))
    assert "differs" in host.opaque["blocks.1"]
    assert host.opaque.keys() == {"blocks.1"}
    assert not any(parameter.grad is not None for parameter in model.parameters())
    manager = fxgraft.SeedManager(host, check_every=0)
    for slot in ("blocks.0.a", "blocks.1.a", "blocks.2.a"):
        manager.germinate(slot, "mlp")
    for _ in range(2):
        _same_training(host, plain)


def test_what_differs_in_evaluation_only():
    class Evaluated(FunctionInside):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h if self.training else KEPT(h))

    model = Model(lambda m, h: h)
    model.blocks[2] = Evaluated(None)
    host = fxgraft.trace(model, (X,))
    assert "blocks.2" in host.opaque


def test_a_model_that_does_not_repeat_its_bits_is_compared_nearly():
    noise = torch.Generator()

    class Noisy(torch.autograd.Function):
        """As atomic additions on a GPU do: the last bits are others each time."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad * (1 + 1e-6 * torch.rand(grad.shape, generator=noise))

    for function, refused in ((None, set()), (KEPT, {"blocks.1"})):
        model = Model(lambda m, h, kept=function: h if kept is None else kept(h))
        model.blocks[0].between = lambda m, h: Noisy.apply(h)
        assert fxgraft.trace(model, (X,)).opaque.keys() == refused


def test_what_cannot_be_compared_is_said():
    with torch.device("meta"):
        model = Model(lambda m, h: h)
    host = fxgraft.trace(model, (X,))
    assert "meta" in host.explain().uncompared
    assert "meta" in str(host.explain())
    assert not fxgraft.trace(Model(lambda m, h: h), (X,)).explain().uncompared


def test_without_gradients_values_are_compared():
    class Rounds(FunctionInside):
        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).argmax(-1)

    class Stubborn(FunctionInside):
        """Has no backward, and takes no input that requires a gradient."""

        def forward(self, x: Tensor) -> Tensor:
            assert not x.requires_grad
            return torch.from_numpy(x.numpy()) * self.a(x)

    for block in (Rounds(None), Stubborn(None)):
        host = fxgraft.trace(block, (X,))
        assert not host.explain().uncompared


def test_tracing_in_inference_mode():
    model, plain = Model(lambda m, h: h), Model(lambda m, h: h)
    with torch.inference_mode():
        host = fxgraft.trace(model, (torch.randn(4, 6),))
        inference = Model(lambda m, h: h)
    manager = fxgraft.SeedManager(host, check_every=0)
    manager.germinate("blocks.0.a", "mlp")
    _same_training(host, plain)
    with pytest.raises(fxgraft.errors.TraceError, match="inference_mode"):
        fxgraft.trace(inference, (X,))
