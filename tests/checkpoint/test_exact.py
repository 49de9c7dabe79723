"""What is in a file comes out bit for bit: tensors of every kind, nested data of every kind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft.checkpoint import file
from fxgraft.checkpoint.packing import convert_like, pack, unpack
from fxgraft.errors import CheckpointError
from tests.harness import assert_same_bits

TENSORS = {
    "nan payloads": torch.tensor([0x7FC00001, 0x7F800001, -1, 0x80000000 - 2**32], dtype=torch.int32).view(
        torch.float32
    ),
    "signed zeros": torch.tensor([0.0, -0.0]),
    "bfloat16": torch.randn(3).bfloat16(),
    "half": torch.randn(3).half(),
    "complex": torch.randn(3, dtype=torch.complex64).conj(),
    "bool": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "0-d": torch.tensor(3),
    "transposed": torch.randn(2, 3).t(),
    "expanded": torch.randn(1, 3).expand(4, 3),
    "view": torch.randn(10)[3:6],
}


def test_tensors_of_every_kind(tmp_path: Path) -> None:
    tied = TENSORS | {"tied": TENSORS["bfloat16"], "also empty": torch.empty(0)}
    file.write(tmp_path / "x", {"a": [1, "ä", None]}, tied)
    manifest, tensors = file.read(tmp_path / "x")
    assert manifest["a"] == [1, "ä", None]
    assert_same_bits(tensors, {name: tied[name] for name in tensors}, "tensors")
    assert tensors.keys() == tied.keys()


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
LEAVES = NUMBERS | st.builds(lambda x: torch.tensor([x]), st.floats(width=32))
KEYS = st.integers() | st.text(alphabet="ab.'0", max_size=3)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and fxgraft.util.bits.same_tensor(a, b)
    if isinstance(a, float):
        return isinstance(b, float) and (a == b or (math.isnan(a) and math.isnan(b)))
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    return a == b


@given(TREES)
def test_nested_data_of_every_kind(tree: Any) -> None:
    tensors: dict[str, Tensor] = {}
    text = json.dumps(pack(tree, "x", tensors), allow_nan=False)
    assert equal(tree, unpack(json.loads(text), tensors))


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, 1j, b"x", {(1, 2): 3}, {None: 1}, torch.float32],
    ids=lambda v: type(v).__name__ + str(v)[:8] * isinstance(v, dict),
)
def test_what_is_no_data_is_refused_by_place(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"x\.0"):
        pack([value], "x", {})


@pytest.mark.parametrize(("saved", "like"), [("a", 1), ([1], 1), ({"a": 1}, [1]), ({"a": "x"}, {"a": 1.0})])
def test_a_value_of_another_kind_cannot_stand_in(saved: Any, like: Any) -> None:
    with pytest.raises(CheckpointError, match="here"):
        convert_like(saved, like, "here")


def test_optimizer_state_of_another_dtype_than_its_parameter_keeps_it(tmp_path: Path) -> None:
    """``Optimizer.load_state_dict`` rounds it to the parameter's."""

    class Master(torch.optim.SGD):
        """SGD on a float32 copy of the weights."""

        def step(self, closure: Any = None) -> None:
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    if p.grad is not None:
                        master = self.state[p].setdefault("master", p.detach().float())
                        master.sub_(p.grad.float(), alpha=1e-3)
                        p.copy_(master)

    def parts() -> tuple:
        torch.manual_seed(0)
        host = fxgraft.trace(
            nn.Sequential(nn.Linear(4, 4), nn.ReLU()).bfloat16(), (torch.ones(2, 4).bfloat16(),)
        )
        return host, Master(host.parameters(), 0.1)

    def train(host: fxgraft.Host, optimizer: Any, manager: fxgraft.SeedManager) -> list[float]:
        losses = []
        for i in range(4):
            x = torch.linspace(-1, 1 + i, 8).view(2, 4).bfloat16()
            optimizer.zero_grad()
            loss = host(x).square().sum()
            loss.backward()
            optimizer.step()
            manager.step()
            losses.append(loss.item())
        return losses

    host, optimizer = parts()
    manager = fxgraft.SeedManager(host, optimizer)
    train(host, optimizer, manager)
    manager.save(tmp_path / "x")
    masters = [state["master"].clone() for state in optimizer.state.values()]
    expected = train(host, optimizer, manager)
    host, optimizer = parts()
    manager = fxgraft.SeedManager.load(tmp_path / "x", host, optimizer)
    assert_same_bits([state["master"] for state in optimizer.state.values()], masters, "master weights")
    assert train(host, optimizer, manager) == expected


def test_optimizer_state_lies_where_torch_puts_tensors(tmp_path: Path) -> None:
    """Some kernels sum up in another order where it does not: LBFGS is one that shows it."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 7), torch.randn(16, 5)

    def parts() -> tuple[fxgraft.Host, torch.optim.Optimizer]:
        torch.manual_seed(1)
        host = fxgraft.trace(nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 5)), (x,))
        return host, torch.optim.LBFGS(host.parameters(), 0.5, max_iter=4)

    def train(host: fxgraft.Host, optimizer: torch.optim.Optimizer, steps: int) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (host(x) - y).square().mean()
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)

    host, optimizer = parts()
    manager = fxgraft.SeedManager(host, optimizer)
    train(host, optimizer, 2)
    manager.save(tmp_path / "x")
    train(host, optimizer, 4)
    resumed, its_optimizer = parts()
    fxgraft.SeedManager.load(tmp_path / "x", resumed, its_optimizer)
    train(resumed, its_optimizer, 4)
    assert_same_bits(list(resumed.parameters()), list(host.parameters()), "the weights")
