"""Branches between the modules of Hugging Face models, which run as one graph while the branch lives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.errors import SlotError
from fxgraft.util.bits import same_bits
from tests.hosts.hosts import assert_same, ran
from tests.hosts.transformer_models import MODELS

pytestmark = pytest.mark.usefixtures("quiet_transformers")

BRANCHES = {
    "gpt2": ("transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc"),
    "llama": ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"),
    "bert": ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.intermediate.dense"),
    "vit": ("vit.layers.0.attention.q_proj", "vit.layers.1.mlp.fc1"),
    "t5": ("encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.1.DenseReluDense.wi"),
    "distilbert": ("distilbert.embeddings.dropout", "distilbert.transformer.layer.0.ffn.lin1"),
    "clip": ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.0.mlp.fc1"),
}


def linear(slot: fxgraft.Slot) -> nn.Module:
    return nn.Linear(slot.input.shape[-1], slot.shape[-1])


def grown(name):
    given = MODELS[name]()
    if name in ("gpt2", "llama"):  # with a cache their attention has no graph
        given = given._replace(kwargs={**given.kwargs, "use_cache": False})
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    source, slot = BRANCHES[name]
    manager = fxgraft.SeedManager(host)
    return given, host, manager, manager.germinate(slot, linear, source=source)


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_is_not_felt_until_it_blends_nor_after_its_cull(name):
    given, host, manager, seed = grown(name)
    assert host.structure.merged
    buffers = {n: b.clone() for n, b in given.model.named_buffers()}
    for mode in (True, False):
        expected = ran(given.model, given, buffers, mode, given.model)
        assert_same(ran(host, given, buffers, mode, given.model), expected, f"TRAINING, {mode}")
    manager.blend(seed, steps=1)
    manager.step()
    assert not same_bits(ran(host, given, buffers, False, given.model)["out"], expected["out"])
    manager.cull(seed)
    assert_same(ran(host, given, buffers, False, given.model), expected, "CULLED")
    assert not any(region.fallbacks for region in host.regions.values())


def test_recorders_of_hidden_states_see_what_the_model_has():
    """The library hooks itself into modules for a call: it runs without the branch, and is counted."""
    given, host, _, _ = grown("bert")
    host.eval()
    given.model.eval()
    kwargs = {**given.kwargs, "output_hidden_states": True}
    expected, got = given.model(**kwargs), host(**kwargs)
    assert same_bits(got.hidden_states, expected.hidden_states)
    assert host.regions["bert.encoder"].fallbacks == 1


def test_blocks_that_code_without_a_graph_calls_cannot_be_joined():
    given = MODELS["gpt2"]()
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    with pytest.raises(SlotError, match=r"'transformer\.h\.0' is called by code that has no graph"):
        host.site("transformer.h.1.mlp.c_fc", "transformer.h.0.mlp.c_fc")
    assert torch.is_tensor(host(*given.args, **given.kwargs).loss)
