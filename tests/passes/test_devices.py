"""What is asked of devices, as far as it can be known without one: fake tensors, and a stand-in."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxgraft.compiling import _payload, _worker
from fxgraft.compiling._calls import CallKind, call_key
from fxgraft_passes import devices
from tests.sources import parsed

ROOT = Path(__file__).parents[2]

HERE = torch.ones(2, 3)


@pytest.fixture
def on_cuda() -> Any:
    """Makes tensors of a GPU that is not there."""
    with FakeTensorMode():
        yield lambda *shape, **kwargs: torch.empty(shape, device="cuda", **kwargs)


def test_a_flag_on_a_gpu_is_not_looked_at(on_cuda: Any) -> None:
    assert not devices.is_free_to_look_at(on_cuda())
    assert devices.has_data(on_cuda(2))


def test_a_flag_on_a_cpu_is() -> None:
    assert devices.is_free_to_look_at(torch.zeros(()))
    assert not devices.is_free_to_look_at(torch.zeros(1))
    assert not devices.has_data(torch.empty(1, device="meta"))


def test_the_device_of_a_call_is_that_of_its_first_tensor(on_cuda: Any) -> None:
    assert devices.type_of((1, on_cuda(2), torch.ones(1))) == "cuda"
    assert devices.type_of((1, "a")) == "cpu"


def test_kinds_of_call_differ_by_device(on_cuda: Any) -> None:
    """Code for a GPU is not run for a call on the CPU, nor made up for it."""
    module = nn.ReLU()
    there, here = on_cuda(2, 3), HERE
    kinds = [CallKind.of(module, (x,), {}) for x in (there, here)]
    assert kinds[0] != kinds[1]
    assert kinds[0].merged(kinds[1]) is None
    assert kinds[0].leaves[0].device.type == "cuda"
    with kinds[0].example_call(module) as ((made,), _):
        assert (made.device.type, tuple(made.shape)) == ("cuda", (2, 3))


def test_the_autocast_of_a_call_is_that_of_every_device(on_cuda: Any) -> None:
    """Compiled code is guarded by all of it, whichever devices its tensors are on."""
    module, there, here = nn.ReLU(), on_cuda(2), HERE
    plain = call_key(module, (here,), {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for value in (there, here):
            assert CallKind.of(module, (value,), {}).autocasts == (True, (("cpu", torch.bfloat16),))
        assert call_key(module, (here,), {}) != plain
        assert devices.is_autocast()
    assert not devices.is_autocast()


DEVICES = {"cpu", "cuda", "meta", "mps", "xpu"}


def test_what_a_device_is_is_asked_in_one_place() -> None:
    """No code elsewhere compares with the name of a type of device: it would be wrong for the next type."""
    found = []
    for folder in ("fxgraft", "passes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(parsed(path)) if path != Path(devices.__file__) else ():
                if isinstance(node, ast.Compare) and any(map(_is_device, [node.left, *node.comparators])):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def _is_device(node: ast.AST) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(_is_device, node.elts))
    return isinstance(node, ast.Constant) and node.value in DEVICES


class Accelerator:
    """Stands for ``torch.xpu`` and the like: two devices, each with a stream."""

    def __init__(self) -> None:
        self.states = [torch.tensor([1], dtype=torch.uint8), torch.tensor([2], dtype=torch.uint8)]
        self.is_in_use = True

    def is_initialized(self) -> bool:
        return self.is_in_use

    def get_rng_state(self, index: int) -> Tensor:
        return self.states[index].clone()

    def set_rng_state(self, state: Tensor, index: int) -> None:
        self.states[index] = state


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    found = Accelerator()
    monkeypatch.setattr(devices, "accelerator", lambda: "standin")
    monkeypatch.setattr(torch, "standin", found, raising=False)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(set_state=lambda state: None))
    return found


def test_streams_of_any_accelerator(stand_in: Accelerator) -> None:
    assert devices.types() == ("cpu", "standin")
    assert [state.tolist() for state in devices.accelerator_streams()] == [[1], [2]]
    assert len(devices.global_streams()) == 3
    stand_in.is_in_use = False
    assert len(devices.global_streams()) == 1  # to ask would start it
    apply = devices.set_accelerator_streams([torch.tensor([7], dtype=torch.uint8)])
    assert [state.tolist() for state in stand_in.states] == [[1], [2]]
    apply()
    assert [state.tolist() for state in stand_in.states] == [[7], [2]]


def test_streams_of_this_machine_are_kept() -> None:
    before = [state.clone() for state in devices.global_streams()]
    with devices.streams_kept():
        torch.rand(3)
    assert all(map(torch.equal, devices.global_streams(), before))
    draws = [
        torch.rand(3, generator=devices.generator(torch.device(d)).manual_seed(1)) for d in ("cpu", "meta")
    ]
    assert torch.equal(*draws)


def test_the_compiler_process_uses_the_device_of_the_tensors_and_keeps_no_memory_of_it(
    stand_in: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank has a compiler process: those must not all open the first accelerator."""
    did: list[object] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", did.append)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: did.append("emptied"))
    monkeypatch.setattr(torch, "UntypedStorage", lambda size, device: did.append((size, device.index)))
    elsewhere = SimpleNamespace(type="standin", index=1)
    _payload._memory(10**6, elsewhere)  # type: ignore[arg-type]
    assert did == [1, (10**6, 1)]
    _payload._memory(10**6, torch.device("cpu"))
    assert did[2:] == [(10**6, None)]
    _worker._clean_up()
    assert did[3:] == ["emptied"]
    stand_in.is_in_use = False
    _worker._clean_up()
    assert len(did) == 4  # to ask would start it


def test_the_autocasts_that_matter_are_those_of_the_tensors(on_cuda: Any) -> None:
    tensors = [on_cuda(2), torch.empty(1, device="meta"), on_cuda(3)]
    assert devices.with_autocast(tensors) == ("cpu", "cuda")
