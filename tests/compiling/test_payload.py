"""What travels to another interpreter: modules without weights, code by value, and classes that come back."""

from __future__ import annotations

import gc
import logging
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
import torch
import torch.nn.functional
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from fxgraft.compiling import _by_value, _payload
from fxgraft.compiling._payload import NotSendableError, pack, unpack
from tests.strategies import Plan

ROOT = Path(__file__).parents[2]


def there_and_back(content: Any, *modules: nn.Module) -> Any:
    """Through the bytes, in this process: what is by reference stays what it is."""
    with _by_value.arriving():
        return unpack(pack(content, modules))


@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]),
    start=st.integers(0, 2),
    order=st.randoms(use_true_random=False),
)
def test_a_tensor_keeps_all_but_its_data(
    shape: list[int], dtype: torch.dtype, start: int, order: Any
) -> None:
    tensor = torch.zeros(start + 300, dtype=dtype)[start : start + torch.Size(shape).numel()].reshape(shape)
    axes = list(range(tensor.dim()))
    order.shuffle(axes)
    tensor = tensor.permute(axes)
    if tensor.is_floating_point():
        tensor.requires_grad_()
    made = there_and_back(tensor)
    for look in ("shape", "dtype", "device", "requires_grad"):
        assert getattr(made, look) == getattr(tensor, look)
    assert (made.stride(), made.storage_offset()) == (tensor.stride(), tensor.storage_offset())


def test_no_weight_is_sent() -> None:
    module = nn.Linear(1000, 1000)
    with torch.no_grad():
        module.weight.fill_(123.0)
    data = pack(module, [module])
    assert len(data) < 5_000
    assert type(there_and_back(module).weight) is nn.Parameter


def test_tensors_that_share_memory_share_it_there() -> None:
    tied = nn.Linear(3, 3)
    pair = nn.ModuleList([tied, tied, nn.Linear(3, 3)])
    pair[2].weight = tied.weight
    pair.register_buffer("row", tied.weight.detach()[1])
    made = there_and_back(pair)
    assert made[0] is made[1]
    assert made[2].weight is made[0].weight
    assert made.row.untyped_storage().data_ptr() == made[0].weight.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "tensor", [torch.eye(2).to_sparse(), torch.ones(2).as_subclass(type("T", (torch.Tensor,), {}))]
)
def test_a_tensor_of_another_kind_cannot_travel(tensor: torch.Tensor) -> None:
    with pytest.raises(NotSendableError, match="a tensor of the type"):
        pack([tensor], [])


def test_modules_that_refuse_to_be_pickled_travel() -> None:
    module = nn.Linear(2, 2)
    parametrize.register_parametrization(module, "weight", nn.Tanh())
    with pytest.raises(RuntimeError):
        pickle.dumps(module)
    made = there_and_back(module)
    assert type(made).__mro__[1:3] == (nn.Linear, nn.Module)
    assert made(torch.ones(1, 2)).shape == (1, 2)


class Holder(nn.Module):
    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.__dict__.update(held)


def test_what_cannot_travel_is_left_out_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    host = nn.Sequential(Holder(lock=threading.Lock(), kept=[1]), Holder(lock=threading.Lock(), kept=[2]))
    for _ in range(2):
        made = there_and_back(host, host)
        assert [part.kept for part in made] == [[1], [2]]
        for use in (bool, iter, len, lambda lock: lock.acquire, lambda lock: lock.__enter__()):
            with pytest.raises(
                RuntimeError, match=r"'lock' of '0' \(Holder\).*cannot pickle '_thread\.lock'"
            ):
                use(made[0].lock)
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert "attribute 'lock' of '0' (Holder)" in caplog.text


def test_of_classes_that_are_gone_nothing_is_remembered() -> None:
    """A notebook defines its classes anew with each run of a cell."""
    gc.collect()
    before = len(_payload._said)
    for _ in range(5):
        cls = type("Local", (Holder,), {})
        made = there_and_back(host := cls(lock=threading.Lock()), host)
        assert len(_payload._said) == before + 1
        del cls, host, made
        gc.collect()
    assert len(_payload._said) == before


def test_a_hook_that_cannot_travel_is_not_left_out() -> None:
    """It may change what is computed."""
    host = Holder()
    lock = threading.Lock()
    host.inner.register_forward_hook(lambda *_: lock)
    with pytest.raises(NotSendableError, match="lock"):
        pack(host, [host])


def test_what_is_too_large_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_payload, "MOST_BYTES", 100_000)
    host = Holder(data=b"x" * 200_000)
    made = there_and_back(host, host)
    assert isinstance(made.data, _payload.LeftOut)
    assert "attribute 'data' of the model" in caplog.text.replace("'the model'", "the model")
    assert "MiB without the weights" in caplog.text


def test_classes_that_went_by_value_are_known_when_they_come_back() -> None:
    class Local(nn.Module):
        pass

    with _by_value.arriving():
        data = pack(Local, [])
        name = _by_value._proxy_modules[Local]
        assert sys.modules[name].Local is Local
        with pytest.raises(AttributeError):
            sys.modules[name].Other
    there = weakref.ref(Local)
    del Local
    gc.collect()
    assert there() is None
    assert name not in sys.modules
    assert data


def test_what_a_fresh_interpreter_finds_goes_by_reference() -> None:
    assert all(
        map(_by_value.is_importable, ["torch", "torch.nn.functional", "os", "sys", "tests.strategies"])
    )
    assert not _by_value.is_importable("not_there")
    assert pack(Plan, []) == pickle.dumps(Plan, protocol=5)


def test_a_module_that_is_not_on_the_path_goes_by_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = ModuleType("made_here")
    exec("factor = 3\ndef triple(x): return x * factor", module.__dict__)
    monkeypatch.setitem(sys.modules, "made_here", module)
    data = pack(module.triple, [])  # type: ignore[attr-defined]
    assert "made_here" not in cloudpickle.list_registry_pickle_by_value()  # others use cloudpickle, too
    (tmp_path / "payload").write_bytes(data)
    program = """
        import sys
        from pathlib import Path
        from fxgraft.compiling import _by_value, _payload
        with _by_value.arriving():
            triple = _payload.unpack(Path(sys.argv[1]).read_bytes())
            assert triple(2) == 6
            assert triple.__globals__ is sys.modules["made_here"].__dict__
        assert "made_here" not in sys.modules
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "payload")], check=True, cwd=ROOT
    )
