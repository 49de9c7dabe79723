"""Grow a character-level GPT on the documentation that ships with Python.

    python examples/char_gpt.py [--quick]

Where the loss is flat, MLPs, attention and low-rank seeds are tried at the same time; those that measurably
help on held-out text stay. Everything is written to runs/char_gpt/.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.commands import SEED
from fxgraft.telemetry import JsonLines
from fxgraft.training import Trainer, TrainingConfig

CONTEXT, WIDTH, LAYERS, BATCH = 64, 32, 2, 32
FOLDER = Path("runs/char_gpt")


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class CharGPT(nn.Module):
    """Predicts the next character."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.head(self.norm(self.blocks(self.tokens(ids) + self.places(places))))


def text() -> tuple[Tensor, Tensor, int]:
    """Training and held-out text as character ids, and how many characters there are."""
    words = "".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(words))
    known = {character: i for i, character in enumerate(alphabet)}
    ids = torch.tensor([known[character] for character in words])
    return ids[: -len(ids) // 10], ids[-len(ids) // 10 :], len(alphabet)


def windows(ids: Tensor, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (characters, the characters after them)."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        starts = torch.randint(0, len(ids) - CONTEXT - 1, (BATCH,), generator=draw)
        rows = torch.stack([ids[s : s + CONTEXT + 1] for s in starts.tolist()])
        yield rows[:, :-1], rows[:, 1:]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """In nats for each character."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def places() -> list[SEED]:
    """What may be grown: in each block an MLP and attention behind it, a low-rank update in its attention."""
    found = []
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        found += [
            SEED(slot=block, blueprint="mlp", config={"hidden": 4 * WIDTH}),
            SEED(slot=block, blueprint="attention", config={"heads": 4}),
            SEED(slot=f"{block}.qkv", blueprint="low_rank", config={"rank": 8}),
        ]
    return found


def train(grow: bool, epochs: int, steps: int) -> Trainer:
    """One run, of ``epochs`` times ``steps`` steps."""
    torch.manual_seed(0)
    training, held_out, characters = text()
    host = fxgraft.trace(CharGPT(characters), (torch.zeros(2, CONTEXT, dtype=torch.long),))
    unit = max(steps // 2, 2)
    terms = {"candidates": places(), "budget": 4.0, "flat": 0.2, "window": unit, "steps": unit, "blend": unit}
    trainer = Trainer(
        host,
        torch.optim.AdamW(host.parameters(), 3e-3),
        cross_entropy,
        TrainingConfig(epochs=epochs),
        validation=lambda: windows(held_out, 4, seed=7),
        grow={**terms, "hold": unit // 2} if grow else None,
        sinks=[JsonLines(FOLDER / "events.jsonl")] if grow else [],
        metrics_every=10,
    )
    for report in trainer.fit(lambda epoch: windows(training, steps, seed=100 + epoch)):
        bits = (report.validation or math.nan) / math.log(2)
        print(f"  epoch {report.epoch:2}: {bits:.3f} bits per character")
    if grow:
        print(trainer.growth)
    return trainer


def main() -> None:
    """Train once without growing and once with, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    epochs, steps = (8, 4) if parser.parse_args().quick else (12, 100)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.jsonl"):
        old.unlink()
    for grow in (False, True):
        print("grown while it trains" if grow else "not grown")
        trainer = train(grow, epochs, steps)
        size = sum(parameter.numel() for parameter in trainer.manager.host.parameters())
        print(f"  {trainer.validate() / math.log(2):.3f} bits per character, {size} parameters")
    print(f"for a page of the grown run: fxgraft report {FOLDER}")


if __name__ == "__main__":
    main()
