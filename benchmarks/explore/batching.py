"""What candidates of one form would save as one batched module.

    python -m benchmarks.explore.batching

Sixteen ``low_rank`` branches read one value, and train: one after the other, as `explore` runs them; as one
module by ``torch.func.stack_module_state`` and ``torch.vmap``; and as two ``einsum`` by hand. Nothing of
fxgraft is in it, so the difference is the most that batching could take from a step. Against the step of the
GPT that `benchmarks.explore.steps` puts them beside. Writes ``benchmarks/results/batching.json``.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from benchmarks.environment import describe
from benchmarks.explore.networks import text_batch
from benchmarks.explore.steps import BATCH, LENGTH, training
from benchmarks.timing import processor_ms
from fxgraft.util.interleaved_timing import Step

RESULTS = Path(__file__).parents[1] / "results" / "batching.json"
MANY, RANK, TURNS = 16, 4, 25


def _arms(size: int) -> dict[str, Step]:
    torch.manual_seed(0)
    x, gradient = torch.randn(BATCH, LENGTH, size), torch.randn(BATCH, LENGTH, size)
    modules = [_branch(size) for _ in range(MANY)]
    stacked, _ = stack_module_state(modules)  # type: ignore[arg-type]
    batched = {name: nn.Parameter(value.detach()) for name, value in stacked.items()}
    shell = copy.deepcopy(modules[0]).to("meta")
    single = torch.optim.AdamW([p for module in modules for p in module.parameters()])
    together = torch.optim.AdamW(batched.values())

    def one_by_one() -> None:
        single.zero_grad()
        for module in modules:
            module(x).backward(gradient)
        single.step()

    def learn(out: Tensor) -> None:
        together.zero_grad()
        out.backward(gradient.expand_as(out))  # type: ignore[no-untyped-call]
        together.step()

    def mapped() -> None:
        learn(torch.vmap(lambda own: functional_call(shell, own, (x,)))(batched))

    def by_hand() -> None:
        inner = torch.einsum("bti,kri->kbtr", x, batched["0.weight"])
        learn(torch.einsum("kbtr,kor->kbto", inner, batched["1.weight"]))

    return {"one by one": one_by_one, "vmap": mapped, "einsum": by_hand}


def _branch(size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, RANK, bias=False), nn.Linear(RANK, size, bias=False))


def measure(size: int) -> dict[str, Any]:
    """CPU milliseconds of each arm and of the bare step, and the most that a step could be shorter."""
    x, y = text_batch(torch.Generator().manual_seed(0), BATCH, length=LENGTH)
    medians = processor_ms({"bare step": training(size, [], x, y), **_arms(size)}, TURNS, 3)
    saved = {arm: medians["one by one"] - medians[arm] for arm in ("vmap", "einsum")}
    return {
        "d_model": size,
        "ms": medians,
        "saved_of_a_bare_step": {arm: found / medians["bare step"] for arm, found in saved.items()},
    }


def main() -> None:
    torch.set_num_threads(1)
    found = [measure(size) for size in (64, 128)]
    data = {"command": "python -m benchmarks.explore.batching", "environment": describe(), "sizes": found}
    RESULTS.write_text(json.dumps(data, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
