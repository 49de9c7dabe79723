"""States that few models have: extra states, shared buffers, an optimizer's own, floats that JSON lacks."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.checkpoint import _buffers
from fxgraft.errors import CheckpointError
from fxgraft.host.example import call_of, form_of

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Extra(nn.Module):
    def __init__(self, value: Any):
        super().__init__()
        self.layer, self.value = nn.Linear(4, 4), value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def get_extra_state(self) -> Any:
        return self.value

    def set_extra_state(self, value: Any) -> None:
        if value == "refused":
            raise RuntimeError("no such state")
        self.value = value


EXTRAS = {
    "none, then a dictionary": (None, {"n": 1}),
    "another type of number": (0, 0.5),
    "ordered": (OrderedDict(n=0), OrderedDict(n=1)),
    "another shape": (torch.zeros(0), torch.ones(5)),
    "text": ("a", "b"),
}


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else type(a) is type(b) and a == b


def extra(value: Any) -> fxgraft.Host:
    return fxgraft.trace(nn.Sequential(Extra(value), Extra(value)), (X,))


@pytest.mark.parametrize("case", EXTRAS)
def test_an_extra_state_of_any_form_comes_back_as_in_torch(case: str, tmp_path: Path):
    start, later = EXTRAS[case]
    host = extra(start)
    host.get_submodule("0").value = later
    fxgraft.SeedManager(host).save(tmp_path / "run")
    again = extra(start)
    fxgraft.SeedManager.load(tmp_path / "run", again)
    assert same(again.get_submodule("0").value, later)
    assert same(fxgraft.load_model(tmp_path / "run", extra(start)).get_submodule("0").value, later)
    target = nn.Sequential(Extra(start), Extra(start))
    fxgraft.transplant(host, target)
    assert same(target[0].value, later)


def test_where_a_module_refuses_its_extra_state_those_of_the_others_are_as_before(tmp_path: Path):
    host = extra("fresh")
    host.get_submodule("0").value, host.get_submodule("1").value = "saved", "refused"
    fxgraft.SeedManager(host).save(tmp_path / "run")
    again = extra("fresh")
    with pytest.raises(CheckpointError, match="no such state"):
        fxgraft.SeedManager.load(tmp_path / "run", again)
    assert again.get_submodule("0").value == "fresh"


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("table", torch.ones(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.table


def tables(tied: bool) -> fxgraft.Host:
    model = nn.Sequential(Table(), Table())
    if tied:
        model[1].table = model[0].table
    return fxgraft.trace(model, (X,))


def buffers(host: fxgraft.Host) -> list[torch.Tensor]:
    return [host.get_submodule(name).table for name in ("0", "1")]


@pytest.mark.parametrize("shape", [1, 4])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("before", [False, True])
def test_a_buffer_that_modules_share_comes_back_in_all_of_them(
    tied: bool, shape: int, before: bool, tmp_path: Path, monkeypatch
):
    host, new = tables(tied), torch.full((shape,), 3.0)
    for name in ("0", "1"):
        host.get_submodule(name).table = new
    if before:  # files of earlier versions have one of the names
        every = _buffers.unsaved_buffers
        names = dict.fromkeys(("1.table",))
        monkeypatch.setattr(
            "fxgraft.checkpoint._weights.unsaved_buffers",
            lambda host, saved: {n: b for n, b in every(host, saved).items() if n not in names},
        )
    fxgraft.SeedManager(host).save(tmp_path / "run")
    again = tables(tied)
    if before and not tied:
        with pytest.raises(CheckpointError, match=r"a buffer 1\.table"):
            fxgraft.SeedManager.load(tmp_path / "run", again)
        return
    fxgraft.SeedManager.load(tmp_path / "run", again)
    assert all(torch.equal(buffer, new) for buffer in buffers(again))
    assert (buffers(again)[0] is buffers(again)[1]) == tied
    assert torch.equal(again(X), host(X))


def test_shared_buffers_that_differ_in_the_run_are_no_longer_shared(tmp_path: Path):
    host = tables(tied=False)
    host.get_submodule("0").table, host.get_submodule("1").table = torch.zeros(2), torch.ones(2)
    fxgraft.SeedManager(host).save(tmp_path / "run")
    again = tables(tied=True)
    fxgraft.SeedManager.load(tmp_path / "run", again)
    assert [buffer.tolist() for buffer in buffers(again)] == [[0.0, 0.0], [1.0, 1.0]]


class Counting(torch.optim.SGD):
    """With a state that belongs to no parameter."""

    def __init__(self, parameters: Any, lr: float):
        super().__init__(parameters, lr)
        self.state["all"] = {"steps": 0}  # type: ignore[index]

    def step(self, closure: Any = None) -> Any:
        self.state["all"]["steps"] += 1  # type: ignore[index]
        return super().step(closure)


def test_what_an_optimizer_keeps_for_no_parameter_comes_back(tmp_path: Path):
    def fresh() -> tuple[fxgraft.Host, Counting]:
        host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4)), (X,))
        return host, Counting(host.parameters(), 0.1)

    host, optimizer = fresh()
    optimizer.step()
    fxgraft.SeedManager(host, optimizer).save(tmp_path / "run")
    again, other = fresh()
    fxgraft.SeedManager.load(tmp_path / "run", again, other)
    assert other.state["all"] == {"steps": 1}  # type: ignore[index]


class Clamped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, least: float = 0.0) -> torch.Tensor:
        return self.layer(x).clamp_min(least)


@pytest.mark.parametrize("least", [float("-inf"), float("inf"), float("nan"), 0.5])
def test_an_example_call_has_any_float(least: float, tmp_path: Path):
    host = fxgraft.trace(Clamped(), (X,), {"least": least})
    fxgraft.SeedManager(host).save(tmp_path / "run")
    _, kwargs = call_of(json.loads(json.dumps(host.example, allow_nan=False)))
    assert repr(kwargs["least"]) == repr(least)
    loaded = fxgraft.load_model(tmp_path / "run", Clamped())
    assert torch.equal(loaded(X), host(X))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool])
def test_an_example_call_has_whole_numbers_of_any_dtype(dtype: torch.dtype):
    form = form_of((torch.tensor([3, 1], dtype=torch.int64).to(dtype),), {})
    (tensor,), _ = call_of(form)
    assert tensor.dtype is dtype
    assert tensor.tolist() == [1, 1]


def test_a_parameter_of_the_optimizer_that_is_not_the_hosts_is_named_once(tmp_path: Path, caplog):
    host, warmth = fxgraft.trace(nn.Sequential(nn.Linear(4, 4)), (X,)), nn.Parameter(torch.ones(()))
    manager = fxgraft.SeedManager(host, torch.optim.Adam([*host.parameters(), warmth]))
    with caplog.at_level(logging.WARNING, "fxgraft"):
        manager.save(tmp_path / "run")
        manager.save(tmp_path / "run")
        fxgraft.SeedManager(host, torch.optim.Adam(host.parameters())).save(tmp_path / "other")
    said = [r.getMessage() for r in caplog.records if "not of the host" in r.getMessage()]
    assert said == [
        "Adam trains a parameter that is not of the host: a checkpoint has their state in the optimizer, and "
        "not their values. Save them beside it, and load them before SeedManager.load"
    ]


def test_modes_that_differ_from_the_saved_run_are_named(tmp_path: Path, caplog):
    def fresh() -> fxgraft.Host:
        return fxgraft.trace(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), (X,))

    host = fresh()
    host.get_submodule("1").eval()
    fxgraft.SeedManager(host).save(tmp_path / "run")
    with caplog.at_level(logging.WARNING, "fxgraft"):
        again = fresh()
        again.get_submodule("1").eval()
        fxgraft.SeedManager.load(tmp_path / "run", again)
        assert not caplog.records
        fxgraft.SeedManager.load(tmp_path / "run", fresh())
    assert "1 module of the host in another mode" in caplog.text
    assert "(1)" in caplog.text


class Inverse(nn.Module):
    """What it computes from its weights it computes anew in its own ``load_state_dict``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(*args, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def state_dict(self) -> Any:  # type: ignore[override]
        return self.net.state_dict()


def test_a_load_state_dict_that_is_not_called_is_named_once(caplog):
    with caplog.at_level(logging.WARNING, "fxgraft"):
        fxgraft.trace(Inverse(), (X,))
        fxgraft.trace(Inverse(), (X,))
    said = [r for r in caplog.records if "a load_state_dict of its own" in r.getMessage()]
    assert len(said) == 1


def test_a_state_dict_that_does_not_take_torchs_arguments_is_an_error_that_names_it(tmp_path: Path):
    host = fxgraft.trace(Renamed(), (X,))
    with pytest.raises(CheckpointError, match=r"Renamed\.state_dict: expected one that takes destination"):
        host.state_dict()
    with pytest.raises(CheckpointError, match=r"Renamed\.state_dict"):
        fxgraft.SeedManager(host).save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Expanded(nn.Module):
    """A saved buffer whose elements are one in memory, into which nothing can be copied."""

    def __init__(self, value: float):
        super().__init__()
        self.a = nn.Linear(6, 3)
        self.register_buffer("scale", torch.full((1,), value).expand(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) * self.scale[0]


def test_an_expanded_buffer_comes_back(tmp_path: Path):
    hosts = [fxgraft.trace(Expanded(value), (torch.zeros(2, 6),)) for value in (2.0, 3.0)]
    first, second = (torch.optim.AdamW(host.parameters()) for host in hosts)
    fxgraft.SeedManager(hosts[0], first).save(tmp_path / "run")
    fxgraft.SeedManager.load(tmp_path / "run", hosts[1], second)
    assert torch.equal(hosts[1].scale, torch.full((5,), 2.0))
    x = torch.randn(2, 6)
    assert torch.equal(hosts[0](x), hosts[1](x))


def test_a_path_that_no_file_has_is_named(tmp_path: Path):
    host = fxgraft.trace(nn.Linear(6, 3), (torch.zeros(2, 6),))
    manager = fxgraft.SeedManager(host, torch.optim.AdamW(host.parameters()))
    with pytest.raises(CheckpointError, match="expected the path of a file; embedded null byte"):
        manager.save("a\0b")
