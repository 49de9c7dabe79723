"""Batches and sequences of any length: no code is compiled for a length that is new."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxgraft
from tests.harness import counting_backend

SIZES = [(3, 6), (5, 9), (2, 12), (7, 4)]


class Attends(nn.Module):
    """Reads sizes, makes a mask of them, and reshapes by them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(11, 8), nn.Embedding(32, 8)
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 11)

    def forward(self, ids: Tensor, scale: float = 1.0) -> Tensor:
        n, length = ids.shape
        x = self.embedding(ids) + self.places(torch.arange(length, device=ids.device))
        q, k, v = self.qkv(x).view(n, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mask = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask) * scale
        return self.head(x + self.out(h.transpose(1, 2).reshape(n, length, 8)))


def ids_of(size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 11, size)


@pytest.mark.parametrize("dynamic", [True, None])
def test_new_lengths_recompile_nothing(dynamic, fresh_compiler):
    model = Attends()
    host = fxgraft.trace(model, (ids_of((2, 5)),))
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1), check_every=0)
    backend = counting_backend()
    host.compile(backend=backend, dynamic=dynamic)
    # Under dynamic=None the second length is what tells torch that lengths differ.
    for size in ((2, 5), SIZES[0]):
        host(ids_of(size)).sum().backward()

    def runs_every_length() -> None:
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in SIZES:
                ids = ids_of(size)
                out = host(ids)
                out.sum().backward()
                assert out.shape == (*size, 11)

    runs_every_length()
    before = backend.frame_count
    seed = manager.germinate("add", "low_rank")
    # Two forwards, each begun anew once, for floats of the model: not once for each float in a condition.
    assert backend.frame_count - before <= 4
    runs_every_length()
    if dynamic:
        return
    ids = ids_of(SIZES[2])
    torch.testing.assert_close(host(ids), model(ids))
    manager.blend(seed, steps=2)
    manager.step()
    runs_every_length()
    manager.cull_all()
    runs_every_length()


def test_a_grown_host_runs_every_length_in_eager():
    model = Attends()
    host = fxgraft.trace(model, (ids_of((2, 5)),))
    manager = fxgraft.SeedManager(host)
    manager.germinate("view", lambda slot: nn.Linear(4, 4))  # of a value that sizes made
    manager.germinate("head", "mlp")
    for size in [*SIZES, (1, 1)]:
        ids = ids_of(size)
        assert torch.equal(host(ids), model(ids)), size
    assert host.explain().fallbacks == 0
