"""Fine-tune a frozen GPT-2 with low-rank seeds, and with PEFT's LoRA, side by side.

    python examples/low_rank_and_peft.py [--quick]

The model has random weights (nothing is downloaded), is trained on one part of Python's documentation,
frozen, and adapted to another part: the same ranks and places, the same data and optimizer. Seeds learn
in isolation first, and each one can be measured and culled by itself.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Iterator
from pydoc_data.topics import topics

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import fxgraft

CONTEXT, BATCH, RANK = 48, 16, 4


def text(names: list[str]) -> Tensor:
    """Some topics of Python's documentation, as bytes."""
    return torch.tensor(list("".join(topics[name] for name in names).encode("ascii", "ignore")))


def windows(ids: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches of consecutive bytes, for ever."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(0, len(ids) - CONTEXT, (BATCH,), generator=draw)
        yield torch.stack([ids[s : s + CONTEXT] for s in starts.tolist()])


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """In nats for each byte."""
    found: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return found


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Iterator[Tensor], after: Callable[[], None]
) -> None:
    """The training loop, over all of ``data``."""
    for ids in data:
        optimizer.zero_grad()
        loss_of(model, ids).backward()
        optimizer.step()
        after()


@torch.no_grad()
def evaluate(model: nn.Module, ids: Tensor) -> float:
    """The mean loss of four batches."""
    model.eval()
    found = [float(loss_of(model, batch)) for batch in itertools.islice(windows(ids, 3), 4)]
    model.train()
    return sum(found) / len(found)


def with_seeds(base: nn.Module, ids: Tensor, held_out: Tensor, steps: int) -> tuple[float, int]:
    """Low-rank seeds around each ``c_attn``, from its input to its output: isolated, blended, measured."""
    host = fxgraft.trace(
        base,
        (),
        {
            "input_ids": ids[: 2 * CONTEXT].view(2, -1),
            "labels": ids[: 2 * CONTEXT].view(2, -1),
            "use_cache": False,
        },
    )
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], 1e-2)  # seeds join it; the host is frozen
    manager = fxgraft.SeedManager(host, optimizer)
    for slot in host.slots.select(["c_attn"]):
        manager.germinate(slot, "low_rank", source=slot.replace("attn.c_attn", "ln_1"), rank=RANK)
    data = windows(ids, 2)
    train(host, optimizer, itertools.islice(data, steps // 4), manager.step)
    for name in manager.seeds:
        manager.blend(name, steps=max(steps // 4, 1))
    train(host, optimizer, itertools.islice(data, steps - steps // 4), manager.step)
    for name in list(manager.seeds):
        if manager.measure(name, lambda: evaluate(host, held_out)) <= 0:
            manager.cull(name)
    return evaluate(host, held_out), sum(p.numel() for p in manager.seed_parameters())


def with_peft(base: nn.Module, ids: Tensor, held_out: Tensor, steps: int) -> tuple[float, int]:
    """LoRA at the same places."""
    model = get_peft_model(
        base, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    mine = [p for p in model.parameters() if p.requires_grad]
    train(model, torch.optim.AdamW(mine, 1e-2), itertools.islice(windows(ids, 2), steps), lambda: None)
    return evaluate(model, held_out), sum(p.numel() for p in mine)


def main() -> None:
    """Train the base, adapt it in two ways, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    steps = 8 if parser.parse_args().quick else 300
    torch.manual_seed(0)
    names = sorted(topics)
    general, special = text(names[: len(names) // 2]), text(names[len(names) // 2 :])
    held_out, special = special[: len(special) // 5], special[len(special) // 5 :]
    config = GPT2Config(
        vocab_size=128, n_positions=CONTEXT, n_embd=64, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
    )
    base = GPT2LMHeadModel(config)
    train(
        base,
        torch.optim.AdamW(base.parameters(), 3e-3),
        itertools.islice(windows(general, 1), steps),
        lambda: None,
    )
    base.requires_grad_(False)
    print(f"{'base':<16} {evaluate(base, held_out):.3f} nats per byte")
    for name, adapt in {"low-rank seeds": with_seeds, "PEFT LoRA": with_peft}.items():
        began = time.perf_counter()
        loss, size = adapt(copy.deepcopy(base), special, held_out, steps)
        print(f"{name:<16} {loss:.3f} nats per byte, {size} parameters, {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
