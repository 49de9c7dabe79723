"""Models without data: traced and planned on the meta device, grown once they are materialised."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.errors import SlotError, TraceError
from fxgraft.util.bits import same_bits
from tests.hosts.hosts import Given, Tied
from tests.hosts.transformer_models import MODELS


def without_data(name: str) -> Given:
    with torch.device("meta"):
        return MODELS[name]()


def test_a_call_that_looks_at_values_says_so():
    empty = without_data("bert")
    with pytest.raises(TraceError, match="one without a padding mask, say"):
        fxgraft.trace(empty.model, empty.args, empty.kwargs)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit", "t5"])
def test_a_trace_without_data_is_the_trace_with_data(name):
    given, empty = MODELS[name](), without_data(name)
    given.kwargs.pop("attention_mask", None)  # whose values BERT looks at
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    # The example has data here, as a user's has: nothing of it is used.
    planned = fxgraft.trace(empty.model, given.args, given.kwargs)
    assert planned.opaque == host.opaque
    assert [(s.name, s.shape, s.dtype) for s in planned.slots.values()] == [
        (s.name, s.shape, s.dtype) for s in host.slots.values()
    ]
    assert {n: r.code for n, r in planned.regions.items()} == {n: r.code for n, r in host.regions.items()}


SEVEN_BILLION = """
import resource, torch, transformers, fxgraft
config = transformers.LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
with torch.device("meta"):
    model = transformers.LlamaForCausalLM(config)
host = fxgraft.trace(model, (), {"input_ids": torch.zeros(2, 16, dtype=torch.long)})
assert sum(p.numel() for p in host.parameters()) > 6.7e9
assert len([name for name in host.slots if name.endswith("mlp.down_proj")]) == 32
plan = fxgraft.SeedManager(host).plan("model.layers.31.mlp.down_proj", "low_rank", rank=8)
assert plan.shape == (2, 16, 4096) and plan.parameter_count == 2 * 8 * 4096
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_seven_billion_parameters_are_planned_in_under_two_gib():
    run = subprocess.run([sys.executable, "-c", SEVEN_BILLION], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 2 * 2**20  # in KiB


def test_a_host_without_data_refuses_a_seed_and_says_what_to_do():
    empty = without_data("gpt2")
    host = fxgraft.trace(empty.model, empty.args, empty.kwargs)
    manager = fxgraft.SeedManager(host)
    with pytest.raises(
        SlotError, match=r"meta device.*host\.to_empty\(device=\.\.\.\) and host\.load_state_dict"
    ):
        manager.germinate("lm_head", "low_rank")
    assert not manager.seeds


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_materialised_host_is_the_model_and_grows(name):
    given = MODELS[name]()
    empty = without_data(name)
    for each in (given, empty):
        each.kwargs.pop("attention_mask", None)
    host = fxgraft.trace(empty.model, empty.args, empty.kwargs)
    host.to_empty(device="cpu")
    for (_, ours), (_, theirs) in zip(host.named_buffers(), given.model.named_buffers(), strict=True):
        ours.copy_(theirs)  # rotary frequencies are in no state_dict
    host.load_state_dict(given.model.state_dict())
    host.eval(), given.model.eval()
    assert [n for n, _ in host.named_parameters()] == [n for n, _ in given.model.named_parameters()]

    def ran(module):
        out = module(*given.args, **given.kwargs)
        loss = out.loss
        return out.logits, torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad])

    expected = ran(given.model)
    assert same_bits(ran(host), expected)
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    slot = next(slot for slot in reversed(list(host.slots)) if host.slots[slot].shape[-1:] == (16,))
    seed = manager.germinate(slot, "low_rank")
    for parameter in seed.module.parameters():
        nn.init.normal_(parameter)
    out, grads = ran(host)
    assert same_bits((out, grads[: len(expected[1])]), expected)
    manager.blend(seed, steps=1)
    manager.step()
    assert not same_bits(host(*given.args, **given.kwargs).logits, expected[0])
    manager.cull(seed)
    assert same_bits(ran(host), expected)


def test_tied_weights_stay_tied_when_they_are_materialised():
    with torch.device("meta"):
        model = Tied()
    host = fxgraft.trace(model, (torch.randn(4, 8),))
    host.to_empty(device="cpu")
    assert host.fc1.weight is host.fc2.weight
    assert len(list(host.parameters())) == 3
    with torch.no_grad():
        host.fc1.weight.fill_(1.0)
    assert bool((host.fc2.weight == 1).all())
    assert model.fc1.weight.is_meta, "the model itself is left alone"
