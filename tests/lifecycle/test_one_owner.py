"""Misuse that would corrupt a host silently is refused, and leaves everything as it was."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import BlueprintError, CheckpointError, StageError, TraceError


def grown() -> tuple[fxgraft.Host, SeedManager, torch.Tensor]:
    x = torch.randn(4, 8)
    host = fxgraft.trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), (x,))
    manager = SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    manager.germinate("1", "mlp", name="a")
    manager.blend("a", steps=1)
    manager.step()
    return host, manager, x


ACTIONS: dict[str, Callable[[SeedManager], Any]] = {
    "germinate": lambda m: m.germinate("0", "mlp"),
    "blend": lambda m: m.blend("a", to=0.5),
    "cull": lambda m: m.cull("a"),
    "fossilize": lambda m: m.fossilize("a"),
    "step": lambda m: m.step(),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("inside", ["shadow", "at_alpha"])
def test_seeds_do_not_change_inside_a_pass_that_is_put_back(inside: str, action: str) -> None:
    host, manager, x = grown()
    before, code = host(x), host.regions[""].code
    with (
        manager.shadow() if inside == "shadow" else manager.at_alpha("a", 0.5),
        pytest.raises(StageError, match=rf"cannot {action} inside {inside}\(\)"),
    ):
        ACTIONS[action](manager)
    assert torch.equal(host(x), before)
    assert host.regions[""].code == code
    ACTIONS[action](manager)  # afterwards it is possible


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_second_manager_does_not_touch_the_first_ones_seeds(name: str) -> None:
    host, manager, x = grown()
    before = host(x)
    with pytest.raises(StageError, match="of another manager"):
        SeedManager(host).germinate("1", "mlp", name=name)
    assert torch.equal(host(x), before)
    assert list(manager.seeds) == ["a"]


def test_a_parameter_in_the_hosts_memory_is_the_hosts() -> None:
    host, manager, _ = grown()

    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(next(iter(host.host_parameters())).data)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.t()

    with pytest.raises(BlueprintError, match="weight belongs to the host"):
        manager.germinate("0", Alias())


def test_a_recurrent_call_does_not_end_the_training_run() -> None:
    x = torch.randn(4, 8)
    host = fxgraft.trace(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), (x,))
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = SeedManager(host, optimizer, strict=True, check_every=1)
    manager.germinate("1", "mlp")
    for _ in range(3):
        z = x
        for _ in range(3):
            z = host(z)
        z.square().mean().backward()
        optimizer.step()
        manager.step()
    assert manager.monitor.checks == 3
    assert manager.monitor.violations == 0


def test_convex_fossils_keep_their_place_before_an_in_place_consumer() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu_(self.a(x)))

    x = torch.randn(4, 8)
    host = fxgraft.trace(InPlace(), (x,))
    manager = SeedManager(host)
    for name, mode in (("a", "convex"), ("b", "residual")):
        manager.germinate("a", lambda slot: nn.Linear(8, 8), name=name, mode=mode)
        manager.blend(name, steps=1)
    manager.step()
    held = host(x)
    manager.fossilize("a")
    assert torch.equal(host(x), held)
    manager.fossilize("b")
    torch.testing.assert_close(host(x), held)


def test_parameters_that_were_assigned_leave_with_the_seed() -> None:
    host, manager, x = grown()
    optimizer = torch.optim.Adam(host.host_parameters())
    manager = SeedManager(fxgraft.trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), (x,)), optimizer)
    before = len(optimizer.param_groups[0]["params"])
    manager.germinate("1", "mlp", name="c")
    manager.host.load_state_dict({k: v.clone() for k, v in manager.host.state_dict().items()}, assign=True)
    manager.cull("c")
    assert len(optimizer.param_groups[0]["params"]) == before


def test_a_manager_that_is_let_go_with_live_seeds_is_freed_with_all_of_them() -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (torch.randn(2, 4),))
    manager = SeedManager(host, torch.optim.SGD(host.parameters(), 1e-2))
    seed = manager.germinate("1", "low_rank")
    host(torch.randn(2, 4)).sum().backward()
    manager.step()
    alive = [weakref.ref(p) for p in seed.module.parameters()]
    del host, manager, seed
    gc.collect()
    assert [ref for ref in alive if ref() is not None] == []


def test_a_manager_does_not_save_what_it_does_not_know(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host, manager, x = grown()
    manager.fossilize("a")
    second = SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    assert "seeds of another manager (a)" in caplog.text
    with pytest.raises(CheckpointError, match=r"\['a'\] of another one.*fxgraft\.unwrap"):
        second.save(tmp_path / "x")
    assert not list(tmp_path.iterdir())
    manager.save(tmp_path / "x")
    new = fxgraft.trace(fxgraft.unwrap(host), (x,))  # the way out that the error names
    SeedManager(new, torch.optim.SGD(new.parameters(), 0.1)).save(tmp_path / "y")


@pytest.mark.parametrize("value", [0, 1, None, "no"])
def test_isolation_is_on_or_off(value: object) -> None:
    _, manager, _ = grown()
    with pytest.raises(ValueError, match="isolated: expected True or False"):
        manager.germinate("0", "mlp", isolated=value)  # type: ignore[arg-type]


def test_an_attribute_that_the_host_shows_is_set_where_its_code_reads_it() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = nn.Linear(4, 4), 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * self.scale

    model, x = Scaled(), torch.randn(3, 4)
    host = fxgraft.trace(model, (x,))
    before = host(x)
    host.scale = 2.0
    assert (model.scale, host.scale) == (1.0, 2.0)
    assert torch.equal(host(x), before * 2)


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.optim.swa_utils.AveragedModel, lambda m: torch.compile(m, backend="eager")],
)
def test_what_wraps_a_model_is_not_traced(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(TraceError, match="trace the plain module, then wrap"):
        fxgraft.trace(wrap(model), (torch.randn(2, 4),))
