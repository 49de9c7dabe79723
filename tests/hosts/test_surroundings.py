"""What a seed follows: dtype, memory format and train/eval mode of its slot, through conversions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.norm(self.conv(x)))


def conv_host(dtype: torch.dtype = torch.float32) -> tuple[fxgraft.Host, torch.Tensor]:
    x = torch.randn(4, 3, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
    model = ConvNet().to(dtype=dtype, memory_format=torch.channels_last)
    return fxgraft.trace(model, (x,)), x


def is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


@pytest.mark.parametrize("mode", ["residual", "convex", "gated", "channelwise"])
def test_a_seed_is_laid_out_as_its_slot(mode: str) -> None:
    host, x = conv_host()
    manager = SeedManager(host)
    assert host.slots["norm"].channels_last
    seed = manager.germinate("norm", "conv_bottleneck", mode=mode)
    weights = [p for p in seed.module.parameters() if p.dim() == 4 and p.shape[2:] != (1, 1)]
    assert weights
    assert all(map(is_channels_last, weights))
    for step in range(4):
        out = host(x)
        assert is_channels_last(out), f"the value left the slot in another layout at step {step}"
        out.sum().backward()
        if step == 0:
            manager.blend(seed, steps=2)
        manager.step()
    manager.fossilize(seed)
    assert is_channels_last(host(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_seed_has_the_dtype_of_its_slot(dtype: torch.dtype) -> None:
    host, x = conv_host(dtype)
    seed = SeedManager(host).germinate("relu", "conv_bottleneck")
    assert {p.dtype for p in seed.module.parameters()} == {dtype}
    assert host(x).dtype is dtype


def test_a_seed_germinated_after_a_conversion_follows_it() -> None:
    host, x = conv_host()
    manager = SeedManager(host)
    host.to(torch.float64)
    seed = manager.germinate("relu", "conv_bottleneck")
    assert {p.dtype for p in seed.module.parameters()} == {torch.float64}
    assert host(x.double()).dtype is torch.float64


def test_a_conversion_in_mid_blend_keeps_alpha() -> None:
    host, x = conv_host()
    manager = SeedManager(host)
    seed = manager.germinate("relu", "conv_bottleneck")
    manager.blend(seed, steps=3, schedule="linear")
    manager.step()
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        host.to(dtype)
        assert host(x.to(dtype)).dtype is dtype
        assert {p.dtype for p in seed.module.parameters()} == {dtype}
        assert host.graft(seed.name).alpha.item() == pytest.approx(1 / 3, abs=1e-7)
    manager.step()
    manager.step()
    assert (seed.alpha, host.graft(seed.name).alpha.item()) == (1.0, 1.0)


@pytest.mark.parametrize("training", [True, False])
def test_a_seed_is_in_the_mode_of_its_slot(training: bool) -> None:
    host, _ = conv_host()
    host.train(training)
    seed = SeedManager(host).germinate("relu", lambda slot: nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(0.1)))
    assert [m.training for m in seed.module.modules()] == [training] * 3
    host.train(not training)
    assert [m.training for m in seed.module.modules()] == [not training] * 3


def test_autocast_goes_through_a_seed_in_every_stage() -> None:
    host, x = conv_host()
    manager = SeedManager(host)
    seed = manager.germinate("conv", "conv_bottleneck")
    manager.germinate("relu", "low_rank")
    reference = fxgraft.trace(ConvNet(), (x,))
    reference.load_state_dict({k: v for k, v in host.state_dict().items() if not k.startswith("_seeds.")})
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(host(x), reference(x)), "isolated seeds are felt under autocast"
        for action in (lambda: manager.blend(seed, steps=1), manager.step, lambda: manager.fossilize(seed)):
            action()
            out = host(x)
            out.float().sum().backward()
            assert out.dtype is reference(x).dtype
