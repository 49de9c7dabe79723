"""Random convolutional and gated hosts whose branches become a part of them: a run goes on as without that.

All is in float64: what AdamW makes of a gradient that is zero but for rounding is far less than what is
compared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

import fxgraft

WIDTH, DTYPE = 4, torch.float64
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "average": lambda size: nn.BatchNorm2d(size, momentum=None),
    "batch": nn.BatchNorm2d,
    "group": lambda size: nn.GroupNorm(size // 2, size),
    "none": lambda size: nn.Identity(),
}
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


@dataclass(frozen=True)
class Form:
    """What the layers of a host and the branches beside them have in common.

    Attributes:
        kind: ``"conv"`` or ``"gated"``.
        hidden: how many channels are between them; the only thing in which they differ.
        act, norm: from `ACTIVATIONS` and `NORMS`; the norm is that of convolutions.
        bias: of the layers that make the channels.
        kernel, stride: of the first convolution; the second one's kernel is the same.
        middle: the convolution that stands between them, if any: ``"depthwise"`` or ``"dense"``.
    """

    kind: str
    hidden: int
    act: str
    norm: str = "none"
    bias: bool = True
    kernel: int = 1
    stride: int = 1
    middle: str = "none"

    def build(self) -> nn.Module:
        """The last layer has no bias: two that add up are trained as one once fused."""
        return ConvPart(self) if self.kind == "conv" else GatedPart(self)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return (4, WIDTH, 5, 5) if self.kind == "conv" else (4, 3, WIDTH)


class ConvPart(nn.Sequential):
    def __init__(self, form: Form):
        size, pad = form.hidden, form.kernel // 2
        groups = {"depthwise": [size], "dense": [1], "none": []}[form.middle]
        super().__init__(
            nn.Conv2d(WIDTH, size, form.kernel, form.stride, pad, bias=form.bias),
            NORMS[form.norm](size),
            ACTIVATIONS[form.act](),
            *(nn.Conv2d(size, size, 3, padding=1, groups=n, bias=form.bias) for n in groups),
            nn.Conv2d(size, WIDTH, form.kernel, padding=pad, bias=False),
        )


class GatedPart(nn.Module):
    """SwiGLU, and what is named after other activations."""

    def __init__(self, form: Form):
        super().__init__()
        self.gate = nn.Linear(WIDTH, form.hidden, bias=form.bias)
        self.up, self.act = nn.Linear(WIDTH, form.hidden, bias=form.bias), ACTIVATIONS[form.act]()
        self.down = nn.Linear(form.hidden, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class AroundBranch(nn.Module):
    """A stem, the part in question, a part behind it, and a head."""

    def __init__(self, form: Form, residual: bool):
        super().__init__()
        conv = form.kind == "conv"
        self.residual, self.over = residual, (2, 3) if conv else (1,)
        self.stem = nn.Conv2d(WIDTH, WIDTH, 1) if conv else nn.Linear(WIDTH, WIDTH)
        self.part, self.head = form.build(), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.part(x)
        if self.residual:
            y = x + y
        return self.head(y.tanh().mean(self.over))


class Run:
    """A host that trains with branches beside its part, until they are fossils."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], optimizer: str):
        self.shape, self.count = shape, 0
        self.host = fxgraft.trace(copy.deepcopy(model), (self.batch(99),))
        self.optimizer = OPTIMIZERS[optimizer](self.host.parameters())
        self.manager = fxgraft.SeedManager(self.host, self.optimizer, check_every=0)

    def batch(self, number: int) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(number), dtype=DTYPE)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.count += 1
            self.optimizer.zero_grad()
            self.host(self.batch(self.count)).square().sum().backward()
            self.optimizer.step()
            self.manager.step()

    def grow(self, branches: dict[str, nn.Module], isolated: bool, apart: int, alpha: float) -> None:
        """Each branch begins ``apart`` steps behind the one before."""
        for name, branch in branches.items():
            self.train(apart)
            self.manager.germinate("part", copy.deepcopy(branch), source="stem", name=name, isolated=isolated)
        self.train(1)
        for name in branches:
            self.manager.blend(name, to=alpha, steps=0)
        self.train(2)
        for name in branches:
            self.manager.fossilize(name)
        self.train(1)

    def outputs(self) -> tuple[Tensor, Tensor]:
        """In eval mode, and in train mode with the buffers put back."""
        x, buffers = self.batch(0), {n: b.clone() for n, b in self.host.named_buffers()}
        with torch.no_grad():
            train, eval = self.host.train()(x), self.host.eval()(x)
            for name, buffer in self.host.named_buffers():
                buffer.copy_(buffers[name])
        self.host.train()
        return train, eval


@st.composite
def forms(draw: st.DrawFn) -> Form:
    conv, act, bias = draw(st.booleans()), draw(st.sampled_from(sorted(ACTIVATIONS))), draw(st.booleans())
    if not conv:
        return Form("gated", draw(st.integers(1, 5)), act, bias=bias)
    norm = draw(st.sampled_from(sorted(NORMS)))
    units = draw(st.integers(2 if norm == "group" else 1, 3))  # one group is one for all channels
    kernel, stride = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2]))
    middle = draw(st.sampled_from(["none", "depthwise", "dense"]))
    return Form("conv", 2 * units, act, norm, bias, kernel, stride, middle)


@given(
    forms(),
    st.lists(st.integers(1, 2), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 0, 2]),
    st.sampled_from([1.0, 1.0, 0.5]),
    st.sampled_from(sorted(OPTIMIZERS)),
)
def test_a_fused_run_goes_on_as_the_run_with_its_branches(
    form, sizes, residual, isolated, apart, alpha, optimizer
):
    """In training, where nothing of a branch is scaled or counted otherwise then, and no weights of zero
    connect it with the rest, which learn from then on.
    """
    torch.manual_seed(0)
    apart = 0 if form.norm == "average" else apart
    times = 1 if form.kind == "gated" else 2
    model = AroundBranch(form, residual and form.stride == 1).to(DTYPE)
    branches = {f"b{i}": replace(form, hidden=times * n).build().to(DTYPE) for i, n in enumerate(sizes)}
    fused, plain = (Run(model, form.batch_shape, optimizer) for _ in range(2))
    for run in (fused, plain):
        run.grow(branches, isolated, apart, alpha)
    assert list(fused.manager.fuse()) == list(branches)
    close(fused.outputs(), plain.outputs())
    if alpha == 1.0 and form.middle != "dense" and not (optimizer == "adamw" and apart):
        for run in (fused, plain):
            run.train(3)
        compare(fused, plain, list(branches))
    wide = AroundBranch(replace(form, hidden=form.hidden + times * sum(sizes)), model.residual).to(DTYPE)
    assert_is_by_hand(fused, wide)


def compare(fused: Run, plain: Run, names: list[str]) -> None:
    """Parameters, buffers and what optimizers keep: those of the branches stand behind the host's."""
    close(fused.outputs(), plain.outputs())
    parts = [dict(plain.host.graft(name).module.state_dict(keep_vars=True)) for name in names]
    for name, tensor in fused.host.state_dict(keep_vars=True).items():
        rest = name.removeprefix("part.")
        own = plain.host.state_dict(keep_vars=True)[name]
        every = [own, *(part[rest] for part in parts if name.startswith("part.") and own.dim())]
        close(tensor.detach(), joined(tensor, every))
        for key, value in fused.optimizer.state.get(tensor, {}).items():
            kept = [plain.optimizer.state[one][key] for one in every]
            close(value, joined(value, kept) if value.dim() else kept[0])


def joined(like: Tensor, tensors: list[Tensor]) -> Tensor:
    """Tensors on the diagonal of one that is as ``like``, in the dimensions in which this is larger."""
    found, starts = torch.zeros_like(like), [0] * like.dim()
    if tensors[0].shape == like.shape:
        return tensors[0].detach()
    for tensor in tensors:
        place = []
        for dim, (start, size) in enumerate(zip(starts, tensor.shape, strict=True)):
            grows = like.shape[dim] != tensors[0].shape[dim]
            place.append(slice(start, start + size) if grows else slice(None))
            starts[dim] += size if grows else 0
        found[tuple(place)] = tensor.detach()
    return found


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


def assert_is_by_hand(run: Run, model: nn.Module) -> None:
    """The host is what a model written with these sizes is: names, shapes, and what it computes."""
    model.load_state_dict(run.host.state_dict())
    for mode in (True, False):
        close(fxgraft.unwrap(run.host).train(mode)(run.batch(1)), model.train(mode)(run.batch(1)))
    assert str(fxgraft.unwrap(run.host)) == str(model)
    run.host.train()
