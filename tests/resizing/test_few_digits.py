"""Models that compute in few digits grow: bfloat16, float16, autocast."""

from __future__ import annotations

import copy
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.errors import ChannelError

BATCH = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class InnerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class InFewDigits(nn.Module):
    """The head reads the stream as it is, the blocks read it normalised."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList([InnerBlock(), InnerBlock()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class CastAtTheEnd(InFewDigits):
    def __init__(self) -> None:
        super().__init__()
        self.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.bfloat16)).float()


class CastInside(InFewDigits):
    def __init__(self) -> None:
        super().__init__()
        self.blocks.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).to(torch.bfloat16)
        for block in self.blocks:
            x = block(x)
        return self.head(x.float())


class Autocast(InFewDigits):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class Counted(Autocast):
    """What it returns depends on how many hidden units there are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.blocks[0].up.out_features


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(6))
def test_the_function_is_kept_and_not_hidden_by_rounding(seed: int, dtype: torch.dtype) -> None:
    net = InFewDigits(seed).to(dtype)
    host = fxgraft.trace(net, (BATCH.to(dtype),))
    exact = copy.deepcopy(net).double()(BATCH.to(dtype).double())
    fxgraft.SeedManager(host).widen("first", 4)
    now = fxgraft.unwrap(host).double()(BATCH.to(dtype).double())
    assert (now - exact).abs().max() < 2e-3 * exact.abs().max()
    assert not host.head.weight[:, 8:].any()


@pytest.mark.parametrize("kind", [CastAtTheEnd, CastInside, Autocast])
def test_outputs_may_have_more_digits_than_what_they_are_computed_from(kind: type[InFewDigits]) -> None:
    host = fxgraft.trace(kind(), (BATCH,))
    manager = fxgraft.SeedManager(host)
    before = host(BATCH).detach()
    manager.widen("blocks.0.up", 4, init="split")
    manager.widen("first", 4)
    torch.testing.assert_close(host(BATCH), before, rtol=0.0, atol=0.02)
    assert host(BATCH).dtype is torch.float32


@pytest.mark.parametrize("kind", [CastAtTheEnd, CastInside, Autocast])
def test_blocks_are_inserted_where_code_computes_in_few_digits(kind: type[InFewDigits]) -> None:
    host = fxgraft.trace(kind(), (BATCH,))
    manager = fxgraft.SeedManager(host)
    before = host(BATCH).detach()
    (block,) = manager.deepen("blocks")
    assert torch.equal(host(BATCH), before)
    manager.germinate(f"_seeds.{block.name}.module.up", "mlp")
    host(BATCH).sum().backward()
    assert host.get_submodule(f"_seeds.{block.name}.module.down").weight.grad.abs().sum() > 0


def test_what_depends_on_the_number_of_channels_is_refused_all_the_same() -> None:
    host = fxgraft.trace(Counted(), (BATCH,))
    with pytest.raises(ChannelError, match="expected the outputs of before"):
        fxgraft.SeedManager(host).widen("blocks.0.up", 1)


class Attention(nn.Module):
    """Divides by the root of the size of a head, in its code: with larger heads it returns other values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.norm = 4, nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        read = (q @ k.transpose(-1, -2) / (c // self.heads) ** 0.5).softmax(-1) @ v
        return x + self.out(read.transpose(1, 2).reshape(b, t, c))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(5, 16), Attention()
        self.head, self.other = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.first(x))
        return self.head(x) + self.other(x)


@pytest.mark.parametrize("seed", range(10))
def test_float16_hides_no_more_than_its_rounding(seed: int) -> None:
    torch.manual_seed(seed)
    net, x = Attends().half(), torch.randn(3, 7, 5, dtype=torch.float16)
    host = fxgraft.trace(net, (x,))
    exact = copy.deepcopy(net).double()(x.double())
    manager = fxgraft.SeedManager(host)
    with suppress(ChannelError):
        manager.widen("first", host.channels["first"].grain)
    now = fxgraft.unwrap(host).double()(x.double())
    assert (now - exact).abs().max() < 3e-3 * exact.abs().max()
