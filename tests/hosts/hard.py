"""More hand-written hosts, each with one thing that is hard for a graph; registered beside the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from tests.hosts.hosts import Base, Given, SkipBlock, host


@host("in-place consumers")
class InPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        h.relu_()
        h = h + x
        h[:, 0] = 0.5
        h += x
        y = self.fc2(h)
        y.mul_(2).clamp_(-3, 3)
        return y


@host("in-place through a view")
class Views(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        left, right = h[:, :4], h.narrow(1, 4, 4)
        left.mul_(3)
        return self.fc2(h) + right.sum(-1, keepdim=True)


@host("multi-output nodes and a dead branch")
class Many(Base):
    def forward(self, x: Tensor) -> Tensor:
        values, places = self.fc1(x).max(-1, keepdim=True)
        mean, deviation = torch.std_mean(x, -1, keepdim=True)
        self.fc2(values.expand_as(x))
        first, *_, last = self.fc2(x).split([2, 3, 3], -1)
        return torch.cat([first * values, last + mean / (deviation + 1)], -1) + places


@host("functional dropout")
class Dropped(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(self.fc1(x), 0.3, training=self.training)
        return F.alpha_dropout(self.fc2(h), 0.2, self.training)


@host("batch norm", shape=(4, 3, 6, 6))
class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm1d(4, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu_(self.bn1(self.conv(x)))
        h = F.batch_norm(h, None, None, training=True)
        return self.bn2(h.mean((2, 3)))


@host("residual network", shape=(2, 3, 16, 16))
class ResNet(nn.Module):
    class Residual(nn.Module):
        def __init__(self, inside: int, outside: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
            self.relu = nn.ReLU(inplace=True)
            shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )
            self.downsample = shortcut if stride > 1 else None

        def forward(self, x: Tensor) -> Tensor:
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            out += x if self.downsample is None else self.downsample(x)
            return self.relu(out)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(self.Residual(8, 8, 1), self.Residual(8, 8, 1))
        self.layer2 = nn.Sequential(self.Residual(8, 16, 2), self.Residual(16, 16, 1))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.layer2(self.layer1(self.stem(x))), 1).flatten(1))


@host("dictionary in, dataclass out, keywords only")
def _() -> Given:
    @dataclasses.dataclass
    class Result:
        logits: Tensor
        hidden: dict[str, Tensor]
        nothing: None = None

    class M(Base):
        def forward(self, *, batch: dict[str, Tensor], scale: float, mask: Tensor | None = None) -> Result:
            h = self.fc1(batch["x"]) * scale
            if mask is not None:
                h = h.masked_fill(mask, 0.0)
            return Result(self.fc2(h), {"first": h, "count": batch["n"] + 1})

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = M()

        def forward(self, *, batch: dict[str, Tensor], mask: Tensor | None = None) -> dict[str, Any]:
            out = self.inner(batch=batch, scale=0.5, mask=mask)
            return {"logits": out.logits, "hidden": [*out.hidden.values()], "nothing": out.nothing}

    batch = {"x": torch.randn(4, 8), "n": torch.arange(4)}
    return Given(Outer(), (), {"batch": batch, "mask": None})


@host("integer tensors")
def _() -> Given:
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.places = nn.Embedding(10, 8), nn.Embedding(16, 8)
            self.bag = nn.EmbeddingBag(10, 8, mode="sum")
            self.register_buffer("order", torch.arange(16))
            self.head = nn.Linear(8, 10)

        def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            h = self.embedding(ids) + self.places(self.order[: ids.shape[1]])
            h = h * mask.unsqueeze(-1) + self.bag(ids).unsqueeze(1)
            logits = self.head(h)
            return logits, logits.argmax(-1).where(mask.bool(), -100)

    ids = torch.randint(0, 10, (3, 5))
    return Given(M(), (ids, (ids > 2).long()))


@host("None arguments")
def _() -> Given:
    class Inner(Base):
        def forward(self, x: Tensor, a: Tensor | None, b: Tensor | None = None, *, c: Any = None) -> Tensor:
            h = self.fc1(x)
            h = h if a is None else h + a
            h = h if b is None else h * b
            return self.fc2(h) if c is None else h

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Inner(), Inner()

        def forward(self, x: Tensor, a: Tensor | None, b: Tensor | None = None) -> Tensor:
            return self.second(self.first(x, a, None, c=None), None, b)

    return Given(Outer(), (torch.randn(4, 8), None), {"b": torch.randn(8)})


@host("scaled dot product attention", shape=(2, 5, 8))
class Sdpa(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        p = 0.1 if self.training else 0.0
        h = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return x + self.out(h.transpose(1, 2).reshape(n, length, width))


@host("flex attention", ("attention", "branches on"), shape=(2, 5, 8))
class Flex(nn.Module):
    """Its code is none that a graph can hold; what is around it has slots."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = FlexAttention(), SkipBlock()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x))


class FlexAttention(nn.Module):
    """Frozen up to the attention, which has no backward pass on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24).requires_grad_(False), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        h = flex_attention(q, k, v, score_mod=_nearer)
        return x + self.out(h.transpose(1, 2).reshape(n, length, width))


def _nearer(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return score - 0.5 * (q - k).abs()


@host("frozen host")
def _() -> Given:
    model = nn.Sequential(SkipBlock(), nn.LayerNorm(8), SkipBlock()).requires_grad_(False)
    return Given(model, (torch.randn(4, 8, requires_grad=True),))


class Quantised(nn.Module):
    """A linear layer with int8 weights and a scale for each row, as weight-only quantisation stores them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@host("quantised host")
def _() -> Given:
    model = nn.Sequential(SkipBlock(), SkipBlock())
    for block in model:
        block.fc1, block.fc2 = Quantised(block.fc1), Quantised(block.fc2)
    return Given(model, (torch.randn(4, 8, requires_grad=True),))


@host("weight norm by hooks")
def _() -> Given:
    model = nn.Sequential(SkipBlock(), SkipBlock())
    nn.utils.spectral_norm(model[0].fc1)
    nn.utils.weight_norm(model[1].fc1)
    return Given(model, (torch.randn(4, 8),))


@host("checkpointed with dropout and keywords")
class CheckpointedMore(nn.Module):
    class Inner(Base):
        def forward(self, x: Tensor, *, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
            h = F.dropout(self.fc1(x) * scale, 0.3, self.training)
            return self.fc2(h) if mask is None else self.fc2(h) * mask

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Inner() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, mask=x.sign(), scale=0.5, use_reentrant=False)
        return x


@host("complex numbers")
class Fourier(Base):
    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.fc1(x))
        return self.fc2(torch.fft.irfft(spectrum * torch.view_as_complex(torch.ones(5, 2)), n=8))
