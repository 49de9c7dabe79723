"""A seed has the dtype, device and layout that the value at its slot has now, whatever lies around."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fxgraft
from fxgraft import SeedManager
from fxgraft.averaging import follow
from fxgraft.errors import BlueprintError, SlotError
from tests.harness import assert_same_bits

TOKENS = torch.tensor([[1, 2, 3], [3, 2, 0]])


class Embedded(nn.Module):
    """An embedding in float32 before a body in bfloat16, with a norm that stays in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).to(torch.bfloat16)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(self.embedding(x).bfloat16()).float())


class Cast(nn.Module):
    """Computes in float32 in the middle, whatever dtype it has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sin(self.first(x).to(torch.float32))
        return self.last(h.type_as(x))


class Quantized(nn.Module):
    """Weights of one byte come first, with their scale in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(8))
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(x @ self.packed.type_as(x) * self.scale))


class Spectral(nn.Module):
    """Complex weights and values, and real values around them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.complex64))
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x) * self.weight
        return self.out(torch.tanh(torch.fft.irfft(spectrum, n=8)))


class Normed(nn.Module):
    """Norms first in a block, around it, and last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.norm(h + self.block(h))


X = torch.randn(4, 8)
HOSTS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "embedded": (Embedded, TOKENS),
    "cast": (Cast, X),
    "quantized": (Quantized, X),
    "spectral": (Spectral, X),
    "normed": (Normed, X),
}


def norms_in_float32(host: fxgraft.Host) -> None:
    host.to(torch.bfloat16)
    for module in host.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()


CONVERSIONS: dict[str, Callable[[fxgraft.Host], object]] = {
    "none": lambda host: None,
    "double": lambda host: host.double(),
    "bfloat16": lambda host: host.to(torch.bfloat16),
    "all but the norms": norms_in_float32,
}
CASES = [
    *((name, "none") for name in HOSTS),
    *(
        (name, conversion)
        for name in ("cast", "quantized", "normed")
        for conversion in ("double", "bfloat16")
    ),
    ("normed", "all but the norms"),
]


def seen_at_slots(host: fxgraft.Host, x: Tensor) -> dict[str, torch.dtype]:
    """Slot -> the dtype of the value there when the host is called now, as a run of its graphs shows."""
    found: dict[str, torch.dtype] = {}
    calls: list[tuple[fxgraft.Region, Any]] = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if "slot" in n.meta:
                found[n.meta["slot"].name] = value.dtype
            return value

    hooks = [
        region.module.register_forward_pre_hook(lambda _, args, region=region: calls.append((region, args)))
        for name, region in host.regions.items()
        if name
    ]
    host(x)
    for hook in hooks:
        hook.remove()
    for region, args in [*calls, (host.regions[""], (x,))]:
        Watch(region.module, graph=region.base).run(*args)
    return found


@pytest.mark.parametrize(("name", "conversion"), CASES)
def test_a_seed_reads_and_trains_in_the_dtype_of_the_value_at_its_slot(name: str, conversion: str) -> None:
    build, x = HOSTS[name]
    host = fxgraft.trace(build(), (x,))
    CONVERSIONS[conversion](host)
    if x.is_floating_point():
        x = x.to({"none": torch.float32, "double": torch.float64}.get(conversion, torch.bfloat16))
    dtypes = seen_at_slots(host, x)
    assert dtypes.keys() == host.slots.keys()
    for slot, dtype in dtypes.items():
        manager = SeedManager(host, torch.optim.SGD([p for p in host.parameters() if p.requires_grad], 1e-2))
        assert manager.plan(slot, "mlp").dtype is dtype, slot
        seed = manager.germinate(slot, "mlp")
        assert {p.dtype for p in seed.module.parameters()} == {dtype}, slot
        host(x).float().sum().backward()
        manager.cull(seed)


def test_a_branch_reads_in_the_dtype_of_its_source() -> None:
    host = fxgraft.trace(Embedded(), (TOKENS,))
    seed = SeedManager(host).germinate("norm", lambda slot: nn.Linear(8, 8), source="bfloat16")
    assert seed.module.weight.dtype is torch.bfloat16
    host(TOKENS).sum().backward()
    assert seed.module.weight.grad is not None


@pytest.mark.parametrize("inside", [False, True], ids=["germinated outside", "germinated inside"])
@pytest.mark.parametrize("traced_under", [False, True], ids=["traced outside", "traced under autocast"])
def test_under_autocast_a_seed_has_the_dtype_of_the_weights_around(traced_under: bool, inside: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with torch.autocast("cpu", torch.bfloat16, enabled=traced_under):
        host = fxgraft.trace(model, (X,))
    manager = SeedManager(host)
    with torch.autocast("cpu", torch.bfloat16, enabled=inside):
        seed = manager.germinate("1", "mlp")
    assert {p.dtype for p in seed.module.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        host(X).sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in seed.module.parameters())


@pytest.mark.parametrize("before", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("after", [torch.contiguous_format, torch.channels_last])
def test_the_layout_is_that_of_now(before: torch.memory_format, after: torch.memory_format) -> None:
    x = torch.randn(2, 3, 5, 5)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    host = fxgraft.trace(model.to(memory_format=before), (x.contiguous(memory_format=before),))
    host.to(memory_format=after)
    seed = SeedManager(host).germinate("1", "conv_bottleneck")
    laid_out = [p.is_contiguous(memory_format=after) for p in seed.module.parameters() if p.dim() == 4]
    assert laid_out
    assert all(laid_out)


def test_the_device_is_that_of_now() -> None:
    with torch.device("meta"):
        host = fxgraft.trace(Embedded(), (TOKENS,))
    assert host.value_at(host.slots["body.0"]).device.type == "meta"
    assert host.value_at("body.0") == host.value_at(host.slots["body.0"])
    with pytest.raises(SlotError, match="body"):
        host.value_at("body.7")
    host.to_empty(device="cpu")
    for slot in host.slots.values():
        assert host.value_at(slot).device.type == "cpu", slot.name


def test_a_copy_of_a_host_knows_its_values() -> None:
    host = fxgraft.trace(Normed(), (X,)).double()
    for twin in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        seed = SeedManager(twin.bfloat16()).germinate("block.0", "mlp")
        assert {p.dtype for p in seed.module.parameters()} == {torch.bfloat16}


# Complex


class SpectralSeed(nn.Module):
    """Complex weights, real values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x.to(self.weight.real.dtype)) * self.weight, n=8).to(x.dtype)


def test_a_complex_value_is_no_slot_by_that_name() -> None:
    host = fxgraft.trace(Spectral(), (X,))
    with pytest.raises(SlotError, match=r"is complex \(torch.complex64\), and a seed needs real"):
        SeedManager(host).germinate("mul", "mlp")


def test_what_returns_complex_values_is_refused_by_that_name() -> None:
    host = fxgraft.trace(Spectral(), (X,))
    with pytest.raises(BlueprintError, match=r"a float32 tensor \(4, 8\); it returned a complex64 tensor"):
        SeedManager(host).germinate("tanh", lambda slot: Complexified())


class Complexified(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_complex_weights_of_a_seed_stay_complex(dtype: torch.dtype) -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(8, 8), nn.Tanh()).to(dtype), (X.to(dtype),))
    manager = SeedManager(host, torch.optim.AdamW(host.parameters(), 1e-2))
    given = SpectralSeed()
    before = given.weight.detach().clone()
    seed = manager.germinate("0", given)
    wide = torch.complex128 if dtype is torch.float64 else torch.complex64
    assert_same_bits(seed.module.weight.detach(), before.to(wide), "complex weights")
    for other in (torch.float64, torch.float32, torch.bfloat16):
        host.to(other)
        wide = torch.complex128 if other is torch.float64 else torch.complex64
        assert_same_bits(seed.module.weight.detach(), before.to(wide), f"complex weights in {other}")


def test_complex_weights_stay_complex_in_an_average_of_another_dtype() -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), (X,))
    averaged = AveragedModel(host)
    follow(host, averaged)
    averaged.double()
    seed = SeedManager(host).germinate("0", SpectralSeed())
    (twin,) = averaged.module.grafts().values()
    assert_same_bits(twin.module.weight.detach(), seed.module.weight.detach().to(torch.complex128), "weights")


def test_a_complex_host_and_a_complex_seed_train_blend_and_resume(tmp_path: Path) -> None:
    def run(resume: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        host = fxgraft.trace(Spectral(), (X,))
        optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
        manager = SeedManager(host, optimizer, strict=True, check_every=1, metrics_every=1)
        manager.germinate("tanh", lambda slot: SpectralSeed(), name="a")
        for step in range(8):
            if step == 3:
                manager.blend("a", steps=2)
            if step == 6 and resume:
                manager.save(tmp_path / "run")
                host = fxgraft.trace(Spectral(), (X,))
                optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
                manager = SeedManager.load(
                    tmp_path / "run", host, optimizer, blueprints={"a": SpectralSeed()}, strict=True
                )
            optimizer.zero_grad()
            host(X).square().mean().backward()
            optimizer.step()
            manager.step()
        manager.fossilize("a")
        return {name: tensor.clone() for name, tensor in host.state_dict().items()}

    assert_same_bits(run(resume=True), run(resume=False), "a complex run")
