"""The network: a GPT for characters, of any number of blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxgraft.demo._text import CHARACTERS, CONTEXT, VOCABULARY

WIDTH, HEADS = 32, 4


class GPTBlock(nn.Module):
    """Causal attention and an MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) to the same."""
        n, t, width = x.shape
        split = self.qkv(self.norm1(x)).view(n, t, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, width))
        hidden: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + hidden


class GPT(nn.Module):
    """(N, T) codes to (N, T, `VOCABULARY`) logits."""

    def __init__(self, blocks: int, width: int = WIDTH):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(CONTEXT, width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(GPTBlock(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, codes: Tensor) -> Tensor:
        """(N, T) int64 to (N, T, `VOCABULARY`)."""
        x = self.tokens(codes) + self.positions.weight[: codes.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def criterion(logits: Tensor, following: Tensor) -> Tensor:
    """The mean cross-entropy, nats for each character."""
    return F.cross_entropy(logits.flatten(0, 1), following.flatten())


@torch.no_grad()
def sample(model: nn.Module, start: str, characters: int, random_seed: int = 0) -> str:
    """``start``, and ``characters`` more that the model draws one by one."""
    generator = torch.Generator().manual_seed(random_seed)
    codes = [CHARACTERS.index(character) for character in start]
    training = model.training
    model.eval()
    for _ in range(characters):
        # Always a full window, as in training: a traced model may have its length as a guard.
        window = ([0] * CONTEXT + codes)[-CONTEXT:]
        chances = model(torch.tensor([window]))[0, -1, :-1].div(0.8).softmax(0)
        codes.append(int(torch.multinomial(chances, 1, generator=generator)))
    model.train(training)
    return "".join(CHARACTERS[code] for code in codes)
