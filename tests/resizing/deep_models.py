"""Models with stacks: hand-written ones, and small random ones of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
import transformers as T
from torch import Tensor, nn

import fxgraft
from tests.harness import assert_same_bits, traced_once


class TransformerBlock(nn.Module):
    """A transformer's block."""

    def __init__(self, width: int = 16, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).split(width, dim=-1)
        q, k, v = (part.view(batch, length, 2, -1).transpose(1, 2) for part in parts)
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(read.transpose(1, 2).reshape(batch, length, width)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class CharGPT(nn.Module):
    """A character GPT, whose blocks are called by a loop."""

    def __init__(self, layers: int = 1, width: int = 16, dropout: float = 0.0):
        super().__init__()
        self.tokens, self.places = nn.Embedding(32, width), nn.Embedding(16, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Basic(nn.Module):
    """The basic block of a ResNet, as torchvision has it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Two stages; the first block of the second is not like the others."""

    def __init__(self, blocks: tuple[int, int] = (2, 2)):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(*(Basic(8, 8) for _ in range(blocks[0])))
        rest = (Basic(16, 16) for _ in range(blocks[1] - 1))
        self.layer2 = nn.Sequential(Basic(8, 16, 2), *rest)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def gpt2(layers: int = 2, **more: Any) -> nn.Module:
    sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": layers, "n_head": 2}
    return T.GPT2LMHeadModel(T.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **more))


def llama(layers: int = 2) -> nn.Module:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    return T.LlamaForCausalLM(T.LlamaConfig(**sizes, **heads, bos_token_id=0, eos_token_id=0))


def vit(layers: int = 2) -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    return T.ViTModel(T.ViTConfig(**sizes, intermediate_size=32, image_size=16, patch_size=8))


@dataclass(frozen=True)
class Given:
    """A kind of model: how it is made, called, and which stack it has.

    Attributes:
        make: layers -> the model.
        layers: how many blocks the host has.
        stack: the stack's name.
        call: args and kwargs.
        value: the tensor in what it returns.
    """

    make: Callable[[int], nn.Module]
    layers: int
    stack: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def model(self, more: int = 0) -> nn.Module:
        torch.manual_seed(0)
        return self.make(self.layers + more).eval()

    @cached_property
    def host(self) -> Callable[[], fxgraft.Host]:
        return traced_once(lambda: fxgraft.trace(self.model(), self.args, self.kwargs))

    def run(self, model: nn.Module) -> Tensor:
        return value_of(model(*self.args, **self.kwargs))


def value_of(out: Any) -> Tensor:
    if isinstance(out, Tensor):
        return out
    return out.logits if "logits" in out else out.last_hidden_state


_GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 32, (2, 8), generator=_GENERATOR)
_IMAGES = torch.randn(2, 3, 16, 16, generator=_GENERATOR)
MODELS = {
    "char": Given(CharGPT, 1, "blocks", (IDS,), {}),
    "gpt2": Given(gpt2, 2, "transformer.h", (IDS,), {"use_cache": False}),
    "llama": Given(llama, 2, "model.layers", (IDS,), {"use_cache": False}),
    "vit": Given(vit, 2, "layers", (_IMAGES,), {}),
    "resnet": Given(lambda layers: ResNet((layers, 2)), 2, "layer1", (_IMAGES,), {}),
}


class Run:
    """A host in training, with its manager."""

    def __init__(self, given: Given, host: fxgraft.Host | None = None, **options: Any):
        self.given = given
        self.host = given.host() if host is None else host
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2, weight_decay=0.1)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer, check_every=0, **options)

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.given.run(self.host).square().mean().backward()
            self.optimizer.step()
            self.manager.step()

    def seen(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and the gradients of the parameters that are not a seed's."""
        self.host.zero_grad()
        out = self.given.run(self.host)
        out.square().mean().backward()
        named = dict(self.host.named_parameters())
        grads = {n: p.grad.clone() for n, p in named.items() if p.grad is not None and "_seeds" not in n}
        return out.detach().clone(), grads

    def deepened(self, **options: Any) -> list[fxgraft.Seed]:
        return self.manager.deepen(self.given.stack, **options)

    @property
    def blocks(self) -> tuple[str, ...]:
        return self.host.stacks[self.given.stack].blocks


def assert_kept(run: Run, before: tuple[Tensor, dict[str, Tensor]]) -> None:
    out, grads = run.seen()
    assert_same_bits(out, before[0], "the output")
    assert_same_bits(grads, before[1], "the gradients")
