"""A model with a sparse buffer, as graph networks have for their adjacency, is a host like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.checkpoint._sparse import put_together, take_apart
from fxgraft.checkpoint.file import read, write
from fxgraft.util.bits import same_bits

LAYOUTS = {"coo": lambda: torch.eye(8).to_sparse(), "csr": lambda: torch.eye(8).to_sparse_csr()}
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


class GraphLayers(nn.Module):
    def __init__(self, adjacency: Tensor, persistent: bool):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("adjacency", adjacency, persistent)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(torch.sparse.mm(self.adjacency, self.a(x))))


def training(layout: str, persistent: bool) -> tuple[SeedManager, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    host = fxgraft.trace(GraphLayers(LAYOUTS[layout](), persistent), (x,))
    return SeedManager(host, torch.optim.SGD(host.parameters(), 0.1), strict=True, check_every=1), x


def step(manager: SeedManager, x: Tensor) -> None:
    manager.optimizers[0].zero_grad()
    manager.host(x).square().mean().backward()
    manager.optimizers[0].step()
    manager.step()


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_seed_lives_its_life(layout: str, persistent: bool, tmp_path: Path) -> None:
    manager, x = training(layout, persistent)
    seed = manager.germinate("relu", "mlp")
    for _ in range(3):
        step(manager, x)
    manager.blend(seed, steps=1)
    for _ in range(2):
        step(manager, x)
    manager.fossilize(seed)
    assert seed.stage is Stage.FOSSILIZED
    expected = manager.host(x)
    assert same_bits(fxgraft.unwrap(manager.host)(x), expected)
    manager.save(tmp_path / "run")
    other, _ = training(layout, persistent)
    loaded = SeedManager.load(tmp_path / "run", other.host, other.optimizers[0])
    assert same_bits(loaded.host(x), expected)


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    sparse = torch.eye(4).to_sparse_csr()
    write(tmp_path / "file", {}, {"a": sparse, "b": torch.ones(2)})
    assert torch.equal(read(tmp_path / "file")[1]["a"].to_dense(), sparse.to_dense())
    dense, forms = take_apart({"a": sparse})
    with pytest.raises(KeyError):
        put_together({"a:0": dense["a:0"]}, forms)
    with pytest.raises(RuntimeError):
        put_together({**dense, "a:1": dense["a:1"] + 9}, forms)
    with pytest.raises(ValueError, match="expected the layout of a sparse tensor"):
        put_together(dense, {"a": ["Tensor", [4, 4], False]})
