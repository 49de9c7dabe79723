"""Models whose channels grow: one for each way in which code arranges them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    def __init__(self, act: nn.Module | None = None):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 8), act or nn.GELU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Gated(nn.Module):
    """SwiGLU, by two layers or by one whose outputs are cut."""

    def __init__(self, fused: bool):
        super().__init__()
        self.fused = fused
        if fused:
            self.both = nn.Linear(4, 16)
        else:
            self.gate, self.up = nn.Linear(4, 8), nn.Linear(4, 8)
        self.down = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1) if self.fused else (self.gate(x), self.up(x))
        return self.down(F.silu(gate) * up)


class Cnn(nn.Module):
    """Convolutions with norms, one by channel and one by group, and a linear layer behind a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.groups = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.depthwise, self.head = nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        x = F.relu(self.groups(self.second(x)))
        return self.head(F.adaptive_avg_pool2d(self.depthwise(x), 2).flatten(1))


class Bottleneck(nn.Module):
    """As torchvision's."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Bottleneck(8, 4), Bottleneck(8, 4))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Attention(nn.Module):
    """Heads whose number is an attribute, and whose size is one of its own."""

    def __init__(self, width: int = 12, heads: int = 3, size: int = 4):
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv, self.out = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, self.heads * self.size))


class AttentionBlock(nn.Module):
    def __init__(self, norm: type[nn.Module] = nn.LayerNorm):
        super().__init__()
        self.ln1, self.attn, self.ln2 = norm(12), Attention(), norm(12)
        self.mlp = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Gpt(nn.Module):
    """A small language model with a tied head."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm, depth: int = 2):
        super().__init__()
        self.token, self.place = nn.Embedding(11, 12), nn.Parameter(torch.randn(1, 8, 12) * 0.1)
        self.blocks = nn.ModuleList(AttentionBlock(norm) for _ in range(depth))
        self.norm = norm(12)
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Bare(nn.Module):
    """A residual stream that the head reads as it is, without a norm in front."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 12), nn.Linear(12, 3)
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


class Experts(nn.Module):
    """Each token by its expert, as batched products of three-dimensional weights."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(4, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 4, 6)), nn.Parameter(torch.randn(3, 6, 2))

    def forward(self, x: Tensor) -> Tensor:
        share = self.route(x).softmax(dim=-1)
        hidden = torch.einsum("bi,eih->beh", x, self.up).relu()
        return (torch.einsum("beh,eho->beo", hidden, self.down) * share[..., None]).sum(dim=1)


class Shared(nn.Module):
    """Attention whose heads share the width between them; ``by_hand`` without torch's own attention."""

    def __init__(self, width: int = 12, heads: int = 3, by_hand: bool = False):
        super().__init__()
        self.heads, self.width, self.by_hand = heads, width, by_hand
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(self.width, dim=2)
        )
        if self.by_hand:
            y = (q @ k.transpose(-2, -1) * (1.0 / k.size(-1) ** 0.5)).softmax(dim=-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(b, t, c))


class CharGpt(nn.Module):
    """As the small language models that people write by hand."""

    def __init__(self, by_hand: bool = False):
        super().__init__()
        self.token = nn.Embedding(11, 12)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln1": nn.LayerNorm(12),
                    "attn": Shared(by_hand=by_hand),
                    "ln2": nn.LayerNorm(12),
                    "mlp": nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12)),
                }
            )
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens)
        for block in self.blocks:
            x = x + block["attn"](block["ln1"](x))
            x = x + block["mlp"](block["ln2"](x))
        return self.head(self.norm(x))


class OffsetNorm(nn.Module):
    """An RMSNorm by hand that multiplies by its weight and one more."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.randn(width) * 0.1), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return x * (1.0 + self.weight)
