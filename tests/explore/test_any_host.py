"""Whatever the model is: all of it can be explored, and it trains on, to the bit, as without that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxgraft
import tests.hosts.hard  # noqa: F401 - registers its hosts
from fxgraft import SeedManager
from tests.harness import THOROUGH, assert_same_bits, frozen
from tests.hosts.hosts import HOSTS, Given, ran
from tests.hosts.transformer_models import MODELS

STEPS = 3
CANDIDATES = 6
EVERY = {**HOSTS, **MODELS}
NOT_IN_FRONT = {"flex attention": "attention.qkv"}
"""FlexAttention has no backward pass on a CPU (torch ends the process), which a seed there would need."""
QUICK = [*list(HOSTS)[::6], "quantised host", "names of ours", "channels last", "gpt2", "vit"]
"""Each takes seconds: these stand for all in a short run."""


class Training:
    """A traced model in training, with an optimizer that has a memory."""

    def __init__(self, make: Callable[[], Given]):
        torch.manual_seed(0)
        self.given = make()
        self.host = fxgraft.trace(self.given.model, self.given.args, self.given.kwargs)
        parameters = list(self.host.parameters()) or [nn.Parameter(torch.zeros(1))]
        self.optimizer = torch.optim.SGD(parameters, 1e-3, momentum=0.9)
        self.manager = SeedManager(self.host, self.optimizer, check_every=0)

    def buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self.given.model.named_buffers()}

    def step(self) -> list[Any]:
        """One step; all that the model computes in it, and what it has become."""
        seen = ran(self.host, self.given, self.buffers(), True, self.given.model)
        self.optimizer.step()
        self.manager.step()
        return [seen, frozen(dict(self.given.model.named_parameters()))]

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """A loss of everything that the model returns."""
        out = self.host.eval()(*copy.deepcopy(self.given.args), **copy.deepcopy(self.given.kwargs))
        leaves = [x for x in pytree.tree_leaves(out) if isinstance(x, Tensor) and x.is_floating_point()]
        return sum((leaf.double().square().mean() for leaf in leaves), torch.zeros((), dtype=torch.double))


@pytest.mark.parametrize("name", EVERY if THOROUGH else dict.fromkeys(QUICK))
def test_all_of_any_host_is_explored_and_it_does_not_feel_it(name: str) -> None:
    transformers.logging.set_verbosity_error()
    plain, explored = Training(EVERY[name]), Training(EVERY[name])
    if not explored.host.slots:
        with pytest.raises(fxgraft.errors.SlotError, match="no slots"):
            explored.manager.explore(evaluate=explored.evaluate)
        return
    most, left_out = {"candidates": CANDIDATES}, NOT_IN_FRONT.get(name)
    choice = "auto" if left_out is None else [slot for slot in explored.host.slots if slot != left_out]
    exploration = explored.manager.explore(choice, evaluate=explored.evaluate, steps=STEPS - 1, cap=most)
    for step in range(STEPS):
        assert_same_bits(explored.step(), plain.step(), f"step {step} of the host's")
    assert exploration.done
    assert all(row.status in ("measured", "left out", "failed") for row in exploration.table), exploration
    assert all(row.reason for row in exploration.table if row.status != "measured"), exploration
