"""Compiled code is compared with eager mode on its first real call, and not trusted where it differs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

import fxgraft
from fxgraft.compiling import _comparison
from fxgraft.host import engine
from fxgraft.testing import no_recompiles
from tests.harness import assert_same_bits, frozen, observed_call
from tests.seed_modules import Counting, Drawing, Scale

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class NormDropoutLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.drop(self.norm(self.layer(x))))


def in_backward(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The identity, whose gradient ``change`` makes another one of."""

    class Grad(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return change(grad)

    return Grad.apply


def wrong(what: str, by: float = 1.0) -> Callable[..., Any]:
    """A backend that computes something else: an output, or only the gradient of one."""

    def scaled(value: Tensor) -> Tensor:
        return value * (1 + by)

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            out = graph.forward(*args)
            if what == "nothing":
                return out
            change = in_backward(scaled) if what == "gradients" else scaled
            return [change(out[0]), *out[1:]]

        return run

    return backend


def grown(backend: Any, model: nn.Module | None = None) -> tuple[fxgraft.Host, fxgraft.SeedManager]:
    torch.manual_seed(0)
    host = fxgraft.trace(model or NormDropoutLayer(), (torch.randn(3, 4),))
    host.compile(backend=backend)
    return host, fxgraft.SeedManager(host)


def life(host: fxgraft.Host, calls: int = 4) -> list[Any]:
    torch.manual_seed(1)
    return [observed_call(host, torch.randn(3, 4), seed=i) for i in range(calls)]


@pytest.mark.parametrize("what", ["outputs", "gradients"])
def test_code_that_computes_something_else_is_named_and_eager_mode_goes_on(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    host, _ = grown(wrong(what))
    twin, _ = grown(wrong("nothing"))
    for ours, theirs in zip(life(host), life(twin), strict=True):
        assert_same_bits(ours, theirs, what)
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "host empty isolated: compiled it differs from eager mode" in error.message
    assert what in error.message
    report = fxgraft.compile_report(host)
    (row,) = report.variants
    assert row.distrusted is not None
    assert what in row.distrusted
    assert what in str(report)
    assert row.uncompiled_calls > 0


def test_rounding_is_no_difference_where_the_compiler_may_round(caplog: pytest.LogCaptureFixture) -> None:
    host, _ = grown(wrong("outputs", by=1e-6))
    life(host)
    assert fxgraft.compile_report(host).variants[0].distrusted is None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Kink(nn.Module):
    """A number so close to zero that rounding decides what the gradient of a ReLU is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        self.layer.weight = nn.Parameter(torch.tensor([[1.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))


def test_rounding_across_a_kink_is_no_difference(caplog: pytest.LogCaptureFixture) -> None:
    """The gradient is another one; but so it is in eager mode where weights differ by rounding."""

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        factor = torch.tensor([1.0, 1.0 + 3e-7])
        return lambda *args: graph.forward(*(a * factor if a.shape == (1, 2) else a for a in args))

    x = torch.tensor([[1.0, 1.0 - 2**-24]])
    host = fxgraft.trace(Kink(), (x,))
    host.compile(backend=backend)
    before = frozen(list(host.state_dict().values()))
    for _ in range(3):
        host(x).sum().backward()
    assert fxgraft.compile_report(host).variants[0].distrusted is None
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert_same_bits(frozen(list(host.state_dict().values())), before, "the weights")
    assert host(x).item() == 0.0  # compiled; eager mode has 2 ** -24


def test_under_autocast_rounding_is_that_of_its_dtype(caplog: pytest.LogCaptureFixture) -> None:
    """A kink that rounding in bfloat16 carries a value across, and rounding in float32 does not."""

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        factor = torch.tensor([1.0, 1.0 + 2**-7])
        return lambda *args: graph.forward(*(a * factor if a.shape == (1, 2) else a for a in args))

    x = torch.tensor([[1.0, 1.0 - 2**-8]])
    host = fxgraft.trace(Kink(), (x,))
    host.compile(backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            out = host(x)
            out.sum().backward()
    assert fxgraft.compile_report(host).variants[0].distrusted is None
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert out.item() == 0.0  # compiled; eager mode has 2 ** -8


def test_in_reduced_precision_no_backend_is_held_to_the_bits(caplog: pytest.LogCaptureFixture) -> None:
    """Dropout is several operations for ``"aot_eager"``, which round one after the other."""
    host, _ = grown("aot_eager", nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.25), nn.Linear(16, 4)))
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(4):
            host(torch.randn(3, 4)).square().sum().backward()
    assert fxgraft.compile_report(host).variants[0].distrusted is None
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_compilation_that_is_refused_is_no_difference(caplog: pytest.LogCaptureFixture) -> None:
    """``set_stance("fail_on_recompile")`` asks for an error: in a comparison, too."""
    host, _ = grown("aot_eager")
    x = torch.randn(3, 4)
    with no_recompiles(), pytest.raises(RuntimeError, match="Detected recompile"):
        host(x)
    life(host)
    (row,) = fxgraft.compile_report(host).variants
    assert (row.distrusted, row.graphs, row.uncompiled_calls) == (None, 1, 0)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("what", ["outputs", "gradients"])
def test_an_error_of_a_thousandth_is_no_rounding(what: str) -> None:
    host, _ = grown(wrong(what, by=1e-3), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    life(host)
    assert what in str(fxgraft.compile_report(host).variants[0].distrusted)


class Masking(nn.Module):
    """Attention scores: half of the values are masked."""

    def __init__(self, mask: float):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        above = torch.ones(3, 4, dtype=torch.bool).triu()
        return torch.tanh(self.layer(x)).masked_fill(above, self.mask)


def beside_the_mask(by: float) -> Callable[..., Any]:
    """A backend that changes what is not masked, in the outputs."""

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            out = graph.forward(*args)
            return [torch.where(out[0].abs() < 10, out[0] * (1 + by), out[0]), *out[1:]]

        return run

    return backend


@pytest.mark.parametrize("mask", [-1e9, torch.finfo(torch.float32).min, float("-inf"), 1e4])
def test_values_that_mask_others_hide_no_error(mask: float) -> None:
    """Beside them an error of a thousandth is a share of nothing."""
    for by, differs in ((1e-3, True), (3e-5, False)):
        host, _ = grown(beside_the_mask(by), Masking(mask).requires_grad_(False))  # gradients are no mask
        for i in range(4):
            host(torch.randn(3, 4, generator=torch.Generator().manual_seed(i)))
        assert ("outputs" in str(fxgraft.compile_report(host).variants[0].distrusted)) is differs, by


def test_eval_mode_is_compared_by_itself() -> None:
    """Right in training, wrong in evaluation."""

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        return wrong("nothing" if torch.is_grad_enabled() else "outputs")(graph, inputs)

    host, _ = grown(backend)
    life(host)
    assert fxgraft.compile_report(host).variants[0].distrusted is None
    host.eval()
    x = torch.randn(3, 4)
    with torch.no_grad():
        out = host(x)
        with engine.probing(host, host.structure, host.phase) as model:
            assert_same_bits(frozen(out), frozen(model(x)), "the output")
    assert "outputs" in str(fxgraft.compile_report(host).variants[0].distrusted)


@pytest.mark.parametrize("seed", [Scale, Drawing, Counting])
def test_trials_leave_no_trace(seed: Callable[[], nn.Module]) -> None:
    """Weights, statistics, counters and random streams are those of a life in eager mode."""

    def trained(compiled: bool) -> list[Any]:
        host, manager = grown("aot_eager")
        if not compiled:
            host = fxgraft.trace(NormDropoutLayer(), (torch.randn(3, 4),))
            host.load_state_dict(grown("aot_eager")[0].state_dict())
            manager = fxgraft.SeedManager(host)
        optimizer = torch.optim.SGD(host.parameters(), 0.1)
        torch.manual_seed(2)
        seen: list[Any] = []
        for i in range(8):
            if i == 2:
                torch.manual_seed(3)
                manager.germinate("drop", seed(), name="a")
            if i == 5:
                manager.blend("a", to=0.5, steps=1)
            host.zero_grad()
            out = host(torch.randn(3, 4))
            out.square().sum().backward()
            grads = [p.grad for p in host.host_parameters()]
            runs = [one.runs for one in manager.seeds.values()]
            seen.append(frozen([out, grads, list(host.model_state().values()), torch.get_rng_state(), runs]))
            optimizer.step()
            manager.step()
        return seen

    for i, (ours, theirs) in enumerate(zip(trained(True), trained(False), strict=True)):
        assert_same_bits(ours, theirs, f"step {i}")


def test_what_is_called_again_by_a_checkpoint_is_the_same_code() -> None:
    host, _ = grown("aot_eager")
    x = torch.randn(3, 4, requires_grad=True)
    for _ in range(3):
        host.zero_grad()
        checkpoint(host, x, use_reentrant=False).sum().backward()
    (row,) = fxgraft.compile_report(host).variants
    assert row.distrusted is None
    assert row.graphs == 1


def test_who_looks_on_sees_each_call_once() -> None:
    host, _ = grown("aot_eager")
    seen = torch.zeros(())
    host.get_submodule("layer").register_forward_hook(lambda module, args, out: (seen.add_(1), None)[1])
    for _ in range(4):
        host(torch.randn(3, 4)).sum().backward()
    assert int(seen) == 4


@pytest.mark.inductor
def test_inductors_code_passes_and_anothers_does_not() -> None:
    class PreNormBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)
            self.norm = nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.inner(self.norm(x)))

    host = fxgraft.trace(nn.Sequential(*(PreNormBlock() for _ in range(6))), (torch.randn(8, 16),))
    host.compile()
    for _ in range(3):
        host(torch.randn(8, 16)).square().sum().backward()
    (row,) = fxgraft.compile_report(host).variants
    assert (row.distrusted, row.uncompiled_calls) == (None, 0)


def wrong_from_the_second_graph() -> Callable[..., Any]:
    """A backend whose first graph is right, and whose later ones are not."""
    made: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        made.append(graph)
        factor = 1.0 if len(made) == 1 else 2.0
        return lambda *args: [out * factor for out in graph.forward(*args)]

    return backend


@pytest.mark.parametrize("granularity", ["host", "region"])
def test_code_for_another_size_is_compared_on_its_first_call(granularity: str) -> None:
    """The last batch of an epoch is smaller: its code is another graph."""
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), (torch.randn(6, 4),))
    x = torch.randn(6, 4)
    with torch.no_grad():
        expected = {rows: frozen(host(x[:rows])) for rows in (6, 3)}
    host.compile(backend=wrong_from_the_second_graph(), granularity=granularity)
    for rows in (6, 6, 6, 3, 3, 3):
        out = host(x[:rows])
        assert_same_bits(frozen(out), expected[rows], f"{rows} rows")
        out.sum().backward()
    assert "outputs" in str(fxgraft.compile_report(host).variants[0].distrusted)


def test_a_call_that_cannot_be_compared_does_not_count_as_compared() -> None:
    """Inference mode, another thread: the next call that can be compared is."""

    def in_a_thread(host: fxgraft.Host, x: Tensor) -> None:
        def run() -> None:
            with torch.no_grad():
                host(x)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    def in_inference_mode(host: fxgraft.Host, x: Tensor) -> None:
        with torch.inference_mode():
            host(x)

    for first in (in_a_thread, in_inference_mode):
        host, _ = grown(wrong("outputs"), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        host.eval()
        x = torch.randn(3, 4)
        for _ in range(3):
            first(host, x)
        with torch.no_grad():
            host(x)
        assert "outputs" in str(fxgraft.compile_report(host).variants[0].distrusted), first.__name__


def raising(error: Exception, where: str) -> Callable[..., Any]:
    """A backend whose code raises, in the forward or in the backward pass."""

    def fail(grad: Tensor) -> Tensor:
        raise error

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            if where == "forward":
                raise error
            return [in_backward(fail)(out) for out in graph.forward(*args)]

        return run

    return backend


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_code_that_raises_where_eager_mode_does_not_is_a_difference(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    host, _ = grown(raising(RuntimeError("broken kernel"), where))
    twin, _ = grown(wrong("nothing"))
    for ours, theirs in zip(life(host), life(twin), strict=True):
        assert_same_bits(ours, theirs, where)
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "broken kernel" in error.message
    assert "broken kernel" in str(fxgraft.compile_report(host).variants[0].distrusted)


def test_what_eager_mode_raises_is_what_the_call_raises() -> None:
    """A wrong shape is the caller's error, as without fxgraft; right calls after it are compiled."""
    host, _ = grown("aot_eager")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        host(torch.randn(3, 5))
    life(host)
    assert fxgraft.compile_report(host).variants[0].distrusted is None


def test_where_memory_does_not_suffice_to_compare_the_code_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(*args: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(_comparison, "Snapshot", no_memory)
    host, _ = grown("aot_eager")
    life(host)
    (row,) = fxgraft.compile_report(host).variants
    assert row.distrusted is None
    assert row.graphs == 1
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "not compared with eager mode" in warning.message
    assert "memory" in warning.message


def test_a_module_that_cannot_be_run_for_comparison_runs_uncompiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("called twice")

    monkeypatch.setattr(_comparison.UnitCall, "_run", refuse)
    host, _ = grown("aot_eager")
    life(host)
    (row,) = fxgraft.compile_report(host).variants
    assert "called twice" in str(row.distrusted)
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
