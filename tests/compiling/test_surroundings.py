"""What is around a call and around the training: code is made for the very same, or is not used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import fxgraft
from fxgraft.compiling._calls import CallKind, call_key
from fxgraft.compiling._torch_settings import TorchSettings
from fxgraft_passes import _torch as passes_torch
from fxgraft_passes import devices
from tests.manager.test_background import SLOT, World, no_recompiles
from tests.seed_modules import Drawing

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@contextmanager
def autocast_of_a_device_that_is_not_there() -> Iterator[None]:
    """What ``torch.autocast("cuda")`` does on a machine that has one."""
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


@contextmanager
def autocast_without_its_cache() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        yield


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("cpu")
    try:
        yield
    finally:
        torch.set_default_device(None)


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast of another device": autocast_of_a_device_that_is_not_there,
    "autocast without its cache": autocast_without_its_cache,
    "a device": lambda: torch.device("cpu"),
    "a default device": default_device,
}


@pytest.mark.parametrize("what", AROUND)
@pytest.mark.parametrize("when", ["around the calls", "around the change"])
def test_a_change_is_compiled_for_calls_as_they_are_made(what: str, when: str) -> None:
    """Whatever is on while the change is made."""
    world = World()
    calls, change = AROUND[what], nullcontext
    if when == "around the change":
        calls, change = change, calls
    with calls():
        world.train(2)
    with change():
        world.manager.germinate(SLOT, Drawing(), name="a")
    with no_recompiles(), calls():
        world.train(2)
    assert fxgraft.compile_report(world.host).uncompiled_calls == 0


def test_in_the_background_a_change_is_compiled_for_calls_as_they_are_made() -> None:
    world = World()
    world.host.compile(backend="aot_eager")  # without the calls until now

    def train() -> None:
        world.optimizer.zero_grad()
        with autocast_of_a_device_that_is_not_there(), torch.device("cpu"):
            world.host(torch.ones(6, 4)).square().mean().backward()
        world.optimizer.step()
        world.manager.step()

    train()
    world.start("a", SLOT)
    world.settle()
    with no_recompiles():
        train()
    report = fxgraft.compile_report(world.host)
    assert report.artifacts == 2
    assert report.uncompiled_calls == 0


def test_surroundings_are_put_back() -> None:
    module, x = nn.Linear(2, 2), torch.ones(1, 2)
    with torch.device("meta"), autocast_of_a_device_that_is_not_there(), torch.no_grad():
        kind = CallKind.of(module, (x,), {})
    assert kind is not None
    plain = CallKind.of(module, (x,), {})
    assert plain is not None
    for inside, outside in ((kind, plain), (plain, kind)):
        with outside.surroundings():
            before = devices.autocasts(), passes_torch.default_devices(), torch.is_grad_enabled()
            with inside.surroundings():
                assert CallKind.of(module, (x,), {}) == inside
                assert torch.empty(0).device.type == ("meta" if inside is kind else "cpu")
            assert (devices.autocasts(), passes_torch.default_devices(), torch.is_grad_enabled()) == before
    assert passes_torch.default_devices() == (None, ())
    assert devices.autocasts() == (True, ())


def test_calls_that_a_mode_looks_on_at_are_no_kind() -> None:
    class Looking(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    module, x = nn.Linear(2, 2), torch.ones(1, 2)
    with Looking():
        assert CallKind.of(module, (x,), {}) is None
        assert call_key(module, (x,), {}) is None
        with torch.device("cpu"), passes_torch.default_devices_are((torch.device("cpu"), ())):
            assert passes_torch.default_devices() == (torch.device("cpu"), ())
            assert torch.get_default_device() == torch.device("cpu")
        assert passes_torch.default_devices() is None
    assert passes_torch.default_devices() == (None, ())


@pytest.mark.parametrize("where", ["cuda.matmul", "mkldnn.matmul", "cudnn.conv"])
def test_a_precision_of_one_backend_is_sent(where: str) -> None:
    """Torch refuses to say what the precision is that is asked for in the older way then."""
    backend: Any = torch.backends
    for name in where.split("."):
        backend = getattr(backend, name)
    before = backend.fp32_precision
    plain = TorchSettings.here()
    try:
        backend.fp32_precision = "ieee" if where == "cudnn.conv" else "tf32"
        other = TorchSettings.here()
        assert other.precisions != plain.precisions
        with plain.applied():
            assert TorchSettings.here().precisions == plain.precisions
        with other.applied():
            assert TorchSettings.here().precisions == other.precisions
    finally:
        backend.fp32_precision = before
        with plain.applied():
            assert TorchSettings.here() == plain


def test_settings_that_code_depends_on_are_those_of_the_trainer() -> None:
    plain = TorchSettings.here()
    try:
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.mha.set_fastpath_enabled(False)
        torch.backends.opt_einsum.strategy = "greedy" if torch.backends.opt_einsum.is_available() else None
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        other = TorchSettings.here()
    finally:
        with plain.applied():
            assert TorchSettings.here() == plain
    assert other != plain
    with other.applied():
        assert TorchSettings.here() == other
    with plain.applied():
        assert TorchSettings.here() == plain
