"""Models that compute over their channels in ways that an example need not show."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxgraft
from fxgraft.errors import ChannelError


class Pooled(nn.Module):
    """The largest of the hidden units is added: a pool over them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 64), nn.Linear(64, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h) + F.adaptive_max_pool1d(h, 1)


class ChannelAttention(nn.Module):
    """ECA: a convolution over the means of the channels."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.e, self.o = nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        h = F.relu(self.c(x))
        g = self.e(h.mean((2, 3))[:, None]).squeeze(1)
        return self.o(h * torch.sigmoid(g)[:, :, None, None])


class PooledInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        out = self.b(h)
        return out + F.adaptive_avg_pool1d(h.unsqueeze(1), 1).squeeze(1) if self.training else out


def managed(network: nn.Module, *example: torch.Tensor) -> tuple[fxgraft.Host, fxgraft.SeedManager]:
    host = fxgraft.trace(network, example)
    return host, fxgraft.SeedManager(host, torch.optim.AdamW(host.parameters()))


@pytest.mark.parametrize("seed", range(6))
def test_a_pool_over_the_channels_fixes_them_whatever_the_example_is(seed: int):
    torch.manual_seed(seed)
    host, manager = managed(Pooled(), torch.randn(1, 3, 6))
    assert "adaptive_max_pool1d in the model itself is computed over it" in (host.channels["a"].fixed or "")
    before = {name: p.detach().clone() for name, p in host.named_parameters()}
    with pytest.raises(ChannelError, match="adaptive_max_pool1d"):
        manager.widen("a", 1)
    assert all(torch.equal(before[name], p) for name, p in host.named_parameters())


def test_a_convolution_over_the_channels_fixes_them():
    host, _ = managed(ChannelAttention(), torch.zeros(1, 3, 6, 6))
    assert "conv1d in e is computed over it" in (host.channels["c"].fixed or "")


def test_a_pool_that_runs_in_training_alone_fixes_them():
    host, _ = managed(PooledInTraining(), torch.randn(5, 6))
    assert "adaptive_avg_pool1d in the model itself is computed over it" in (host.channels["a"].fixed or "")


@pytest.mark.parametrize("batched", [True, False])
def test_channels_grow_where_places_are_pooled(batched: bool):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1)
    )
    x = torch.randn(2, 3, 8, 8) if batched else torch.randn(3, 8, 8)
    host, manager = managed(network, x)
    other = torch.randn_like(x)
    before = host(other).detach()
    manager.widen("0", 3)
    torch.testing.assert_close(host(other), before)


class Embedded(nn.Module):
    def __init__(self, **options: object):
        super().__init__()
        self.e, self.l = nn.Embedding(50, 12, **options), nn.Linear(12, 3)

    def forward(self, t):
        return self.l(self.e(t))


def test_an_embedding_that_limits_its_norm_does_not_grow():
    tokens = torch.arange(50)[None]
    host, _ = managed(Embedded(max_norm=3.0), tokens[:, :3])
    assert "embedding in e limits the norm over it" in (host.channels["e"].fixed or "")
    host, manager = managed(Embedded(), tokens[:, :3])
    before = host(tokens).detach()
    manager.widen("e", 4)
    torch.testing.assert_close(host(tokens), before)


class Attention(nn.Module):
    """Whose products are divided by a number that does not follow the width."""

    def __init__(self, width: int = 12, heads: int = 3):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (
            f(x).view(b, t, self.heads, c // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        a = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.o((a @ v).transpose(1, 2).reshape(b, t, c))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.a, self.n, self.head = (
            nn.Embedding(20, 12),
            Attention(),
            nn.LayerNorm(12),
            nn.Linear(12, 20),
        )

    def forward(self, t):
        x = self.e(t)
        return self.head(x + self.a(self.n(x)))


def attending(example: torch.Tensor) -> tuple[fxgraft.Host, fxgraft.SeedManager]:
    torch.manual_seed(0)
    network = Tokens()
    with torch.no_grad():
        network.a.q.weight.mul_(8)
    return managed(network, example)


@pytest.mark.parametrize(
    "example", [torch.zeros(2, 9, dtype=torch.long), torch.tensor([[3], [7]])], ids=["equal", "one position"]
)
def test_an_example_that_does_not_show_by_what_attention_divides_is_refused(example: torch.Tensor):
    host, manager = attending(example)
    weight = host.a.q.weight.detach().clone()
    with pytest.raises(ChannelError, match="does not show by what attention divides its products"):
        manager.widen("e", 3)
    assert torch.equal(host.a.q.weight, weight)


def test_one_that_shows_it_grows():
    tokens = torch.randint(0, 20, (20, 9), generator=torch.Generator().manual_seed(1))
    host, manager = attending(tokens[:2])
    before = host(tokens).detach()
    manager.widen("e", 3)
    torch.testing.assert_close(host(tokens), before, rtol=1e-4, atol=1e-5)


class Own(nn.Module):
    """A layer whose ``reset_parameters`` needs an argument."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(outputs, inputs) * 0.02)

    def reset_parameters(self, std):
        nn.init.normal_(self.w, std=std)

    def forward(self, x):
        return x @ self.w.t()


class OwnFunction(Own):
    """One whose ``reset_parameters`` is no method."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.reset_parameters = lambda: nn.init.normal_(self.w)


class WithChild(nn.Module):
    """One that initialises a child as well, as convolutions of torch_geometric do."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.lin = nn.Linear(inputs, inputs)
        self.w, self.b = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.zeros(outputs))

    def reset_parameters(self):
        self.lin.reset_parameters()
        nn.init.xavier_uniform_(self.w)
        nn.init.zeros_(self.b)

    def forward(self, x):
        return F.linear(torch.relu(self.lin(x)), self.w, self.b)


@pytest.mark.parametrize("layer", [Own, OwnFunction, WithChild])
def test_a_layer_with_a_way_to_initialise_of_its_own_grows(layer: type[nn.Module]):
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    host, manager = managed(nn.Sequential(layer(6, 8), nn.ReLU(), nn.Linear(8, 2)), x)
    before, kept = host(x).detach(), {n: p.detach().clone() for n, p in host.named_parameters()}
    manager.widen("0", 4)
    torch.testing.assert_close(host(x), before)
    assert host.get_parameter("0.w").shape == (12, 6)
    child = "0.lin.weight"
    assert child not in kept or torch.equal(host.get_parameter(child), kept[child])
